"""Trainings small enough for a test, and what runs them in processes that can be killed."""

from __future__ import annotations

import dataclasses
import pathlib
from multiprocessing.connection import Connection
from typing import Any

from helm_gym import profile as profiles
from helm_gym import training
from helm_gym.runs import Run
from helm_gym.tasks import Task, find_task

# Eight rounds of four lanes and sixteen intervals, validated and saved between rounds.
STEPS = 8 * 4 * 16
SMALL = {"lanes": 4, "episode": 16, "n_steps": 8, "batch_size": 16, "n_epochs": 2, "hidden": 8, "windows": 2}


def short_task() -> Task:
    return dataclasses.replace(find_task("mixed-v0"), warmup=4, settle=4, horizon=16)


def train_small(
    folder: pathlib.Path, agent: str = "ppo", progress: training.Report | None = None, **overrides: Any
) -> Run:
    profile = profiles.load("cpu-small")
    return training.train(agent, short_task(), profile, folder, 0, STEPS, {**SMALL, **overrides}, progress)


def train_and_tell(folder: pathlib.Path, told: Connection) -> None:
    """Trains in this process; sends how many steps are done at each report, and then waits to be told to go on."""

    def progress(done: int, total: int, words: str) -> None:
        told.send(done)
        told.recv()

    train_small(folder, progress=progress)
    told.send(None)
