"""The Optuna study behind a search: its draws, and the trials of processes that died.

It is a plain study: optuna-dashboard and Optuna's own commands work on it.
"""

from __future__ import annotations

import datetime
import itertools
import os
import pathlib
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from agents.tuning.storage import open_storage
from helm_gym.errors import InvalidInputError

PLAN, FIRST, REFERENCE = "plan", "first", "reference"  # attributes of a study
OWNER, SEEN, RANK, ERROR = "owner", "seen", "rank", "error"  # attributes of a trial
_FIXED = "fixed_params"  # Optuna's own attribute of a trial that was put into the queue
_SILENT_S = 900.0  # after which a process on another machine counts as dead
_SIGN_EVERY_S = 30.0
_TAKE_S = 20.0  # that a process has from taking a trial to saying that it has it
_INITIALISE_S = 10.0  # that the process which made the study has to describe it
_SAME_COST = 1e-4  # relative; machines differ in the last digits
_OVER = (TrialState.COMPLETE, TrialState.PRUNED)
_COUNTED = (*_OVER, TrialState.RUNNING)


def open_study(
    place: str,
    name: str,
    plan: Mapping[str, Any],
    first: Mapping[str, Any],
    seed: int,
    waiting: Callable[[], None] | None = None,
) -> Study:
    """The study of that name, made if it is not there.

    Args:
        place: of its storage (storage.py).
        plan: what is searched and how, as JSON has it; a study of another plan is not gone on with.
        first: the settings that the first trial tries: the search is not to end worse than it began.
        seed: of the draws.
        waiting: called now and then while another process, which has just made the study, describes it.

    Raises:
        InvalidInputError: no storage, or a study of another plan.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # Trials are compared seed by seed with the best one, which asks for few seeds: they are paired.
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    use: dict[str, Any] = {"storage": storage, "sampler": _Repeatable(seed), "pruner": pruner, "study_name": name}
    try:
        study, made = optuna.create_study(**use), True
    except DuplicatedStudyError:
        study, made = optuna.load_study(**use), False
    deadline = time.monotonic() + _INITIALISE_S
    while not made and PLAN not in study.user_attrs and time.monotonic() < deadline:
        if waiting is not None:
            waiting()
        time.sleep(0.1)
    if PLAN not in study.user_attrs:  # it is ours, or its maker died at once
        study.set_user_attr(FIRST, dict(first))
        study.set_user_attr(PLAN, dict(plan))
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

    A trial is put into the queue with its rank before it is taken from there. Processes that do so at once may choose
    the same rank: then the trial that was queued first has it. So, however many processes take trials of a study,
    exactly ``wanted`` come to an end, each of another rank; what is one too many is failed, and does not count.
    """
    retry_abandoned(study)
    trials = study.get_trials(deepcopy=False)
    if sum(trial.state in _COUNTED for trial in trials) >= wanted:
        return None
    waiting, rank = [trial for trial in trials if trial.state is TrialState.WAITING], _free_rank(trials)
    if rank < wanted and not any(_is_for_us(trial) for trial in waiting):
        _enqueue(study, {} if rank else study.user_attrs.get(FIRST, {}), {RANK: rank})
    try:
        trial = study.ask()
        trial.set_user_attr(OWNER, _identity(os.getpid()))
        trial.set_user_attr(SEEN, time.time())
        trials = study.get_trials(deepcopy=False)
        if RANK not in trial.user_attrs and _FIXED in trials[trial.number].system_attrs:  # put there by hand
            trial.set_user_attr(RANK, _free_rank(trials))
        if not _has_its_rank(study, trial, wanted):
            finish(study, trial, state=TrialState.FAIL)
            return None
    except UpdateFinishedTrialError:  # another process took it for one whose taker had died
        return None
    return trial


def _is_for_us(trial: FrozenTrial) -> bool:
    """Whether a trial in the queue is not there for another process, which is about to take it."""
    return trial.user_attrs.get(OWNER) == _identity(os.getpid()) or _is_abandoned(trial)


def _free_rank(trials: Sequence[FrozenTrial]) -> int:
    """The least rank that no trial has, but for those that failed."""
    held = {trial.user_attrs.get(RANK) for trial in trials if trial.state is not TrialState.FAIL}
    return next(rank for rank in itertools.count() if rank not in held)


def _has_its_rank(study: Study, trial: Trial, wanted: int) -> bool:
    """Whether a trial has a rank that is wanted and that none before it has; found no queue, it has no rank."""
    rank = trial.user_attrs.get(RANK, wanted)
    before = study.get_trials(deepcopy=False)[: trial.number]
    same = (other for other in before if other.user_attrs.get(RANK) == rank and other.state is not TrialState.FAIL)
    return rank < wanted and not any(same)


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

    It draws what this one drew, unless other trials have ended since. Should this process die in between, the rank is
    free, and the next trial has it.
    """
    try:
        study.tell(number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):
        return
    trial = study.trials[number]
    if RANK in trial.user_attrs:
        tried = trial.system_attrs.get(_FIXED, {})
        _enqueue(study, tried, {"retry_of": number, RANK: trial.user_attrs[RANK]})


def _enqueue(study: Study, tried: dict[str, Any], attributes: Mapping[str, Any] | None = None) -> None:
    """Puts a trial into the queue, this process's until another takes it."""
    study.enqueue_trial(tried, user_attrs={OWNER: _identity(os.getpid()), SEEN: time.time(), **(attributes or {})})


def _is_abandoned(trial: FrozenTrial) -> bool:
    owner, silent_s = trial.user_attrs.get(OWNER), time.time() - trial.user_attrs.get(SEEN, 0.0)
    if owner is None and trial.datetime_start is not None:  # no process's, or its taker is about to say so
        return (datetime.datetime.now() - trial.datetime_start).total_seconds() > _TAKE_S
    if owner is None:
        return True
    here = _identity(owner["pid"])
    if owner == here and owner["pid"] == os.getpid():  # put there by this process, which is at none, for another
        return silent_s > _TAKE_S
    if owner["machine"] == here["machine"]:
        return bool(owner["born"] != here["born"])
    return bool(silent_s > _SILENT_S)


def _identity(pid: int) -> dict[str, Any]:
    """A process of this machine: numbers are given out again, but not with the same time of birth."""
    try:
        # The 22nd field; the second is a name in brackets that may hold anything.
        born = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        born = ""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        space = os.readlink("/proc/self/ns/pid")  # containers of one machine number their processes alike
    except OSError:
        boot = space = ""
    return {"machine": f"{socket.gethostname()} {boot} {space}".strip(), "pid": pid, "born": born}


class _Repeatable(BaseSampler):
    """TPE whose draws for a trial depend on the seed, the trial's rank and what was tried before, and nothing else.

    So a search that was killed and gone on with tries what an unbroken one would have (with one process).
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._tpe = TPESampler(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        rank = trial.user_attrs.get(RANK, trial.number)
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
