"""The request router: what each request would cost at each node, by what the router believes, and the choice of one.

What it believes is a ``View``. Nodes publish their state once an interval (``refresh``), as over a network: KV and work
ahead in full, an eighth of their embedding rows. In between the router adds what it has itself sent (``route``). It
knows nothing else: not which users a node has evicted since, nor what a host tier holds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.compiled import kernel
from helm_gym.profile import Profile
from helm_gym.routing import RULES, WEIGHTS
from helm_gym.workload.sampling import _uniform
from real_backend.memory.pricing import compute_ms
from real_backend.memory.serve import FREE_AT_S

SCORE, RANDOM, ROUND_ROBIN, LEAST_LOADED, CONSISTENT_HASH = (
    RULES.index(rule) for rule in ("score", "random", "round-robin", "least-loaded", "consistent-hash")
)
KV, EMB, LOAD = (WEIGHTS.index(weight) for weight in ("kv", "emb", "load"))

ROUTED, REFRESHED = 0, 1  # indices into View.turn
PARTS = 8  # a refresh publishes one part in so many of the rows
SAMPLE = 64  # candidates whose rows are looked up for a request; the others' share is taken to be theirs
POINTS = 64  # of each node on the hash ring
_OF_USERS = np.uint64(1 << 32)  # so that no user's key is a node's


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
    # Of the present request
    held: NDArray[np.uint8]  # (L, N), sampled rows that a node holds
    terms_ms: NDArray[np.float64]  # (L, 3, N), in the order of WEIGHTS
    backlog_ms: NDArray[np.float64]  # (L, N), work ahead of it


def make_view(profile: Profile, users: int, seeds: NDArray[np.int64], speed: NDArray[np.float64]) -> View:
    """All nodes alive, empty and idle.

    Args:
        users: entries of a lane's table of users.
        seeds: (lanes,), of rule ``random``.
        speed: (nodes,), of compute; the cost model's is 1.
    """
    lanes, nodes, items = len(seeds), len(speed), profile.population.items
    listed = profile.pool.pages + 2 * nodes * profile.interval.requests
    keys = np.array([_mix(np.uint64(point)) for point in range(nodes * POINTS)], np.uint64)
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
        rng=np.stack(states).astype(np.uint64),
        turn=np.zeros((lanes, 2), np.int64),
        ring_key=keys[order],
        ring_node=(order // POINTS).astype(np.int32),
        spilled=np.zeros((lanes, 1), np.int64),
        chosen_ms=np.zeros((lanes, len(WEIGHTS))),
        held=np.zeros((lanes, nodes), np.uint8),
        terms_ms=np.zeros((lanes, len(WEIGHTS), nodes)),
        backlog_ms=np.zeros((lanes, nodes)),
    )


@kernel
def _mix(key):
    """splitmix64's output function (Steele et al., OOPSLA 2014): an even spread of any keys, modulo 2**64."""
    z = (key + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def _note_kv(view, lane, node, user, version, tokens):
    """The router learns that ``node`` holds ``tokens`` of a user's history; news of an older version is none."""
    if version < view.kv_version[lane, user]:
        return
    if version > view.kv_version[lane, user]:
        view.kv_version[lane, user] = version
        view.kv_tokens[lane, user, :] = 0
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
def refresh(view, lane, memory, first_unit, ledger, alive):
    """Nodes publish their state at the interval's start; unit ``first_unit`` is the lane's first node.

    alive: (nodes,) bool. A node that is not publishes nothing, and what was known of it is forgotten.
    """
    items, nodes = view.resident.shape[1], view.resident.shape[2]
    part = view.turn[lane, REFRESHED] % PARTS
    view.turn[lane, REFRESHED] += 1
    view.spilled[lane, 0] = 0
    view.chosen_ms[lane, :] = 0.0
    for node in range(nodes):
        unit = first_unit + node
        _forget_kv(view, lane, node)
        if not alive[node]:
            if view.alive[lane, node]:
                for item in range(items):
                    view.resident[lane, item, node] = 0
            view.alive[lane, node] = False
            continue
        view.alive[lane, node] = True
        view.free_at_s[lane, node] = ledger.clock[unit, FREE_AT_S]
        sentinel = memory.newer.shape[1] - 1
        user = memory.newer[unit, sentinel]
        while user != sentinel:
            _note_kv(view, lane, node, user, memory.cached_version[unit, user], memory.cached_length[unit, user])
            user = memory.newer[unit, user]
        for item in range(part * items // PARTS, (part + 1) * items // PARTS):
            view.resident[lane, item, node] = memory.row_slot[unit, item] >= 0


@kernel
def _price(view, lane, requests, r, arrival_s, rules):
    """Fills ``terms_ms``: their sum is the time in which a node is expected to answer request ``r``.

    kv: history that this node must compute again, rows included, and the one that holds most of it need not.
    emb: rows that are missing of those which any node must look up: candidates, and history that no node holds.
    load: work ahead of the request, and the compute that no cache saves.

    Returns the load term of an idle node at the cost model's speed.
    """
    user, length, count = requests.user[lane, r], requests.length[lane, r], requests.candidate_count[lane, r]
    cached, held, alive = view.kv_tokens[lane, user], view.held[lane], view.alive[lane]
    nodes = alive.shape[0]
    sampled = max(1, min(count, SAMPLE))
    stride = max(1, count // sampled)
    held[:] = 0
    for k in range(sampled):
        rows = view.resident[lane, requests.candidates[lane, r, k * stride]]
        for n in range(nodes):
            held[n] += rows[n]
    known = view.kv_version[lane, user] == requests.version[lane, r]
    most = 0
    if known:
        for n in range(nodes):
            if alive[n]:
                most = max(most, min(cached[n], length))
    tokens = length - most + count
    token_ms = rules.per_token_ms + rules.per_pair_ms * length
    least_ms = rules.base_ms + rules.latency_ms + compute_ms(rules, tokens, length)
    for n in range(nodes):
        missing_ms = (1.0 - held[n] / sampled) * rules.row_ms
        again = most - min(cached[n], most) if known else 0
        view.terms_ms[lane, KV, n] = again * (token_ms / view.speed[lane, n] + missing_ms)
        view.terms_ms[lane, EMB, n] = tokens * missing_ms
        view.backlog_ms[lane, n] = max(0.0, (view.free_at_s[lane, n] - arrival_s) * 1e3)
        view.terms_ms[lane, LOAD, n] = view.backlog_ms[lane, n] + least_ms / view.speed[lane, n]
    return least_ms


@kernel
def _mean_alive(values, alive):
    total, count = 0.0, 0
    for n in range(alive.shape[0]):
        if alive[n]:
            total += values[n]
            count += 1
    return total / count


@kernel
def _cheapest(view, lane, kv, emb, load, limit_ms):
    """The alive node of least weighted cost that has no more than ``limit_ms`` of work ahead.

    Of equals the one with least work ahead, then by turns. Returns it, and whether a cheaper one was passed over.
    """
    terms, backlog_ms, alive = view.terms_ms[lane], view.backlog_ms[lane], view.alive[lane]
    nodes = alive.shape[0]
    chosen, lowest, least = -1, np.inf, np.inf
    node = view.turn[lane, ROUTED] % nodes
    for _ in range(nodes):
        if alive[node]:
            cost = kv * terms[KV, node] + emb * terms[EMB, node] + load * terms[LOAD, node]
            least = min(least, cost)
            equal = cost == lowest and backlog_ms[node] < backlog_ms[chosen]
            if backlog_ms[node] <= limit_ms and (cost < lowest or equal):
                chosen, lowest = node, cost
        node = node + 1 if node + 1 < nodes else 0
    return chosen, lowest > least


@kernel
def _on_ring(view, lane, user, limit_ms):
    """The first alive node at or after the user's key that has no more than ``limit_ms`` of work ahead.

    A node's points stay where they are when another dies, so only the dead one's users move. Returns the node, and
    whether one was passed over.
    """
    keys, points = view.ring_key, view.ring_key.shape[0]
    at = np.searchsorted(keys, _mix(np.uint64(user) + _OF_USERS))
    passed = False
    node = 0
    for k in range(points):
        node = view.ring_node[(at + k) % points]
        if view.alive[lane, node]:
            if view.backlog_ms[lane, node] <= limit_ms:
                break
            passed = True
    return node, passed


@kernel
def _nth_alive(alive, k):
    """The alive node that ``k`` others come before."""
    node = 0
    while k > 0 or not alive[node]:
        k -= alive[node]
        node += 1
    return node


@kernel
def route(view, lane, requests, start_s, rules, rule, weights, bound, out):
    """Chooses a node for each of the lane's first requests, in order of arrival, and keeps the view up.

    At least one node must be alive (helm_gym.routing.check_alive) and ``bound`` at least 1, so that a node with no more
    than the mean of work ahead is always within it.

    Args:
        requests: the lanes' streams; start_s: the arrival before the first.
        rule: index into RULES; weights: (3,).
        out: int32 (requests to be routed,), the nodes chosen.

    Returns the last arrival (s).
    """
    arrival_s = start_s
    alive = view.alive[lane]
    count = alive.sum()
    for r in range(out.shape[0]):
        arrival_s += requests.gap_s[lane, r]
        user = requests.user[lane, r]
        least_ms = _price(view, lane, requests, r, arrival_s, rules)
        limit_ms = bound * _mean_alive(view.backlog_ms[lane], alive) + least_ms
        passed = False
        if rule == RANDOM:
            node = _nth_alive(alive, int(_uniform(view.rng[lane]) * count))
        elif rule == ROUND_ROBIN:
            node = _nth_alive(alive, view.turn[lane, ROUTED] % count)
        elif rule == LEAST_LOADED:
            node, passed = _cheapest(view, lane, 0.0, 0.0, 1.0, np.inf)
        elif rule == CONSISTENT_HASH:
            node, passed = _on_ring(view, lane, user, limit_ms)
        else:
            node, passed = _cheapest(view, lane, weights[KV], weights[EMB], weights[LOAD], limit_ms)
        answer_ms = 0.0
        for term in range(view.terms_ms.shape[1]):
            answer_ms += view.terms_ms[lane, term, node]
            view.chosen_ms[lane, term] += view.terms_ms[lane, term, node]
        view.free_at_s[lane, node] = arrival_s + answer_ms * 1e-3
        _note_kv(view, lane, node, user, requests.version[lane, r], requests.length[lane, r])
        view.spilled[lane, 0] += passed
        view.turn[lane, ROUTED] += 1
        out[r] = node
    return arrival_s
