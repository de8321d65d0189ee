"""One control interval of all lanes: the compiled step of the surrogate.

A block of lanes goes through the fluid, the networks, the noise and the requests in turn, and its telemetry is summed
over a ring of the window's intervals, as the real backend's ledger does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.kernels import control_interval
from helm_gym.profile import Profile
from helm_gym.telemetry import ALPHA_GRID, AT, WIDTH
from helm_gym.workload.state import INDEX, PARAMETERS
from surrogate_backend.kernels import fields, fluid, inputs, networks
from surrogate_backend.kernels.functions import LANES, F, aligned, inverse_exp, kernel
from surrogate_backend.kernels.requests import TOP, median, serve_requests, top_quantile
from surrogate_backend.layout import FOLLOWED, HURDLED, KNOTS, delay_ratio, moved_page_ms

MAX_REQUESTS, MAX_INTERVALS, MAX_WINDOW = 64, 8, 201  # P99 of a longer window needs more than TOP values
_P = len(PARAMETERS)
MAX_PAGES = 2**24  # that float32 can count
# Rows of an interval in the ring: what serve_requests sums, then the fields that windows are made of.
_SERVED, _SPENT, _LATE, _SPAN, _TOP_SERVICE, _TOP_SOJOURN = 0, 1, 2, 3, 4, 4 + TOP
_HITS = 4 + 2 * TOP
_MISSED, _LOOKED, _AGAIN, _GAIN = _HITS + 1, _HITS + 2, _HITS + 3, _HITS + 4
_LENGTH, _UNIQUE, _RETURNING, _MOVING, _MEDIAN, _CURVE = (
    _GAIN + 4,
    _GAIN + 5,
    _GAIN + 6,
    _GAIN + 7,
    _GAIN + 8,
    _GAIN + 9,
)
RING = _CURVE + len(ALPHA_GRID)

# Rows of a block's float32 state, and of its uint32 state.
_FLUID, _HIDDEN = 0, fluid.STATE
_FACTORS = _HIDDEN + networks.STATE
_LAG = _FACTORS + fields.SLOW
_RING = _LAG + 1
STATE = _RING + MAX_INTERVALS * RING
KEYS, CLOCK, PAGES, COUNTERS = 0, 2, 3, 4

# Places in the flat constants.
_SCALARS = 0
_POWERS = _SCALARS + 15
_INSIDE = _POWERS + 7 * fluid.BUCKETS
_REST = _INSIDE + fluid.BUCKETS
_FAST = _REST + 8
_SLOW = _FAST + fields.NOISY**2
_OWN = _SLOW + fields.NOISY * fields.SLOW


class _Scalars(NamedTuple):
    """What single numbers are known of the profile and the log; ``OWN`` says where each stands in the constants."""

    persistence: float
    delay_ratio: float
    moved_page_ms: float
    least_alpha: float
    largest_alpha: float
    slo_ms: float
    row_ms: float
    row_bytes: float
    page_bytes: float
    latency_ms: float
    page_budget: float


OWN = _Scalars(*range(_OWN, _OWN + len(_Scalars._fields)))
_LOW = _OWN + len(_Scalars._fields)
_HIGH = _LOW + _P
_HURDLE = _HIGH + _P
_WEIGHTS = _HURDLE + len(HURDLED)
CONSTANTS = _WEIGHTS + networks.WEIGHTS

# Scratch rows of a block.
_W, _SPLITS = 0, _P
_ALPHA_MOVED = _SPLITS + fluid.SPLITS
_F = _ALPHA_MOVED + 1
_X = _F + fluid.ESTIMATES
_Y = _X + networks.INPUTS
_OUT = _Y + networks.OUTPUTS
_LEVEL = _OUT + fields.FIELDS
_RATE, _SCORE, _Q = _LEVEL + 1, _LEVEL + 2, _LEVEL + 3
_T = _Q + KNOTS
_V = _T + max(fluid.SCRATCH, networks.SCRATCH, RING)
_GAPS = _V + networks.SCRATCH
_TELE = _GAPS + MAX_REQUESTS
SCRATCH = _TELE + WIDTH

_ARRIVAL, _DELTA, _CANDIDATES = INDEX["arrival_rate_rps"], INDEX["delta_tokens"], INDEX["candidates"]


def pack(profile: Profile, tensors: Mapping[str, NDArray[Any]], rung: str) -> NDArray[np.float32]:
    """All that stepping needs to know, flat: float32 (CONSTANTS,)."""
    known = fluid.constants(profile)
    low, high = tensors["range.low"].copy(), tensors["range.high"].copy()
    margin = 0.02 * (high - low) + 1e-6
    low, high = low - margin, high + margin
    low[_ARRIVAL], high[_ARRIVAL] = -np.inf, np.inf  # queues are computed, not learned
    alphas = tensors["range.alpha"]
    own = _Scalars(
        persistence=tensors["noise.persistence"][0],
        delay_ratio=delay_ratio(profile),
        moved_page_ms=moved_page_ms(profile),
        least_alpha=alphas[0],
        largest_alpha=alphas[1],
        slo_ms=profile.slo_ms,
        row_ms=profile.row_ms,
        row_bytes=profile.row_bytes,
        page_bytes=profile.pool.page_bytes,
        latency_ms=profile.link.latency_ms,
        page_budget=profile.pool.page_moves_per_interval,
    )
    parts = [
        *known,
        inputs.rest(profile),
        tensors["noise.fast"].ravel(),
        tensors["noise.slow"].ravel(),
        np.array(own, F),
        low,
        high,
        tensors["hurdle"],
        networks.pack(tensors, rung),
    ]
    flat = np.concatenate(parts).astype(F)
    assert flat.shape == (CONSTANTS,)
    return flat


class State(NamedTuple):
    """Everything that the future of the lanes depends on, in blocks.

    Attributes:
        rows: float32 (blocks, STATE * m), m columns a block.
        counters: uint32 (blocks, COUNTERS * m): two keys of the randomness, the interval's number, EMB's pages.
    """

    rows: NDArray[np.float32]
    counters: NDArray[np.uint32]


def make_state(values: NDArray[np.float64], keys: NDArray[np.uint32], pages: NDArray[np.int64], m: int) -> State:
    """Lanes with cold caches.

    Args:
        values: (lanes, parameters).
        keys: (2, lanes) of requests.make_keys.
        pages: (lanes,), EMB's.
        m: columns of a block.
    """
    lanes = len(pages)
    blocks = -(-lanes // m)
    rows = np.zeros((blocks, STATE * m), F)
    rows[:, : fluid.STATE * m] = fluid.initial_state(values, m)
    counters = np.zeros((blocks, COUNTERS, m), np.uint32)
    filled = np.zeros((COUNTERS, blocks * m), np.uint32)
    filled[KEYS : KEYS + 2, :lanes], filled[PAGES, :lanes] = keys, pages
    counters[:] = filled.reshape(COUNTERS, blocks, m).swapaxes(0, 1)
    return State(aligned(rows), aligned(counters.reshape(blocks, -1)))


@kernel
def _record(c, own, f, w, requests, n, m):
    """Puts the fields of an interval beside what its requests came to, in its place of the ring."""
    row_ms, latency_ms, delayed = c[OWN.row_ms], c[OWN.latency_ms], c[OWN.delay_ratio]
    for k in range(n):
        again = min(f[fields.AGAIN * m + k], f[fields.LENGTH * m + k])
        looked = again + w[_DELTA * m + k] + w[_CANDIDATES * m + k]
        misses = looked * (F(1.0) - f[fields.EMB_HIT * m + k])
        own[_HITS * m + k], own[_MISSED * m + k] = f[fields.HIT * m + k], misses
        own[_LOOKED * m + k] = looked
        own[_AGAIN * m + k] = again
        waited = requests * (misses * row_ms + latency_ms * (F(1.0) - inverse_exp(misses)))
        waited += min(waited * delayed, f[fields.BACKLOG * m + k] * row_ms)  # delayed by refills
        own[_MOVING * m + k] = min(waited, F(0.95) * own[_SERVED * m + k])
        own[_LENGTH * m + k] = f[fields.LENGTH * m + k]
        own[_UNIQUE * m + k] = f[fields.UNIQUE * m + k]
        own[_RETURNING * m + k] = f[fields.RETURNING * m + k]
    gains, curve, f_gains, f_curve = (
        own[_GAIN * m :],
        own[_CURVE * m :],
        f[fields.GAINS * m :],
        f[fields.PREDICTED * m :],
    )
    for i in range(4):
        for k in range(n):
            gains[i * m + k] = f_gains[i * m + k]
    for i in range(len(ALPHA_GRID)):
        for k in range(n):
            curve[i * m + k] = f_curve[i * m + k]


@kernel
def _report(c, ring, filled, own, requests, f, total, v, n, m):
    """Fills the telemetry's rows ``v`` that the ring and the fields decide; total: scratch, RING rows."""
    row_bytes = c[OWN.row_bytes]
    count, share = F(requests), F(1.0 / filled)
    window = count * F(filled)
    for row in range(RING):
        sums = total[row * m :]
        for k in range(n):
            sums[k] = F(0.0)
        for i in range(filled):
            part = ring[(i * RING + row) * m :]
            for k in range(n):
                sums[k] += part[k]
    for k in range(n):
        busy, span = total[_SERVED * m + k], max(total[_SPAN * m + k], F(1e-9))
        v[AT.emb_hit_rate * m + k] = max(F(1.0) - total[_MISSED * m + k] / total[_LOOKED * m + k], F(0.0))
        v[AT.kv_hit_rate * m + k] = total[_HITS * m + k] * share
        v[AT.emb_miss_bytes * m + k] = total[_MISSED * m + k] * share * row_bytes
        v[AT.kv_recomputed_tokens * m + k] = total[_AGAIN * m + k] * share
        v[AT.transfer_share * m + k] = total[_MOVING * m + k] / busy
        v[AT.compute_share * m + k] = F(1.0) - v[AT.transfer_share * m + k]
        v[AT.returning_share * m + k] = total[_RETURNING * m + k] * share
        v[AT.unique_users * m + k] = total[_UNIQUE * m + k] * share
        v[AT.mean_history * m + k] = total[_LENGTH * m + k] * share
        v[AT.arrival_rate_rps * m + k] = window / span
        v[AT.utilisation * m + k] = busy * F(1e-3) / span
        v[AT.service_mean_ms * m + k] = busy / window
        v[AT.sojourn_mean_ms * m + k] = total[_SPENT * m + k] / window
        v[AT.queue_depth * m + k] = total[_SPENT * m + k] * F(1e-3) / span  # Little's law
        v[AT.sojourn_p50_ms * m + k] = total[_MEDIAN * m + k] * share
        v[AT.slo_violations * m + k] = total[_LATE * m + k] / window
        v[AT.interval_service_ms * m + k] = own[_SERVED * m + k] / count
        v[AT.interval_sojourn_ms * m + k] = own[_SPENT * m + k] / count
        v[AT.interval_violations * m + k] = own[_LATE * m + k] / count
        v[AT.interval_arrival_s * m + k] = own[_SPAN * m + k]
        v[AT.h2d_critical_bytes * m + k] = own[_MISSED * m + k] * count * row_bytes
        v[AT.transfer_ms * m + k] = own[_MOVING * m + k]
        v[AT.compute_ms * m + k] = own[_SERVED * m + k] - own[_MOVING * m + k]
        v[AT.h2d_background_bytes * m + k] = f[fields.REFILLED * m + k] * row_bytes
        v[AT.emb_empty_share * m + k] = f[fields.EMB_EMPTY * m + k]
        v[AT.kv_empty_share * m + k] = f[fields.KV_EMPTY * m + k]
        v[AT.backlog_rows * m + k] = f[fields.BACKLOG * m + k]
        v[AT.d2h_bytes * m + k], v[AT.speed * m + k] = F(0.0), F(1.0)
    gains, curve, v_gains, v_curve = (
        total[_GAIN * m :],
        total[_CURVE * m :],
        v[AT.emb_gain_ms * m :],
        v[AT.predicted_ms * m :],
    )
    for i in range(4):
        for k in range(n):
            v_gains[i * m + k] = gains[i * m + k] * share
    for i in range(len(ALPHA_GRID)):
        for k in range(n):
            v_curve[i * m + k] = curve[i * m + k] * share
    top_quantile(ring, RING, filled, _TOP_SERVICE, requests, 0.99, n, total, v[AT.service_p99_ms * m :], m)
    top_quantile(ring, RING, filled, _TOP_SOJOURN, requests, 0.99, n, total, v[AT.sojourn_p99_ms * m :], m)
    top_quantile(own, RING, 1, _TOP_SOJOURN, requests, 0.99, n, total, v[AT.interval_p99_ms * m :], m)


@kernel
def _flag(c, w, splits, out, block, n, m):
    """Says of each lane whether it was asked for what the networks do not know."""
    for k in range(n):
        outside = splits[k] < c[OWN.least_alpha] - F(0.02) or splits[k] > c[OWN.largest_alpha] + F(0.02)
        for p in range(_P):
            outside = outside or w[p * m + k] < c[_LOW + p] or w[p * m + k] > c[_HIGH + p]
        out[block * m + k, 0] = outside


@kernel
def _serve_block(
    c, rows, counters, values, gaps, targets, figures, scratch, out, served, flags, block, n, m,
):  # fmt: skip
    """Serves one interval in the first ``n`` lanes of a block; see step_lanes."""
    base, service, sojourn = block * m, served[0, block], served[1, block]
    pool_pages, requests, window, max_history = figures[0], figures[1], figures[2], figures[3]
    scalars, powers, inside = c[_SCALARS:_POWERS], c[_POWERS:_INSIDE], c[_INSIDE:_REST]
    rest, fast, slow, weights = c[_REST:_FAST], c[_FAST:_SLOW], c[_SLOW:_OWN], c[_WEIGHTS:]
    w, splits, moved = scratch[_W * m :], scratch[_SPLITS * m :], scratch[_ALPHA_MOVED * m :]
    f, x, y, out_f = scratch[_F * m :], scratch[_X * m :], scratch[_Y * m :], scratch[_OUT * m :]
    level, rate, q = scratch[_LEVEL * m :], scratch[_RATE * m :], scratch[_Q * m :]
    score = scratch[_SCORE * m :]
    t, u, gap_rows, tele = (
        scratch[_T * m :],
        scratch[_V * m :],
        scratch[_GAPS * m :],
        scratch[_TELE * m :],
    )
    budget, total_pages, poisson = c[OWN.page_budget], F(pool_pages), np.isnan(gaps[0, 0])
    s, counts = rows[block], counters[block]
    clock, pages = counts[CLOCK * m :], counts[PAGES * m :]
    asked, now = tele[AT.target_alpha * m :], tele[AT.alpha * m :]  # in pages at first
    for k in range(n):
        for p in range(_P):
            w[p * m + k] = F(values[base + k, p])
        asked[k] = F(targets[base + k, 0])
    for k in range(n):
        change = min(max(asked[k] - F(pages[k]), -budget), budget)
        moved[k], now[k] = change / budget, F(pages[k]) + change
        tele[AT.moved_pages * m + k], tele[AT.moved_bytes * m + k] = change, abs(change) * c[OWN.page_bytes]
    for k in range(n):
        pages[k] = np.uint32(now[k])
        tele[AT.pending_pages * m + k] = asked[k] - now[k]
    for k in range(n):
        splits[k] = now[k] / total_pages
        now[k], asked[k], rate[k] = splits[k], asked[k] / total_pages, w[_ARRIVAL * m + k]
    for j in range(1, fluid.SPLITS):
        for k in range(n):
            splits[j * m + k] = F(FOLLOWED[j - 1])
    fluid.fluid_step(s[_FLUID * m :], w, splits, None, scalars, powers, inside, t, f, n, m)
    inputs.network_inputs(w, splits, moved, f, rest, x, inputs.USERS, n, m)
    networks.run_networks(weights, x, s[_HIDDEN * m :], t, u, y, networks.WIDTHS, n, m)
    fields.predict(y, f, c[_HURDLE:_WEIGHTS], out_f, n, m)
    fields.draw_level(counts, clock, fast, slow, c[OWN.persistence], s[_FACTORS * m :], F(requests), level, out_f, n, m)
    if not poisson:
        for r in range(requests):
            for k in range(n):
                gap_rows[r * m + k] = F(gaps[base + k, r])
    lag = s[_LAG * m :]
    for k in range(n):  # pages that EMB gave up have held the server up, unless it had room for their rows
        given = max(-moved[k], F(0.0)) * budget
        lag[k] += given * c[OWN.moved_page_ms] if out_f[fields.EMB_EMPTY * m + k] == F(0.0) else F(0.0)
    here = np.int64(clock[0]) % window
    filled = min(np.int64(clock[0]) + 1, window)
    ring = s[_RING * m :]
    own = ring[here * RING * m :]
    serve_requests(
        counts, clock, gap_rows, poisson, rate, out_f[fields.KNOT * m :], level, lag, c[OWN.slo_ms],
        requests, q, score, service, sojourn, own, n, m,
    )  # fmt: skip
    for k in range(n):
        level[k] = own[_SPENT * m + k] / F(requests)
    median(sojourn, level, requests, rate, n, own[_MEDIAN * m :], m)
    fields.add_noise(counts, clock, fast, slow, s[_FACTORS * m :], score, own, F(requests), F(max_history), out_f, n, m)
    _record(c, own, out_f, w, F(requests), n, m)
    _report(c, ring, filled, own, requests, out_f, t, tele, n, m)
    _flag(c, w, splits, flags, block, n, m)
    for k in range(n):
        clock[k] += np.uint32(1)
        for column in range(WIDTH):
            out[base + k, 0, column] = tele[column * m + k]


@kernel
def _sound(values, allocation, bounds, figures, targets):
    paged = control_interval.to_pages(allocation, bounds[0], bounds[1], figures[0], targets)
    return paged and control_interval.within(values, bounds[2 : 2 + _P], bounds[2 + _P :], _ARRIVAL)


@kernel
def step_lanes(
    c, rows, counters, values, gaps, allocation, bounds, figures, scratch, targets, out, served, flags
):  # fmt: skip
    """Serves one interval in all lanes; False, and nothing is done, if what it is asked for is not within bounds.

    c: of ``pack``; rows, counters: of ``State``; values: (lanes, parameters); gaps: (lanes, requests), s, NaN where
    arrivals are Poisson; allocation: (lanes, nodes), alpha; bounds: least and largest alpha, the parameters' least
    values and their highest; figures: pages, requests, intervals of the window, longest history. Fills targets: (lanes,
    nodes), EMB's pages; out: float64 (lanes, nodes, WIDTH); served: float32 (2, blocks, requests * LANES), service and
    sojourn, ms; flags: bool (lanes, nodes).
    """
    if not _sound(values, allocation, bounds, figures, targets):
        return False
    for block in range(rows.shape[0]):
        _serve_block(
            c, rows, counters, values, gaps, targets, figures, scratch, out, served, flags,
            block, min(LANES, values.shape[0] - block * LANES), LANES,
        )  # fmt: skip
    return True


@kernel
def step_one(c, rows, counters, values, gaps, allocation, bounds, figures, scratch, targets, out, served, flags):
    """``step_lanes`` where there is one lane, whose block has one column: rows become the vectors."""
    if not _sound(values, allocation, bounds, figures, targets):
        return False
    _serve_block(c, rows, counters, values, gaps, targets, figures, scratch, out, served, flags, 0, 1, 1)
    return True
