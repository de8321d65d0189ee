"""Policies on one task's episodes, through the one evaluation protocol, and what is kept of them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from helm_gym import profile as profiles
from helm_gym.evaluation import protocol
from helm_gym.evaluation.results import Episodes, Evaluation, Values
from helm_gym.evaluation.summary import by_seed
from helm_gym.play import Entrant
from helm_gym.policy import Policy
from helm_gym.provenance import describe_machine, versions
from leaderboard.records import canonical
from leaderboard.season import Season

METRICS = ("mean_latency_ms", "p99_ms", "slo_satisfaction", "mean_alpha", "moved_bytes")
RANKED_BY = "mean_latency_ms"

Tick = Callable[[str, int, int], None]


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
