"""Aggregates over seeds with bootstrap intervals: interquartile means, paired differences, ratios.

A seed is the unit of everything here: an episode's figures are resampled as a whole, and the same seeds are drawn for
every policy, because all of them were run on the same workloads (Agarwal et al., NeurIPS 2021, for the choice of
aggregates).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number with its bootstrap interval; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def to_json(self) -> dict[str, float | None]:
        """``value``, ``low`` and ``high``; null for what is not a finite number."""
        return {key: number if math.isfinite(number) else None for key, number in dataclasses.asdict(self).items()}


Statistic = Callable[..., NDArray[np.float64]]


def iqm(samples: ArrayLike, axis: int = -1) -> NDArray[np.float64]:
    """Interquartile mean: the mean without the lowest and the highest quarter of the samples (rounded down)."""
    return np.asarray(stats.trim_mean(samples, 0.25, axis=axis))


def bootstrap(samples: Sequence[NDArray[np.float64]], statistic: Statistic, rng: np.random.Generator) -> Figure:
    """``statistic`` of the samples, with the 95% percentile interval of its bootstrap distribution.

    Args:
        samples: arrays (n,), one entry a seed, in the same order: seeds are drawn for all of them together.
        statistic: of as many arrays as there are samples, and of ``axis``.
        rng: draws the resamples, and nothing else does: the same generator state, the same interval.

    Returns:
        The value alone where n is 1. An end of the interval is NaN where it lies among resamples in which the
        statistic is not finite.
    """
    value = float(statistic(*samples, axis=-1))
    if len(samples[0]) < 2:
        return Figure(value)
    with np.errstate(invalid="ignore"):  # an end between two infinite resamples: NaN, as documented
        interval = stats.bootstrap(
            samples,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=rng,
        ).confidence_interval
    return Figure(value, float(interval.low), float(interval.high))


def paired_difference(a: NDArray[np.float64], b: NDArray[np.float64], rng: np.random.Generator) -> Figure:
    """IQM of ``a - b`` seed by seed, both (n,)."""
    return bootstrap((a, b), lambda a, b, axis: iqm(a - b, axis), rng)


def paired_change(a: NDArray[np.float64], b: NDArray[np.float64], block: int, rng: np.random.Generator) -> Figure:
    """Mean of ``a`` over that of ``b``, less 1, in episodes whose intervals met the same requests.

    Intervals next to one another are not independent, so that blocks of them are resampled, as pairs.

    Args:
        a, b: (episodes, T), one entry an interval.
        block: intervals of a block; what is left behind an episode's last whole one is not looked at.
    """
    whole = a.shape[1] // block * block
    blocks = (x[:, :whole].reshape(-1, block).mean(axis=1) for x in (a, b))
    return bootstrap(tuple(blocks), lambda a, b, axis: a.mean(axis) / b.mean(axis) - 1.0, rng)


def probability_of_improvement(a: NDArray[np.float64], b: NDArray[np.float64], rng: np.random.Generator) -> Figure:
    """Share of seeds in which ``a`` is below ``b``, both (n,) and lower is better; a tie counts half."""
    return bootstrap((a, b), lambda a, b, axis: 0.5 * (1.0 - np.sign(a - b).mean(axis)), rng)


def captured_share(
    baseline: NDArray[np.float64], policy: NDArray[np.float64], limit: NDArray[np.float64], rng: np.random.Generator
) -> Figure:
    """How much of what ``limit`` gains over ``baseline`` the policy gains: 0 as the baseline, 1 as the limit.

    The ratio of the two gains, each the IQM of the seeds' paired differences: ratios of single seeds would be ruled by
    those in which there is next to nothing to gain. Where the limit's own gain cannot be told from nothing, the ratio
    is unbounded at the interval's end, and the share has no value.

    Args:
        baseline, policy, limit: (n,), one entry a seed, lower is better.
    """

    def share(
        baseline: NDArray[np.float64], policy: NDArray[np.float64], limit: NDArray[np.float64], axis: int
    ) -> NDArray[np.float64]:
        return ratio_of_gains(iqm(baseline - policy, axis), iqm(baseline - limit, axis))

    figure = bootstrap((baseline, policy, limit), share, rng)
    bounded = len(baseline) < 2 or math.isfinite(figure.low + figure.high)
    return figure if bounded and math.isfinite(figure.value) else Figure(math.nan)


def ratio_of_gains(gain: NDArray[np.float64], best: NDArray[np.float64]) -> NDArray[np.float64]:
    """``gain / best``, elementwise; where there is nothing to gain, 0 for nothing and infinite for anything else."""
    some = best > 0
    return np.where(some, gain / np.where(some, best, 1.0), np.where(gain == 0, 0.0, np.copysign(np.inf, gain)))
