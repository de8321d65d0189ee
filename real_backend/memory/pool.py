"""Ownership of the pool's pages: EMB's share moves towards a target, a bounded number of pages at a time."""

from __future__ import annotations

from helm_gym.kernels.jit import kernel
from real_backend.memory import emb_cache, kv_cache
from real_backend.memory.layout import BATCH, N_EMB, STAGED


@kernel
def begin(m, plan):
    """A new micro-batch (or move): an empty plan, and nothing pinned yet."""
    m.n[BATCH] += 1
    emb_cache.age_references(m)
    m.n[STAGED] = 0
    plan.counts[:] = 0


@kernel
def move_towards(m, plan, target_pages, budget, rules):
    """Moves up to ``budget`` pages so that EMB's count approaches ``target_pages``; evicts, never refills.

    Order of a move: the shrinking side lets go of a page before the growing side gets it. Returns the pages moved,
    positive towards EMB.
    """
    begin(m, plan)
    moved = 0
    while moved < budget and m.n[N_EMB] < target_pages:
        page = kv_cache.take_page(m, plan, rules)
        if page < 0:
            break  # KV owns none
        emb_cache.gain_page(m, page)
        moved += 1
    while -moved < budget and m.n[N_EMB] > target_pages:
        page = emb_cache.give_page(m, plan, rules)
        kv_cache.gain_page(m, page)
        moved -= 1
    emb_cache.settle_moves(m, plan)
    return moved
