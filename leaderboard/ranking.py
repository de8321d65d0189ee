"""Ranks with intervals: what the episodes of a board's entries say about who is better than whom.

All entries met the same episodes, so that everything is paired by episode. The scale runs from the best static split
(0) to the regime oracle (1), the best static chosen by the same interquartile mean that entries are scored by.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from helm_gym.evaluation.statistics import CONFIDENCE, Figure, bootstrap, captured_share, iqm

Values = NDArray[np.float64]

MOST_COMPARED = 200  # entries of a task that are compared in pairs, and have intervals: three seconds of work
_SEED = 15  # of every bootstrap: the same scores, the same interval


@dataclasses.dataclass(frozen=True)
class Ranked:
    """An entry's place on one task.

    Attributes:
        entry: its id.
        latency: IQM of the episodes' mean latency (ms), with its bootstrap interval.
        score: 0 as the best static, 1 as the oracle; NaN where no references were run yet, or where the oracle's own
            gain cannot be told from nothing.
        best, worst: the interval of its rank: 1 + the entries that are better, and those that are not worse, told by
            Wilcoxon's test with Holm's correction over the entry's comparisons. Entries of the same ``best`` are tied.
            Both are 0 for entries behind the first ``MOST_COMPARED``.
    """

    entry: str
    latency: Figure
    score: Figure
    best: int
    worst: int


def best_static(statics: Mapping[str, Values]) -> str:
    """The static of the lowest IQM of the episodes' mean latency."""
    return min(statics, key=lambda name: float(iqm(statics[name])))


def rank(entries: Mapping[str, Values], references: Mapping[str, Values]) -> list[Ranked]:
    """Entries in the order of their IQM, the lowest latency first.

    Args:
        entries: mean latency by episode, (episodes,), of each entry; the same episodes in the same order.
        references: the same of ``static:ALPHA`` and ``oracle``; empty where they were not run yet.
    """
    means = dict(zip(entries, iqm(np.stack([*entries.values()])).tolist(), strict=True)) if entries else {}
    order = sorted(entries, key=lambda name: (means[name], name))
    scale = scale_of(references)
    compared = order[:MOST_COMPARED]
    intervals = rank_intervals([entries[name] for name in compared]) if compared else []
    intervals += [(0, 0)] * (len(order) - len(compared))
    ranked = []
    for name, (best, worst) in zip(order, intervals, strict=True):
        values = entries[name]
        shown = best > 0  # a bootstrap takes a millisecond, which ten thousand entries do not have
        latency = _latency(values.tobytes()) if shown else Figure(means[name])
        ends = None if scale is None else (scale[0].tobytes(), scale[1].tobytes())
        share = _share(values.tobytes(), *ends) if ends and shown else Figure(math.nan)
        ranked.append(Ranked(name, latency, share, best, worst))
    return ranked


@functools.lru_cache(maxsize=8192)
def _latency(values: bytes) -> Figure:
    """Kept by an entry's figures, which never change: one more entry costs one more bootstrap."""
    return bootstrap((np.frombuffer(values),), iqm, generator())


@functools.lru_cache(maxsize=8192)
def _share(values: bytes, null: bytes, oracle: bytes) -> Figure:
    return captured_share(np.frombuffer(null), np.frombuffer(values), np.frombuffer(oracle), generator())


def scale_of(references: Mapping[str, Values]) -> tuple[Values, Values] | None:
    """What is 0 and what is 1, (episodes,) each; None where they were not run, or cannot be told apart."""
    statics = {name: values for name, values in references.items() if name.startswith("static:")}
    if not statics or "oracle" not in references:
        return None
    null, oracle = statics[best_static(statics)], references["oracle"]
    apart = math.isfinite(captured_share(null, oracle, oracle, generator()).value)
    return (null, oracle) if apart else None


def rank_intervals(entries: Sequence[Values]) -> list[tuple[int, int]]:
    """First and last rank that each entry may have at ``CONFIDENCE``, entries in any order.

    An entry is compared with each other one, and Holm's correction is over its own comparisons: that interval covers
    its true rank with the stated confidence (Mogstad et al., Review of Economic Studies 2024), one entry at a time.
    """
    count = len(entries)
    if count < 2:
        return [(1, 1)] * count
    values = np.stack(entries)
    first, second = np.triu_indices(count, 1)
    differences = values[first] - values[second]
    probability = np.ones((count, count))
    probability[first, second] = probability[second, first] = paired_test(differences)
    lower = np.zeros((count, count), bool)
    lower[first, second] = iqm(differences) < 0
    lower[second, first] = iqm(-differences) < 0
    found = []
    for entry in range(count):
        others = np.arange(count) != entry
        told = holm(probability[entry, others]) <= 1 - CONFIDENCE
        better, worse = told & lower[others, entry], told & lower[entry, others]
        found.append((1 + int(better.sum()), count - int(worse.sum())))
    return found


def paired_test(differences: Values) -> Values:
    """Two-sided p of Wilcoxon's signed-rank test for each row of (pairs, episodes); 1 where all are zero."""
    with_zeros = (differences == 0).any(axis=1)
    found = np.ones(len(differences))
    for rows, settings in (
        (~with_zeros, {"method": "exact"}),
        (with_zeros & (differences != 0).any(axis=1), {"method": "asymptotic", "zero_method": "zsplit"}),
    ):
        if rows.any():
            found[rows] = stats.wilcoxon(differences[rows], axis=1, **settings).pvalue
    return found


def holm(probabilities: ArrayLike) -> Values:
    """p-values corrected for their number by Holm's step-down method, in the given order."""
    given = np.asarray(probabilities, np.float64)
    order = np.argsort(given, kind="stable")
    stepped = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(1.0, stepped)
    return corrected


def confirmed(leader: Values, others: Sequence[Values]) -> bool:
    """Whether a lead holds on fresh episodes: its IQM is the lowest of the group there too."""
    return all(float(iqm(leader - other)) <= 0 for other in others)


def over_tasks(scores: Mapping[str, Mapping[str, float]], tasks: Sequence[str]) -> list[tuple[str, float, float]]:
    """(entry, mean, worst) of the normalised scores of entries that have one on every task, best mean first.

    Args:
        scores: by task, by entry; a task on which none has a score is left out.
    """
    there = [task for task in tasks if any(math.isfinite(value) for value in scores.get(task, {}).values())]
    complete = (
        set.intersection(*({e for e, v in scores[task].items() if math.isfinite(v)} for task in there))
        if there
        else set[str]()
    )
    rows = [(entry, [scores[task][entry] for task in there]) for entry in complete]
    found = [(entry, float(np.mean(values)), min(values)) for entry, values in rows]
    return sorted(found, key=lambda row: (-row[1], row[0]))


def generator() -> np.random.Generator:
    """A bootstrap's, the same for each: the same scores have the same interval."""
    return np.random.default_rng(_SEED)
