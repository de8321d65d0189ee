"""The arithmetic of the figures and of their floors, on arrays that lead with episodes or lanes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator
from scipy.stats import kendalltau

from helm_gym.evaluation.optimum import argmin

Floats = NDArray[np.float64]
SPLITS, DRAWS = 32, 2000
PERCENT = 100.0


def halvings(count: int, neighbours: bool = False) -> NDArray[np.bool_]:
    """Fixed random ways to cut ``count`` things into halves, (SPLITS, count).

    Args:
        neighbours: of each two neighbours one falls to either half, so that a drift does not tell the halves apart.
    """
    rng = np.random.default_rng(count)
    if neighbours:
        first = rng.random((SPLITS, (count + 1) // 2)) < 0.5
        return np.stack([first, ~first], axis=2).reshape(SPLITS, -1)[:, :count]
    return rng.permuted(np.tile(np.arange(count) % 2 == 0, (SPLITS, 1)), axis=1)


def halving_scale(count: int) -> float:
    """From the distance of two halves' means to the error of the mean of all: 1/2, or less where ``count`` is odd."""
    a = (count + 1) // 2
    return float(np.sqrt(a * (count - a)) / count)


def pair_error(of: Floats, against: Floats) -> Floats:
    """Relative error in per cent, the median over the last axis."""
    return PERCENT * np.asarray(np.median(np.abs(of - against) / against, axis=-1))


def path_error(twin: Floats, real: Floats) -> tuple[float, float]:
    """Floor and surrogate's path error, each over n (n - 1) pairs.

    Args:
        surrogate: (lanes, T).
        real: (n, T), n >= 2.
    """
    n = len(real)
    of, against = np.nonzero(~np.eye(n, dtype=bool))
    lanes = (against * (n - 1) + np.where(of > against, of - 1, of)) % len(twin)
    return float(pair_error(real[of], real[against]).mean()), float(pair_error(twin[lanes], real[against]).mean())


def expected_error(twin: Floats, real: Floats, relative: bool) -> tuple[Floats, Floats]:
    """Floor and absolute error of the mean over lanes, interval by interval, (T,) each.

    Args:
        surrogate: (lanes, T).
        real: (n, T), n >= 2; NaN where it does not count. Intervals in which a half has nothing that counts are NaN.
        relative: in per cent of the real mean; else in points of 100.
    """
    mean = _mean(real)
    scale = PERCENT / mean if relative else np.full_like(mean, PERCENT)
    halves = halvings(len(real))
    apart = np.stack([_mean(real[half]) - _mean(real[~half]) for half in halves])
    floor = halving_scale(len(real)) * np.abs(apart).mean(axis=0)
    return floor * scale, np.abs(twin.mean(axis=0) - mean) * scale


def _mean(x: Floats) -> Floats:
    """Over the first axis, of what is not NaN."""
    counts = np.isfinite(x)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(counts, x, 0.0).sum(axis=0) / counts.sum(axis=0))


def halved_means(series: Floats, blocks: int) -> tuple[Floats, Floats]:
    """Means of both halves of the last axis, of whose ``blocks`` each two neighbours are parted, (SPLITS, ...) each."""
    length = series.shape[-1]
    blocks = max(2, min(blocks, length) // 2 * 2)
    block = np.arange(length) * blocks // length
    sides = [half[block] for half in halvings(blocks, neighbours=True)]
    return (
        np.stack([series[..., side].mean(axis=-1) for side in sides]),
        np.stack([series[..., ~side].mean(axis=-1) for side in sides]),
    )


def seed_noise(series: Floats, length: int) -> Floats:
    """Mean over a stretch of ``length`` intervals, one seed over the mean of the others less one, in per cent, (k,).

    Args:
        series: (n, T), n >= 2; shorter than a stretch, it is one.
    """
    n, whole = len(series), max(1, series.shape[1] // length)
    means = np.stack([part.mean(axis=1) for part in np.array_split(series, whole, axis=1)])  # (stretches, n)
    others = (means.sum(axis=1, keepdims=True) - means) / (n - 1)
    return PERCENT * (means / others - 1.0).ravel()


def noise_of_mean(noises: Sequence[Floats]) -> float:
    """Mean absolute value of a mean over settings, each of whose noises is drawn from its own samples."""
    rng = np.random.default_rng(len(noises))
    drawn = np.stack([rng.choice(noise, DRAWS) for noise in noises])
    return float(np.abs(drawn.mean(axis=0)).mean())


def alpha_star(alphas: Floats, curve: Floats) -> Floats:
    """Where the curves (A, ...) have their least, within the grid."""
    return np.clip(argmin(alphas, curve), alphas[0], alphas[-1])


def regret(alphas: Floats, curve: Floats, alpha: float) -> float:
    """What ``curve`` (A,), interpolated, costs at ``alpha`` over its least, in per cent."""
    smooth = Akima1DInterpolator(alphas, curve)
    fine = np.append(np.linspace(alphas[0], alphas[-1], 801), alpha)
    cost = smooth(fine)
    return float(PERCENT * (cost[-1] / cost.min() - 1.0))


def tau(a: Floats, b: Floats) -> float:
    """Kendall's tau-b of two rankings (P,)."""
    return float(kendalltau(a, b).statistic)
