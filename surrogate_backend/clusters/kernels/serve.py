"""An interval of one lane: its requests arrive, a learned preference or a rule chooses their nodes, nodes serve them.

What the router's score comes to is learned (inputs.ATTRACTION to REST): how often each node's caches draw a request,
and what the next best node and any other would cost over it. Waiting is not learned but simulated, as for a single node
(kernels/requests.py): a request goes to the node it prefers unless the wait there costs more. So queues that a router
evens out, overload and the loss of a node follow from the same few figures.

Randomness is counted as in kernels/requests.py, by lane, interval and request.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from helm_gym.cluster.routing import RULES
from helm_gym.kernels import jit
from surrogate_backend.kernels.functions import F, kernel
from surrogate_backend.kernels.requests import exponential, hashed, uniform
from surrogate_backend.layout import KNOTS, LEVELS

SCORE, RANDOM, ROUND_ROBIN, LEAST_LOADED, CONSISTENT_HASH = (
    RULES.index(rule) for rule in ("score", "random", "round-robin", "least-loaded", "consistent-hash")
)
# What a lane's router is given: rule, weight of waiting, bound, and the learned preference; rate (1/ms) of arrivals.
RULE, LOAD, BOUND, NO_PREFERENCE, NEXT_MS, REST_MS, RATE, LEAST_MS = range(8)
ROUTER = 8
# Of a request, by row: random numbers, uniform ones and from _GAP on exponential ones of mean 1; the cell of its
# quantile and the part of it; and whom the nodes' attraction alone chooses.
SERVICE, _TIED, _FIRST, _SECOND, _GAP, _FOLLOWING, _REST = range(7)
_DRAWN = 7
_CELL, _PART, _CHOSEN = 7, 8, 9
DRAWS = 10
_LEVELS = LEVELS.astype(F)
_INVERSE = (1.0 / np.diff(LEVELS)).astype(F)
_U = np.uint32
_LOST = F(3e38)
_LEAST_SHARE = F(0.9)  # of the mean service time: what a request takes where most of it is cached


def _reduction(function: Any) -> Any:
    """As ``kernel``, but sums and minima may be taken in any order: they run over a lane's own nodes."""
    return jit.kernel(function, fastmath=True)


@_reduction
def _waiting(free_ms, now_ms, count):
    """Mean work ahead (ms) of the first ``count`` nodes."""
    total = F(0.0)
    for n in range(count):
        total += max(free_ms[n] - now_ms, F(0.0))
    return total / F(count)


@_reduction
def _earliest(free_ms, count):
    """The node that is free first, or longest."""
    least = _LOST
    for n in range(count):
        least = free_ms[n] if free_ms[n] < least else least
    place = np.int32(count)
    for n in range(count):
        place = min(place, np.int32(n) if free_ms[n] == least else np.int32(count))
    return min(np.int64(place), count - 1)


@kernel
def _choose(router, free_ms, level, count, idle, now_ms, turn, draws, r):
    """A node, by its place among those alive, for the request of ``now_ms``; and whether a bound kept it from another.

    idle: the node that is free first; turn: requests routed so far; draws: see ``_draw``, of which column ``r`` is the
    request's.
    """
    rule = int(router[RULE])
    if rule == RANDOM:
        return min(int(draws[_FIRST, r] * F(count)), count - 1), False
    if rule == ROUND_ROBIN:
        return turn % count, False
    if rule == LEAST_LOADED:
        best, chosen = _LOST, 0
        for n in range(count):
            cost = max(free_ms[n] - now_ms, F(0.0)) + level[n] + F(1e-4) * min(free_ms[n] - now_ms, F(0.0))
            if cost < best:
                best, chosen = cost, n
        return chosen, False
    first = int(draws[_CHOSEN, r])
    wait = max(free_ms[first] - now_ms, F(0.0))
    prefers = rule == CONSISTENT_HASH or draws[_TIED, r] >= router[NO_PREFERENCE]
    if prefers and (wait == F(0.0) or count == 1):  # as most are: whoever is preferred and idle costs least
        return first, False
    if rule == CONSISTENT_HASH:
        node, passed = first, False
        limit = router[BOUND] * _waiting(free_ms, now_ms, count) + router[LEAST_MS]
        for k in range(count):
            node = first + k if first + k < count else first + k - count
            if free_ms[node] - now_ms <= limit:
                break
            passed = True
        return node, passed
    if not prefers:
        return idle, False
    second = min(int(draws[_SECOND, r] * F(count - 1)), count - 2)
    second += second >= first
    following = router[NEXT_MS] * draws[_FOLLOWING, r]
    rest = following + router[REST_MS] * draws[_REST, r]
    cost_first, wait_second = router[LOAD] * wait, max(free_ms[second] - now_ms, F(0.0))
    cost_second, cost_rest = (
        following + router[LOAD] * wait_second,
        rest + router[LOAD] * max(free_ms[idle] - now_ms, F(0.0)),
    )
    chosen, cost, limit = idle, cost_rest, router[LEAST_MS]
    if max(wait, wait_second) > limit:  # the mean is needed
        limit += router[BOUND] * _waiting(free_ms, now_ms, count)
    if wait_second <= limit and cost_second < cost:
        chosen, cost = second, cost_second
    if wait <= limit and cost_first <= cost:
        chosen, cost = first, cost_first
    return chosen, wait > limit


@kernel
def _draw(low, high, number, draws):
    """Fills what of ``number`` requests does not depend on queues, (DRAWS, number or more): loops that are vectors."""
    for kind in range(_DRAWN):
        row = draws[kind]
        for r in range(number):
            row[r] = uniform(hashed(low, high, _U(_U(r) * _U(_DRAWN) + _U(kind))))
    for kind in range(_GAP, _DRAWN):
        row = draws[kind]
        for r in range(number):
            row[r] = exponential(row[r])
    service, cell, part = draws[SERVICE], draws[_CELL], draws[_PART]
    for r in range(number):
        u, k, inside = service[r], F(0.0), service[r] * _INVERSE[0]
        for i in range(1, KNOTS - 1):
            k = F(i) if u >= _LEVELS[i] else k
            inside = (u - _LEVELS[i]) * _INVERSE[i] if u >= _LEVELS[i] else inside
        cell[r], part[r] = k, inside


@kernel
def _attract(first, number, cumulative, count, chosen):
    """In whose part of the attraction each of the first draws lies; counting is quicker than a search's branches."""
    total = cumulative[count - 1]
    for r in range(number):
        chosen[r] = F(0.0)
    for n in range(count - 1):
        below = cumulative[n]
        for r in range(number):
            chosen[r] += F(1.0) if below <= first[r] * total else F(0.0)


@kernel
def serve_lane(
    low, high, router, gaps_s, poisson, alive, level, knots, attraction, free_ms, turn, node_of, came_ms,
    service_ms, sojourn_ms, again, number, place_of, compact, cumulative, draws,
):  # fmt: skip
    """Serves one interval of a lane's requests.

    Args:
        low, high: keys of the interval's randomness.
        router: see RULE and those behind it.
        gaps_s: (number,), between arrivals, unless they are ``poisson``.
        alive, level (mean service, ms), attraction, free_ms: (nodes,); knots: (nodes, KNOTS), quantiles of service.
            free_ms: work left at the interval's start; moved on to its end.
        turn: requests that were routed before.
        node_of, came_ms, service_ms, sojourn_ms: (most,) of the interval's requests, in order. The first ``again`` are
            those of lost nodes: they came before, at ``came_ms``, and are served first.
        number: of the others.
        place_of, cumulative, compact, draws: scratch, (nodes,) twice, (2, nodes), (DRAWS, most).

    Returns the interval's length (ms), and how many requests were passed on because of the bound.
    """
    count, total, mean = 0, F(0.0), F(0.0)
    for n in range(alive.shape[0]):
        if alive[n]:
            place_of[count], compact[0, count], compact[1, count] = n, free_ms[n], level[n]
            total += attraction[n]
            cumulative[count] = total
            mean += level[n]
            count += 1
        free_ms[n] = F(0.0)
    router[LEAST_MS] = _LEAST_SHARE * mean / F(count)
    _draw(low, high, again + number, draws)
    if router[RULE] == SCORE or router[RULE] == CONSISTENT_HASH:
        _attract(draws[_FIRST], again + number, cumulative, count, draws[_CHOSEN])
    now, spills, gap_ms, idle = F(0.0), 0, F(1.0) / router[RATE], _earliest(compact[0], count)
    for r in range(again + number):
        if r >= again:
            now += draws[_GAP, r] * gap_ms if poisson else F(1e3 * gaps_s[r - again])
            came_ms[r] = now
        place, passed = _choose(router, compact[0], compact[1], count, idle, now, turn + r, draws, r)
        spills += passed
        node, k = place_of[place], int(draws[_CELL, r])
        time = knots[node, k] + draws[_PART, r] * (knots[node, k + 1] - knots[node, k])
        done = max(compact[0, place], now) + time
        compact[0, place] = done
        sojourn_ms[r], service_ms[r], node_of[r] = done - came_ms[r], time, node
        if place == idle:
            idle = _earliest(compact[0], count)
    for place in range(count):
        free_ms[place_of[place]] = max(compact[0, place] - now, F(0.0))
    for r in range(again + number):
        came_ms[r] -= now  # as seen from the next interval
    return now, spills
