"""Searches small enough for a test, and what runs them in processes that can be killed."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from agents.tuning import result, search, storage
from agents.tuning.search import Plan
from helm_gym import profile as profiles
from helm_gym.tasks import Task, find_task


def short_task() -> Task:
    return dataclasses.replace(find_task("burst-v0"), warmup=2, settle=1, horizon=4)


def make_plan(folder: pathlib.Path, **changes: Any) -> Plan:
    plan = Plan(
        agent="pid",
        task=short_task(),
        profile=profiles.load("cpu-small"),
        storage=f"sqlite:///{folder / 'study.db'}",
        study="x",
        out=folder,
        trials=8,
        seeds=2,
        fresh=2,
        top=2,
    )
    return dataclasses.replace(plan, **changes)


def tried(plan: Plan) -> list[dict[str, Any]]:
    """What the trials that count have tried, in the order in which they began."""
    return [trial.params for trial in trials_of(plan) if trial.state is not TrialState.FAIL]


def trials_of(plan: Plan) -> list[FrozenTrial]:
    return optuna.load_study(storage=storage.open_storage(plan.place), study_name=plan.study).trials


class Bowl:
    """An objective without episodes: least at kp .2, noise by seed that is the same for all policies."""

    pause_s = 0.0
    told: Connection | None = None
    reference = 2.0
    served: list[tuple[float, tuple[int, ...]]]  # kp and seeds of each block

    def __init__(self, *_: Any):
        self.served = []

    def relative_costs(self, policy: Any, seeds: Sequence[int]) -> NDArray[np.float64]:
        if self.told is not None:
            self.told.send("begun")
            Bowl.told = None
        time.sleep(self.pause_s)
        self.served.append((policy.settings.kp, tuple(seeds)))
        noise = np.array([np.random.default_rng(seed).normal(0.0, 0.01) for seed in seeds])
        return 1.0 + (policy.settings.kp - 0.2) ** 2 + noise

    def reference_costs(self, seeds: Sequence[int]) -> NDArray[np.float64]:
        return np.full(len(seeds), self.reference)

    def close(self) -> None:
        pass


def tune_bowl_and_tell(plan: Plan, told: Connection, pause_s: float) -> None:
    """Searches in this process with a bowl for an objective; says when the first trial is under way, and the end."""
    Bowl.pause_s, Bowl.told = pause_s, told
    search.Objective = result.Objective = Bowl  # type: ignore[assignment, misc, attr-defined]
    search.search(plan)
    told.send("through")


def search_bowl_with(plan: Plan, others: Barrier, told: SimpleQueue[Any]) -> None:
    """Searches in this process at the same moment as others; says which trials it ran to their end, or what failed."""
    Bowl.pause_s = 0.02
    search.Objective = result.Objective = Bowl  # type: ignore[assignment, misc, attr-defined]
    ran: list[int] = []
    run = search._run

    def counted(trial: optuna.Trial, *rest: Any) -> None:
        run(trial, *rest)
        ran.append(trial.number)

    search._run = counted
    try:
        others.wait(60)
        search.search(plan)
    except BaseException as error:
        told.put(repr(error))
        raise
    told.put(ran)
