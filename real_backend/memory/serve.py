"""From requests to a plan, from a plan to time, from time to telemetry: the part of serving that is bookkeeping.

Both rungs call these kernels on the same requests. On the modelled rung ``serve_interval`` prices each plan with the
cost model; on the measured rung the engine carries the plan out and its time goes into ``account``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.kernels.jit import kernel
from helm_gym.profile import Profile
from real_backend.memory import emb_cache, kv_cache
from real_backend.memory.layout import (
    OFFLOAD_TOKENS,
    SIM_ALPHAS,
    UPLOAD_TOKENS,
    rules_of,
    unit_of,
)
from real_backend.memory.pool import begin, move_towards
from real_backend.memory.pricing import batch_ms, compute_ms, transfer_ms
from real_backend.memory.simulations import simulate

# Indices into Ledger.sums: what an interval adds up.
REQUESTS = 0
KV_HITS = 1
LOOKUPS = 2
ROW_MISSES = 3
RECOMPUTED = 4
EMB_GAIN = 5
EMB_LOSS = 6
KV_GAIN = 7
KV_LOSS = 8
HISTORY = 9
COMPUTE_MS = 10
TRANSFER_MS = 11
UPLOADED_TOKENS = 12
REFILLED_ROWS = 13
OFFLOADED_TOKENS = 14
MOVED_PAGES = 15
SPAN_S = 16
SIMULATED = 17  # one a simulated alpha
SUMS = SIMULATED + len(SIM_ALPHAS)

# Indices into Ledger.clock.
NOW_S = 0  # last arrival
FREE_AT_S = 1  # when the server has worked off what it accepted
REFILL_CREDIT = 2  # rows that background traffic may copy
CLOCKS = 3


NO_USER = np.iinfo(np.int32).max  # where an interval has room for more requests than there were


class Ledger(NamedTuple):
    """Time and sums of every unit: U units, K intervals a window, room for R requests an interval."""

    clock: NDArray[np.float64]  # (U, CLOCKS)
    sums: NDArray[np.float64]  # (U, K, SUMS), a ring of intervals
    window_sums: NDArray[np.float64]  # (U, SUMS), scratch
    service_ms: NDArray[np.float64]  # (U, K, R), each request's, and infinity behind an interval's last
    sojourn_ms: NDArray[np.float64]  # (U, K, R)
    done_s: NDArray[np.float64]  # (U, K, R), when each was answered
    user: NDArray[np.int32]  # (U, K, R), NO_USER behind the last
    interval: NDArray[np.int64]  # (U, 1), intervals so far
    positions: NDArray[np.int32]  # (U, tokens), scratch of the simulations
    sampled: NDArray[np.int32]  # (U, tokens)


def room(profile: Profile, nodes: int) -> int:
    """Requests that a node may get in one interval: all of them, and in a cluster all of a lost node's once more."""
    return nodes * profile.interval.requests * (1 if nodes == 1 else 2)


def make_ledger(profile: Profile, units: int, nodes: int = 1) -> Ledger:
    """``nodes``: how many share a lane's requests."""
    intervals = profile.interval.window // profile.interval.requests
    window = (units, intervals, room(profile, nodes))
    tokens = profile.model.max_history + profile.model.max_candidates
    return Ledger(
        clock=np.zeros((units, CLOCKS)),
        sums=np.zeros((units, intervals, SUMS)),
        window_sums=np.zeros((units, SUMS)),
        service_ms=np.full(window, np.inf),
        sojourn_ms=np.full(window, np.inf),
        done_s=np.zeros(window),
        user=np.full(window, NO_USER, np.int32),
        interval=np.zeros((units, 1), np.int64),
        positions=np.zeros((units, tokens), np.int32),
        sampled=np.zeros((units, tokens), np.int32),
    )


@kernel
def batch_end(requests, u, first, ledger, limit):
    """The micro-batch that starts with request ``first``: who has arrived when the server is free, no user twice.

    Returns one past its last request. Gaps are taken as they stand; the clock is at the arrival before ``first``.
    """
    at = ledger.clock[u, NOW_S] + requests.gap_s[u, first]
    start = max(at, ledger.clock[u, FREE_AT_S])
    end = first + 1
    while end < requests.number[u, 0] and end - first < limit:
        at += requests.gap_s[u, end]
        if at > start:
            break
        repeated = False
        for other in range(first, end):
            repeated = repeated or requests.user[u, other] == requests.user[u, end]
        if repeated:
            break
        end += 1
    return end


@kernel
def plan_batch(m, items, requests, u, first, end, plan, ledger, sums, rules):
    """Plans requests ``first`` to ``end`` of unit ``u`` and counts what they do to the caches.

    m: the unit's Memory; items: (users, max_history), the users' histories; sums: (SUMS,).
    """
    begin(m, plan)
    for r in range(first, end):
        b = r - first
        user, version, length = requests.user[u, r], requests.version[u, r], requests.length[u, r]
        outcome = kv_cache.admit(m, plan, b, user, version, length, rules)
        cached = plan.cached[b]
        count = requests.candidate_count[u, r]
        history_misses, cold, shadow = emb_cache.lookup_rows(m, plan, items[user], cached, length, rules)
        misses, more_cold, more_shadow = emb_cache.lookup_rows(m, plan, requests.candidates[u, r], 0, count, rules)
        delta = requests.delta[u, r]
        sums[REQUESTS] += 1
        sums[KV_HITS] += outcome <= kv_cache.COLD_HIT
        sums[LOOKUPS] += length - cached + count
        sums[ROW_MISSES] += history_misses + misses
        sums[RECOMPUTED] += max(0, length - cached - delta)  # of a late request even its delta may be cached
        sums[HISTORY] += length
        sums[EMB_GAIN] += (shadow + more_shadow) * rules.row_ms
        sums[EMB_LOSS] += (cold + more_cold) * rules.row_ms
        # A KV miss costs the recomputation and the rows that it fetched for it.
        if outcome == kv_cache.SHADOW_MISS:
            sums[KV_GAIN] += compute_ms(rules, length - delta, length) + history_misses * rules.row_ms
        elif outcome == kv_cache.COLD_HIT:
            missing = sums[ROW_MISSES] / max(1.0, sums[LOOKUPS])
            sums[KV_LOSS] += compute_ms(rules, cached, length) + cached * missing * rules.row_ms
        simulate(
            m, user, version, length, items[user], requests.candidates[u, r, :count],
            ledger.positions[u], ledger.sampled[u], rules, sums[SIMULATED:],
        )  # fmt: skip
    sums[UPLOADED_TOKENS] += plan.counts[UPLOAD_TOKENS]
    sums[OFFLOADED_TOKENS] += plan.counts[OFFLOAD_TOKENS]


@kernel
def account(requests, u, first, end, computed_ms, waited_ms, ledger, sums):
    """Queues the batch on the virtual clock (start = max(last arrival, server free)) and records its latencies."""
    clock, place = ledger.clock[u], ledger.interval[u, 0] % ledger.sums.shape[1]
    service = computed_ms + waited_ms
    arrival = clock[NOW_S]
    for r in range(first, end):
        arrival += requests.gap_s[u, r]
    done = max(arrival, clock[FREE_AT_S]) + service * 1e-3
    arrival = clock[NOW_S]
    for r in range(first, end):
        arrival += requests.gap_s[u, r]
        ledger.service_ms[u, place, r] = service
        ledger.sojourn_ms[u, place, r] = (done - arrival) * 1e3
        ledger.done_s[u, place, r] = done
        ledger.user[u, place, r] = requests.user[u, r]
    sums[SPAN_S] += arrival - clock[NOW_S]
    clock[NOW_S] = arrival
    clock[FREE_AT_S] = done
    sums[COMPUTE_MS] += computed_ms
    sums[TRANSFER_MS] += waited_ms


@kernel
def plan_refill(m, plan, elapsed_ms, ledger, u, sums, rules):
    """Background copies, at the link's background share of the time that the batch was in service."""
    clock = ledger.clock[u]
    if emb_cache.refill_backlog(m, rules) == 0:
        clock[REFILL_CREDIT] = 0.0
        return 0
    clock[REFILL_CREDIT] += elapsed_ms * rules.background_rows_per_ms
    rows = emb_cache.refill(m, plan, rules, int(clock[REFILL_CREDIT]))
    clock[REFILL_CREDIT] -= rows
    sums[REFILLED_ROWS] += rows
    return rows


@kernel
def open_interval(m, u, target_pages, budget, plan, ledger, rules):
    """Moves pages towards the target. Returns the interval's place in the ledger's rings, emptied."""
    place = ledger.interval[u, 0] % ledger.sums.shape[1]
    sums = ledger.sums[u, place]
    sums[:] = 0.0
    ledger.service_ms[u, place, :] = np.inf
    ledger.sojourn_ms[u, place, :] = np.inf
    ledger.done_s[u, place, :] = 0.0
    ledger.user[u, place, :] = NO_USER
    sums[MOVED_PAGES] = move_towards(m, plan, target_pages, budget, rules)
    sums[OFFLOADED_TOKENS] = plan.counts[OFFLOAD_TOKENS]
    return place


@kernel
def serve_interval(memory, items, targets, budget, limit, requests, plan, ledger, rule_table):
    """One interval of every unit on the modelled rung.

    items: (lanes, users, max_history), the users' histories; targets: (units,) pages; rule_table: (units, fields).
    """
    units = targets.shape[0]
    nodes = units // items.shape[0]
    for u in range(units):
        m, rules = unit_of(memory, u), rules_of(rule_table, u)
        place = open_interval(m, u, targets[u], budget, plan, ledger, rules)
        sums = ledger.sums[u, place]
        first = 0
        while first < requests.number[u, 0]:
            end = batch_end(requests, u, first, ledger, limit)
            plan_batch(m, items[u // nodes], requests, u, first, end, plan, ledger, sums, rules)
            tokens, pairs, context = 0, 0, 0
            for r in range(first, end):
                n = requests.length[u, r] - plan.cached[r - first] + requests.candidate_count[u, r]
                tokens += n
                pairs += n * requests.length[u, r]
                context += requests.length[u, r]
            computed = batch_ms(rules, tokens, pairs, context)
            waited = transfer_ms(plan, rules)
            account(requests, u, first, end, computed, waited, ledger, sums)
            plan_refill(m, plan, computed + waited, ledger, u, sums, rules)
            first = end
        ledger.interval[u, 0] += 1
