"""The request router: what each request would cost at each node, by what the router believes, and the choice of one."""

from __future__ import annotations

import numpy as np

from helm_gym.cluster.routing import RULES, WEIGHTS
from helm_gym.kernels.jit import kernel
from helm_gym.workload.sampling import _uniform
from real_backend.memory.pricing import compute_ms
from real_backend.router_beliefs import MEAN, NEW, NEXT, OLD, ROUTED, TIED, mix, note_kv

SCORE, RANDOM, ROUND_ROBIN, LEAST_LOADED, CONSISTENT_HASH = (
    RULES.index(rule) for rule in ("score", "random", "round-robin", "least-loaded", "consistent-hash")
)
KV, EMB, LOAD = (WEIGHTS.index(weight) for weight in ("kv", "emb", "load"))
_EQUAL_MS = 1e-6  # of costs: what lies between them is rounding
SAMPLE = 64  # rows that are looked up, of a request's candidates and of its history; they stand for the others
_OF_USERS = np.uint64(1 << 32)  # so that no user's key is a node's


@kernel
def _count_held(resident, rows, count, held):
    """Fills ``held`` (nodes,) with how many of a sample of ``rows[:count]`` each node holds. Returns of how many."""
    sampled = min(count, SAMPLE)
    stride = count / max(1, sampled)
    held[:] = 0
    for k in range(sampled):
        row = resident[rows[int(k * stride)]]
        for n in range(held.shape[0]):
            held[n] += row[n]
    return max(1, sampled)


@kernel
def _price(view, lane, requests, r, items, arrival_s, rules):
    """Fills ``terms_ms``: their sum is the time in which a node is expected to answer request ``r``.

    kv: history that this node must compute again, rows included, and the one that holds most of it need not.
    emb: rows that are missing of those which any node must look up: the new ones, and history that no node holds.
    load: work ahead of the request, and the compute that no cache saves.

    Returns the load term of an idle node at the cost model's speed.
    """
    user, length, count = requests.user[lane, r], requests.length[lane, r], requests.candidate_count[lane, r]
    cached, alive = view.kv_tokens[lane, user], view.alive[lane]
    nodes, held = alive.shape[0], view.held[lane]
    of_new = _count_held(view.resident[lane], requests.candidates[lane, r], count, held[NEW])
    of_old = _count_held(view.resident[lane], items[user], length, held[OLD])
    known = view.kv_version[lane, user] == requests.version[lane, r]
    most = 0
    if known:
        for n in range(nodes):
            if alive[n]:
                most = max(most, min(cached[n], length))
    uncached = length - most
    new = min(uncached, requests.delta[lane, r])
    token_ms = rules.per_token_ms + rules.per_pair_ms * length
    least_ms = rules.base_ms + rules.per_request_ms + rules.latency_ms + compute_ms(rules, uncached + count, length)
    for n in range(nodes):
        again = most - min(cached[n], most) if known else 0
        new_ms, old_ms = (1.0 - held[NEW, n] / of_new) * rules.row_ms, (1.0 - held[OLD, n] / of_old) * rules.row_ms
        view.terms_ms[lane, KV, n] = again * (token_ms / view.speed[lane, n] + old_ms)
        view.terms_ms[lane, EMB, n] = (new + count) * new_ms + (uncached - new) * old_ms
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

    Of equals the one with least work ahead, then by turns. Where rounding puts all above the limit, or no cost is a
    number, the node with least work ahead. Returns the node, and whether a cheaper one was passed over.
    """
    terms, backlog_ms, alive = view.terms_ms[lane], view.backlog_ms[lane], view.alive[lane]
    nodes = alive.shape[0]
    chosen, idlest, lowest, least = -1, -1, np.inf, np.inf
    node = view.turn[lane, ROUTED] % nodes
    for _ in range(nodes):
        if alive[node]:
            cost = kv * terms[KV, node] + emb * terms[EMB, node] + load * terms[LOAD, node]
            least = min(least, cost)
            if idlest < 0 or backlog_ms[node] < backlog_ms[idlest]:
                idlest = node
            equal = cost == lowest and backlog_ms[node] < backlog_ms[chosen]
            if backlog_ms[node] <= limit_ms and (cost < lowest or equal):
                chosen, lowest = node, cost
        node = node + 1 if node + 1 < nodes else 0
    return chosen if chosen >= 0 else idlest, lowest > least


@kernel
def _note_preference(view, lane, kv, emb, load):
    """Which node a request would go to if none had work ahead, and by how much others would cost more: for the log."""
    terms, backlog_ms, alive = view.terms_ms[lane], view.backlog_ms[lane], view.alive[lane]
    first, second, total, count, best = np.inf, np.inf, 0.0, 0, 0
    for n in range(alive.shape[0]):
        if alive[n]:
            cost = kv * terms[KV, n] + emb * terms[EMB, n] + load * (terms[LOAD, n] - backlog_ms[n])
            total += cost
            count += 1
            if cost < first:
                first, second, best = cost, first, n
            else:
                second = min(second, cost)
    if count == 1 or total / count - first < _EQUAL_MS:
        view.apart[lane, TIED] += 1.0
        return
    view.preferred[lane, best] += 1
    view.apart[lane, NEXT] += second - first
    view.apart[lane, MEAN] += total / count - first


@kernel
def _on_ring(view, lane, user, limit_ms):
    """The first alive node at or after the user's key that has no more than ``limit_ms`` of work ahead.

    A node's points stay where they are when another dies, so only the dead one's users move. Where rounding puts all
    above the limit, the node with least work ahead. Returns the node, and whether one was passed over.
    """
    keys, points = view.ring_key, view.ring_key.shape[0]
    alive, backlog_ms = view.alive[lane], view.backlog_ms[lane]
    at = np.searchsorted(keys, mix(np.uint64(user) + _OF_USERS))
    idlest = -1
    for k in range(points):
        node = view.ring_node[(at + k) % points]
        if alive[node]:
            if backlog_ms[node] <= limit_ms:
                return node, idlest >= 0
            if idlest < 0 or backlog_ms[node] < backlog_ms[idlest]:
                idlest = node
    return idlest, True


@kernel
def _nth_alive(alive, k):
    """The alive node that ``k`` others come before; the last one where there are fewer."""
    found = 0
    for node in range(alive.shape[0]):
        if alive[node]:
            found = node
            if k == 0:
                break
            k -= 1
    return found


@kernel
def route(view, lane, requests, items, start_s, rules, rule, weights, bound, out):
    """Chooses a node for each of the lane's first requests, in order of arrival, and keeps the view up.

    At least one node must be alive (helm_gym.cluster.routing.check_alive) and ``bound`` at least 1, so that a node with
    no more than the mean of work ahead is always within it.

    Args:
        requests: the lanes' streams; items: (users, max_history), the lane's histories.
        start_s: the arrival before the first.
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
        least_ms = _price(view, lane, requests, r, items, arrival_s, rules)
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
            view.preferred[lane, _on_ring(view, lane, user, np.inf)[0]] += 1
        else:
            _note_preference(view, lane, weights[KV], weights[EMB], weights[LOAD])
            node, passed = _cheapest(view, lane, weights[KV], weights[EMB], weights[LOAD], limit_ms)
        answer_ms = 0.0
        for term in range(view.terms_ms.shape[1]):
            answer_ms += view.terms_ms[lane, term, node]
            view.chosen_ms[lane, term] += view.terms_ms[lane, term, node]
        view.free_at_s[lane, node] = arrival_s + answer_ms * 1e-3
        note_kv(view, lane, node, user, requests.version[lane, r], requests.length[lane, r])
        view.spilled[lane, 0] += passed
        view.turn[lane, ROUTED] += 1
        out[r] = node
    return arrival_s
