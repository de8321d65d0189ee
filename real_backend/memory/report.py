"""Telemetry of an interval from the ledger's sums and rings (fields: helm_gym/telemetry.py)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.kernels.jit import kernel
from helm_gym.telemetry import COLUMN
from real_backend.memory.emb_cache import refill_backlog
from real_backend.memory.layout import FILL, N_EMB, N_FRESH, N_KV_FREE, N_PAGES, rules_of, unit_of
from real_backend.memory.serve import (
    COMPUTE_MS,
    EMB_GAIN,
    EMB_LOSS,
    HISTORY,
    KV_GAIN,
    KV_HITS,
    KV_LOSS,
    LOOKUPS,
    MOVED_PAGES,
    OFFLOADED_TOKENS,
    RECOMPUTED,
    REFILLED_ROWS,
    REQUESTS,
    ROW_MISSES,
    SIMULATED,
    SPAN_S,
    SUMS,
    TRANSFER_MS,
    UPLOADED_TOKENS,
    Ledger,
)

_ALPHA, _TARGET, _PENDING = COLUMN["alpha"], COLUMN["target_alpha"], COLUMN["pending_pages"]
_MOVED, _MOVED_BYTES = COLUMN["moved_pages"], COLUMN["moved_bytes"]
_EMB_HIT, _KV_HIT = COLUMN["emb_hit_rate"], COLUMN["kv_hit_rate"]
_EMB_MISS, _RECOMPUTED = COLUMN["emb_miss_bytes"], COLUMN["kv_recomputed_tokens"]
_COMPUTE_SHARE, _TRANSFER_SHARE = COLUMN["compute_share"], COLUMN["transfer_share"]
_EMB_GAIN, _EMB_LOSS = COLUMN["emb_gain_ms"], COLUMN["emb_loss_ms"]
_KV_GAIN, _KV_LOSS = COLUMN["kv_gain_ms"], COLUMN["kv_loss_ms"]
_PREDICTED = COLUMN["predicted_ms"]
_RETURNING, _UNIQUE, _HISTORY = COLUMN["returning_share"], COLUMN["unique_users"], COLUMN["mean_history"]
_RATE, _UTILISATION, _QUEUE = COLUMN["arrival_rate_rps"], COLUMN["utilisation"], COLUMN["queue_depth"]
_EMB_EMPTY, _KV_EMPTY, _BACKLOG = COLUMN["emb_empty_share"], COLUMN["kv_empty_share"], COLUMN["backlog_rows"]
_SERVICE, _SERVICE_P99 = COLUMN["service_mean_ms"], COLUMN["service_p99_ms"]
_SOJOURN, _SOJOURN_P50 = COLUMN["sojourn_mean_ms"], COLUMN["sojourn_p50_ms"]
_SOJOURN_P99, _VIOLATIONS = COLUMN["sojourn_p99_ms"], COLUMN["slo_violations"]
_I_SERVICE, _I_SOJOURN = COLUMN["interval_service_ms"], COLUMN["interval_sojourn_ms"]
_I_P99, _I_VIOLATIONS, _I_SPAN = COLUMN["interval_p99_ms"], COLUMN["interval_violations"], COLUMN["interval_arrival_s"]
_H2D, _BACKGROUND, _D2H = COLUMN["h2d_critical_bytes"], COLUMN["h2d_background_bytes"], COLUMN["d2h_bytes"]
_COMPUTE, _TRANSFER = COLUMN["compute_ms"], COLUMN["transfer_ms"]


@kernel
def _quantile(ordered, q):
    """Linear interpolation between order statistics, as numpy.quantile does; 0 of nothing."""
    if ordered.shape[0] == 0:
        return 0.0
    at = q * (ordered.shape[0] - 1)
    low = int(at)
    high = min(low + 1, ordered.shape[0] - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


@kernel
def _mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / max(1, values.shape[0])


@kernel
def _share_above(values, limit):
    count = 0
    for value in values:
        count += value > limit
    return count / max(1, values.shape[0])


@kernel
def _users(row, ordered):
    """How many distinct users the window has, and how many of its requests are from users seen more than once."""
    distinct, returning, run = 0, 0, 0
    for k in range(ordered.shape[0]):
        run += 1
        if k + 1 == ordered.shape[0] or ordered[k + 1] != ordered[k]:
            distinct += 1
            if run > 1:
                returning += run
            run = 0
    row[_UNIQUE] = distinct / max(1, ordered.shape[0])
    row[_RETURNING] = returning / max(1, ordered.shape[0])


@kernel
def _latencies(row, service, sojourn, own_service, own_sojourn, slo_ms):
    """Window and interval statistics of ascending service times and sojourns."""
    row[_SERVICE], row[_SERVICE_P99] = _mean(service), _quantile(service, 0.99)
    row[_SOJOURN], row[_SOJOURN_P50] = _mean(sojourn), _quantile(sojourn, 0.5)
    row[_SOJOURN_P99] = _quantile(sojourn, 0.99)
    row[_VIOLATIONS] = _share_above(sojourn, slo_ms)
    row[_I_SERVICE] = _mean(own_service)
    row[_I_SOJOURN], row[_I_P99] = _mean(own_sojourn), _quantile(own_sojourn, 0.99)
    row[_I_VIOLATIONS] = _share_above(own_sojourn, slo_ms)


class Ordered(NamedTuple):
    """The ledger's rings in ascending order, (units, room): over the window, and over the last interval.

    What there is stands in front; infinity, or NO_USER, fills the room behind.
    """

    service_ms: NDArray[np.float64]
    sojourn_ms: NDArray[np.float64]
    user: NDArray[np.int32]
    own_service_ms: NDArray[np.float64]
    own_sojourn_ms: NDArray[np.float64]


def last_interval(ledger: Ledger, ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """The last interval's part of a ring, (units, most requests of a unit); all units are at the same place."""
    place = int(ledger.interval[0, 0] - 1) % ring.shape[1]
    return ring[:, place, : int(ledger.sums[:, place, REQUESTS].max())]


def order(ledger: Ledger) -> Ordered:
    """Sorts what ``report`` takes quantiles of."""
    units, most = len(ledger.user), int(ledger.sums[:, :, REQUESTS].max())
    return Ordered(
        np.sort(ledger.service_ms[:, :, :most].reshape(units, -1)),
        np.sort(ledger.sojourn_ms[:, :, :most].reshape(units, -1)),
        np.sort(ledger.user[:, :, :most].reshape(units, -1)),
        np.sort(last_interval(ledger, ledger.service_ms)),
        np.sort(last_interval(ledger, ledger.sojourn_ms)),
    )


@kernel
def report(memory, ledger, ordered, targets, rule_table, row_bytes, page_bytes, kv_bytes, out):
    """Fills ``out`` (units, WIDTH) after an interval; targets: (units,) pages; rule_table: (units, fields)."""
    for u in range(out.shape[0]):
        m, row, rules = unit_of(memory, u), out[u], rules_of(rule_table, u)
        ring = ledger.sums.shape[1]
        intervals = ledger.interval[u, 0]
        last = ledger.sums[u, (intervals - 1) % ring]
        total = ledger.window_sums[u]
        total[:] = 0.0
        for k in range(min(ring, intervals)):
            for column in range(total.shape[0]):
                total[column] += ledger.sums[u, k, column]
        # A node of a cluster may get no request at all: what it reports of requests is then 0.
        n, own = int(total[REQUESTS]), int(last[REQUESTS])
        requests, pages = max(1.0, total[REQUESTS]), m.n[N_PAGES]
        busy = max(1e-9, total[COMPUTE_MS] + total[TRANSFER_MS])
        _latencies(
            row, ordered.service_ms[u, :n], ordered.sojourn_ms[u, :n], ordered.own_service_ms[u, :own],
            ordered.own_sojourn_ms[u, :own], rules.slo_ms,
        )  # fmt: skip
        _users(row, ordered.user[u, :n])

        row[_ALPHA], row[_TARGET] = m.n[N_EMB] / pages, targets[u] / pages
        row[_PENDING] = targets[u] - m.n[N_EMB]
        row[_MOVED], row[_MOVED_BYTES] = last[MOVED_PAGES], abs(last[MOVED_PAGES]) * page_bytes
        row[_EMB_HIT] = 1.0 - total[ROW_MISSES] / max(1.0, total[LOOKUPS])
        row[_KV_HIT] = total[KV_HITS] / requests
        row[_EMB_MISS] = total[ROW_MISSES] * row_bytes / requests
        row[_RECOMPUTED] = total[RECOMPUTED] / requests
        row[_COMPUTE_SHARE], row[_TRANSFER_SHARE] = total[COMPUTE_MS] / busy, total[TRANSFER_MS] / busy
        row[_EMB_GAIN], row[_EMB_LOSS] = total[EMB_GAIN] / requests, total[EMB_LOSS] / requests
        row[_KV_GAIN], row[_KV_LOSS] = total[KV_GAIN] / requests, total[KV_LOSS] / requests
        for s in range(SUMS - SIMULATED):
            row[_PREDICTED + s] = total[SIMULATED + s] / requests
        row[_HISTORY] = total[HISTORY] / requests
        row[_RATE] = n / max(1e-9, total[SPAN_S])
        row[_UTILISATION] = busy * 1e-3 / max(1e-9, total[SPAN_S])
        # Little's law: mean number in the system = arrival rate x mean sojourn.
        row[_QUEUE] = row[_RATE] * row[_SOJOURN] * 1e-3
        slots = m.n[N_EMB] * rules.rows_per_page
        row[_EMB_EMPTY] = (m.n[N_FRESH] * rules.rows_per_page - m.n[FILL]) / max(1, slots)
        row[_KV_EMPTY] = m.n[N_KV_FREE] / max(1, pages - m.n[N_EMB])
        row[_BACKLOG] = refill_backlog(m, rules)
        row[_I_SPAN] = last[SPAN_S]
        row[_H2D] = last[ROW_MISSES] * row_bytes + last[UPLOADED_TOKENS] * kv_bytes
        row[_BACKGROUND] = last[REFILLED_ROWS] * row_bytes
        row[_D2H] = last[OFFLOADED_TOKENS] * kv_bytes
        row[_COMPUTE], row[_TRANSFER] = last[COMPUTE_MS], last[TRANSFER_MS]
