"""From requests to a plan, from a plan to time, from time to telemetry: the part of serving that is bookkeeping.

Both rungs call these kernels on the same requests. On the modelled rung ``serve_interval`` prices each plan with the
cost model; on the measured rung the engine carries the plan out and its time goes into ``account``.
"""

from __future__ import annotations

import numpy as np

from helm_gym.kernels.jit import kernel
from real_backend.memory import emb_cache, kv_cache
from real_backend.memory.layout import MOVES, OFFLOAD_TOKENS, OFFLOADS, STAGED, UPLOAD_TOKENS, rules_of, unit_of
from real_backend.memory.ledger import (
    ANSWERED,
    BACKGROUND_MS,
    COMPUTE_MS,
    DELAY_MS,
    DOWN_MS,
    EMB_GAIN,
    EMB_LOSS,
    FREE_AT_S,
    HISTORY,
    KV_GAIN,
    KV_HITS,
    KV_LOSS,
    LOOKUPS,
    MOVED_DOWN_TOKENS,
    MOVED_PAGES,
    MOVED_ROWS,
    MOVES_MS,
    NO_USER,
    NOW_S,
    OFFLOADED_TOKENS,
    OFFLOADS_MS,
    RECOMPUTED,
    REFILL_CREDIT,
    REFILLED_ROWS,
    REQUESTS,
    ROW_MISSES,
    ROWS_MS,
    SIMULATED,
    SPAN_S,
    STAGED_ROWS,
    TRANSFER_MS,
    UPLOADED_TOKENS,
    UPLOADS_MS,
    WAITING,
)
from real_backend.memory.pool import begin, move_towards
from real_backend.memory.pricing import batch_load, batch_ms, compute_ms, delay_ms, transfers_ms
from real_backend.memory.scheduler import choose, pin
from real_backend.memory.simulations import simulate


@kernel
def plan_batch(m, items, requests, u, size, plan, ledger, sums, rules):
    """Plans the ``size`` requests of unit ``u`` that plan.request names, and counts what they do to the caches.

    m: the unit's Memory; items: (users, max_history), the users' histories; sums: (SUMS,).
    """
    begin(m, plan)
    pin(m, requests, u, size, plan)
    for b in range(size):
        r = plan.request[b]
        user, version, length = requests.user[u, r], requests.version[u, r], requests.length[u, r]
        begins = ledger.progress[u, r] == WAITING
        if begins:
            ledger.outcome[u, r] = kv_cache.admit(m, plan, b, user, version, length, rules)
        else:  # a further chunk: what was computed of its history lies in the pages that it was given
            plan.cached[b], plan.stored[b], plan.upload_place[b] = ledger.progress[u, r], length, -1
        cached, count, stop = plan.cached[b], requests.candidate_count[u, r], length
        if b == 0 and size > 1 and 0 < rules.chunk_tokens < length - cached and plan.stored[b] == length:
            stop, count = cached + rules.chunk_tokens, 0
            plan.stored[b] = stop
        plan.stop[b], plan.asked[b] = stop, count
        history_misses, cold, shadow = emb_cache.lookup_rows(m, plan, items[user], cached, stop, rules)
        misses, more_cold, more_shadow = emb_cache.lookup_rows(m, plan, requests.candidates[u, r], 0, count, rules)
        outcome = ledger.outcome[u, r]
        sums[LOOKUPS] += stop - cached + count
        sums[ROW_MISSES] += history_misses + misses
        sums[EMB_GAIN] += (shadow + more_shadow) * rules.row_ms
        sums[EMB_LOSS] += (cold + more_cold) * rules.row_ms
        if not begins:
            if outcome == kv_cache.SHADOW_MISS:
                sums[KV_GAIN] += history_misses * rules.row_ms
            continue
        delta = requests.delta[u, r]
        sums[REQUESTS] += 1
        sums[KV_HITS] += outcome <= kv_cache.COLD_HIT
        sums[RECOMPUTED] += max(0, length - cached - delta)  # of a late request even its delta may be cached
        sums[HISTORY] += length
        # A KV miss costs the recomputation and the rows that it fetched for it.
        if outcome == kv_cache.SHADOW_MISS:
            sums[KV_GAIN] += compute_ms(rules, length - delta, length) + history_misses * rules.row_ms
        elif outcome == kv_cache.COLD_HIT:
            missing = sums[ROW_MISSES] / max(1.0, sums[LOOKUPS])
            sums[KV_LOSS] += compute_ms(rules, cached, length) + cached * missing * rules.row_ms
        simulate(
            m, user, version, length, items[user], requests.candidates[u, r, : requests.candidate_count[u, r]],
            ledger.positions[u], ledger.sampled[u], rules, sums[SIMULATED:],
        )  # fmt: skip
    sums[UPLOADED_TOKENS] += plan.counts[UPLOAD_TOKENS]
    sums[OFFLOADED_TOKENS] += plan.counts[OFFLOAD_TOKENS]
    sums[STAGED_ROWS] = max(sums[STAGED_ROWS], float(m.n[STAGED]))


@kernel
def charge_waits(rows_ms, uploads_ms, offloads_ms, delayed_ms, sums):
    """Books what a micro-batch's transfers took, modelled or measured. Returns their sum, which it waits for."""
    sums[ROWS_MS] += rows_ms
    sums[UPLOADS_MS] += uploads_ms
    sums[OFFLOADS_MS] += offloads_ms
    sums[DELAY_MS] += delayed_ms
    return rows_ms + uploads_ms + offloads_ms + delayed_ms


@kernel
def model_waits(m, plan, ledger, u, sums, rules):
    """Prices and books the planned micro-batch's transfers on a modelled link. Returns how long it waits for them."""
    rows, up, down = transfers_ms(plan, rules)
    background = ledger.clock[u, DOWN_MS] + emb_cache.refill_backlog(m, rules) * rules.row_ms
    delayed = delay_ms(rows + up + down, background, rules.background_share)
    return charge_waits(rows, up, down, delayed, sums)


@kernel
def account(requests, u, size, plan, computed_ms, waited_ms, ledger, sums):
    """Queues the batch on the virtual clock (start = max(oldest's arrival, server free)) and records latencies.

    A request that is served in several micro-batches has been in service during each of them.
    """
    clock, place = ledger.clock[u], ledger.interval[u, 0] % ledger.sums.shape[1]
    service = computed_ms + waited_ms
    done = max(ledger.arrival_s[u, plan.request[0]], clock[FREE_AT_S]) + service * 1e-3
    for b in range(size):
        r = plan.request[b]
        if ledger.progress[u, r] == WAITING:
            ledger.service_ms[u, place, r] = 0.0
        ledger.service_ms[u, place, r] += service
        ledger.progress[u, r] = plan.stop[b]
        if plan.stop[b] == requests.length[u, r]:
            ledger.progress[u, r] = ANSWERED
            ledger.sojourn_ms[u, place, r] = (done - ledger.arrival_s[u, r]) * 1e3
            ledger.done_s[u, place, r] = done
            ledger.user[u, place, r] = requests.user[u, r]
    clock[FREE_AT_S] = done
    sums[COMPUTE_MS] += computed_ms
    sums[TRANSFER_MS] += waited_ms


@kernel
def charge_moves(requests, u, plan, moved_ms, link_modelled, ledger, sums, rules):
    """The interval's move of pages took ``moved_ms`` of the server's time, before the first request can be served.

    On a modelled link users that it evicted go down in the background; on another they have gone down by now.
    """
    sums[MOVED_ROWS] += plan.counts[MOVES]
    clock = ledger.clock[u]
    sums[MOVES_MS] += moved_ms
    began = clock[NOW_S]
    if requests.number[u, 0] > 0:
        began = ledger.arrival_s[u, 0] - requests.gap_s[u, 0]
    clock[FREE_AT_S] = max(clock[FREE_AT_S], began) + moved_ms * 1e-3
    if link_modelled and plan.counts[OFFLOAD_TOKENS] > 0:
        clock[DOWN_MS] += plan.counts[OFFLOADS] * rules.latency_ms + plan.counts[OFFLOAD_TOKENS] * rules.kv_token_ms


@kernel
def plan_refill(m, plan, elapsed_ms, ledger, u, sums, rules):
    """Background traffic, at its share of the link, for as long as the batch was in service.

    What a move of pages left to go down goes first; then rows come back, as the plan says.
    """
    clock = ledger.clock[u]
    if clock[DOWN_MS] > 0.0 and rules.background_share > 0.0:
        down_ms = min(clock[DOWN_MS], elapsed_ms * rules.background_share)
        clock[DOWN_MS] -= down_ms
        sums[BACKGROUND_MS] += down_ms
        elapsed_ms -= down_ms / rules.background_share
    if emb_cache.refill_backlog(m, rules) == 0:
        clock[REFILL_CREDIT] = 0.0
        return 0
    clock[REFILL_CREDIT] += elapsed_ms * rules.background_rows_per_ms
    rows = emb_cache.refill(m, plan, rules, int(clock[REFILL_CREDIT]))
    clock[REFILL_CREDIT] -= rows
    sums[REFILLED_ROWS] += rows
    sums[BACKGROUND_MS] += rows * rules.row_ms
    return rows


@kernel
def take_in(requests, u, r, ledger, sums):
    """Request ``r`` comes in, its gap after the one before it; it is not served yet."""
    clock = ledger.clock[u]
    before = clock[NOW_S]
    arrival = before + requests.gap_s[u, r]
    sums[SPAN_S] += arrival - before
    ledger.arrival_s[u, r] = arrival
    ledger.progress[u, r] = WAITING
    clock[NOW_S] = arrival


@kernel
def move_pages(m, target_pages, budget, plan, sums, rules):
    """Plans the move of up to ``budget`` pages towards the target, and books it. Returns how many, positive to EMB."""
    moved = move_towards(m, plan, target_pages, budget, rules)
    sums[MOVED_PAGES] += moved
    sums[OFFLOADED_TOKENS] += plan.counts[OFFLOAD_TOKENS]
    sums[MOVED_DOWN_TOKENS] += plan.counts[OFFLOAD_TOKENS]
    return moved


@kernel
def open_interval(m, u, target_pages, budget, requests, plan, ledger, rules):
    """Moves pages towards the target and takes in the requests that there are.

    Returns the place in the ledger's rings, emptied.
    """
    place = ledger.interval[u, 0] % ledger.sums.shape[1]
    sums = ledger.sums[u, place]
    sums[:] = 0.0
    ledger.service_ms[u, place, :] = np.inf
    ledger.sojourn_ms[u, place, :] = np.inf
    ledger.done_s[u, place, :] = 0.0
    ledger.user[u, place, :] = NO_USER
    ledger.cursor[u, 0] = 0
    for r in range(requests.number[u, 0]):
        take_in(requests, u, r, ledger, sums)
    move_pages(m, target_pages, budget, plan, sums, rules)
    return place


@kernel
def next_batch(m, items, requests, u, limit, plan, ledger, sums, rules):
    """Chooses and plans the next micro-batch. Returns how many requests it has; 0: all are answered."""
    size = choose(m, requests, u, ledger, limit, plan, rules)
    if size > 0:
        plan_batch(m, items, requests, u, size, plan, ledger, sums, rules)
    return size


@kernel
def settle(m, requests, u, size, plan, computed_ms, waits, ledger, sums, rules):
    """Books a micro-batch that took ``computed_ms``, answers its requests, and plans the refills beside it.

    waits: (rows, uploads, offloads, delayed) in ms, measured; empty where the link is modelled. Returns its service
    time.
    """
    if len(waits) == 0:
        waited = model_waits(m, plan, ledger, u, sums, rules)
    else:
        waited = charge_waits(waits[0], waits[1], waits[2], waits[3], sums)
    account(requests, u, size, plan, computed_ms, waited, ledger, sums)
    plan_refill(m, plan, computed_ms + waited, ledger, u, sums, rules)
    return computed_ms + waited


@kernel
def serve_interval(memory, items, targets, budget, limit, requests, plan, ledger, rule_table):
    """One interval of every unit on the modelled rung.

    items: (lanes, users, max_history), the users' histories; targets: (units,) pages; rule_table: (units, fields).
    """
    units = targets.shape[0]
    nodes = units // items.shape[0]
    for u in range(units):
        m, rules = unit_of(memory, u), rules_of(rule_table, u)
        place = open_interval(m, u, targets[u], budget, requests, plan, ledger, rules)
        sums = ledger.sums[u, place]
        moved_ms = plan.counts[MOVES] * rules.per_moved_row_ms
        charge_moves(requests, u, plan, moved_ms, True, ledger, sums, rules)
        while True:  # and not a size before the loop: what is called twice is compiled into it twice
            size = next_batch(m, items[u // nodes], requests, u, limit, plan, ledger, sums, rules)
            if size == 0:
                break
            tokens, pairs, context = batch_load(rules, size, plan.cached, plan.stop, plan.asked)
            computed = batch_ms(rules, size, tokens, pairs, context)
            settle(m, requests, u, size, plan, computed, (), ledger, sums, rules)
        ledger.interval[u, 0] += 1
