"""Versioned tasks: a regime, a profile, a horizon and seeds. A change to any of them is another version."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from helm_gym import registry
from helm_gym.errors import InvalidInputError
from helm_gym.ranges import Name, Within, check_ranges
from helm_gym.reward import CostWeights
from helm_gym.text import shown

MAX_INTERVALS = 100_000  # of an episode: five million requests


@dataclasses.dataclass(frozen=True)
class Task:
    """What a controller is evaluated on.

    Attributes:
        warmup: intervals served at ``start_alpha`` before the episode, so that caches are warm when it starts.
        settle: further intervals in which the policy acts and is not scored: a static split gets to its place.
        horizon: intervals that are scored.
        seeds: the public development seeds, one episode each.
    """

    name: Annotated[str, Name()]
    regime: str
    doc: str
    profile: str = "cpu-small"
    warmup: Annotated[int, Within(0, MAX_INTERVALS)] = 40
    settle: Annotated[int, Within(0, MAX_INTERVALS)] = 40
    horizon: Annotated[int, Within(1, MAX_INTERVALS)] = 480
    start_alpha: Annotated[float, Within(0, 1)] = 0.5
    seeds: tuple[int, ...] = tuple(range(10))
    weights: CostWeights = dataclasses.field(default_factory=CostWeights)

    def __post_init__(self) -> None:
        check_ranges(self, f"Task {shown(self.name)}")


for _task in (
    Task("steady-v0", "steady", "parameters fixed"),
    Task("trend-v0", "trend", "hot share, history length and item popularity drift"),
    Task("burst-v0", "burst", "a calm, interrupted by returning users, newcomers and viral items"),
    Task("mixed-v0", "mixed", "segments of all kinds, for training"),
    Task("trace-v0", "trace", "arrivals from a recorded trace (--trace PATH)"),
):
    registry.register("task", _task.name, _task, _task.doc)


def find_task(name: str) -> Task:
    """The task of that name, or that ``module:attribute`` says.

    Raises:
        UnknownNameError: there is none; the nearest name is given.
        InvalidInputError: what has the name is no task.
    """
    return _checked(registry.find("task", name))


def all_tasks() -> list[Task]:
    """All tasks that have a name and need no file, in the order of their names."""
    return [_checked(entry) for entry in registry.listed("task").values() if not entry.argument]


def _checked(entry: registry.Entry) -> Task:
    found = entry.load()(entry.given) if entry.given else entry.load()
    if not isinstance(found, Task):
        raise InvalidInputError(
            f"Task {shown(entry.name)} is a {type(found).__name__}; a helm_gym.tasks.Task is needed."
        )
    return found
