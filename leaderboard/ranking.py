"""Ranks with intervals: what the episodes of a board's entries say about who is better than whom.

All entries met the same episodes, so that everything is paired by episode. The scale runs from the best static split
(0) to the regime oracle (1), the best static chosen by the same interquartile mean that entries are scored by.
An entry's figures are (members, episodes): a policy is one member, a method has one of each training seed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from helm_gym.evaluation.statistics import CONFIDENCE, Figure, captured_share, iqm
from leaderboard.intervals import Intervals, generator

Values = NDArray[np.float64]
Indices = NDArray[np.int64]

MOST_COMPARED = 200  # entries of a task that are compared in pairs, and have intervals


@dataclasses.dataclass(frozen=True)
class Ranked:
    """An entry's place on one task.

    Attributes:
        entry: its id.
        latency: IQM of the episodes' mean latency (ms) over all members, with its bootstrap interval.
        score: 0 as the best static, 1 as the oracle; NaN where no references were run yet, or where the oracle's own
            gain cannot be told from nothing.
        best, worst: the interval of its rank: 1 + the entries that are better, and those that are not worse, told by a
            test with Holm's correction over the entry's comparisons. Entries of the same ``best`` are tied.
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


def rank(
    entries: Mapping[str, Values], references: Mapping[str, Values], intervals: Intervals | None = None
) -> list[Ranked]:
    """Entries in the order of their IQM, the lowest latency first.

    Args:
        entries: mean latency by episode, (members, episodes), of each entry; the same episodes in the same order.
        references: the same of ``static:ALPHA`` and ``oracle``, (episodes,); empty where they were not run yet.
        intervals: that were computed before, to be used again.
    """
    means = iqms(entries)
    order = sorted(entries, key=lambda name: (means[name], name))
    compared, behind = order[:MOST_COMPARED], order[MOST_COMPARED:]
    values = [entries[name] for name in compared]
    figures = (intervals or Intervals()).of(values, scale_of(references))
    ranked = [
        Ranked(name, latency, score, *places)
        for name, (latency, score), places in zip(compared, figures, rank_intervals(values), strict=True)
    ]
    return ranked + [Ranked(name, Figure(means[name]), Figure(math.nan), 0, 0) for name in behind]


def iqms(entries: Mapping[str, Values]) -> dict[str, float]:
    """IQM over all members and episodes of each entry."""
    by_size: dict[int, list[str]] = {}
    for name, values in entries.items():
        by_size.setdefault(values.size, []).append(name)
    return {
        name: mean
        for names in by_size.values()
        for name, mean in zip(names, iqm(np.stack([entries[n].reshape(-1) for n in names])).tolist(), strict=True)
    }


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

    Args:
        entries: (members, episodes) of each. Policies, of one member, are told apart by ``paired_test`` over episodes;
            methods, each of several members, by ``seeds_test`` over training seeds.
    """
    shapes = tuple(values.shape for values in entries)
    return _rank_intervals(b"".join(values.tobytes() for values in entries), shapes)


@functools.lru_cache(maxsize=64)
def _rank_intervals(content: bytes, shapes: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Kept, since the first entries of a large board seldom change."""
    count = len(shapes)
    if count < 2:
        return [(1, 1)] * count
    ends = np.cumsum([members * episodes for members, episodes in shapes])[:-1]
    entries = [part.reshape(shape) for part, shape in zip(np.split(np.frombuffer(content), ends), shapes, strict=True)]
    first, second = np.triu_indices(count, 1)
    if min(members for members, _ in shapes) > 1:
        signs, found = seeds_test([iqm(values) for values in entries], first, second)
    else:
        values = np.stack([values.mean(axis=0) for values in entries])
        differences = values[first] - values[second]
        signs, found = iqm(differences), paired_test(differences)
    probability, lower = np.ones((count, count)), np.zeros((count, count), bool)
    probability[first, second] = probability[second, first] = found
    lower[first, second], lower[second, first] = signs < 0, signs > 0
    places = []
    for entry in range(count):
        others = np.arange(count) != entry
        apart = holm(probability[entry, others]) <= 1 - CONFIDENCE
        better, worse = apart & lower[others, entry], apart & lower[entry, others]
        places.append((1 + int(better.sum()), count - int(worse.sum())))
    return places


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


def seeds_test(methods: Sequence[Values], first: Indices, second: Indices) -> tuple[Values, Values]:
    """Whether methods differ over training seeds, pair by pair: differences of means, and Welch's two-sided p.

    The unit is the training seed. Its figure is its IQM over the episodes, which are the same for all, so that how hard
    these are is in no difference; what is left is what another training seed would change.

    Args:
        methods: the members' figures, (members,), two or more of each method.
        first, second: (pairs,), which methods are compared.
    """
    told = np.array([(figures.mean(), figures.std(ddof=1), len(figures)) for figures in methods]).T
    (mean, deviation, count), (other_mean, other_deviation, other_count) = told[:, first], told[:, second]
    differences = mean - other_mean
    found = (differences == 0).astype(float)  # where no two members differ, nothing is left to chance
    some = deviation + other_deviation > 0
    sides = (mean, deviation, count, other_mean, other_deviation, other_count)
    if some.any():
        found[some] = stats.ttest_ind_from_stats(*(part[some] for part in sides), equal_var=False).pvalue
    return differences, found


def holm(probabilities: ArrayLike) -> Values:
    """p-values corrected for their number by Holm's step-down method, in the given order."""
    given = np.asarray(probabilities, np.float64)
    order = np.argsort(given, kind="stable")
    stepped = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(1.0, stepped)
    return corrected


def confirmed(leader: Values, others: Sequence[Values]) -> bool:
    """Whether a lead holds on fresh episodes: its IQM is the lowest of the group there too; (members, episodes)."""
    return all(float(iqm(leader.mean(axis=0) - other.mean(axis=0))) <= 0 for other in others)


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
