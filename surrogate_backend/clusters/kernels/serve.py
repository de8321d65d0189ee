"""An interval of one lane: its requests arrive, a learned preference or a rule chooses their nodes, nodes serve them.

What the router's score comes to is learned (inputs.ATTRACTION to REST): how often each node's caches draw a request,
and what the next best node and any other would cost over it. Waiting is not learned but simulated, as for a single node
(kernels/requests.py): a request goes to the node it prefers unless the wait there costs more. So queues that a router
evens out, overload and the loss of a node follow from the same few figures.

Randomness is counted as in kernels/requests.py, by lane, interval and request.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

import helm_gym.compiled  # noqa: F401  # names the folder of numba's cache
from helm_gym.routing import RULES
from surrogate_backend.kernels.functions import F, kernel
from surrogate_backend.kernels.requests import exponential, hashed, uniform
from surrogate_backend.layout import KNOTS, LEVELS

SCORE, RANDOM, ROUND_ROBIN, LEAST_LOADED, CONSISTENT_HASH = (
    RULES.index(rule) for rule in ("score", "random", "round-robin", "least-loaded", "consistent-hash")
)
TOP = 6  # largest values kept of an interval: P99 of a window of up to 600 requests a node
# Rows of a node's interval: what is summed over its requests; then, behind, what windows are made of (report.py).
COUNT, SERVED, SPENT, LATE, RANK, TOP_SERVICE, TOP_SOJOURN = 0, 1, 2, 3, 4, 5, 5 + TOP
SUMS = 5 + 2 * TOP
# What a lane's router is given: rule, weight of waiting, bound, and the learned preference; rate (1/ms) of arrivals.
RULE, LOAD, BOUND, NO_PREFERENCE, NEXT_MS, REST_MS, RATE, LEAST_MS, SLO_MS = range(9)
# Random numbers of a request: uniform ones, and from _GAP on exponential ones of mean 1.
_SERVICE, _TIED, _FIRST, _SECOND, _GAP, _FOLLOWING, _REST = range(7)
DRAWS = 7
_LEVELS = LEVELS.astype(F)
_INVERSE = (1.0 / np.diff(LEVELS)).astype(F)
_CELLS = 256
_FIRST_KNOT = np.searchsorted(LEVELS, np.arange(_CELLS) / _CELLS, side="right").astype(np.int8) - 1
_U = np.uint32
_LOST = F(3e38)
_LEAST_SHARE = F(0.9)  # of the mean service time: what a request takes where most of it is cached


def _reduction(function: Any) -> Any:
    """As ``kernel``, but sums and minima may be taken in any order: they run over a lane's own nodes."""
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=True, _nrt=False, forceinline=True)(
        function
    )


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
        least = min(least, free_ms[n])
    place = np.int32(count)
    for n in range(count):
        place = min(place, np.int32(n) if free_ms[n] == least else np.int32(count))
    return min(np.int64(place), count - 1)


@kernel
def _drawn(cumulative, u, count):
    """The node in whose part of the attraction ``u`` of it all lies; counting is quicker than a search's branches."""
    wanted, place = u * cumulative[count - 1], np.int32(0)
    for n in range(count):
        place += np.int32(cumulative[n] <= wanted)
    return min(np.int64(place), count - 1)


@kernel
def _choose(router, free_ms, level, cumulative, count, idle, now_ms, turn, draws, r):
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
    first = _drawn(cumulative, draws[_FIRST, r], count)
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
    """Fills the random numbers of ``number`` requests, (DRAWS, number or more): a loop a kind, each of vectors."""
    for kind in range(DRAWS):
        row = draws[kind]
        for r in range(number):
            row[r] = uniform(hashed(low, high, _U(_U(r) * _U(DRAWS) + _U(kind))))
    for kind in range(_GAP, DRAWS):
        row = draws[kind]
        for r in range(number):
            row[r] = exponential(row[r])


@kernel
def _serve(u, knots):
    """The ``u`` quantile of a distribution of service times given by its KNOTS."""
    k = np.int64(_FIRST_KNOT[int(u * F(_CELLS))])
    while k < KNOTS - 2 and u >= _LEVELS[k + 1]:
        k += 1
    return knots[k] + (u - _LEVELS[k]) * _INVERSE[k] * (knots[k + 1] - knots[k])


@kernel
def _keep_top(own, first, value):
    """Keeps the TOP largest values in ``own[first:]``, descending."""
    if value <= own[first + TOP - 1]:
        return
    at = first + TOP - 1
    while at > first and own[at - 1] < value:
        own[at] = own[at - 1]
        at -= 1
    own[at] = value


@kernel
def _answer(own, node, at_ms, came_ms, time, u, free_ms, place, slo_ms):
    """Node ``place`` of those alive takes a request up; returns its sojourn (ms) since ``came_ms``."""
    done = max(free_ms[place], at_ms) + time
    free_ms[place] = done
    spent = done - came_ms
    sums = own[node]
    sums[COUNT] += F(1.0)
    sums[SERVED] += time
    sums[SPENT] += spent
    sums[LATE] += F(1.0) if spent > slo_ms else F(0.0)
    sums[RANK] += u
    _keep_top(sums, TOP_SERVICE, time)
    _keep_top(sums, TOP_SOJOURN, spent)
    return spent


@kernel
def serve_lane(
    low, high, router, gaps_s, poisson, alive, level, knots, attraction, free_ms, turn, own, node_of, came_ms,
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
        own: (nodes, SUMS or more), filled from 0.
        node_of, came_ms, service_ms, sojourn_ms: (most,) of the interval's requests, in order. The first ``again`` are
            those of lost nodes: they came before, at ``came_ms``, and are served first.
        number: of the others.
        place_of, cumulative, compact, draws: scratch, (nodes,) twice, (2, nodes), (DRAWS, most).

    Returns the interval's length (ms), and how many requests were passed on because of the bound.
    """
    count, total, mean = 0, F(0.0), F(0.0)
    for n in range(alive.shape[0]):
        own[n, :SUMS] = F(0.0)
        if alive[n]:
            place_of[count], compact[0, count], compact[1, count] = n, free_ms[n], level[n]
            total += attraction[n]
            cumulative[count] = total
            mean += level[n]
            count += 1
        free_ms[n] = F(0.0)
    router[LEAST_MS] = _LEAST_SHARE * mean / F(count)
    _draw(low, high, again + number, draws)
    now, spills, gap_ms, idle = F(0.0), 0, F(1.0) / router[RATE], _earliest(compact[0], count)
    for r in range(again + number):
        if r >= again:
            now += draws[_GAP, r] * gap_ms if poisson else F(1e3 * gaps_s[r - again])
            came_ms[r] = now
        place, passed = _choose(router, compact[0], compact[1], cumulative, count, idle, now, turn + r, draws, r)
        spills += passed
        node, u = place_of[place], draws[_SERVICE, r]
        time = _serve(u, knots[node])
        sojourn_ms[r] = _answer(own, node, now, came_ms[r], time, u, compact[0], place, router[SLO_MS])
        service_ms[r], node_of[r] = time, node
        if place == idle:
            idle = _earliest(compact[0], count)
    for place in range(count):
        free_ms[place_of[place]] = max(compact[0, place] - now, F(0.0))
    for r in range(again + number):
        came_ms[r] -= now  # as seen from the next interval
    return now, spills
