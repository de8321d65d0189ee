"""Which slot holds a row, and when a row was evicted last: by the row's number, or hashed where the table is large.

Up to ``layout.DIRECT_ITEMS`` rows, each has an entry of its own. Of a larger table only what is in the pool, and what
is in the shadow list, has an entry: open addressing with linear probing, and no row's number in it, since a slot knows
its row and a place of the shadow list its own. Both forms answer alike: no behaviour depends on which it is.
"""

from __future__ import annotations

import numpy as np

from helm_gym.kernels.jit import kernel
from real_backend.memory.layout import EVICTED_ROWS, HASHED

_NEVER = -(1 << 60)


@kernel
def _home(row, places):
    """A row's first place: splitmix64's output function (Steele et al., OOPSLA 2014), scaled to the table."""
    z = np.uint64(row) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64(((z >> np.uint64(32)) * np.uint64(places)) >> np.uint64(32))


@kernel
def _between(home, hole, at):
    """Whether an entry at ``at`` stays there although ``hole`` before it is empty: its home lies behind the hole."""
    if hole <= at:
        return hole < home <= at
    return hole < home or home <= at


@kernel
def find_slot(row_slot, slot_row, row):
    """The slot of ``row`` in a hashed table, or -1."""
    places = row_slot.shape[0]
    at = _home(row, places)
    for _ in range(places):
        slot = row_slot[at]
        if slot < 0 or slot_row[slot] == row:
            return slot
        at = at + 1 if at + 1 < places else 0
    return -1


@kernel
def slot_of(m, row):
    """The slot that holds ``row``, or -1."""
    if m.constants[HASHED]:
        return find_slot(m.row_slot, m.slot_row, row)
    return m.row_slot[row]


@kernel
def _place_of(row_slot, row, slot):
    """Where a hashed table holds ``slot``; for -1, the first empty place for ``row``."""
    places = row_slot.shape[0]
    at = _home(row, places)
    for _ in range(places):
        if row_slot[at] == slot:
            break
        at = at + 1 if at + 1 < places else 0
    return at


@kernel
def put_row(m, row, slot):
    """``slot``, which was empty, holds ``row``, which had none."""
    if m.constants[HASHED]:
        m.row_slot[_place_of(m.row_slot, row, -1)] = slot
    else:
        m.row_slot[row] = slot
    m.slot_row[slot] = row


@kernel
def move_row(m, row, slot, target):
    """``row`` moves from ``slot`` to ``target``, which was empty."""
    m.row_slot[_place_of(m.row_slot, row, slot) if m.constants[HASHED] else row] = target
    m.slot_row[target] = row
    m.slot_row[slot] = -1


@kernel
def drop_row(m, row, slot):
    """``slot`` no longer holds ``row``."""
    row_slot = m.row_slot
    if not m.constants[HASHED]:
        row_slot[row] = -1
        m.slot_row[slot] = -1
        return
    places = row_slot.shape[0]
    hole = _place_of(row_slot, row, slot)
    at = hole
    for _ in range(places):
        at = at + 1 if at + 1 < places else 0
        other = row_slot[at]
        if other < 0:
            break
        if not _between(_home(m.slot_row[other], places), hole, at):
            row_slot[hole] = other
            hole = at
    row_slot[hole] = -1
    m.slot_row[slot] = -1


@kernel
def _place_of_evicted(row_evicted, ring, row):
    """Where a hashed table has the time at which ``row`` was evicted; an empty place where it has none."""
    places = row_evicted.shape[0]
    at = _home(row, places)
    for _ in range(places):
        time = row_evicted[at]
        if time < 0 or ring[time % ring.shape[0]] == row:
            break
        at = at + 1 if at + 1 < places else 0
    return at


@kernel
def evicted_at(m, row):
    """The shadow list's clock when ``row`` was evicted last; a large negative number where it is no longer known."""
    if m.constants[HASHED]:
        time = m.row_evicted[_place_of_evicted(m.row_evicted, m.evicted_ring, row)]
        return time if time >= 0 else _NEVER
    return m.row_evicted[row]


@kernel
def note_evicted(m, row):
    """``row`` is evicted now."""
    n, ring, times = m.n, m.evicted_ring, m.row_evicted
    now = n[EVICTED_ROWS]
    place = now % ring.shape[0]
    n[EVICTED_ROWS] = now + 1
    if not m.constants[HASHED]:
        times[row] = now
        ring[place] = row
        return
    if now >= ring.shape[0]:  # who was there leaves the list, unless evicted again since
        at = _place_of_evicted(times, ring, ring[place])
        if times[at] == now - ring.shape[0]:
            _drop_evicted(times, ring, at)
    ring[place] = row
    times[_place_of_evicted(times, ring, row)] = now


@kernel
def _drop_evicted(times, ring, hole):
    places = times.shape[0]
    at = hole
    for _ in range(places):
        at = at + 1 if at + 1 < places else 0
        time = times[at]
        if time < 0:
            break
        if not _between(_home(ring[time % ring.shape[0]], places), hole, at):
            times[hole] = time
            hole = at
    times[hole] = _NEVER
