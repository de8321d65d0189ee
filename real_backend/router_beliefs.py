"""What the router believes of a cluster's nodes: what they published, and what it has itself sent them since.

Nodes publish their state once an interval (``refresh``), as over a network: KV and work ahead in full, an eighth of
their embedding rows. Nobody knows in between which users a node has evicted, nor ever what its host tier holds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.cluster.routing import WEIGHTS
from helm_gym.kernels.jit import kernel
from helm_gym.profile import Profile
from real_backend.memory.ledger import FREE_AT_S

ROUTED, REFRESHED = 0, 1  # indices into View.turn
NEW, OLD = 0, 1  # and into View.held
TIED, NEXT, MEAN = 0, 1, 2  # into View.apart: how many had no choice; the cost of the next best node, and of the mean
PARTS = 8  # a refresh publishes one part in so many of the rows
POINTS = 64  # of each node on the hash ring


class View(NamedTuple):
    """What the router believes. Shapes: L lanes, N nodes, U users, I items, C users listed a node, P ring points."""

    kv_tokens: NDArray[np.int32]  # (L, U, N), history tokens whose KV each node holds
    kv_version: NDArray[np.int32]  # (L, U), the version that a user's kv_tokens speak of; under another they are void
    kv_listed: NDArray[np.int32]  # (L, N, C), users with kv_tokens at a node: what a refresh has to clear
    kv_count: NDArray[np.int64]  # (L, N), how many are listed
    resident: NDArray[np.uint8]  # (L, I, N), 1 where a node's pool holds the row
    free_at_s: NDArray[np.float64]  # (L, N), when a node will have answered all that it was sent
    alive: NDArray[np.bool_]  # (L, N)
    speed: NDArray[np.float64]  # (L, N), of compute; the cost model's is 1
    rng: NDArray[np.uint64]  # (L, 4), xoshiro256+
    turn: NDArray[np.int64]  # (L, 2), requests routed and refreshes so far
    ring_key: NDArray[np.uint64]  # (P,), ascending
    ring_node: NDArray[np.int32]  # (P,)
    # Of the requests since the last refresh
    spilled: NDArray[np.int64]  # (L, 1), how many went elsewhere because of a node's bound
    chosen_ms: NDArray[np.float64]  # (L, 3), the terms of the chosen nodes, summed
    preferred: NDArray[np.int64]  # (L, N), how many would have gone to each node if none had work ahead of it
    apart: NDArray[np.float64]  # (L, 3), of such a choice: see TIED, NEXT and MEAN
    # Of the present request
    held: NDArray[np.uint8]  # (L, 2, N), sampled rows that each node holds, of the candidates and of the history
    terms_ms: NDArray[np.float64]  # (L, 3, N), in the order of WEIGHTS
    backlog_ms: NDArray[np.float64]  # (L, N), work ahead of it


def make_view(profile: Profile, seeds: NDArray[np.int64], speed: NDArray[np.float64]) -> View:
    """All nodes alive, empty and idle.

    Args:
        profile: with the cluster's population.
        seeds: (lanes,), of rule ``random``.
        speed: (nodes,), of compute; the cost model's is 1.
    """
    lanes, nodes = len(seeds), len(speed)
    users, items = profile.population.users, profile.population.items
    listed = profile.pool.pages + 2 * nodes * profile.interval.requests
    keys = np.array([mix(np.uint64(point)) for point in range(nodes * POINTS)], np.uint64)
    order = np.argsort(keys)
    states = [np.random.SeedSequence([int(s), 0x524F555445]).generate_state(4, np.uint64) for s in seeds]
    return View(
        kv_tokens=np.zeros((lanes, users, nodes), np.int32),
        kv_version=np.full((lanes, users), -1, np.int32),
        kv_listed=np.zeros((lanes, nodes, listed), np.int32),
        kv_count=np.zeros((lanes, nodes), np.int64),
        resident=np.zeros((lanes, items, nodes), np.uint8),
        free_at_s=np.zeros((lanes, nodes)),
        alive=np.ones((lanes, nodes), np.bool_),
        speed=np.tile(np.asarray(speed, np.float64), (lanes, 1)),
        rng=np.array(states, np.uint64).reshape(lanes, 4),
        turn=np.zeros((lanes, 2), np.int64),
        ring_key=keys[order],
        ring_node=(order // POINTS).astype(np.int32),
        spilled=np.zeros((lanes, 1), np.int64),
        chosen_ms=np.zeros((lanes, len(WEIGHTS))),
        preferred=np.zeros((lanes, nodes), np.int64),
        apart=np.zeros((lanes, 3)),
        held=np.zeros((lanes, 2, nodes), np.uint8),
        terms_ms=np.zeros((lanes, len(WEIGHTS), nodes)),
        backlog_ms=np.zeros((lanes, nodes)),
    )


@kernel
def mix(key):
    """splitmix64's output function (Steele et al., OOPSLA 2014): an even spread of any keys, modulo 2**64."""
    z = (key + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def note_kv(view, lane, node, user, version, tokens):
    """The router learns that ``node`` holds ``tokens`` of a user's history; news of an older version is none.

    Nor is it that a request with less history went there: a node keeps what it has.
    """
    if version < view.kv_version[lane, user]:
        return
    if version > view.kv_version[lane, user]:
        view.kv_version[lane, user] = version
        view.kv_tokens[lane, user, :] = 0
    if tokens <= view.kv_tokens[lane, user, node]:
        return
    count = view.kv_count[lane, node]
    if view.kv_tokens[lane, user, node] == 0:
        if count == view.kv_listed.shape[2]:
            return  # nothing could clear it
        view.kv_listed[lane, node, count] = user
        view.kv_count[lane, node] = count + 1
    view.kv_tokens[lane, user, node] = tokens


@kernel
def _forget_kv(view, lane, node):
    for k in range(view.kv_count[lane, node]):
        view.kv_tokens[lane, view.kv_listed[lane, node, k], node] = 0
    view.kv_count[lane, node] = 0


@kernel
def list_cached(newer, version, length, out):
    """Fills ``out`` (pages, 3) with the users whose KV a unit holds, their versions and tokens; returns how many."""
    sentinel, count = newer.shape[0] - 1, 0
    user = newer[sentinel]
    while user != sentinel:
        out[count, 0], out[count, 1], out[count, 2] = user, version[user], length[user]
        count += 1
        user = newer[user]
    return count


@kernel
def note_published(view, lane, node, cached):
    """What a node published of its KV, (users, 3) as ``list_cached`` says it, replaces what was known of it."""
    _forget_kv(view, lane, node)
    for k in range(cached.shape[0]):
        note_kv(view, lane, node, cached[k, 0], cached[k, 1], cached[k, 2])


@kernel
def _note_rows(view, lane, row_slot, first_unit):
    """The next part of the rows, of all nodes alive."""
    items = view.resident.shape[1]
    part = view.turn[lane, REFRESHED] % PARTS
    view.turn[lane, REFRESHED] += 1
    first, end = part * items // PARTS, (part + 1) * items // PARTS
    for node in range(view.alive.shape[1]):
        if view.alive[lane, node]:
            slots, held = row_slot[first_unit + node, first:end], view.resident[lane, first:end, node]
            for k in range(slots.shape[0]):
                held[k] = slots[k] >= 0


@kernel
def refresh(view, lane, memory, first_unit, ledger, alive):
    """Nodes publish their state at the interval's start; unit ``first_unit`` is the lane's first node.

    alive: (nodes,) bool. A node that is not publishes nothing, and what was known of it is forgotten.
    """
    view.spilled[lane, 0] = 0
    view.chosen_ms[lane, :] = 0.0
    view.preferred[lane, :] = 0
    view.apart[lane, :] = 0.0
    for node in range(view.alive.shape[1]):
        unit = first_unit + node
        _forget_kv(view, lane, node)
        if not alive[node]:
            if view.alive[lane, node]:
                for item in range(view.resident.shape[1]):
                    view.resident[lane, item, node] = 0
            view.alive[lane, node] = False
            continue
        view.alive[lane, node] = True
        view.free_at_s[lane, node] = ledger.clock[unit, FREE_AT_S]
        sentinel = memory.newer.shape[1] - 1
        user = memory.newer[unit, sentinel]
        while user != sentinel:
            note_kv(view, lane, node, user, memory.cached_version[unit, user], memory.cached_length[unit, user])
            user = memory.newer[unit, user]
    _note_rows(view, lane, memory.row_slot, first_unit)
