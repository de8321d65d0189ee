"""One policy on one task's episodes: which episodes those are, and what is kept of them."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from helm_gym import profile as profiles
from helm_gym.errors import InvalidInputError
from helm_gym.evaluation import protocol
from helm_gym.evaluation.results import Episodes, Evaluation, Values
from helm_gym.evaluation.summary import by_seed
from helm_gym.observation import ObservationLayout
from helm_gym.play import Entrant
from helm_gym.policy import Policy
from helm_gym.provenance import describe_machine, versions
from helm_gym.tasks import Task, find_task
from leaderboard.records import canonical

DEVELOPMENT, HIDDEN, CONFIRMATION = "development", "hidden", "confirmation"
PROVISIONAL, RANKING, MEASURED = "surrogate", "modelled", "measured"
METRICS = ("mean_latency_ms", "p99_ms", "slo_satisfaction", "mean_alpha", "moved_bytes")
RANKED_BY = "mean_latency_ms"
BOARD_TASKS = ("steady-v0", "trend-v0", "burst-v0", "mixed-v0")

_MOST = 10_000  # seeds of a kind, and intervals of an episode

Tick = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Season:
    """What a season's entries are evaluated on.

    Attributes:
        development, hidden, confirmation: how many episodes of each kind a task has.
        horizon: scored intervals of an episode; the task's own where None.
        profile: the machine and the model, by name.
    """

    season: int
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
        return cls(**numbers, tasks=tuple(body["tasks"]), profile=profile)

    def body(self, key_hash: str) -> dict[str, Any]:
        """As its record has it."""
        fields = dataclasses.asdict(self) | {"tasks": list(self.tasks)}
        del fields["profile"]
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


def where(evaluation: Evaluation | None = None) -> dict[str, Any]:
    """On what figures were obtained."""
    return {
        "machine": describe_machine() if evaluation is None else evaluation.machine,
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }


def run(
    season: Season,
    task: str,
    seeds: Sequence[int],
    rung: str,
    policies: Sequence[Policy],
    tick: Tick | None,
    **more: Any,
) -> Evaluation:
    """Policies through the one evaluation protocol, without its references."""
    return protocol.evaluate(
        season.task(task),
        [Entrant(policy) for policy in policies],
        backend=rung,
        profile=profiles.load(season.profile),
        seeds=seeds,
        references=False,
        progress=tick,
        **more,
    )


def episodes_of(evaluation: Evaluation, episodes: Episodes) -> list[dict[str, float]]:
    """Each episode's figures, in the order of the seeds and without them."""
    figures = by_seed(evaluation, episodes)
    return [{name: float(figures[name][i]) for name in METRICS} for i in range(len(evaluation.seeds))]


def log_of(evaluation: Evaluation, episodes: Episodes) -> bytes:
    """What happened in development episodes, interval by interval: alpha and mean latency, as JSON."""
    latency = np.nanmean(episodes.sojourn_ms.astype(np.float64), axis=2)
    kept = {
        "task": evaluation.task.name,
        "rung": evaluation.rung,
        "seeds": list(evaluation.seeds),
        "alpha": np.round(episodes.alpha, 4).tolist(),
        "latency_ms": np.round(latency, 4).tolist(),
    }
    return canonical(kept).encode()


def values_of(episodes: Sequence[Mapping[str, float]], metric: str = RANKED_BY) -> Values:
    """A figure by episode, (episodes,)."""
    return np.array([episode[metric] for episode in episodes], np.float64)
