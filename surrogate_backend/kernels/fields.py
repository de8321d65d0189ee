"""From what the networks say to an interval's fields: estimates corrected, noise added, requests served.

The first half says what network.outputs says in torch. Noise (noise.py): what stays for long is a few autoregressive
factors; an interval's own is drawn by a triangular factor, service first, whose draw is how high the interval's single
requests lie in their distribution. No policy reaches that, so that none reaches what the users do.
"""

from __future__ import annotations

import numpy as np

from surrogate_backend import noise
from surrogate_backend.kernels import fluid
from surrogate_backend.kernels.fluid import (
    HISTORY,
    KV_FILLED,
    KV_HIT,
    MISSES,
    PER_SPLIT,
    RECOMPUTED,
    SERVICE_MS,
    SHAPE,
    TOKENS,
)
from surrogate_backend.kernels.functions import F, growth, kernel
from surrogate_backend.kernels.requests import PER_INTERVAL, hashed, normal
from surrogate_backend.layout import (
    BACKLOG_ROWS,
    CACHE_FIELDS,
    CURVE,
    GAIN_MS,
    HURDLED,
    INTERPOLATE,
    KNOT_WEIGHT,
    KNOTS,
    LEAST_SPREAD,
    LEVELS,
    REFILL_ROWS,
    USER_FIELDS,
    USER_OUTPUTS,
)

NOISY, SLOW, SERVICE = len(noise.FIELDS), noise.SLOW, noise.SERVICE
# Rows of an interval's fields; those of noise.FIELDS without the simulated curve come in their order.
LENGTH, UNIQUE, RETURNING, TIME, HIT, EMB_HIT, AGAIN, GAINS = 0, 1, 2, 3, 4, 5, 6, 7
EMB_EMPTY, KV_EMPTY, BACKLOG, REFILLED, PREDICTED = 11, 12, 13, 14, 15
SPREADS = PREDICTED + CURVE  # of the first eleven rows, and of the curve
_CURVE_SPREAD = SPREADS + 11
KNOT = _CURVE_SPREAD + 1
NOISE = KNOT + KNOTS  # draws, then their sums
FIELDS = NOISE + 2 * NOISY
_C = USER_OUTPUTS
_C_KNOT = _C + len(CACHE_FIELDS)
_C_SPREAD = _C_KNOT + KNOTS
_FOLLOWED = PER_SPLIT + fluid.SPLIT_WIDTH + SERVICE_MS
_U_CURVE, _U_SPREAD = len(USER_FIELDS), len(USER_FIELDS) + CURVE
_INTERPOLATE = INTERPOLATE.astype(F)
_WEIGHT = KNOT_WEIGHT.astype(F)
_LEVEL = LEVELS.astype(F)
_GAIN, _LEAST = F(GAIN_MS), F(LEAST_SPREAD)
_FIRST_NOISE = 128  # hashes of an interval below it are the requests'
_OF_NOISE = np.array([-1, 0, 1, 2, -1, -1, -1, 4, 5, 6, 7, 8, 9, 10])  # rows of noise.FIELDS; -1: set apart
_OF_CURVE = noise.FIELDS.index("predicted_low")


@kernel
def _odds(p, x):
    up = p * growth(x)
    return up / (up + (F(1.0) - p))


@kernel
def predict(y, f, hurdle, out, n, m):
    """Means, spreads and quantiles of the fields from the networks' outputs ``y`` and the fluid's estimates ``f``.

    hurdle: below which the last of them stand for zero (layout.HURDLED).
    """
    for k in range(n):
        out[LENGTH * m + k] = f[HISTORY * m + k] * growth(F(0.25) * y[k])
        out[UNIQUE * m + k] = _odds(F(0.5), y[m + k])
        out[RETURNING * m + k] = _odds(F(0.5), y[2 * m + k])
    for k in range(n):
        out[TIME * m + k] = f[(PER_SPLIT + SERVICE_MS) * m + k] * growth(F(0.25) * y[_C * m + k])
        hit = min(max(f[(PER_SPLIT + KV_HIT) * m + k], F(0.005)), F(0.995))
        out[HIT * m + k] = _odds(hit, y[(_C + 1) * m + k])
        hit = F(1.0) - f[(PER_SPLIT + MISSES) * m + k] / f[TOKENS * m + k]
        out[EMB_HIT * m + k] = _odds(min(max(hit, F(0.01)), F(0.998)), y[(_C + 2) * m + k])
        again = f[(PER_SPLIT + RECOMPUTED) * m + k] + F(5.0)
        out[AGAIN * m + k] = again * growth(F(0.5) * y[(_C + 3) * m + k])
    for i in range(4):
        gain, said = out[(GAINS + i) * m :], y[(_C + 4 + i) * m :]
        for k in range(n):
            gain[k] = _GAIN * growth(said[k])
    for k in range(n):
        empty = min(max(F(1.0) - f[(PER_SPLIT + KV_FILLED + 1) * m + k], F(0.01)), F(0.97))
        out[EMB_EMPTY * m + k] = _odds(empty, F(2.0) * y[(_C + 8) * m + k])
        empty = min(max(F(1.0) - f[(PER_SPLIT + KV_FILLED) * m + k], F(0.01)), F(0.97))
        out[KV_EMPTY * m + k] = _odds(empty, F(2.0) * y[(_C + 9) * m + k])
        out[BACKLOG * m + k] = F(BACKLOG_ROWS) * growth(y[(_C + 10) * m + k] - F(1.0))
        out[REFILLED * m + k] = F(REFILL_ROWS) * growth(y[(_C + 11) * m + k] - F(1.0))
    for i in range(len(HURDLED)):
        field = out[(EMB_EMPTY + i) * m :]
        for k in range(n):
            field[k] = field[k] if field[k] >= hurdle[i] else F(0.0)
    for i in range(CURVE):
        curve, said = out[(PREDICTED + i) * m :], y[(_U_CURVE + i) * m :]
        for k in range(n):
            curve[k] = F(0.0)
        for j in range(fluid.SPLITS - 1):
            weight, followed = _INTERPOLATE[j, i], f[(_FOLLOWED + j * fluid.SPLIT_WIDTH) * m :]
            for k in range(n):
                curve[k] += weight * followed[k]
        for k in range(n):
            curve[k] *= growth(F(0.25) * said[k])
    for k in range(n):
        out[SPREADS * m + k] = out[LENGTH * m + k] * (growth(y[_U_SPREAD * m + k] - F(2.0)) + _LEAST)
        out[(SPREADS + 1) * m + k] = growth(y[(_U_SPREAD + 1) * m + k] - F(2.0)) + _LEAST
        out[(SPREADS + 2) * m + k] = growth(y[(_U_SPREAD + 2) * m + k] - F(2.0)) + _LEAST
        out[_CURVE_SPREAD * m + k] = growth(y[(_U_SPREAD + 3) * m + k] - F(2.0)) + _LEAST
    for i in range(8):  # of hit rates as they are; of service, recomputed and gains relative to the mean
        said, mean, spread = (
            y[(_C_SPREAD + i) * m :],
            out[(TIME + i) * m :],
            out[(SPREADS + TIME + i) * m :],
        )
        scale, offset = F(0.0 if i == 1 or i == 2 else 1.0), F(1.0) if i == 1 or i == 2 else F(0.0) if i < 4 else _GAIN
        for k in range(n):
            spread[k] = (growth(said[k] - F(2.0)) + _LEAST) * (scale * mean[k] + offset)
    total = out[NOISE * m :]
    for k in range(n):
        total[k] = F(0.0)
    for i in range(KNOTS):
        said, prior, knot = y[(_C_KNOT + i) * m :], f[(SHAPE + i) * m :], out[(KNOT + i) * m :]
        for k in range(n):
            knot[k] = prior[k] * growth(F(0.25) * said[k])
            total[k] += knot[k] * _WEIGHT[i]
    for i in range(KNOTS):
        knot = out[(KNOT + i) * m :]
        for k in range(n):
            knot[k] /= total[k]


@kernel
def _draw(keys, t, at, k, m):
    return normal(hashed(keys[k], keys[m + k], np.uint32(np.uint32(t[k]) * np.uint32(PER_INTERVAL) + np.uint32(at))))


@kernel
def draw_level(keys, t, fast, slow, persistence, factors, requests, level, out, n, m):
    """Moves the lasting factors on (SLOW rows), and draws the mean (ms) of the interval's distribution: ``level``."""
    fresh = np.sqrt(F(1.0) - persistence * persistence)
    lasting = out[NOISE * m :]
    for k in range(n):
        lasting[k] = F(0.0)
    for i in range(SLOW):
        factor, loading = factors[i * m :], slow[SERVICE * SLOW + i]
        for k in range(n):
            factor[k] = persistence * factor[k] + fresh * _draw(keys, t, _FIRST_NOISE + i, k, m)
            lasting[k] += loading * factor[k]
    square = out[(NOISE + 1) * m :]  # of the quantile function, which is linear between knots
    for k in range(n):
        square[k] = F(0.0)
    for i in range(KNOTS - 1):
        low, high = out[(KNOT + i) * m :], out[(KNOT + i + 1) * m :]
        width = (_LEVEL[i + 1] - _LEVEL[i]) * F(1.0 / 3.0)
        for k in range(n):
            square[k] += width * (low[k] * low[k] + low[k] * high[k] + high[k] * high[k])
    for k in range(n):
        relative = out[(SPREADS + TIME) * m + k] / out[TIME * m + k]
        own = fast[SERVICE * NOISY + SERVICE] * relative
        # What a sample of requests does not bring of the interval's own noise moves their distribution.
        rest = np.sqrt(max(own * own - max(square[k] - F(1.0), F(0.0)) / requests, F(0.0)))
        shift = relative * lasting[k] + rest * _draw(keys, t, _FIRST_NOISE + SLOW, k, m)
        level[k] = out[TIME * m + k] * min(max(F(1.0) + shift, F(0.5)), F(2.0))


@kernel
def add_noise(keys, t, fast, slow, factors, score, served_ms, requests, max_history, out, n, m):
    """Makes the fields what the interval reports, given its service times: their sum (ms) and ``score``, a row each."""
    draws, sums = out[NOISE * m :], out[(NOISE + NOISY) * m :]
    for d in range(NOISY):
        own, total = draws[d * m :], sums[d * m :]
        for k in range(n):
            own[k] = score[k] if d == SERVICE else _draw(keys, t, _FIRST_NOISE + SLOW + d, k, m)
            total[k] = F(0.0)
        for i in range(SLOW):
            loading, factor = slow[d * SLOW + i], factors[i * m :]
            for k in range(n):
                total[k] += loading * factor[k]
        for i in range(d + 1):
            loading, other = fast[d * NOISY + i], draws[i * m :]
            for k in range(n):
                total[k] += loading * other[k]
    for k in range(n):
        out[TIME * m + k] = served_ms[k] / requests
    for d in range(NOISY):
        row = _OF_NOISE[d]
        if row >= 0:
            field, spread, total = out[row * m :], out[(SPREADS + row) * m :], sums[d * m :]
            for k in range(n):
                field[k] += spread[k] * total[k]
    z = draws
    for i in range(CURVE):
        curve = out[(PREDICTED + i) * m :]
        for k in range(n):
            z[k] = F(0.0)
        for j in range(fluid.SPLITS - 1):
            weight, total = _INTERPOLATE[j, i], sums[(_OF_CURVE + j) * m :]
            for k in range(n):
                z[k] += weight * total[k]
        for k in range(n):
            curve[k] *= max(F(1.0) + out[_CURVE_SPREAD * m + k] * z[k], F(0.3))
    for k in range(n):
        out[LENGTH * m + k] = min(max(out[LENGTH * m + k], F(1.0)), max_history)
    for row in (UNIQUE, RETURNING, HIT, EMB_HIT):
        rate = out[row * m :]
        for k in range(n):
            rate[k] = min(max(rate[k], F(0.0)), F(1.0))
    for i in range(GAINS + 4 - AGAIN):
        field = out[(AGAIN + i) * m :]
        for k in range(n):
            field[k] = max(field[k], F(0.0))
