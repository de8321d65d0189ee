"""What the requests of an interval come to at each node of a lane: sums, largest values and medians.

Requests were served one after the other whatever node they went to; here they are laid out node by node, so that each
node's stand in a row.
"""

from __future__ import annotations

import numpy as np

from surrogate_backend.kernels.functions import F, kernel

TOP = 6  # largest values kept of an interval, spelled out in _sums
MAX_WINDOW = 100 * (TOP - 1) + 1  # requests of a node, of which P99 lies among the TOP largest
# Rows of a node's interval: what is summed over its requests, their median times their number, and the largest.
COUNT, SERVED, SPENT, LATE, RANK, MEDIAN, TOP_SERVICE, TOP_SOJOURN = 0, 1, 2, 3, 4, 5, 6, 6 + TOP
SUMS = 6 + 2 * TOP
ROWS = 3  # of scratch: service, sojourn and rank
VECTOR = 16  # a node's requests are filled up to a multiple of it, so that counting them takes whole vectors


@kernel
def _filled(number):
    return -(-number // VECTOR) * VECTOR


def columns(nodes: int, requests: int) -> int:
    """Columns of scratch that a lane's requests need, node by node."""
    return (-(-requests // VECTOR) + nodes) * VECTOR


@kernel
def _median(values, number, mean):
    """Median of the first ``number`` values by bisection from 0 to twice the mean; those behind them lie below 0."""
    low, high, half = F(0.0), F(2.0) * mean, np.int32(number // 2)
    for _ in range(8):
        middle, above = F(0.5) * (low + high), np.int32(0)
        for k in range(values.shape[0]):
            above = np.int32(above + np.int32(values[k] > middle))  # 32 bits, as the values have: vectors count
        low, high = middle if above > half else low, high if above > half else middle
    return F(0.5) * (low + high)


@kernel
def _sums(service, sojourn, rank, number, slo_ms, own):
    """Fills the sums and the TOP largest of a node's ``number`` requests, without a branch that depends on them."""
    served, spent, late, ranks = F(0.0), F(0.0), F(0.0), F(0.0)
    a = b = c = d = e = f = g = h = i = j = k = m = F(0.0)
    for r in range(number):
        time, wait = service[r], sojourn[r]
        served += time
        spent += wait
        late += F(1.0) if wait > slo_ms else F(0.0)
        ranks += rank[r]
        a, time = max(a, time), min(a, time)
        b, time = max(b, time), min(b, time)
        c, time = max(c, time), min(c, time)
        d, time = max(d, time), min(d, time)
        e, time = max(e, time), min(e, time)
        f = max(f, time)
        g, wait = max(g, wait), min(g, wait)
        h, wait = max(h, wait), min(h, wait)
        i, wait = max(i, wait), min(i, wait)
        j, wait = max(j, wait), min(j, wait)
        k, wait = max(k, wait), min(k, wait)
        m = max(m, wait)
    own[COUNT], own[SERVED], own[SPENT], own[LATE], own[RANK] = F(number), served, spent, late, ranks
    own[TOP_SERVICE], own[TOP_SERVICE + 1], own[TOP_SERVICE + 2] = a, b, c
    own[TOP_SERVICE + 3], own[TOP_SERVICE + 4], own[TOP_SERVICE + 5] = d, e, f
    own[TOP_SOJOURN], own[TOP_SOJOURN + 1], own[TOP_SOJOURN + 2] = g, h, i
    own[TOP_SOJOURN + 3], own[TOP_SOJOURN + 4], own[TOP_SOJOURN + 5] = j, k, m


@kernel
def tally(node_of, service_ms, sojourn_ms, rank, count, slo_ms, own, numbers, places, ordered):
    """Fills the first SUMS rows of a lane's nodes, ``own`` (nodes, SUMS or more), from its ``count`` requests.

    rank: uniform, how high a service time lies in its distribution; scratch: numbers, places (nodes,) and ordered
    (ROWS, ``columns``).
    """
    nodes = own.shape[0]
    for n in range(nodes):
        numbers[n] = 0
    for r in range(count):
        numbers[node_of[r]] += 1
    at = 0
    for n in range(nodes):
        places[n] = at
        at += _filled(numbers[n])
    for r in range(count):
        place = places[node_of[r]]
        places[node_of[r]] = place + 1
        ordered[0, place], ordered[1, place], ordered[2, place] = service_ms[r], sojourn_ms[r], rank[r]
    at = 0
    for n in range(nodes):
        number, filled = numbers[n], _filled(numbers[n])
        for k in range(number, filled):
            ordered[1, at + k] = F(-1.0)
        _sums(ordered[0, at:], ordered[1, at:], ordered[2, at:], number, slo_ms, own[n])
        own[n, MEDIAN] = F(0.0)
        if number > 0:
            mean = own[n, SPENT] / F(number)
            own[n, MEDIAN] = F(number) * _median(ordered[1, at : at + filled], number, mean)
        at += filled
