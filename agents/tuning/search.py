"""A search from its first trial to the run folder of its best: trials, workers, and the best few on fresh seeds."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pathlib
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import BaseTrial, Trial, TrialState

from agents.tuning import storage as storages
from agents.tuning import study as studies
from agents.tuning.objective import BACKENDS, Objective, blocks, reference_name
from helm_gym.errors import HelmError, InvalidInputError, UnknownNameError
from helm_gym.observation import ObservationLayout
from helm_gym.policies.from_run import open_run
from helm_gym.policy import Policy
from helm_gym.profile import Profile
from helm_gym.tasks import Task
from helm_gym.text import sentence
from helm_gym.training import trainable
from helm_gym.training.search_space import Searchable
from helm_gym.training.trainable import Trainable

Progress = Callable[[str, int, int], None]  # what is under way, how much is done, of how much

TRIAL_SEEDS, FRESH_SEEDS = 1000, 5000  # the first of each; tasks publish 0 to 31
TRIALS = "trials"  # folder of the trainings of an agent that is trained
_LOOK_EVERY_S = 0.5
_GRACE_S = 10.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is searched, and how.

    Attributes:
        agent: a name of ``training.TRAINABLE`` whose settings declare a ``space``.
        backend: that trials are served by, ``modelled`` or ``surrogate``, which takes a tenth of the time.
        judge: that the best are tried again on.
        storage: a database's URL, or a journal file; SQLite in ``out`` where empty.
        study: the study's name in it.
        trials: that count, pruned ones among them: the budget.
        seeds: episodes of a trial that is not pruned; the same in every trial.
        fresh: episodes that the best are tried again on.
        top: how many of the best are tried again.
        fixed: settings that are not searched, by name, as texts.
        steps: of each training, of an agent that is trained; its own number where None.
        seed: of the search's draws, and of trainings.
        out: folder of what comes out.
    """

    agent: str
    task: Task
    profile: Profile
    storage: str
    study: str
    out: pathlib.Path
    backend: str = "modelled"
    judge: str = "modelled"
    trials: int = 100
    seeds: int = 24
    fresh: int = 32
    top: int = 3
    fixed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    steps: int | None = None
    seed: int = 0

    @property
    def place(self) -> str:
        """Of the storage, with no path that depends on the folder that a process runs in."""
        return storages.locate(self.storage) if self.storage else storages.beside(self.out)

    @property
    def trial_seeds(self) -> range:
        return range(TRIAL_SEEDS, TRIAL_SEEDS + self.seeds)

    @property
    def fresh_seeds(self) -> range:
        return range(FRESH_SEEDS, FRESH_SEEDS + self.fresh)

    def describe(self) -> dict[str, Any]:
        """What makes one study another, as JSON has it; more trials, and other fresh seeds, do not."""
        kept = {key: getattr(self, key) for key in ("agent", "backend", "seeds", "steps", "seed")}
        kept |= {"task": dataclasses.asdict(self.task), "profile": self.profile.fingerprint, "fixed": dict(self.fixed)}
        described: dict[str, Any] = json.loads(json.dumps(kept))
        return described


class Candidates:
    """Turns proposed values into settings, and settings into policies.

    Raises:
        UnknownNameError: no such agent or backend, or a fixed setting that it does not have.
        InvalidInputError: a search that cannot be.
    """

    def __init__(self, plan: Plan):
        for backend in (plan.backend, plan.judge):
            if backend.partition(":")[0] not in BACKENDS:
                raise UnknownNameError("backend of a search", backend, BACKENDS)
        if plan.task.regime == "trace":
            raise InvalidInputError(f"Task '{plan.task.name}' plays one recording, to be judged by; tune on another.")
        self.plan = plan
        self.agent: Trainable = trainable.find_trainable(plan.agent)
        self.layout = ObservationLayout(plan.profile)
        self.default = trainable.make_settings(self.agent, plan.fixed, "--set")
        if not isinstance(self.default, Searchable):
            raise InvalidInputError(
                f"The settings of '{plan.agent}' declare no search space; there is nothing to tune."
            )
        if plan.steps is not None and not self.agent.steps:
            raise InvalidInputError(f"'{plan.agent}' has nothing to train; leave --steps out.")

    def propose(self, trial: BaseTrial) -> Any:
        """The settings that a trial is to try."""
        held = {name: getattr(self.default, name) for name in self.plan.fixed}
        return dataclasses.replace(self.default, **self.default.space(_Holding(trial, held)))

    def make(
        self, settings: Any, name: str, seed: int, progress: Callable[[], None]
    ) -> tuple[Policy, pathlib.Path | None]:
        """The policy of these settings, trained first where there is something to train, and the training's folder."""
        if not self.agent.steps:
            return trainable.build(self.agent, self.layout, settings, {}, f"Trial {name}"), None
        plan, folder = self.plan, self.plan.out / TRIALS / name
        trainable.train(
            plan.agent,
            plan.task,
            plan.profile,
            folder,
            seed,
            plan.steps,
            dataclasses.asdict(settings),
            lambda done, total, words: progress(),
        )
        return open_run(folder, self.layout), folder


@dataclasses.dataclass(frozen=True)
class _Holding:
    """A trial that proposes no values for settings that are held."""

    trial: BaseTrial
    held: Mapping[str, Any]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self.held[name] if name in self.held else self.trial.suggest_float(name, low, high, log=log)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return self.held[name] if name in self.held else self.trial.suggest_int(name, low, high, log=log)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.held[name] if name in self.held else self.trial.suggest_categorical(name, choices)


def search(plan: Plan, workers: int = 1, progress: Progress | None = None) -> optuna.Study:
    """Runs trials until the study has as many as the plan wants; killed at any point, the same call goes on.

    Other processes may run the same search on the same storage: they share its trials.

    Args:
        workers: processes of this machine.
        progress: told of the trials that are over.

    Raises:
        HelmError: what ``Candidates`` raises; all workers died.
    """
    tick = progress or (lambda what, done, total: None)
    found = _open(plan, tick)
    if workers == 1:
        work(plan, tick)
        return found
    # Spawned: a forked child would inherit threads and the storage's connections in an unknown state.
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work_there, args=(plan, os.getpid()), daemon=True) for _ in range(workers)]
    try:
        # Ctrl-C is for this process, which ends the others: they are born with it masked. What multiprocessing starts
        # beside the first of them would unmask it again.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        for process in processes:
            process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while len(studies.over(found)) < plan.trials:
            _tell(found, plan, tick)
            if not any(process.is_alive() for process in processes) and len(studies.over(found)) < plan.trials:
                raise HelmError(
                    f"All {workers} workers died (exit codes {[p.exitcode for p in processes]}); what they said is "
                    "above. The same command goes on where they stopped."
                )
            time.sleep(_LOOK_EVERY_S)
        _tell(found, plan, tick)
        for process in processes:
            process.join(_GRACE_S)  # they see the same
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return found


def work(plan: Plan, progress: Progress, parent: int | None = None) -> None:
    """Runs trials of the plan's study until it has all that it wants.

    Args:
        parent: the process without which there is no use in going on.

    Raises:
        HelmError: the first trial failed, a storage or a disk did, or another search is in the study.
    """
    candidates, found = Candidates(plan), _open(plan, progress)
    objective = Objective(plan.task, plan.profile, plan.backend)
    try:
        studies.check_reference(found, float(objective.reference_costs(next(blocks(plan.trial_seeds))).mean()))
        while len(studies.over(found)) < plan.trials:
            _tell(found, plan, progress)
            _end_with(parent)
            trial = studies.take(found, plan.trials)
            if trial is None:  # the last ones are other processes': one of those may die
                _tell(found, plan, progress, ", the last of them with other processes")
                time.sleep(_LOOK_EVERY_S)
                continue
            try:
                _run(trial, found, candidates, objective, parent)
            except UpdateFinishedTrialError:
                continue  # this process was silent for so long that another took it for dead: the retry counts
            except BaseException as error:
                # A training may diverge, and others still be good; if the first fails, something else is wrong.
                if not _is_of_settings(error) or not studies.over(found):
                    studies.give_back(found, trial.number)
                    raise
                trial.set_user_attr(studies.ERROR, str(error))
                studies.finish(found, trial, state=TrialState.PRUNED)
        _tell(found, plan, progress)
    finally:
        objective.close()


def _is_of_settings(error: BaseException) -> bool:
    """Whether a trial failed for what it tried, and not for a storage or a disk that fails, or for want of time."""
    own = isinstance(error, HelmError) and not isinstance(error, storages.StorageError)
    return own and not isinstance(error.__cause__, OSError)


def _end_with(parent: int | None) -> None:
    """Ends this process if it is a worker whose parent was killed: nobody waits for what it does."""
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def _work_there(plan: Plan, parent: int) -> None:
    try:
        with storages.naming(plan.place):
            work(plan, lambda what, done, total: None, parent)
    except HelmError as error:
        raise SystemExit(f"Error: {sentence(error)}") from error


def _open(plan: Plan, progress: Progress) -> optuna.Study:
    first = dataclasses.asdict(Candidates(plan).default)

    def waiting() -> None:
        progress(f"waiting for the process that made study '{plan.study}'", 0, plan.trials)

    return studies.open_study(plan.place, plan.study, plan.describe(), first, plan.seed, waiting)


def _run(trial: Trial, found: optuna.Study, candidates: Candidates, objective: Objective, parent: int | None) -> None:
    """One trial, block by block, as far as it promises to become the best."""
    plan = candidates.plan

    def alive() -> None:
        _end_with(parent)
        studies.give_sign(trial)

    settings = candidates.propose(trial)
    policy, _ = candidates.make(settings, str(trial.number), plan.seed, alive)
    total = 0.0
    for seeds in blocks(plan.trial_seeds):
        alive()
        costs = objective.relative_costs(policy, seeds)
        if not np.isfinite(costs).all():  # a trial without a value would be tried for ever
            raise HelmError(f"Trial {trial.number} has a cost that is not finite, with {settings}.")
        for seed, cost in zip(seeds, costs, strict=True):
            trial.report(float(cost), step=seed)
        total += float(costs.sum())
        if trial.should_prune() and seeds[-1] != plan.trial_seeds[-1]:
            return studies.finish(found, trial, state=TrialState.PRUNED)
    studies.finish(found, trial, total / plan.seeds)


def _tell(found: optuna.Study, plan: Plan, progress: Progress, more: str = "") -> None:
    ended = studies.over(found)
    values = [trial.value for trial in ended if trial.state is TrialState.COMPLETE and trial.value is not None]
    best = f", least cost {min(values):.4f} of {reference_name(plan.task)}'s" if values else ""
    progress(f"{len(ended)} of {plan.trials} trials{best}{more}", len(ended), plan.trials)
