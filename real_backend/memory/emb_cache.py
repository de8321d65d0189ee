"""The embedding cache: rows in slots of EMB's pages, evicted by a clock with second chance.

Rows used by the present micro-batch are pinned: the engine reads them after the whole batch has been planned.
"""

from __future__ import annotations

from helm_gym.kernels.jit import kernel
from real_backend.memory.layout import (
    BATCH,
    EMB,
    EVICTED_ROWS,
    FILL,
    FILLS,
    HAND_OFFSET,
    HAND_PLACE,
    HASHED,
    MOVES,
    N_EMB,
    N_FRESH,
    PINNED,
    REFILL_AT,
    REFILLS,
    STAGED,
    TOKENS,
)
from real_backend.memory.row_index import drop_row, evicted_at, find_slot, move_row, note_evicted, put_row, slot_of

TAGS = 254  # micro-batches in a row that a slot's reference tells apart: 1 to TAGS by turns
USED_BEFORE = 255  # of what was used before these


@kernel
def age_references(m):
    """Called at every micro-batch's begin: before numbers are given anew, what carries an old one loses it."""
    if m.n[BATCH] % TAGS == 0:
        reference = m.reference
        for slot in range(reference.shape[0]):
            if reference[slot] != 0:
                reference[slot] = USED_BEFORE


@kernel
def evict_row(m, slot):
    """The row in ``slot`` leaves for the shadow list."""
    row = m.slot_row[slot]
    if row < 0:
        return
    drop_row(m, row, slot)
    m.reference[slot] = 0
    note_evicted(m, row)


@kernel
def _claim_fresh(m, rows_per_page):
    """An empty slot of the fresh page on top."""
    n = m.n
    slot = m.fresh[n[N_FRESH] - 1] * rows_per_page + n[FILL]
    n[FILL] += 1
    if n[FILL] == rows_per_page:
        n[FILL] = 0
        n[N_FRESH] -= 1
    return slot


@kernel
def _claim_slot(m, rows_per_page, tag):
    """An empty slot, or the next one that the clock's hand finds cold, emptied; -1 where all are pinned."""
    n = m.n
    if n[N_FRESH] > 0:
        return _claim_fresh(m, rows_per_page)
    if n[PINNED] == n[BATCH]:
        return -1
    place, offset = n[HAND_PLACE], n[HAND_OFFSET]
    for _ in range(2 * n[N_EMB] * rows_per_page):
        if offset == rows_per_page:
            offset = 0
            place += 1
        if place >= n[N_EMB]:
            place = 0
        slot = m.emb_pages[place] * rows_per_page + offset
        offset += 1
        reference = m.reference[slot]
        if reference == 0:
            n[HAND_PLACE], n[HAND_OFFSET] = place, offset
            evict_row(m, slot)
            return slot
        if reference != tag:
            m.reference[slot] = 0
    n[PINNED] = n[BATCH]
    return -1


@kernel
def _near_the_hand(m, slot, rows_per_page, shadow_pages):
    """Whether the hand of a pool smaller by the shadow depth would have come by ``slot`` before this hit.

    A row stays for two rounds of the hand, one that clears it and one that evicts it, and each is shorter by the depth.
    """
    ahead = m.page_place[slot // rows_per_page] - m.n[HAND_PLACE]
    return (ahead if ahead >= 0 else ahead + m.n[N_EMB]) < 2 * shadow_pages


@kernel
def _fetch_row(m, plan, row, rules, tag):
    """Plans the fetch of a missing ``row``. Returns its slot and whether a larger pool would still have held it."""
    shadow = m.n[EVICTED_ROWS] - evicted_at(m, row) <= rules.shadow_pages * rules.rows_per_page
    slot = _claim_slot(m, rules.rows_per_page, tag)
    if slot < 0:
        slot = m.owner.shape[0] * rules.rows_per_page + m.n[STAGED]
        m.n[STAGED] += 1
    else:
        put_row(m, row, slot)
        m.reference[slot] = tag
    k = plan.counts[FILLS]
    plan.fill_row[k] = row
    plan.fill_slot[k] = slot
    plan.counts[FILLS] = k + 1
    return slot, shadow


@kernel
def lookup_rows(m, plan, rows, start, stop, rules):
    """Makes rows[start:stop] resident, pins them, and appends their slots to the plan's.

    Returns (misses, cold, shadow): rows fetched; hits that a pool smaller by the shadow depth would have missed;
    misses that a larger one would have hit.
    """
    # Arrays as locals: the manager's tuple is too large to be handed to a function for each row that hits.
    row_slot, slot_row, reference, slots = m.row_slot, m.slot_row, m.reference, plan.slots
    hashed = m.constants[HASHED]
    tag = 1 + m.n[BATCH] % TAGS
    misses, cold, shadow = 0, 0, 0
    token = plan.counts[TOKENS]
    for i in range(start, stop):
        row = rows[i]
        slot = find_slot(row_slot, slot_row, row) if hashed else row_slot[row]
        if slot < 0:
            slot, held = _fetch_row(m, plan, row, rules, tag)
            misses += 1
            shadow += held
        else:
            if reference[slot] == 0 and _near_the_hand(m, slot, rules.rows_per_page, rules.shadow_pages):
                cold += 1
            reference[slot] = tag
        slots[token] = slot
        token += 1
    plan.counts[TOKENS] = token
    return misses, cold, shadow


@kernel
def gain_page(m, page):
    """EMB takes ``page``, empty; it fills by misses and by background refill."""
    n = m.n
    m.owner[page] = EMB
    m.emb_pages[n[N_EMB]] = page
    m.page_place[page] = n[N_EMB]
    n[N_EMB] += 1
    # Below the page on top, which may be partly filled.
    if n[N_FRESH] > 0:
        top = m.fresh[n[N_FRESH] - 1]
        m.fresh[n[N_FRESH] - 1] = page
        m.fresh[n[N_FRESH]] = top
    else:
        m.fresh[0] = page
    n[N_FRESH] += 1
    n[REFILL_AT] = n[EVICTED_ROWS]


@kernel
def _choose_page(m):
    """The page that EMB gives up: an empty one if there is any, else the one the hand would sweep next."""
    n = m.n
    fresh = n[N_FRESH]
    if fresh > 1:
        page = m.fresh[fresh - 2]
        m.fresh[fresh - 2] = m.fresh[fresh - 1]
        n[N_FRESH] -= 1
        return page
    if fresh == 1 and (n[FILL] == 0 or n[N_EMB] == 1):
        n[N_FRESH] = 0
        n[FILL] = 0
        return m.fresh[0]
    place = n[HAND_PLACE] if n[HAND_PLACE] < n[N_EMB] else 0
    if fresh == 1 and m.emb_pages[place] == m.fresh[0]:
        place = place + 1 if place + 1 < n[N_EMB] else 0
    return m.emb_pages[place]


@kernel
def give_page(m, plan, rules):
    """EMB gives up a page: its cold rows leave, its hot ones move to slots of the coldest rows elsewhere.

    Returns the page; the caller hands it to its next owner.
    """
    n = m.n
    rows_per_page = rules.rows_per_page
    page = _choose_page(m)
    place = m.page_place[page]
    n[N_EMB] -= 1
    m.emb_pages[place] = m.emb_pages[n[N_EMB]]
    m.page_place[m.emb_pages[place]] = place
    m.page_place[page] = -1
    tag = 1 + n[BATCH] % TAGS
    for slot in range(page * rows_per_page, (page + 1) * rows_per_page):
        row = m.slot_row[slot]
        if row < 0:
            continue
        target = -1
        if m.reference[slot] != 0 and n[N_EMB] > 0:
            target = _claim_slot(m, rows_per_page, tag)
        if target < 0:
            evict_row(m, slot)
            continue
        k = plan.counts[MOVES]
        plan.move_from[k] = slot
        plan.move_to[k] = target
        plan.move_row[k] = row
        plan.counts[MOVES] = k + 1
        move_row(m, row, slot, target)
        # Moved as cold: it stays only if it is used again before the hand comes by, and it is not moved twice in
        # one plan, so that every row moved still lies where the plan says.
        m.reference[target] = 0
        m.reference[slot] = 0
    return page


@kernel
def settle_moves(m, plan):
    """Drops moves whose slot was claimed again by a later one, so that every slot is written at most once."""
    kept = 0
    for k in range(plan.counts[MOVES]):
        target = plan.move_to[k]
        if m.slot_row[target] == plan.move_row[k] and slot_of(m, plan.move_row[k]) == target:
            plan.move_from[kept] = plan.move_from[k]
            plan.move_to[kept] = target
            plan.move_row[kept] = plan.move_row[k]
            kept += 1
    plan.counts[MOVES] = kept


@kernel
def refill_backlog(m, rules):
    """Rows that background traffic would still bring back: evicted of late, with an empty slot for each."""
    n = m.n
    if n[N_FRESH] == 0:
        return 0
    empty = n[N_FRESH] * rules.rows_per_page - n[FILL]
    oldest = max(0, n[EVICTED_ROWS] - m.evicted_ring.shape[0])
    return max(0, min(empty, n[REFILL_AT] - oldest))


@kernel
def refill(m, plan, rules, rows):
    """Plans background copies of up to ``rows`` rows into empty slots, the latest evicted first."""
    n = m.n
    plan.counts[REFILLS] = 0
    ring = m.evicted_ring.shape[0]
    oldest = max(0, n[EVICTED_ROWS] - ring)
    k = 0
    while k < rows and k < plan.refill_row.shape[0] and n[N_FRESH] > 0 and n[REFILL_AT] > oldest:
        n[REFILL_AT] -= 1
        row = m.evicted_ring[n[REFILL_AT] % ring]
        if slot_of(m, row) >= 0:
            continue
        slot = _claim_fresh(m, rules.rows_per_page)
        put_row(m, row, slot)
        m.reference[slot] = 0
        plan.refill_row[k] = row
        plan.refill_slot[k] = slot
        k += 1
    plan.counts[REFILLS] = k
    return k
