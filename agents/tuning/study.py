"""The Optuna study behind a search: its storage, its draws, and the trials of processes that died.

It is a plain study: optuna-dashboard and Optuna's own commands work on it.
"""

from __future__ import annotations

import os
import pathlib
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from helm_gym.errors import InvalidInputError

PLAN, REFERENCE = "plan", "reference"  # attributes of a study
OWNER, SEEN, RANK, ERROR = "owner", "seen", "rank", "error"  # attributes of a trial
_JOURNAL = (".journal", ".log")
_SILENT_S = 900.0  # after which a process on another machine counts as dead
_SIGN_EVERY_S = 30.0
_INITIALISE_S = 10.0  # that the process which made the study has to describe it
_SAME_COST = 1e-4  # relative; machines differ in the last digits
_OVER = (TrialState.COMPLETE, TrialState.PRUNED)
_COUNTED = (*_OVER, TrialState.RUNNING)


def open_storage(url: str) -> BaseStorage:
    """A database by its URL (``sqlite:///tune.db``, ``postgresql://...``), or a journal file by its path.

    Raises:
        InvalidInputError: it cannot be opened, or a library is missing.
    """
    import sqlalchemy.exc

    try:
        if "://" not in url and pathlib.Path(url).suffix in _JOURNAL:
            pathlib.Path(url).parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(url))
        if url.startswith("sqlite:///"):
            pathlib.Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            # Several processes write: one waits for the other's transaction rather than fail.
            return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        return RDBStorage(url)
    except ImportError as error:
        raise InvalidInputError(
            f"--storage {hide_password(url)} needs a library that is missing ({error}); for PostgreSQL install "
            "helm-gym[postgres]."
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InvalidInputError(
            f"--storage {hide_password(url)} cannot be opened ({reason}); give a URL such as sqlite:///tune.db, or a "
            "file that ends in .journal."
        ) from error


def hide_password(url: str) -> str:
    """The URL as it may be shown and kept."""
    import sqlalchemy

    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


def open_study(url: str, name: str, plan: Mapping[str, Any], first: Mapping[str, Any], seed: int) -> Study:
    """The study of that name, made if it is not there.

    Args:
        plan: what is searched and how, as JSON has it; a study of another plan is not gone on with.
        first: the settings that the first trial tries: the search is not to end worse than it began.
        seed: of the draws.

    Raises:
        InvalidInputError: no storage, or a study of another plan.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # Trials are compared seed by seed with the best one, which asks for few seeds: they are paired.
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    use: dict[str, Any] = {"storage": storage, "sampler": _Repeatable(seed), "pruner": pruner, "study_name": name}
    try:
        study, made = optuna.create_study(**use), True
    except DuplicatedStudyError:
        study, made = optuna.load_study(**use), False
    deadline = time.monotonic() + (0.0 if made else _INITIALISE_S)
    while PLAN not in study.user_attrs:
        if time.monotonic() >= deadline:
            if made or not study.trials:  # its maker died at once, or it is ours
                _enqueue(study, dict(first))
            study.set_user_attr(PLAN, dict(plan))
        else:
            time.sleep(0.1)
    _check_plan(study, plan)
    return study


def _check_plan(study: Study, plan: Mapping[str, Any]) -> None:
    there = study.user_attrs[PLAN]
    differs = [
        f"{key} {there.get(key)} there and {plan.get(key)} here"
        for key in dict.fromkeys([*there, *plan])
        if there.get(key) != plan.get(key)
    ]
    if differs:
        raise InvalidInputError(
            f"Study '{study.study_name}' is another search: {', '.join(differs)}; give another --study."
        )


def check_reference(study: Study, cost: float) -> None:
    """Raises InvalidInputError if the reference cost something else when the study began.

    Then its trials do not compare with those to come: the workload, a backend or the cost has changed.
    """
    began = study.user_attrs.get(REFERENCE)
    if began is None:
        study.set_user_attr(REFERENCE, cost)
    elif abs(cost - began) > _SAME_COST * abs(began):
        raise InvalidInputError(
            f"Study '{study.study_name}' began when its reference cost {began:.6g} and not {cost:.6g}: workload, "
            "backend or cost have changed since; give another --study."
        )


def over(study: Study) -> list[FrozenTrial]:
    """Trials that count and have come to their end, complete or pruned."""
    return study.get_trials(deepcopy=False, states=_OVER)


def take(study: Study, wanted: int) -> Trial | None:
    """The next trial, this process's own; None while all that are wanted are over or under way.

    However many processes take trials of a study, exactly ``wanted`` come to an end: what one asks for beyond is
    failed at once, and failed ones do not count.
    """
    retry_abandoned(study)
    if len(study.get_trials(deepcopy=False, states=_COUNTED)) >= wanted:
        return None
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        _enqueue(study, {})  # so that it has an owner from the first moment: a kill may come before the next line
    trial = study.ask()
    trial.set_user_attr(OWNER, _identity(os.getpid()))
    trial.set_user_attr(SEEN, time.time())
    if RANK not in trial.user_attrs:
        trial.set_user_attr(RANK, _rank(study, trial.number))
    if _rank(study, trial.number) >= wanted:
        finish(study, trial, state=TrialState.FAIL)
        return None
    return trial


def give_sign(trial: Trial) -> None:
    """Says now and then that the trial's process is alive: on other machines that cannot be seen."""
    if time.time() - trial.user_attrs[SEEN] > _SIGN_EVERY_S:
        trial.set_user_attr(SEEN, time.time())


def finish(study: Study, trial: Trial, value: float | None = None, state: TrialState | None = None) -> None:
    """Ends a trial, unless another process took this one for dead: then its result is the retry's."""
    try:
        study.tell(trial, value, state)
    except (ValueError, UpdateFinishedTrialError):
        if study.trials[trial.number].state is not TrialState.FAIL:
            raise


def retry_abandoned(study: Study) -> None:
    """Gives back the trials whose process died."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_abandoned(trial):
            give_back(study, trial.number)


def give_back(study: Study, number: int) -> None:
    """Fails a running trial and has another take its rank; nothing if another process has done so.

    It draws what this one drew, unless other trials have ended since.
    """
    try:
        study.tell(number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):
        return
    trial = study.trials[number]
    rank = trial.user_attrs.get(RANK, _rank(study, number))
    _enqueue(study, trial.system_attrs.get("fixed_params", {}), {"retry_of": number, RANK: rank})


def _enqueue(study: Study, tried: dict[str, Any], attributes: Mapping[str, Any] | None = None) -> None:
    """Puts a trial into the queue, this process's until another takes it."""
    study.enqueue_trial(tried, user_attrs={OWNER: _identity(os.getpid()), SEEN: time.time(), **(attributes or {})})


def _is_abandoned(trial: FrozenTrial) -> bool:
    owner = trial.user_attrs.get(OWNER)
    if owner is None:  # put there by hand, and its taker died before it could say so
        return True
    here = _identity(owner["pid"])
    if owner["machine"] == here["machine"]:
        return bool(owner["born"] != here["born"])
    return bool(time.time() - trial.user_attrs.get(SEEN, 0.0) > _SILENT_S)


def _identity(pid: int) -> dict[str, Any]:
    """A process of this machine: numbers are given out again, but not with the same time of birth."""
    try:
        # The 22nd field; the second is a name in brackets that may hold anything.
        born = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        born = ""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        boot = ""
    return {"machine": f"{socket.gethostname()} {boot}".strip(), "pid": pid, "born": born}


def _rank(study: Study, number: int) -> int:
    """How many trials that count come before trial ``number``."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.number < number and trial.state is not TrialState.FAIL for trial in trials)


class _Repeatable(BaseSampler):
    """TPE whose draws for a trial depend on the seed, the trial's rank and what was tried before, and nothing else.

    So a search that was killed and gone on with tries what an unbroken one would have (with one process).
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._tpe = TPESampler(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        rank = trial.user_attrs.get(RANK, _rank(study, trial.number))
        self._tpe = TPESampler(seed=int(np.random.SeedSequence([self._seed, rank]).generate_state(1)[0]))
        self._tpe.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._tpe.after_trial(study, trial, state, values)
