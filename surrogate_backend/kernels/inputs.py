"""What the networks are fed, and the estimates that they correct: one kernel, for fitting and for stepping."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from helm_gym.profile import Profile
from helm_gym.workload.state import INDEX
from surrogate_backend.kernels import fluid
from surrogate_backend.kernels.fluid import (
    COLD_HISTORY,
    EMB_FILLED,
    ESTIMATES,
    HISTORY,
    HOT_PAGES,
    KV_FILLED,
    KV_HIT,
    MISSES,
    PER_SPLIT,
    SERVICE_MS,
    SPLIT_WIDTH,
    SPLITS,
    fluid_step,
)
from surrogate_backend.kernels.functions import LANES, F, kernel, log_ratio
from surrogate_backend.layout import FOLLOWED

_OWN = 9  # parameters that are fed as they are, scaled
USERS = _OWN + 3 + (SPLITS - 1) * 5  # inputs of the users' network: nothing that depends on alpha
CACHES = USERS + 2 + 5  # inputs of the caches' network, without the users' hidden state

_HOT_SHARE, _HOT_USERS, _MEAN_HISTORY = INDEX["hot_share"], INDEX["hot_users"], INDEX["mean_history"]
_ZIPF, _DRIFT, _TURNOVER, _NEW = INDEX["item_zipf"], INDEX["item_drift"], INDEX["turnover"], INDEX["new_share"]
_DELTA, _CANDIDATES = INDEX["delta_tokens"], INDEX["candidates"]


def rest(profile: Profile) -> NDArray[np.float32]:
    """The profile's own figures that inputs are relative to: float32 (8,)."""
    p = profile.population
    figures = (p.hot_users, p.mean_history, p.item_zipf, p.turnover, p.delta_tokens, p.candidates)
    return np.array([*figures, profile.pool.pages, profile.slo_ms / 8], F)


@kernel
def _split_inputs(f, k, service_ms, x, at, n, m):
    """Five inputs of one split, scaled to about -1 to 1, in rows from ``at``."""
    f, x = f[(PER_SPLIT + k * SPLIT_WIDTH) * m :], x[at * m :]
    for i in range(n):
        x[i] = F(4.0) * log_ratio(f[SERVICE_MS * m + i], service_ms)
        x[m + i] = F(2.0) * f[KV_HIT * m + i] - F(1.0)
        x[2 * m + i] = log_ratio(f[MISSES * m + i], F(5.0))
        x[3 * m + i] = F(4.0) * min(f[KV_FILLED * m + i], F(1.5)) - F(3.5)
        x[4 * m + i] = F(4.0) * f[EMB_FILLED * m + i] - F(3.5)


@kernel
def network_inputs(w, alpha, moved, f, rest, x, own, n, m):
    """Fills ``x`` for ``n`` lanes of a block: ``USERS`` rows for the users' network, and from row ``own`` on the rest.

    w: rows of parameters; alpha, moved: one row, moved pages over the budget; f: rows of ESTIMATES.
    """
    for i in range(n):  # in several loops: the compiler makes no vectors of one over so many rows
        x[i] = F(2.0) * w[_HOT_SHARE * m + i] - F(1.0)
        x[m + i] = F(3.0) * log_ratio(w[_HOT_USERS * m + i], rest[0])
        x[2 * m + i] = F(3.0) * log_ratio(w[_MEAN_HISTORY * m + i], rest[1])
        x[3 * m + i] = F(3.0) * (w[_ZIPF * m + i] - rest[2])
    for i in range(n):
        drift = w[_DRIFT * m + i]
        x[4 * m + i] = drift / (drift + F(10.0))
        x[5 * m + i] = log_ratio(w[_TURNOVER * m + i], rest[3] + F(1e-4))
        x[6 * m + i] = F(2.0) * w[_NEW * m + i] - F(1.0)
        x[7 * m + i] = F(3.0) * log_ratio(w[_DELTA * m + i], rest[4])
    for i in range(n):
        x[8 * m + i] = F(3.0) * log_ratio(w[_CANDIDATES * m + i], rest[5])
        x[9 * m + i] = F(3.0) * log_ratio(f[HISTORY * m + i], rest[1])
        x[10 * m + i] = F(3.0) * log_ratio(f[COLD_HISTORY * m + i], rest[1])
        x[11 * m + i] = log_ratio(f[HOT_PAGES * m + i], rest[6])
    mine = x[own * m :]
    for i in range(n):
        mine[i] = F(2.0) * alpha[i] - F(1.0)
        mine[m + i] = moved[i]
    for k in range(1, SPLITS):
        _split_inputs(f, k, rest[7], x, _OWN + 3 + 5 * (k - 1), n, m)
    _split_inputs(f, 0, rest[7], x, own + 2, n, m)


@kernel
def _follow(state, values, splits, moved, scalars, powers, inside, rest, scratch, estimates, x, n, m):
    for t in range(values.shape[0]):
        fluid_step(state, values[t], splits[t], None, scalars, powers, inside, scratch, estimates[t], n, m)
        network_inputs(values[t], splits[t], moved[t], estimates[t], rest, x[t], USERS, n, m)


def follow(
    profile: Profile, values: NDArray[np.float64], alpha: NDArray[np.float64], moved: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Inputs and estimates along whole episodes that start with cold caches.

    Args:
        values: (lanes, T, parameters), warm-up included.
        alpha: (lanes, T), the split as applied.
        moved: (lanes, T), pages moved over the page budget, positive towards EMB.

    Returns:
        x, float32 (lanes, T, CACHES), and the fluid's estimates, float32 (lanes, T, ESTIMATES).
    """
    lanes, intervals = alpha.shape
    known, relative = fluid.constants(profile), rest(profile)
    states, scratch = fluid.initial_state(values[:, 0]), np.zeros(fluid.SCRATCH * LANES, F)
    splits = np.empty((lanes, intervals, fluid.SPLITS))
    splits[..., 0], splits[..., 1:] = alpha, FOLLOWED
    estimates = np.empty((lanes, intervals, ESTIMATES), F)
    x = np.empty((lanes, intervals, CACHES), F)
    for block, state in enumerate(states):
        part = slice(block * LANES, min(lanes, (block + 1) * LANES))
        w, split, move = (by_time(array[part]) for array in (values, splits, moved[..., None]))
        rows = [np.zeros((intervals, width * LANES), F) for width in (ESTIMATES, CACHES)]
        estimated, fed = rows
        _follow(state, w, split, move, *known, relative, scratch, estimated, fed, part.stop - part.start, LANES)
        for out, row in zip((estimates, x), rows, strict=True):
            by_lane = row.reshape(intervals, -1, LANES)[..., : part.stop - part.start]
            out[part] = by_lane.transpose(2, 0, 1)
    return x, estimates


def by_time(array: NDArray[np.float64]) -> NDArray[np.float32]:
    """(lanes, T, rows) -> float32 (T, rows * LANES), lanes that are not there filled with the last one."""
    padded = np.pad(array, ((0, LANES - len(array)), (0, 0), (0, 0)), mode="edge")
    return np.ascontiguousarray(padded.transpose(1, 2, 0), F).reshape(array.shape[1], -1)
