"""The memory manager's state: flat arrays, one block a unit, that the compiled caches work on.

Pages are numbered 0 .. pages-1 in the pool; ``staging`` further pages behind them hold, for one micro-batch, the
rows that found no slot. An embedding slot is ``page * rows_per_page + offset``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.compiled import kernel
from helm_gym.profile import Profile
from helm_gym.telemetry import ALPHA_GRID

EMB, KV = 1, 2

# Indices into Memory.n: the scalars of a unit.
N_EMB = 0  # pages that EMB owns
N_KV_FREE = 1  # pages that KV owns and no user occupies
HAND_PLACE = 2  # the clock's hand: a place in emb_pages
HAND_OFFSET = 3  # and a slot of that page
N_FRESH = 4  # pages in ``fresh``: they still have empty slots
FILL = 5  # next empty offset in the fresh page on top
BATCH = 6  # number of the present micro-batch
EVICTED_ROWS = 7  # rows evicted so far: the shadow list's clock
EVICTED_PAGES = 8  # KV pages evicted so far
STAGED = 9  # staging slots in use by this micro-batch
HOST_NEXT = 10  # next host-tier place to be overwritten
REFILL_AT = 11  # background refill goes backwards through the evicted rows from here
SCALARS = 12

SIM_ALPHAS = np.array(ALPHA_GRID)
SAMPLING = 32  # one row in 32 is simulated
NEWER, OLDER, LENGTH, VERSION = range(4)  # of a simulated user
SIM_FIELDS = 4


class Memory(NamedTuple):
    """Both caches of every unit. Shapes: U units, P pages, R rows a page, I items, N users, S simulated alphas."""

    n: NDArray[np.int64]  # (U, SCALARS)
    owner: NDArray[np.int8]  # (U, P)
    # EMB: clock (second chance) over the slots of the pages in emb_pages
    row_slot: NDArray[np.int32]  # (U, I), -1: not resident
    slot_row: NDArray[np.int32]  # (U, P R), -1: empty
    reference: NDArray[np.uint8]  # (U, P R), 0: cold; else 1 + number of the last batch that used it, modulo 127
    emb_pages: NDArray[np.int32]  # (U, P)
    page_place: NDArray[np.int32]  # (U, P), index of a page in emb_pages
    fresh: NDArray[np.int32]  # (U, P), stack of pages with empty slots
    row_evicted: NDArray[np.int64]  # (U, I), EVICTED_ROWS when the row left (shadow list), or a large negative number
    evicted_ring: NDArray[np.int32]  # (U, ring), rows in the order they left, for background refill
    # KV: least recently used users, each with a page table
    kv_free: NDArray[np.int32]  # (U, P), stack
    user_pages: NDArray[np.int32]  # (U, N, pages a user)
    cached_length: NDArray[np.int32]  # (U, N), tokens; 0: nothing cached
    cached_version: NDArray[np.int32]  # (U, N)
    used_batch: NDArray[np.int64]  # (U, N), batch of the last use: its pages are pinned in it
    newer: NDArray[np.int32]  # (U, N + 1), ring of users by recency; N is the sentinel
    older: NDArray[np.int32]  # (U, N + 1)
    user_evicted: NDArray[np.int64]  # (U, N), EVICTED_PAGES when the user left
    evicted_version: NDArray[np.int32]  # (U, N)
    # Host tier for KV: places of a whole user
    host_place: NDArray[np.int32]  # (U, N), -1: not there
    host_user: NDArray[np.int32]  # (U, places)
    host_batch: NDArray[np.int64]  # (U, places), the last micro-batch that reads a place
    host_version: NDArray[np.int32]  # (U, N)
    host_length: NDArray[np.int32]  # (U, N)
    # Miniature simulations at SIM_ALPHAS: users exactly, one row in SAMPLING
    # (all simulations of a user, and of a row, lie side by side: a request touches each of them)
    sim_row: NDArray[np.int32]  # (U, I / SAMPLING, S), 2 slot + 1 where used since the hand passed; -1: not resident
    sim_slot_row: NDArray[np.int32]  # (U, S, slots)
    sim_hand: NDArray[np.int32]  # (U, S)
    sim_slots: NDArray[np.int32]  # (U, S), capacity in sampled rows
    sim_user: NDArray[np.int32]  # (U, N + 1, S, SIM_FIELDS), recency, length and version; N is the sentinel
    sim_free: NDArray[np.int32]  # (U, S), KV pages free


class Plan(NamedTuple):
    """What a micro-batch has to do on the device, written by the manager, carried out by the engine.

    Copies are carried out in this order: offloads, moves of rows, uploads, fills; then slots are read.
    """

    counts: NDArray[np.int64]  # (PLAN_COUNTS,)
    slots: NDArray[np.int32]  # (tokens,), slot of each new history token's and candidate's row, request by request
    cached: NDArray[np.int32]  # (batch,), history tokens whose KV is read from the pool
    stored: NDArray[np.int32]  # (batch,), history tokens whose KV is in the pool afterwards; fewer: it found no room
    fill_row: NDArray[np.int32]
    fill_slot: NDArray[np.int32]
    move_from: NDArray[np.int32]
    move_to: NDArray[np.int32]
    move_row: NDArray[np.int32]
    offload_place: NDArray[np.int32]  # host-tier places that leaving users' pages are copied down to
    offload_pages: NDArray[np.int32]  # (offloads, pages a user), -1 padded
    upload_place: NDArray[np.int32]  # (batch,), host-tier place that a request's KV is copied up from, or -1
    refill_row: NDArray[np.int32]
    refill_slot: NDArray[np.int32]


class Rules(NamedTuple):
    """The profile's figures that the kernels need, as plain numbers."""

    rows_per_page: int
    tokens_per_page: int
    shadow_pages: int
    kv_miss: int  # index into KV_MISS
    base_ms: float
    per_token_ms: float
    per_pair_ms: float
    per_context_ms: float
    row_ms: float
    kv_token_ms: float
    latency_ms: float
    background_rows_per_ms: float
    slo_ms: float


KV_MISS = ("recompute", "copy", "cheapest")


def make_rules(profile: Profile) -> Rules:
    per_ms = profile.link.bandwidth_gb_per_s * 1e6
    cost = profile.cost
    return Rules(
        profile.rows_per_page,
        profile.tokens_per_page,
        profile.pool.shadow_pages,
        KV_MISS.index(profile.kv_miss.policy),
        cost.base_ms,
        cost.per_token_ms,
        cost.per_pair_ms,
        cost.per_context_ms,
        profile.row_ms,
        profile.kv_bytes_per_token / per_ms,
        profile.link.latency_ms,
        profile.link.background_share / profile.row_ms,
        profile.slo_ms,
    )


FILLS, MOVES, OFFLOADS, OFFLOAD_TOKENS, UPLOAD_TOKENS, REFILLS, TOKENS = range(7)
PLAN_COUNTS = 7


def rows_in_simulation(items: int) -> int:
    return -(-items // SAMPLING)


def make_memory(profile: Profile, emb_pages: NDArray[np.int64]) -> Memory:
    """Empty caches; ``emb_pages`` (units,) says how many pages EMB owns, KV owns the others."""
    units = len(emb_pages)
    pages, rows = profile.pool.pages, profile.rows_per_page
    items, users = profile.population.items, profile.population.users
    slots, sims = pages * rows, len(SIM_ALPHAS)
    staging = profile.max_batch * (profile.model.max_history + profile.model.max_candidates)
    sim_rows = rows_in_simulation(items)
    sim_slots = np.maximum(1, np.round(SIM_ALPHAS * pages) * rows / SAMPLING).astype(np.int32)

    def full(shape: tuple[int, ...], value: int, dtype: type = np.int32) -> NDArray[Any]:
        return np.full((units, *shape), value, dtype)

    arrays: dict[str, NDArray[Any]] = {
        "n": full((SCALARS,), 0, np.int64),
        "owner": full((pages,), KV, np.int8),
        "row_slot": full((items,), -1),
        "slot_row": full((slots + staging,), -1),
        "reference": full((slots + staging,), 0, np.uint8),
        "emb_pages": full((pages,), -1),
        "page_place": full((pages,), -1),
        "fresh": full((pages,), -1),
        "row_evicted": full((items,), -(1 << 60), np.int64),
        "evicted_ring": full((max(1, profile.pool.shadow_pages * rows),), -1),
        "kv_free": full((pages,), -1),
        "user_pages": full((users, profile.pages_per_user), -1),
        "cached_length": full((users,), 0),
        "cached_version": full((users,), -1),
        "used_batch": full((users,), -1, np.int64),
        "newer": full((users + 1,), -1),
        "older": full((users + 1,), -1),
        "user_evicted": full((users,), -(1 << 60), np.int64),
        "evicted_version": full((users,), -1),
        "host_place": full((users,), -1),
        "host_user": full((profile.kv_miss.host_users,), -1),
        "host_batch": full((profile.kv_miss.host_users,), -1, np.int64),
        "host_version": full((users,), -1),
        "host_length": full((users,), 0),
        "sim_row": full((sim_rows, sims), -1),
        "sim_slot_row": full((sims, int(sim_slots.max())), -1),
        "sim_hand": full((sims,), 0),
        "sim_slots": np.tile(sim_slots, (units, 1)),
        "sim_user": full((users + 1, sims, SIM_FIELDS), 0),
        "sim_free": np.tile((pages - np.round(SIM_ALPHAS * pages)).astype(np.int32), (units, 1)),
    }
    # Empty rings: the sentinel points to itself.
    arrays["newer"][:, users] = arrays["older"][:, users] = users
    arrays["sim_user"][:, users, :, [NEWER, OLDER]] = users
    memory = Memory(**arrays)
    for u, emb in enumerate(emb_pages):
        memory.owner[u, :emb] = EMB
        memory.n[u, N_EMB], memory.n[u, N_FRESH], memory.n[u, N_KV_FREE] = emb, emb, pages - emb
        memory.emb_pages[u, :emb] = memory.page_place[u, :emb] = memory.fresh[u, :emb] = np.arange(emb)
        memory.kv_free[u, : pages - emb] = np.arange(emb, pages)
    return memory


def make_plan(profile: Profile) -> Plan:
    """Room for the largest micro-batch, the largest move before it, and the refills after it."""
    batch, rows = profile.max_batch, profile.rows_per_page
    tokens = batch * (profile.model.max_history + profile.model.max_candidates)
    moves = profile.pool.page_moves_per_interval * rows
    offloads = profile.pool.page_moves_per_interval + batch * profile.pages_per_user
    refills = max(1, profile.pool.shadow_pages * rows)

    def room(*shape: int) -> NDArray[np.int32]:
        return np.full(shape, -1, np.int32)

    return Plan(
        np.zeros(PLAN_COUNTS, np.int64),
        room(tokens),
        room(batch),
        room(batch),
        room(tokens),
        room(tokens),
        room(moves),
        room(moves),
        room(moves),
        room(offloads),
        room(offloads, profile.pages_per_user),
        room(batch),
        room(refills),
        room(refills),
    )


@kernel
def unit_of(m, u):
    """The arrays of one unit, as views."""
    return Memory(
        m.n[u], m.owner[u], m.row_slot[u], m.slot_row[u], m.reference[u], m.emb_pages[u], m.page_place[u],
        m.fresh[u], m.row_evicted[u], m.evicted_ring[u], m.kv_free[u], m.user_pages[u], m.cached_length[u],
        m.cached_version[u], m.used_batch[u], m.newer[u], m.older[u], m.user_evicted[u], m.evicted_version[u],
        m.host_place[u], m.host_user[u], m.host_batch[u], m.host_version[u], m.host_length[u],
        m.sim_row[u], m.sim_slot_row[u], m.sim_hand[u], m.sim_slots[u], m.sim_user[u], m.sim_free[u],
    )  # fmt: skip
