"""Miniature simulations: what the same requests would have cost at each of nine alphas.

At each alpha both caches are simulated, users exactly and one embedding row in ``SAMPLING`` (Waldspurger et al.,
SHARDS, FAST 2015, and ATC 2017), and priced with the cost model. A simulation follows its own KV outcome, so the rows
that a KV miss looks up are counted where the miss is.
"""

from __future__ import annotations

from helm_gym.compiled import kernel
from real_backend.memory.kv_cache import link_newest, unlink
from real_backend.memory.layout import SAMPLING


@kernel
def _simulated_row_miss(m, s, row):
    """Looks a sampled row up in simulation ``s``'s clock; whether it missed."""
    slot = m.sim_row_slot[s, row]
    if slot >= 0:
        m.sim_reference[s, slot] = 1
        return False
    hand, slots = m.sim_hand[s], m.sim_slots[s]
    while m.sim_reference[s, hand] != 0:
        m.sim_reference[s, hand] = 0
        hand = hand + 1 if hand + 1 < slots else 0
    old = m.sim_slot_row[s, hand]
    if old >= 0:
        m.sim_row_slot[s, old] = -1
    m.sim_slot_row[s, hand] = row
    m.sim_row_slot[s, row] = hand
    m.sim_reference[s, hand] = 1
    m.sim_hand[s] = hand + 1 if hand + 1 < slots else 0
    return True


@kernel
def _simulated_cached(m, s, user, version, length, tokens_per_page):
    """Tokens of the user's history that simulation ``s`` had cached; the whole history is cached afterwards."""
    newer, older = m.sim_newer[s], m.sim_older[s]
    sentinel = newer.shape[0] - 1
    held = m.sim_length[s, user]
    cached = 0
    if held > 0:
        unlink(newer, older, user)
        m.sim_free[s] += (held + tokens_per_page - 1) // tokens_per_page
        if m.sim_version[s, user] == version:
            cached = held
    need = (length + tokens_per_page - 1) // tokens_per_page
    while m.sim_free[s] < need:
        out = newer[sentinel]
        if out == sentinel:
            m.sim_length[s, user] = 0
            return cached
        unlink(newer, older, out)
        m.sim_free[s] += (m.sim_length[s, out] + tokens_per_page - 1) // tokens_per_page
        m.sim_length[s, out] = 0
    m.sim_free[s] -= need
    m.sim_length[s, user] = length
    m.sim_version[s, user] = version
    link_newest(newer, older, user)
    return cached


@kernel
def simulate(m, user, version, length, history, candidates, positions, sampled, rules, cost_ms):
    """Adds to ``cost_ms`` (S,) what this request would have cost at each simulated alpha.

    history: (length,) rows, oldest first; candidates: (candidates,) rows; positions, sampled: scratch.
    """
    count = 0
    for i in range(length):
        row = history[i]
        if row % SAMPLING == 0:
            positions[count], sampled[count] = i, row // SAMPLING
            count += 1
    for i in range(candidates.shape[0]):
        row = candidates[i]
        if row % SAMPLING == 0:
            positions[count], sampled[count] = length, row // SAMPLING
            count += 1
    for s in range(cost_ms.shape[0]):
        cached = _simulated_cached(m, s, user, version, length, rules.tokens_per_page)
        missed = 0
        for k in range(count):
            if positions[k] >= cached and _simulated_row_miss(m, s, sampled[k]):
                missed += 1
        n = length - cached + candidates.shape[0]
        cost_ms[s] += (
            rules.base_ms
            + n * (rules.per_token_ms + rules.per_pair_ms * length)
            + rules.per_context_ms * length
            + rules.latency_ms
            + missed * SAMPLING * rules.row_ms
        )
