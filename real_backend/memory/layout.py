"""The memory manager's state: flat arrays, one block a unit, that the compiled caches work on.

Pages are numbered 0 .. pages-1 in the pool; ``staging`` further pages behind them hold, for one micro-batch, the
rows that found no slot. An embedding slot is ``page * rows_per_page + offset``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.kernels.jit import kernel
from helm_gym.profile import Profile
from helm_gym.telemetry import ALPHA_GRID

NOBODY, EMB, KV = 0, 1, 2  # who owns a page

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
N_PAGES = 12  # the unit's pool; the arrays of a larger unit beside it may have room for more
PINNED = 13  # the last micro-batch that found every slot pinned: it need not look again
SCALARS = 14

SIM_ALPHAS = np.array(ALPHA_GRID)
SAMPLING = 32  # one row in 32 is simulated, of a large table fewer (``sampling_of``)
SIMULATED_ROWS = 1 << 18  # at most, at least half as many of a larger table
DIRECT_ITEMS = 1 << 24  # of a table in which each row has an entry of its own; of a larger one those in the pool have
HASHED, SAMPLE_SHIFT = range(2)  # of Memory.constants
NEWER, OLDER, LENGTH, VERSION = range(4)  # of a simulated user
SIM_FIELDS = 4


class Memory(NamedTuple):
    """Both caches of every unit. Shapes: U units, P pages, R rows a page, I items, N users, S simulated alphas."""

    n: NDArray[np.int64]  # (U, SCALARS)
    owner: NDArray[np.int8]  # (U, P)
    # EMB: clock (second chance) over the slots of the pages in emb_pages
    constants: NDArray[np.int64]  # (U, 2), whether the next two tables are hashed, and log2 of rows a simulated one
    row_slot: NDArray[np.int32]  # (U, I), -1: not resident; hashed: see row_index
    slot_row: NDArray[np.int32]  # (U, P R), -1: empty
    reference: NDArray[np.uint8]  # (U, P R), 0: cold; else by which of the last batches it was used (emb_cache)
    emb_pages: NDArray[np.int32]  # (U, P)
    page_place: NDArray[np.int32]  # (U, P), index of a page in emb_pages
    fresh: NDArray[np.int32]  # (U, P), stack of pages with empty slots
    row_evicted: NDArray[np.int64]  # (U, I), EVICTED_ROWS when the row left (shadow list), or a large negative number;
    # hashed: see row_index
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
    request: NDArray[np.int32]  # (batch,), which of the interval's requests are in the micro-batch
    stop: NDArray[np.int32]  # (batch,), history tokens that are done afterwards; fewer than the request's: a chunk
    asked: NDArray[np.int32]  # (batch,), candidates, which come with a request's last chunk
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
    """A node's figures that the kernels need, as plain numbers."""

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
    per_request_ms: float
    pads: int  # 1 where the engine pads a micro-batch
    chunk_tokens: int  # 0: no chunks
    background_share: float
    per_moved_row_ms: float


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
        cost.per_request_ms,
        int(profile.pads),
        profile.chunk_tokens,
        profile.link.background_share,
        cost.per_moved_row_ms,
    )


def with_speed(rules: Rules, speed: float) -> Rules:
    """The rules of a node that computes ``speed`` times as fast."""
    compute = ("base_ms", "per_request_ms", "per_token_ms", "per_pair_ms", "per_context_ms", "per_moved_row_ms")
    return rules._replace(**{name: getattr(rules, name) / speed for name in compute})


@kernel
def rules_of(table, u):
    """The rules of unit ``u`` from a table (units, fields)."""
    row = table[u]
    return Rules(
        int(row[0]), int(row[1]), int(row[2]), int(row[3]), row[4], row[5], row[6], row[7], row[8], row[9], row[10],
        row[11], row[12], row[13], int(row[14]), int(row[15]), row[16], row[17],
    )  # fmt: skip


FILLS, MOVES, OFFLOADS, OFFLOAD_TOKENS, UPLOAD_TOKENS, REFILLS, TOKENS = range(7)
PLAN_COUNTS = 7


def sampling_of(items: int) -> int:
    """One row in how many is simulated: a power of two."""
    sampling = SAMPLING
    while items > sampling * SIMULATED_ROWS:
        sampling *= 2
    return sampling


def rows_in_simulation(items: int) -> int:
    return -(-items // sampling_of(items))


def is_hashed(items: int) -> bool:
    """Whether a table of so many rows is large, and its index hashed."""
    return items > DIRECT_ITEMS


def make_memory(profile: Profile, emb_pages: NDArray[np.int64], pages_of: NDArray[np.int64] | None = None) -> Memory:
    """Empty caches; ``emb_pages`` (units,) says how many pages EMB owns, KV owns the others.

    Args:
        pages_of: (units,), of each unit's pool; the profile's where not given.
    """
    units = len(emb_pages)
    own = np.full(units, profile.pool.pages) if pages_of is None else pages_of
    pages = int(own.max()) if units else profile.pool.pages
    rows, items = profile.rows_per_page, profile.population.items
    users = profile.population.users
    slots, sims = pages * rows, len(SIM_ALPHAS)
    staging = profile.max_batch * (profile.model.max_history + profile.model.max_candidates)
    sim_rows, sampling = rows_in_simulation(items), sampling_of(items)
    sim_slots = max(1, int(np.round(SIM_ALPHAS[-1] * pages) * rows / sampling))
    ring = max(1, profile.pool.shadow_pages * rows)
    hashed = is_hashed(items)  # three places for two entries
    indexed, evicted = (3 * slots // 2 + 1, 2 * ring) if hashed else (items, items)

    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "n": ((SCALARS,), np.int64),
        "owner": ((pages,), np.int8),
        "constants": ((2,), np.int64),
        "row_slot": ((indexed,), np.int32),
        "slot_row": ((slots + staging,), np.int32),
        "reference": ((slots + staging,), np.uint8),
        "emb_pages": ((pages,), np.int32),
        "page_place": ((pages,), np.int32),
        "fresh": ((pages,), np.int32),
        "row_evicted": ((evicted,), np.int64),
        "evicted_ring": ((ring,), np.int32),
        "kv_free": ((pages,), np.int32),
        "user_pages": ((users, profile.pages_per_user), np.int32),
        "cached_length": ((users,), np.int32),
        "cached_version": ((users,), np.int32),
        "used_batch": ((users,), np.int64),
        "newer": ((users + 1,), np.int32),
        "older": ((users + 1,), np.int32),
        "user_evicted": ((users,), np.int64),
        "evicted_version": ((users,), np.int32),
        "host_place": ((users,), np.int32),
        "host_user": ((profile.kv_miss.host_users,), np.int32),
        "host_batch": ((profile.kv_miss.host_users,), np.int64),
        "host_version": ((users,), np.int32),
        "host_length": ((users,), np.int32),
        "sim_row": ((sim_rows, sims), np.int32),
        "sim_slot_row": ((sims, sim_slots), np.int32),
        "sim_hand": ((sims,), np.int32),
        "sim_slots": ((sims,), np.int32),
        "sim_user": ((users + 1, sims, SIM_FIELDS), np.int32),
        "sim_free": ((sims,), np.int32),
    }
    memory = Memory(**{name: np.empty((units, *shape), dtype) for name, (shape, dtype) in shapes.items()})
    memory.constants[:] = int(hashed), sampling.bit_length() - 1
    for u, (emb, held) in enumerate(zip(emb_pages, own, strict=True)):
        clear(memory, u, int(emb), int(held), rows)
    return memory


_LONG_AGO = -(1 << 60)
_EMPTY: dict[str, int] = {  # what a field of Memory holds where nothing is cached; -1 where it is not here
    **dict.fromkeys(("n", "reference", "cached_length", "host_length", "sim_hand", "sim_user"), 0),
    **dict.fromkeys(("row_evicted", "user_evicted"), _LONG_AGO),
    "owner": KV,
}


def clear(memory: Memory, u: int, emb: int, pages: int, rows_per_page: int) -> None:
    """Unit ``u`` as at its start: empty caches in a pool of ``pages``, ``emb`` of which EMB owns and KV the others."""
    for name in Memory._fields:
        if name != "constants":
            getattr(memory, name)[u] = _EMPTY.get(name, -1)
    memory.owner[u, :emb], memory.owner[u, pages:] = EMB, NOBODY
    memory.n[u, N_PAGES] = pages
    memory.n[u, N_EMB], memory.n[u, N_FRESH], memory.n[u, N_KV_FREE] = emb, emb, pages - emb
    memory.emb_pages[u, :emb] = memory.page_place[u, :emb] = memory.fresh[u, :emb] = np.arange(emb)
    memory.kv_free[u, : pages - emb] = np.arange(emb, pages)
    sim_pages = np.round(SIM_ALPHAS * pages)
    memory.sim_slots[u] = np.maximum(1, sim_pages * rows_per_page / (1 << memory.constants[u, SAMPLE_SHIFT]))
    memory.sim_free[u] = pages - sim_pages
    # Empty rings: the sentinel points to itself.
    users = memory.newer.shape[1] - 1
    memory.newer[u, users] = memory.older[u, users] = users
    memory.sim_user[u, users, :, NEWER] = memory.sim_user[u, users, :, OLDER] = users


def _plan_shapes(profile: Profile) -> dict[str, tuple[int, ...]]:
    """Room for the largest micro-batch, the largest move before it, and the refills after it."""
    batch, rows = profile.max_batch, profile.rows_per_page
    tokens = batch * (profile.model.max_history + profile.model.max_candidates)
    moves = profile.pool.page_moves_per_interval * rows
    offloads = profile.pool.page_moves_per_interval + batch * profile.pages_per_user
    refills = max(1, profile.pool.shadow_pages * rows)
    return {
        "request": (batch,),
        "stop": (batch,),
        "asked": (batch,),
        "slots": (tokens,),
        "cached": (batch,),
        "stored": (batch,),
        "fill_row": (tokens,),
        "fill_slot": (tokens,),
        "move_from": (moves,),
        "move_to": (moves,),
        "move_row": (moves,),
        "offload_place": (offloads,),
        "offload_pages": (offloads, profile.pages_per_user),
        "upload_place": (batch,),
        "refill_row": (refills,),
        "refill_slot": (refills,),
    }


def make_plan(profile: Profile) -> Plan:
    rooms = {name: np.full(shape, -1, np.int32) for name, shape in _plan_shapes(profile).items()}
    return Plan(counts=np.zeros(PLAN_COUNTS, np.int64), **rooms)


def plan_bytes(profile: Profile) -> int:
    """Memory of ``make_plan``."""
    return sum(math.prod(shape) * np.dtype(np.int32).itemsize for shape in _plan_shapes(profile).values())


@kernel
def unit_of(m, u):
    """The arrays of one unit, as views."""
    return Memory(
        m.n[u], m.owner[u], m.constants[u], m.row_slot[u], m.slot_row[u], m.reference[u], m.emb_pages[u],
        m.page_place[u], m.fresh[u], m.row_evicted[u], m.evicted_ring[u], m.kv_free[u], m.user_pages[u],
        m.cached_length[u], m.cached_version[u], m.used_batch[u], m.newer[u], m.older[u], m.user_evicted[u],
        m.evicted_version[u], m.host_place[u], m.host_user[u], m.host_batch[u], m.host_version[u], m.host_length[u],
        m.sim_row[u], m.sim_slot_row[u], m.sim_hand[u], m.sim_slots[u], m.sim_user[u], m.sim_free[u],
    )  # fmt: skip
