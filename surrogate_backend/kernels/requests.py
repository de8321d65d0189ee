"""Single requests: their service times from predicted quantiles, their arrivals, and the queue that both make.

Randomness is counted and not drawn: a uniform number is a hash of the lane's seed, the interval and its place, so a
seed fixes it whatever a policy does and whatever was asked before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from surrogate_backend.kernels.functions import F, kernel
from surrogate_backend.layout import KNOTS, LEVELS

TOP = 3  # largest values kept of an interval, for P99 over windows of up to 201 requests
PER_INTERVAL = 256  # hashes that an interval may use
_LEVELS = LEVELS.astype(F)
_U = np.uint32
_GOLDEN, _FIRST, _SECOND = _U(0x9E3779B9), _U(0x21F0AAAD), _U(0x735A2D97)
_LN2, _SQRT2 = F(np.log(2.0)), F(np.sqrt(2.0))


def make_keys(seeds: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Two keys a lane, (2, lanes): the finaliser of splitmix64 (Steele, Lea and Flood 2014) over its seed."""
    with np.errstate(over="ignore"):
        x = seeds.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.stack([x & np.uint64(0xFFFFFFFF), x >> np.uint64(32)]).astype(np.uint32)


@kernel
def hashed(low, high, count):
    """32 random bits: a multiply-shift hash (after lowbias32, Wellons 2018) keyed on both sides of its first round."""
    v = _U(low + _U(count * _GOLDEN))
    v = _U(v ^ (v >> _U(16)))
    v = _U(_U(v * _FIRST) ^ high)
    v = _U(v ^ (v >> _U(15)))
    v = _U(v * _SECOND)
    return _U(v ^ (v >> _U(15)))


@kernel
def uniform(bits):
    """(0, 1), in steps of 2^-23."""
    return (F(bits >> _U(9)) + F(0.5)) * F(1.0 / 8388608.0)


@kernel
def normal(bits):
    """Nearly normal, of mean 0 and variance 1: the sum of four bytes."""
    total = F(bits & _U(255)) + F((bits >> _U(8)) & _U(255)) + F((bits >> _U(16)) & _U(255)) + F(bits >> _U(24))
    return (total - F(510.0)) * F(1.0 / 147.8)


@kernel
def exponential(u):
    """Of mean 1: -ln u for u in (0, 1), by the float's exponent and a series in its mantissa (within 1e-5)."""
    bits = F(u).view(np.int32)
    mantissa = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000)).view(np.float32)
    r = (mantissa - _SQRT2) / (mantissa + _SQRT2)
    s = r * r
    series = F(2.0) * r * (F(1.0) + s * (F(1.0 / 3.0) + s * (F(0.2) + s * F(1.0 / 7.0))))
    return -(F((bits >> np.int32(23)) - np.int32(127)) * _LN2 + F(0.5) * _LN2 + series)


@kernel
def serve_requests(
    keys, t, gaps, poisson, rate, knots, level, lag, slo_ms, count, q, score, service, sojourn, sums, n, m
):
    """Draws and queues one interval's requests in ``n`` lanes (Lindley: what waits is worked off between arrivals).

    keys: two rows; t: (lanes,) the interval's number; gaps: ``count`` rows, s, filled where ``poisson``; rate: one row,
    1/s; knots: KNOTS rows; level: one row, mean service time (ms); lag: one row, work left at the last arrival (ms).
    Fills ``score``, one row, how high the interval's requests lie in their distribution (mean 0, variance 1), ``count``
    rows of service and sojourn (ms), and of ``sums``: service, sojourn, violations, span (s), and TOP
    rows each of the largest services and sojourns.
    """
    for i in range(4 + 2 * TOP):
        for k in range(n):
            sums[i * m + k] = F(0.0)
    # Q(u) = q_0 + sum of slope_i (min(u, u_i) - min(u, u_i-1)), as a sum of min(u, u_i) times a change of slope.
    for i in range(1, KNOTS):
        for k in range(n):
            q[i * m + k] = (knots[i * m + k] - knots[(i - 1) * m + k]) / (_LEVELS[i] - _LEVELS[i - 1]) * level[k]
    for i in range(1, KNOTS - 1):
        for k in range(n):
            q[i * m + k] -= q[(i + 1) * m + k]
    for k in range(n):
        q[k], score[k] = knots[k] * level[k], F(-0.5 * count)
    for r in range(count):
        for k in range(n):
            at = _U(_U(t[k]) * _U(PER_INTERVAL) + _U(2 * r))
            u = uniform(hashed(keys[k], keys[m + k], at))
            time = q[k]
            for i in range(1, KNOTS):
                time += q[i * m + k] * min(u, _LEVELS[i])
            service[r * m + k], sojourn[r * m + k] = time, u
    if poisson:
        for r in range(count):
            for k in range(n):
                at = _U(_U(t[k]) * _U(PER_INTERVAL) + _U(2 * r + 1))
                gaps[r * m + k] = exponential(uniform(hashed(keys[k], keys[m + k], at))) / rate[k]
    for r in range(count):
        for k in range(n):
            score[k] += sojourn[r * m + k]
            gap, time = gaps[r * m + k], service[r * m + k]
            waited = max(lag[k] - F(1e3) * gap, F(0.0))
            spent = waited + time
            lag[k] = spent
            sojourn[r * m + k] = spent
            sums[k] += time
            sums[m + k] += spent
            sums[2 * m + k] += F(1.0) if spent > slo_ms else F(0.0)
            sums[3 * m + k] += gap
            a, b, c = sums[4 * m + k], sums[5 * m + k], sums[6 * m + k]
            sums[4 * m + k] = max(a, time)
            sums[5 * m + k] = max(b, min(a, time))
            sums[6 * m + k] = max(c, min(b, time))
            a, b, c = sums[7 * m + k], sums[8 * m + k], sums[9 * m + k]
            sums[7 * m + k] = max(a, spent)
            sums[8 * m + k] = max(b, min(a, spent))
            sums[9 * m + k] = max(c, min(b, spent))
    for k in range(n):
        score[k] *= F(np.sqrt(12.0 / count))


@kernel
def median(rows, mean, count, above, n, out, m):
    """Median of ``count`` rows by bisection from 0 to twice the mean, into ``out``; above: scratch, one row."""
    for k in range(n):
        out[k] = mean[k]
    width, counted = F(0.5), above.view(np.int32)
    for _ in range(7):
        for k in range(n):
            counted[k] = 0
        for r in range(count):
            for k in range(n):
                counted[k] += np.int32(rows[r * m + k] > out[k])
        for k in range(n):
            out[k] += mean[k] * width if 2 * counted[k] > count else -mean[k] * width
        width *= F(0.5)


@kernel
def top_quantile(ring, width, filled, top, requests, share, n, largest, out, m):
    """A high quantile over the ring's intervals, from each one's largest values; linear between order statistics.

    ring: ``filled`` times ``width`` rows, the TOP largest from row ``top`` of each on; largest: scratch, TOP rows.
    """
    last = requests * filled - 1
    at = share * last
    low = int(at)
    part, rank = F(at - low), last - low  # rank: from the top, 0 the largest
    for k in range(n):
        largest[k] = largest[m + k] = largest[2 * m + k] = F(-1.0)
    for i in range(filled):
        tops = ring[(i * width + top) * m :]
        for j in range(TOP):
            values = tops[j * m :]
            for k in range(n):
                value, a, b, c = values[k], largest[k], largest[m + k], largest[2 * m + k]
                largest[k] = max(a, value)
                largest[m + k] = max(b, min(a, value))
                largest[2 * m + k] = max(c, min(b, value))
    lower, upper = largest[rank * m :], largest[max(rank - 1, 0) * m :]
    for k in range(n):
        out[k] = lower[k] + part * (upper[k] - lower[k])
