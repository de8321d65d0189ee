"""Warm embedding caches: the most popular rows, as many as there is room for, as a server loads them when it starts."""

from __future__ import annotations

import numpy as np

from helm_gym.kernels.jit import kernel
from helm_gym.workload.sampling import item_of
from real_backend.memory.emb_cache import _claim_fresh
from real_backend.memory.layout import N_EMB, SAMPLE_SHIFT, unit_of
from real_backend.memory.row_index import put_row


@kernel
def prefill(memory, items_of_rank, catalogue, rows_per_page):
    """Fills the embedding caches of every unit, which are empty, and those of its simulations.

    items_of_rank, catalogue: of Traffic.
    """
    items = catalogue[0]
    for u in range(memory.n.shape[0]):
        m = unit_of(memory, u)
        room = m.n[N_EMB] * rows_per_page
        shift = m.constants[SAMPLE_SHIFT]
        most = max(room, np.int64(m.sim_slots[m.sim_slots.shape[0] - 1]) << shift)
        for rank in range(min(items, most)):
            row = item_of(items_of_rank, catalogue, rank)
            if rank < room:
                slot = _claim_fresh(m, rows_per_page)
                put_row(m, row, slot)
                m.reference[slot] = 0
            if row & ((1 << shift) - 1) == 0:
                sampled = row >> shift
                for s in range(m.sim_hand.shape[0]):
                    hand = m.sim_hand[s]
                    if m.sim_slot_row[s, hand] < 0:
                        m.sim_row[sampled, s] = 2 * hand
                        m.sim_slot_row[s, hand] = sampled
                        m.sim_hand[s] = hand + 1 if hand + 1 < m.sim_slots[s] else 0
