"""Telemetry of an interval from the ledger's sums and rings (fields: helm_gym/telemetry.py)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.kernels.jit import kernel
from helm_gym.profile import Profile
from helm_gym.telemetry import AT, WIDTH
from real_backend.memory.emb_cache import refill_backlog
from real_backend.memory.layout import FILL, N_EMB, N_FRESH, N_KV_FREE, N_PAGES, Memory, rules_of, unit_of
from real_backend.memory.ledger import (
    COMPUTE_MS,
    EMB_GAIN,
    EMB_LOSS,
    HISTORY,
    KV_GAIN,
    KV_HITS,
    KV_LOSS,
    LOOKUPS,
    MOVED_PAGES,
    MOVES_MS,
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
    row[AT.unique_users] = distinct / max(1, ordered.shape[0])
    row[AT.returning_share] = returning / max(1, ordered.shape[0])


@kernel
def _latencies(row, service, sojourn, own_service, own_sojourn, slo_ms):
    """Window and interval statistics of ascending service times and sojourns."""
    row[AT.service_mean_ms], row[AT.service_p99_ms] = _mean(service), _quantile(service, 0.99)
    row[AT.sojourn_mean_ms], row[AT.sojourn_p50_ms] = _mean(sojourn), _quantile(sojourn, 0.5)
    row[AT.sojourn_p99_ms] = _quantile(sojourn, 0.99)
    row[AT.slo_violations] = _share_above(sojourn, slo_ms)
    row[AT.interval_service_ms] = _mean(own_service)
    row[AT.interval_sojourn_ms], row[AT.interval_p99_ms] = _mean(own_sojourn), _quantile(own_sojourn, 0.99)
    row[AT.interval_violations] = _share_above(own_sojourn, slo_ms)


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


def telemetry_of(
    memory: Memory, ledger: Ledger, targets: NDArray[np.int64], rule_table: NDArray[np.float64], profile: Profile
) -> NDArray[np.float64]:
    """The telemetry of an interval that has ended, (units, WIDTH), but for ``speed``.

    Args:
        targets: (units,), the pages that EMB was to have.
        rule_table: (units, fields), as ``rules_of`` takes it.
    """
    values = np.zeros((len(targets), WIDTH))
    sizes = profile.row_bytes, profile.pool.page_bytes, profile.kv_bytes_per_token
    report(memory, ledger, order(ledger), targets, rule_table, *sizes, values)
    return values


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
        serving = max(1e-9, total[COMPUTE_MS] + total[TRANSFER_MS])
        busy = max(1e-9, total[COMPUTE_MS] + total[TRANSFER_MS] + total[MOVES_MS])
        _latencies(
            row, ordered.service_ms[u, :n], ordered.sojourn_ms[u, :n], ordered.own_service_ms[u, :own],
            ordered.own_sojourn_ms[u, :own], rules.slo_ms,
        )  # fmt: skip
        _users(row, ordered.user[u, :n])

        row[AT.alpha], row[AT.target_alpha] = m.n[N_EMB] / pages, targets[u] / pages
        row[AT.pending_pages] = targets[u] - m.n[N_EMB]
        row[AT.moved_pages], row[AT.moved_bytes] = last[MOVED_PAGES], abs(last[MOVED_PAGES]) * page_bytes
        row[AT.emb_hit_rate] = 1.0 - total[ROW_MISSES] / max(1.0, total[LOOKUPS])
        row[AT.kv_hit_rate] = total[KV_HITS] / requests
        row[AT.emb_miss_bytes] = total[ROW_MISSES] * row_bytes / requests
        row[AT.kv_recomputed_tokens] = total[RECOMPUTED] / requests
        row[AT.compute_share], row[AT.transfer_share] = total[COMPUTE_MS] / serving, total[TRANSFER_MS] / serving
        row[AT.emb_gain_ms], row[AT.emb_loss_ms] = total[EMB_GAIN] / requests, total[EMB_LOSS] / requests
        row[AT.kv_gain_ms], row[AT.kv_loss_ms] = total[KV_GAIN] / requests, total[KV_LOSS] / requests
        for s in range(SUMS - SIMULATED):
            row[AT.predicted_ms + s] = total[SIMULATED + s] / requests
        row[AT.mean_history] = total[HISTORY] / requests
        row[AT.arrival_rate_rps] = n / max(1e-9, total[SPAN_S])
        row[AT.utilisation] = busy * 1e-3 / max(1e-9, total[SPAN_S])
        # Little's law: mean number in the system = arrival rate x mean sojourn.
        row[AT.queue_depth] = row[AT.arrival_rate_rps] * row[AT.sojourn_mean_ms] * 1e-3
        slots = m.n[N_EMB] * rules.rows_per_page
        row[AT.emb_empty_share] = (m.n[N_FRESH] * rules.rows_per_page - m.n[FILL]) / max(1, slots)
        row[AT.kv_empty_share] = m.n[N_KV_FREE] / max(1, pages - m.n[N_EMB])
        row[AT.backlog_rows] = refill_backlog(m, rules)
        row[AT.interval_arrival_s] = last[SPAN_S]
        row[AT.h2d_critical_bytes] = last[ROW_MISSES] * row_bytes + last[UPLOADED_TOKENS] * kv_bytes
        row[AT.h2d_background_bytes] = last[REFILLED_ROWS] * row_bytes
        row[AT.d2h_bytes] = last[OFFLOADED_TOKENS] * kv_bytes
        row[AT.compute_ms], row[AT.transfer_ms] = last[COMPUTE_MS], last[TRANSFER_MS]
