"""Telemetry of a cluster's nodes from the networks' fields and what their requests came to, node by node.

As the ledger's report (real_backend/memory/report.py): sums over the window's intervals, each by its requests, whose
number differs from node to node. What kernels/step.py does for lanes in blocks, where all have as many.
"""

from __future__ import annotations

from helm_gym.telemetry import ALPHA_GRID, AT
from surrogate_backend.clusters.kernels.tally import (
    COUNT,
    LATE,
    MEDIAN,
    SERVED,
    SPENT,
    SUMS,
    TOP,
    TOP_SERVICE,
    TOP_SOJOURN,
)
from surrogate_backend.kernels import fields
from surrogate_backend.kernels.functions import F, inverse_exp, kernel

# Rows of a node's interval behind those of tally.py.
HITS, MISSED, LOOKED, AGAIN, LENGTH, UNIQUE, RETURNING, MOVING, GAIN = range(SUMS, SUMS + 9)
CURVE = GAIN + 4
GRID = len(ALPHA_GRID)
SPAN = CURVE + GRID  # ms; of a lost node 0
RING = SPAN + 1
# What is known of the profile: row (ms), row (B), link latency (ms); layout.delay_ratio.
ROW_MS, ROW_BYTES, LATENCY_MS, DELAY = 0, 1, 2, 8


@kernel
def record(f, k, m, delta, candidates, known, own):
    """Puts the fields of column ``k`` of a block beside what the node's requests came to, ``own`` (RING,)."""
    count = own[COUNT]
    length = f[fields.LENGTH * m + k]
    again = min(f[fields.AGAIN * m + k], length)
    looked = again + delta + candidates
    misses = looked * (F(1.0) - f[fields.EMB_HIT * m + k])
    waited = misses * known[ROW_MS] + known[LATENCY_MS] * (F(1.0) - inverse_exp(misses))
    own[HITS], own[MISSED] = count * f[fields.HIT * m + k], count * misses
    own[LOOKED], own[AGAIN], own[LENGTH] = count * looked, count * again, count * length
    own[UNIQUE], own[RETURNING] = count * f[fields.UNIQUE * m + k], count * f[fields.RETURNING * m + k]
    waited *= count
    waited += min(waited * known[DELAY], f[fields.BACKLOG * m + k] * known[ROW_MS])  # delayed by refills
    own[MOVING] = min(waited, F(0.95) * own[SERVED])
    for i in range(4):
        own[GAIN + i] = count * f[(fields.GAINS + i) * m + k]
    for i in range(GRID):
        own[CURVE + i] = count * f[(fields.PREDICTED + i) * m + k]


@kernel
def _quantile(ring, filled, first, count, share, largest):
    """A high quantile of ``count`` values over the intervals of ``ring``, from the TOP largest of each."""
    for j in range(TOP):
        largest[j] = F(0.0)
    for i in range(filled):
        for j in range(TOP):
            value = ring[i, first + j]
            if value <= largest[TOP - 1]:
                break
            at = TOP - 1
            while at > 0 and largest[at - 1] < value:
                largest[at] = largest[at - 1]
                at -= 1
            largest[at] = value
    if count < 1:
        return F(0.0)
    at = share * (count - 1)
    rank = count - 1 - int(at)
    if rank >= TOP:  # of a node that has drawn several times its share: the least that is known, which lies above
        return largest[TOP - 1]
    return largest[rank] + F(at - int(at)) * (largest[max(rank - 1, 0)] - largest[rank])


@kernel
def report(f, k, m, ring, filled, own, span_ms, alive, known, total, largest, out):
    """Fills the columns of ``out`` (WIDTH,) that requests and fields decide.

    ring: (K, RING) of the node, ``filled`` of which count; own: its last; span_ms: length of the interval; total,
    largest: scratch, RING and TOP.
    """
    own[SPAN] = span_ms if alive else F(0.0)
    for column in range(RING):
        total[column] = ring[0, column]
    for i in range(1, filled):
        for column in range(RING):
            total[column] += ring[i, column]
    count, number = total[COUNT], own[COUNT]
    each, share = F(1.0) / max(count, F(1.0)), F(1.0) / max(number, F(1.0))
    busy, window_s = max(total[SERVED], F(1e-9)), max(total[SPAN] * F(1e-3), F(1e-9))
    out[AT.emb_hit_rate] = F(1.0) - total[MISSED] / max(total[LOOKED], F(1.0))
    out[AT.kv_hit_rate], out[AT.emb_miss_bytes] = total[HITS] * each, total[MISSED] * each * known[ROW_BYTES]
    out[AT.kv_recomputed_tokens], out[AT.transfer_share] = total[AGAIN] * each, total[MOVING] / busy
    out[AT.compute_share] = F(1.0) - out[AT.transfer_share] if count > F(0.0) else F(0.0)
    for i in range(4):
        out[AT.emb_gain_ms + i] = total[GAIN + i] * each
    for i in range(GRID):
        out[AT.predicted_ms + i] = total[CURVE + i] * each
    out[AT.returning_share], out[AT.unique_users], out[AT.mean_history] = (
        total[RETURNING] * each,
        total[UNIQUE] * each,
        total[LENGTH] * each,
    )
    out[AT.arrival_rate_rps], out[AT.utilisation] = count / window_s, total[SERVED] * F(1e-3) / window_s
    out[AT.service_mean_ms], out[AT.sojourn_mean_ms], out[AT.sojourn_p50_ms] = (
        total[SERVED] * each,
        total[SPENT] * each,
        total[MEDIAN] * each,
    )
    out[AT.queue_depth] = out[AT.arrival_rate_rps] * out[AT.sojourn_mean_ms] * F(1e-3)  # Little's law
    out[AT.service_p99_ms] = _quantile(ring, filled, TOP_SERVICE, int(count), 0.99, largest)
    out[AT.sojourn_p99_ms] = _quantile(ring, filled, TOP_SOJOURN, int(count), 0.99, largest)
    out[AT.slo_violations], out[AT.interval_violations] = total[LATE] * each, own[LATE] * share
    out[AT.interval_service_ms], out[AT.interval_sojourn_ms] = own[SERVED] * share, own[SPENT] * share
    out[AT.interval_p99_ms] = _quantile(own.reshape(1, RING), 1, TOP_SOJOURN, int(number), 0.99, largest)
    out[AT.interval_arrival_s] = span_ms * F(1e-3)
    out[AT.h2d_critical_bytes], out[AT.transfer_ms] = own[MISSED] * known[ROW_BYTES], own[MOVING]
    out[AT.compute_ms] = own[SERVED] - own[MOVING]
    out[AT.emb_empty_share], out[AT.kv_empty_share] = f[fields.EMB_EMPTY * m + k], f[fields.KV_EMPTY * m + k]
    out[AT.backlog_rows], out[AT.h2d_background_bytes] = (
        f[fields.BACKLOG * m + k],
        f[fields.REFILLED * m + k] * known[ROW_BYTES],
    )
    out[AT.speed] = F(1.0)
    if not alive:
        out[AT.emb_empty_share] = out[AT.kv_empty_share] = F(1.0)
        out[AT.backlog_rows] = out[AT.h2d_background_bytes] = F(0.0)
