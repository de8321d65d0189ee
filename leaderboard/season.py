"""What a season is: its tasks, its kinds of episodes, and the seeds that only its key gives."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any

from helm_gym import profile as profiles
from helm_gym.errors import InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.provenance import versions
from helm_gym.tasks import Task, find_task

DEVELOPMENT, HIDDEN, CONFIRMATION = "development", "hidden", "confirmation"
PROVISIONAL, RANKING, MEASURED = "surrogate", "modelled", "measured"
BOARD_TASKS = ("steady-v0", "trend-v0", "burst-v0", "mixed-v0")
_MOST = 10_000  # seeds of a kind, and intervals of an episode


@dataclasses.dataclass(frozen=True)
class Season:
    """What a season's entries are evaluated on.

    Attributes:
        number: 1 for the first.
        development, hidden, confirmation: how many episodes of each kind a task has.
        horizon: scored intervals of an episode; the task's own where None.
        profile: the machine and the model, by name.
    """

    number: int
    tasks: tuple[str, ...] = BOARD_TASKS
    development: int = 10
    hidden: int = 20
    confirmation: int = 20
    horizon: int | None = None
    profile: str = "cpu-small"

    @classmethod
    def of(cls, body: Mapping[str, Any], profile: str) -> Season:
        """From its record, which may be a stranger's.

        Raises:
            InvalidInputError: tasks that are on no board, a profile that is not shipped, or numbers out of range.
        """
        numbers = {key: body[key] for key in ("season", "development", "hidden", "confirmation", "horizon")}
        good = all(type(n) is int and 1 <= n <= _MOST for n in numbers.values() if n is not None)
        if not good or None in [*numbers.values()][:-1] or not isinstance(body["tasks"], list):
            raise InvalidInputError("The season's record has numbers that no season has.")
        if any(task not in BOARD_TASKS for task in body["tasks"]) or profile not in profiles.names():
            raise InvalidInputError("The season's record names a task or a profile that this version does not have.")
        return cls(number=numbers.pop("season"), **numbers, tasks=tuple(body["tasks"]), profile=profile)

    def body(self, key_hash: str) -> dict[str, Any]:
        """As its record has it."""
        fields = dataclasses.asdict(self) | {"season": self.number, "tasks": list(self.tasks)}
        del fields["number"], fields["profile"]
        return fields | {"key_hash": key_hash, "versions": versions()}

    def task(self, name: str) -> Task:
        task = find_task(name)
        return task if self.horizon is None else dataclasses.replace(task, horizon=self.horizon)

    def seeds(self, task: str, split: str, key: bytes) -> tuple[int, ...]:
        """The episodes of one kind: the task's public seeds, or those that only the season's key gives."""
        if split == DEVELOPMENT:
            return find_task(task).seeds[: self.development]
        return hidden_seeds(key, task, split, self.hidden if split == HIDDEN else self.confirmation)

    def of_those(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Which of an entry's tasks the season has."""
        return tuple(task for task in self.tasks if task in tasks)

    def layout(self) -> ObservationLayout:
        return ObservationLayout(profiles.load(self.profile))


def hidden_seeds(key: bytes, task: str, split: str, count: int) -> tuple[int, ...]:
    """``HMAC-SHA256(key, "task version|split|i")``, 63 bits of each; nobody without the key can tell one."""
    digests = (hmac.new(key, f"{task}|{split}|{i}".encode(), hashlib.sha256).digest() for i in range(count))
    return tuple(int.from_bytes(digest[:8], "big") >> 1 for digest in digests)
