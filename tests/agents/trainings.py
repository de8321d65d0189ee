"""Trainings small enough for a test, and what runs them in processes that can be killed."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helm_gym import profile as profiles
from helm_gym.tasks import Task, find_task
from helm_gym.training import run_folder, trainable
from helm_gym.training.run_folder import Run

# Eight rounds of four lanes and sixteen intervals, validated and saved between rounds.
STEPS = 8 * 4 * 16
SMALL = {"lanes": 4, "episode": 16, "n_steps": 8, "batch_size": 16, "n_epochs": 2, "hidden": 8, "windows": 2}


def short_task() -> Task:
    return dataclasses.replace(find_task("mixed-v0"), warmup=4, settle=4, horizon=16)


def train_small(
    folder: pathlib.Path,
    agent: str = "ppo",
    progress: trainable.Report | None = None,
    steps: int = STEPS,
    say: Callable[[str], None] | None = None,
    **overrides: Any,
) -> Run:
    profile = profiles.load("cpu-small")
    return trainable.train(agent, short_task(), profile, folder, 0, steps, {**SMALL, **overrides}, progress, say)


def scalars_of(folder: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run, by tag: steps and values. How fast it was is left out."""
    events = EventAccumulator(str(folder / run_folder.TENSORBOARD)).Reload()
    shown = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return {tag: points for tag, points in shown.items() if not tag.startswith("time/")}


def train_and_tell(folder: pathlib.Path, told: Connection) -> None:
    """Trains in this process; sends how many steps are done at each report, and then waits to be told to go on."""

    def progress(done: int, total: int, words: str) -> None:
        told.send(done)
        told.recv()

    train_small(folder, progress=progress)
    told.send(None)
