"""The offline optimum: which split each interval's workload asks for, by replaying its requests at every split.

Only the modelled rung can do that: there a seed fixes the requests whatever the split, and time is not measured.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from helm_gym.backend import open_backend
from helm_gym.control_loop import start_warm
from helm_gym.errors import InvalidInputError
from helm_gym.evaluation.results import Optimum
from helm_gym.machine_memory import available_bytes
from helm_gym.profile import Profile
from helm_gym.tasks import Task
from helm_gym.workload.state import WorkloadPath

GRID = np.round(np.linspace(0.05, 0.95, 19), 2)
MAX_LANES = 16  # served at once: a lane of the memory manager takes about 13 MB
_DRIFT_INTERVALS = 25  # 1,250 requests: about as long as a cache takes to settle
_MAX_THREADS = 4

Advance = Callable[[int], None]


def cut_path(path: WorkloadPath, lanes: slice = slice(None), intervals: slice = slice(None)) -> WorkloadPath:
    """The part of a workload that these lanes have in these intervals; segments keep their numbers."""
    return WorkloadPath(
        values=path.values[lanes, intervals],
        gaps_s=path.gaps_s[lanes, intervals],
        segment=path.segment[lanes, intervals],
        kind=path.kind[lanes],
        alive=None if path.alive is None else path.alive[lanes, intervals],
    )


def cut_optimum(optimum: Optimum, intervals: slice) -> Optimum:
    """The optimum of these intervals alone."""
    return dataclasses.replace(
        optimum,
        cost_ms=optimum.cost_ms[:, :, intervals],
        expected_ms=optimum.expected_ms[:, :, intervals],
        alpha_star=optimum.alpha_star[:, intervals],
    )


def offline_optimum(
    task: Task,
    profile: Profile,
    path: WorkloadPath,
    seeds: Sequence[int],
    grid: ArrayLike = GRID,
    advance: Advance | None = None,
    threads: int | None = None,
) -> Optimum:
    """Replays the lanes' requests at each alpha, held from before the warm-up on.

    Args:
        task: whose warm-up comes before the path.
        path: (lanes, T), settling included.
        seeds: one a lane; with the path they fix every request.
        grid: (A,) evenly spaced alphas; those out of the profile's bounds are left out.
        advance: told how many more intervals of how many lanes are done, as their product.
        threads: replays at a time; as many as there are cores and memory for, and at most four, where not given. The
            result does not depend on it.

    Raises:
        InvalidInputError: fewer than three alphas within the profile's bounds, or not evenly spaced.
    """
    alphas = np.asarray(grid, np.float64)
    alphas = alphas[(alphas > profile.pool.min_alpha - 1e-9) & (alphas < profile.pool.max_alpha + 1e-9)]
    if len(alphas) < 3 or np.ptp(np.diff(alphas)) > 1e-6:
        raise InvalidInputError(
            "The offline optimum needs at least three evenly spaced alphas within the profile's bounds."
        )
    blocks = [slice(first, first + MAX_LANES) for first in range(0, len(seeds), MAX_LANES)]
    cost = np.empty((len(alphas), len(seeds), path.intervals))
    stopped = threading.Event()

    def replay(job: tuple[int, slice]) -> int:
        number, lanes = job
        part = cost[number, lanes]
        part[:] = _replay(task, profile, cut_path(path, lanes), seeds[lanes], alphas[number], stopped)
        return part.size

    jobs = [(number, lanes) for lanes in blocks for number in range(len(alphas))]
    # Kernels run without the interpreter lock, and a replay shares nothing with another.
    with concurrent.futures.ThreadPoolExecutor(threads or _threads(profile, min(MAX_LANES, len(seeds)))) as pool:
        try:
            for size in pool.map(replay, jobs):
                if advance is not None:
                    advance(size)
        except BaseException:  # Ctrl-C, say: the replays under way would be waited for
            stopped.set()
            raise
    expected = expected_cost(cost, path)
    star = np.clip(argmin(alphas, expected), profile.pool.min_alpha, profile.pool.max_alpha)
    return Optimum(grid=alphas, cost_ms=cost, expected_ms=expected, alpha_star=star)


def _threads(profile: Profile, lanes: int) -> int:
    with contextlib.closing(open_backend("modelled", profile, lanes)) as backend:
        fit = int(available_bytes() / max(1, backend.spec.memory_bytes))
    return max(1, min(_MAX_THREADS, os.cpu_count() or 1, fit))


def _replay(
    task: Task, profile: Profile, path: WorkloadPath, seeds: Sequence[int], alpha: float, stopped: threading.Event
) -> NDArray[np.float64]:
    """Mean service time of each interval at ``alpha``, (lanes, T) in ms; NaN of those that come after ``stopped``."""
    backend = open_backend("modelled", profile, lanes=len(seeds))
    target = np.full((len(seeds), 1), alpha)
    start_warm(backend, task, path, seeds, target)
    service_ms = np.full((len(seeds), path.intervals), np.nan)
    for t in range(path.intervals):
        if stopped.is_set():
            break
        service_ms[:, t] = backend.step(target, path.at(t))["interval_service_ms"][:, 0]
    backend.close()
    return service_ms


def expected_cost(cost_ms: NDArray[np.float64], path: WorkloadPath) -> NDArray[np.float64]:
    """Averages over intervals of the same workload, (A, lanes, T).

    Those are the whole segment where its parameters are held, and where they drift the 25 intervals around, without
    crossing the segment's borders.
    """
    start, stop = _segment_bounds(path.segment)
    t = np.arange(path.intervals)
    before, after = path.values[:, :-1], path.values[:, 1:]
    moved = np.zeros(path.segment.shape, np.int64)
    # A segment's first interval replaces hot users and differs by that alone, so it is not compared with the second.
    moved[:, 1:] = (np.abs(after - before) > 1e-9 * np.abs(before)).any(axis=2) & (t[1:] - start[:, 1:] >= 2)
    drifts = _window_sum(moved, start, stop) > 0
    reach = _DRIFT_INTERVALS // 2
    low = np.where(drifts, np.maximum(start, t - reach), start)
    high = np.where(drifts, np.minimum(stop, t + reach + 1), stop)
    return np.asarray(_window_sum(cost_ms, low, high) / (high - low))


def near_optimal(optimum: Optimum, alpha: NDArray[np.float64], tolerance: float = 0.01) -> NDArray[np.bool_]:
    """Whether a split costs within ``tolerance`` of the optimum where it is expected to serve.

    Args:
        alpha: (lanes, T); its expected cost is interpolated over the grid.
    """
    grid, expected = optimum.grid, optimum.expected_ms
    place = np.interp(alpha, grid, np.arange(len(grid)))
    left = np.minimum(place.astype(np.int64), len(grid) - 2)
    below, above = (np.take_along_axis(expected, k[None], axis=0)[0] for k in (left, left + 1))
    cost = below + (place - left) * (above - below)
    return np.asarray(cost <= (1.0 + tolerance) * expected.min(axis=0))


def argmin(grid: NDArray[np.float64], cost: NDArray[np.float64]) -> NDArray[np.float64]:
    """Argmin over the first axis, at the vertex of the parabola through it and its neighbours."""
    lowest = cost.argmin(axis=0)
    centre = np.clip(lowest, 1, len(grid) - 2)
    left, middle, right = (np.take_along_axis(cost, (centre + k)[None], axis=0)[0] for k in (-1, 0, 1))
    curvature = left - 2.0 * middle + right
    inside = (lowest == centre) & (curvature > 0)
    shift = np.where(inside, 0.5 * (left - right) / np.where(inside, curvature, 1.0), 0.0)
    return np.asarray(grid[lowest] + shift * (grid[1] - grid[0]))


def _segment_bounds(segment: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First interval of the segment that each interval lies in, and the first behind it, both (lanes, T)."""
    t = np.arange(segment.shape[1])
    edge = np.diff(segment, axis=1) != 0
    first = np.pad(edge, ((0, 0), (1, 0)), constant_values=True)
    last = np.pad(edge, ((0, 0), (0, 1)), constant_values=True)
    start = np.maximum.accumulate(np.where(first, t, 0), axis=1)
    stop = np.minimum.accumulate(np.where(last, t + 1, len(t))[:, ::-1], axis=1)[:, ::-1]
    return start, stop


def _window_sum(x: NDArray[np.number], low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of ``x`` (..., lanes, T) over [low, high) of each lane and interval, both (lanes, T)."""
    total = np.pad(np.cumsum(x, axis=-1, dtype=np.float64), [*[(0, 0)] * (x.ndim - 1), (1, 0)])
    take = functools.partial(np.take_along_axis, total, axis=-1)
    shape = (*x.shape[:-2], *low.shape)
    return np.asarray(take(np.broadcast_to(high, shape)) - take(np.broadcast_to(low, shape)))
