"""From what the networks say to an interval's fields: estimates corrected, noise added, requests served.

The first half says what network.outputs says in torch. Noise (noise.py): what stays for long is a few autoregressive
factors; an interval's own is drawn by a triangular factor, users' fields first, so that nothing a policy does reaches
them; service next, whose own draw is what the interval's sampled requests came to.
"""

from __future__ import annotations

import numpy as np

from surrogate_backend import noise
from surrogate_backend.kernels import fluid
from surrogate_backend.kernels.fluid import HISTORY, KV_FILLED, KV_HIT, MISSES, PER_SPLIT, RECOMPUTED, SERVICE_MS
from surrogate_backend.kernels.functions import LANES, F, growth, kernel
from surrogate_backend.kernels.requests import PER_INTERVAL, hashed, normal
from surrogate_backend.layout import (
    BACKLOG_ROWS,
    CACHE_FIELDS,
    CURVE,
    GAIN_MS,
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
LENGTH, UNIQUE, RETURNING, TIME, HIT, MISSED, AGAIN, GAINS = 0, 1, 2, 3, 4, 5, 6, 7
EMB_EMPTY, KV_EMPTY, BACKLOG, REFILLED, PREDICTED = 11, 12, 13, 14, 15
SPREADS = PREDICTED + CURVE  # of the first eleven rows, and of the curve
_CURVE_SPREAD = SPREADS + 11
KNOT = _CURVE_SPREAD + 1
NOISE = KNOT + KNOTS  # draws, then their sums
FIELDS = NOISE + 2 * NOISY
_C = USER_OUTPUTS
_C_KNOT = _C + len(CACHE_FIELDS)
_C_SPREAD = _C_KNOT + KNOTS
_U_CURVE, _U_SPREAD = len(USER_FIELDS), len(USER_FIELDS) + CURVE
_INTERPOLATE = INTERPOLATE.astype(F)
_WEIGHT = KNOT_WEIGHT.astype(F)
_LEVEL = LEVELS.astype(F)
_GAIN, _LEAST = F(GAIN_MS), F(LEAST_SPREAD)
_FIRST_NOISE = 128  # hashes of an interval below it are the requests'
_OF_NOISE = np.array([0, 1, 2, -1, -1, -1, 3, 4, 5, 6, 7, 8, 9, 10])  # rows of noise.FIELDS; -1: the curve


@kernel
def _odds(p, x):
    up = p * growth(x)
    return up / (up + (F(1.0) - p))


@kernel
def predict(y, f, out, n):
    """Means, spreads and quantiles of the fields from the networks' outputs ``y`` and the fluid's estimates ``f``."""
    for k in range(n):
        out[LENGTH * LANES + k] = f[HISTORY * LANES + k] * growth(F(0.25) * y[k])
        out[UNIQUE * LANES + k] = _odds(F(0.5), y[LANES + k])
        out[RETURNING * LANES + k] = _odds(F(0.5), y[2 * LANES + k])
    for k in range(n):
        out[TIME * LANES + k] = f[(PER_SPLIT + SERVICE_MS) * LANES + k] * growth(F(0.25) * y[_C * LANES + k])
        hit = min(max(f[(PER_SPLIT + KV_HIT) * LANES + k], F(0.005)), F(0.995))
        out[HIT * LANES + k] = _odds(hit, y[(_C + 1) * LANES + k])
        out[MISSED * LANES + k] = (f[(PER_SPLIT + MISSES) * LANES + k] + F(0.1)) * growth(y[(_C + 2) * LANES + k])
        again = f[(PER_SPLIT + RECOMPUTED) * LANES + k] + F(5.0)
        out[AGAIN * LANES + k] = again * growth(F(0.5) * y[(_C + 3) * LANES + k])
    for i in range(4):
        for k in range(n):
            out[(GAINS + i) * LANES + k] = _GAIN * growth(y[(_C + 4 + i) * LANES + k])
    for k in range(n):
        empty = min(max(F(1.0) - f[(PER_SPLIT + KV_FILLED + 1) * LANES + k], F(0.01)), F(0.97))
        out[EMB_EMPTY * LANES + k] = _odds(empty, F(2.0) * y[(_C + 8) * LANES + k])
        empty = min(max(F(1.0) - f[(PER_SPLIT + KV_FILLED) * LANES + k], F(0.01)), F(0.97))
        out[KV_EMPTY * LANES + k] = _odds(empty, F(2.0) * y[(_C + 9) * LANES + k])
        out[BACKLOG * LANES + k] = F(BACKLOG_ROWS) * growth(y[(_C + 10) * LANES + k] - F(1.0))
        out[REFILLED * LANES + k] = F(REFILL_ROWS) * growth(y[(_C + 11) * LANES + k] - F(1.0))
    for i in range(CURVE):
        for k in range(n):
            curve = F(0.0)
            for j in range(fluid.SPLITS - 1):
                curve += _INTERPOLATE[j, i] * f[(PER_SPLIT + (j + 1) * fluid.SPLIT_WIDTH + SERVICE_MS) * LANES + k]
            out[(PREDICTED + i) * LANES + k] = curve * growth(F(0.25) * y[(_U_CURVE + i) * LANES + k])
    for k in range(n):
        out[SPREADS * LANES + k] = out[LENGTH * LANES + k] * (growth(y[_U_SPREAD * LANES + k] - F(2.0)) + _LEAST)
        out[(SPREADS + 1) * LANES + k] = growth(y[(_U_SPREAD + 1) * LANES + k] - F(2.0)) + _LEAST
        out[(SPREADS + 2) * LANES + k] = growth(y[(_U_SPREAD + 2) * LANES + k] - F(2.0)) + _LEAST
        out[_CURVE_SPREAD * LANES + k] = growth(y[(_U_SPREAD + 3) * LANES + k] - F(2.0)) + _LEAST
    for i in range(8):  # service, hits, misses, recomputed, gains: relative to the mean, or to it and an offset
        offset = F(0.0) if i != 2 else F(0.5)
        offset = offset if i < 4 else _GAIN
        for k in range(n):
            spread = growth(y[(_C_SPREAD + i) * LANES + k] - F(2.0)) + _LEAST
            unit = F(1.0) if i == 1 else out[(TIME + i) * LANES + k] + offset
            out[(SPREADS + TIME + i) * LANES + k] = spread * unit
    for k in range(n):
        out[NOISE * LANES + k] = out[(NOISE + 1) * LANES + k] = F(0.0)
    for i in range(KNOTS):
        for k in range(n):
            up = out[NOISE * LANES + k] + growth(F(0.5) * y[(_C_KNOT + i) * LANES + k])
            out[NOISE * LANES + k] = out[(KNOT + i) * LANES + k] = up
            out[(NOISE + 1) * LANES + k] += up * _WEIGHT[i]
    for i in range(KNOTS):
        for k in range(n):
            out[(KNOT + i) * LANES + k] /= out[(NOISE + 1) * LANES + k]


@kernel
def _draw(keys, t, at, k):
    return normal(
        hashed(keys[k], keys[LANES + k], np.uint32(np.uint32(t[k]) * np.uint32(PER_INTERVAL) + np.uint32(at)))
    )


@kernel
def draw_noise(keys, t, fast, slow, persistence, factors, requests, level, out, n):
    """Draws the noise of all that comes before the requests are served, and the level of their service times.

    factors: SLOW rows, moved on; level: one row, mean service time of the interval's distribution (ms).
    """
    fresh = np.sqrt(F(1.0) - persistence * persistence)
    for i in range(SLOW):
        for k in range(n):
            factors[i * LANES + k] = persistence * factors[i * LANES + k] + fresh * _draw(keys, t, _FIRST_NOISE + i, k)
    draws, sums = out[NOISE * LANES :], out[(NOISE + NOISY) * LANES :]
    for d in range(NOISY):
        own, total = draws[d * LANES :], sums[d * LANES :]
        for k in range(n):
            own[k] = _draw(keys, t, _FIRST_NOISE + SLOW + d, k)
            total[k] = F(0.0)
        for i in range(SLOW):
            loading, factor = slow[d * SLOW + i], factors[i * LANES :]
            for k in range(n):
                total[k] += loading * factor[k]
        for i in range(min(d, SERVICE)):
            loading, other = fast[d * NOISY + i], draws[i * LANES :]
            for k in range(n):
                total[k] += loading * other[k]
    for k in range(n):
        square = F(0.0)  # of the quantile function, which is linear between knots
        for i in range(KNOTS - 1):
            a, b = out[(KNOT + i) * LANES + k], out[(KNOT + i + 1) * LANES + k]
            square += (_LEVEL[i + 1] - _LEVEL[i]) * (a * a + a * b + b * b) * F(1.0 / 3.0)
        relative = out[(SPREADS + TIME) * LANES + k] / out[TIME * LANES + k]
        own = fast[SERVICE * NOISY + SERVICE] * relative
        # What the sample of requests does not bring of the interval's own noise moves their distribution.
        rest = np.sqrt(max(own * own - max(square - F(1.0), F(0.0)) / requests, F(0.0)))
        shift = relative * out[(NOISE + NOISY + SERVICE) * LANES + k] + rest * out[(NOISE + SERVICE) * LANES + k]
        level[k] = out[TIME * LANES + k] * min(max(F(1.0) + shift, F(0.5)), F(2.0))


@kernel
def add_noise(fast, served_ms, requests, max_history, out, n):
    """Makes the fields what the interval reports, given the sum of its service times (``served_ms``, one row)."""
    for k in range(n):
        mean, spread = out[TIME * LANES + k], out[(SPREADS + TIME) * LANES + k]
        z = (served_ms[k] / requests - mean) / spread - out[(NOISE + NOISY + SERVICE) * LANES + k]
        out[(NOISE + SERVICE) * LANES + k] = min(max(z / fast[SERVICE * NOISY + SERVICE], F(-4.0)), F(4.0))
        out[TIME * LANES + k] = served_ms[k] / requests
    draws, sums = out[NOISE * LANES :], out[(NOISE + NOISY) * LANES :]
    for d in range(NOISY):
        total = sums[d * LANES :]
        for i in range(min(d, SERVICE), d + 1):
            loading, other = fast[d * NOISY + i], draws[i * LANES :]
            for k in range(n):
                total[k] += loading * other[k]
    for d in range(NOISY):
        row = _OF_NOISE[d]
        if row >= 0 and d != SERVICE:
            for k in range(n):
                out[row * LANES + k] += out[(SPREADS + row) * LANES + k] * out[(NOISE + NOISY + d) * LANES + k]
    for i in range(CURVE):
        for k in range(n):
            z = F(0.0)
            for j in range(fluid.SPLITS - 1):
                z += _INTERPOLATE[j, i] * out[(NOISE + NOISY + 3 + j) * LANES + k]
            out[(PREDICTED + i) * LANES + k] *= max(F(1.0) + out[_CURVE_SPREAD * LANES + k] * z, F(0.3))
    for k in range(n):
        out[LENGTH * LANES + k] = min(max(out[LENGTH * LANES + k], F(1.0)), max_history)
        for row in (UNIQUE, RETURNING, HIT):
            out[row * LANES + k] = min(max(out[row * LANES + k], F(0.0)), F(1.0))
        for row in range(MISSED, GAINS + 4):
            out[row * LANES + k] = max(out[row * LANES + k], F(0.0))
        out[BACKLOG * LANES + k] = max(out[BACKLOG * LANES + k] - F(1.0), F(0.0))
        out[REFILLED * LANES + k] = max(out[REFILLED * LANES + k] - F(1.0), F(0.0))
