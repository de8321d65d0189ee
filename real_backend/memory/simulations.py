"""Miniature simulations: what the same requests would have cost at each of nine alphas.

At each alpha both caches are simulated, users exactly and one embedding row in ``SAMPLING`` (Waldspurger et al.,
SHARDS, FAST 2015, and ATC 2017), and priced with the cost model. A simulation follows its own KV outcome, so the rows
that a KV miss looks up are counted where the miss is.
"""

from __future__ import annotations

from helm_gym.kernels.jit import kernel
from real_backend.memory.layout import LENGTH, NEWER, OLDER, SAMPLING, VERSION
from real_backend.memory.pricing import batch_ms


@kernel
def _simulated_row_miss(m, s, row):
    """A sampled row that simulation ``s`` does not hold: it takes the slot that the clock's hand finds cold."""
    sim_row, slot_row = m.sim_row, m.sim_slot_row[s]
    hand, slots = m.sim_hand[s], m.sim_slots[s]
    for _ in range(slots + 1):  # one round leaves no row marked as used
        old = slot_row[hand]
        if old < 0:
            break
        if sim_row[old, s] & 1 == 0:
            sim_row[old, s] = -1
            break
        sim_row[old, s] -= 1
        hand = hand + 1 if hand + 1 < slots else 0
    slot_row[hand] = row
    sim_row[row, s] = 2 * hand + 1
    m.sim_hand[s] = hand + 1 if hand + 1 < slots else 0


@kernel
def _unlink(users, s, user):
    """Takes ``user`` out of simulation ``s``'s ring of recency."""
    a, b = users[user, s, OLDER], users[user, s, NEWER]
    users[a, s, NEWER] = b
    users[b, s, OLDER] = a


@kernel
def _simulated_cached(users, free, s, user, version, length, tokens_per_page):
    """Tokens of the user's history that simulation ``s`` had cached; the whole history is cached afterwards.

    As in kv_cache.admit, the ring of recency holds those alone who occupy a page, and a request that comes late, with
    less history than is cached, takes nothing away.

    users: (N + 1, S, SIM_FIELDS); free: (S,), KV pages not occupied.
    """
    sentinel = users.shape[0] - 1
    held = users[user, s, LENGTH]
    cached = 0
    if held > 0:
        _unlink(users, s, user)
        free[s] += (held + tokens_per_page - 1) // tokens_per_page
        if users[user, s, VERSION] == version:
            cached = min(held, length)
            length = max(held, length)
    need = (length + tokens_per_page - 1) // tokens_per_page
    while free[s] < need:
        out = users[sentinel, s, NEWER]
        if out == sentinel:
            users[user, s, LENGTH] = 0
            return cached
        _unlink(users, s, out)
        free[s] += (users[out, s, LENGTH] + tokens_per_page - 1) // tokens_per_page
        users[out, s, LENGTH] = 0
    free[s] -= need
    users[user, s, LENGTH] = length
    users[user, s, VERSION] = version
    if length > 0:
        newest = users[sentinel, s, OLDER]
        users[user, s, OLDER], users[user, s, NEWER] = newest, sentinel
        users[newest, s, NEWER] = user
        users[sentinel, s, OLDER] = user
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
    users, free, sim_row = m.sim_user, m.sim_free, m.sim_row
    for s in range(cost_ms.shape[0]):
        cached = _simulated_cached(users, free, s, user, version, length, rules.tokens_per_page)
        missed = 0
        for k in range(count):
            if positions[k] < cached:
                continue
            row = sampled[k]
            if sim_row[row, s] < 0:
                missed += 1
                _simulated_row_miss(m, s, row)
            else:
                sim_row[row, s] |= 1
        n = length - cached + candidates.shape[0]
        cost_ms[s] += batch_ms(rules, 1, n, n * length, length) + rules.latency_ms + missed * SAMPLING * rules.row_ms
