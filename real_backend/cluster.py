"""A cluster's front door: one stream of requests a lane, a router that assigns them, inboxes, and lost nodes.

An interval has two phases. First all its requests are routed, in order of arrival, by what the router knows: what the
nodes published at the interval's start, and what it has itself sent since. Then each node serves its inbox.

A node that is lost loses its caches. What it had been sent and had not answered by then is routed again under the old
time of arrival, before anything else: such a request was reported with the sojourn that its first node would have given
it, and is reported again with the one that it got.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.cluster.routing import RULES, WEIGHTS, Routing, check_alive, check_routing
from helm_gym.cluster.topology import Cluster
from helm_gym.kernels.jit import kernel
from helm_gym.machine_memory import bytes_a_unit
from helm_gym.profile import Profile
from helm_gym.telemetry import RoutedTraffic
from helm_gym.workload.sampling import Requests, Traffic, make_requests, sample_intervals
from helm_gym.workload.state import WorkloadState
from real_backend.memory.layout import N_EMB, N_PAGES, Memory, Rules, clear
from real_backend.memory.ledger import DOWN_MS, FREE_AT_S, NO_USER, NOW_S, REFILL_CREDIT, SPAN_S, Ledger, room
from real_backend.router import route
from real_backend.router_beliefs import NEXT, TIED, make_view, refresh


def front_bytes(profile: Profile, lanes: int, nodes: int) -> int:
    """Memory of a ``FrontDoor`` once it has been reset; ``profile``: with the cluster's population."""
    inboxes = 2 * bytes_a_unit(make_requests(profile, 0, _times(profile, nodes)))
    waiting = 2 * _times(profile, nodes) * profile.interval.requests * np.dtype(np.float64).itemsize
    streams = 2 * bytes_a_unit(make_requests(profile, 0, nodes))
    view = bytes_a_unit(make_view(profile, np.zeros(0, np.int64), np.ones(nodes)))
    return lanes * (nodes * (inboxes + waiting) + streams + view)


def _times(profile: Profile, nodes: int) -> int:
    """How many intervals' requests of a single node an inbox has room for."""
    return room(profile, nodes) // profile.interval.requests


class FrontDoor:
    """Takes the requests of all lanes in and hands them to the nodes' inboxes.

    Args:
        profile: with the cluster's population (``Cluster.widen``).
    """

    def __init__(self, profile: Profile, cluster: Cluster, lanes: int):
        self.profile, self.cluster, self.lanes, self.nodes = profile, cluster, lanes, cluster.size
        self._stream = make_requests(profile, lanes, self.nodes)
        self._again = make_requests(profile, lanes, self.nodes)  # requests of lost nodes; gaps from time 0
        self._node_of = np.zeros(self.nodes * profile.interval.requests, np.int32)
        self._joint = Routing("score", np.ones((lanes, len(WEIGHTS))))

    def make_inboxes(self) -> Requests:
        """Room for what any node may be handed in one interval, (lanes x nodes, ...)."""
        times, units = _times(self.profile, self.nodes), self.lanes * self.nodes
        self._inboxes = make_requests(self.profile, units, times)
        self._waiting = make_requests(self.profile, units, times)  # not answered when an interval began
        self._due_s = np.zeros((2, units, self._waiting.user.shape[1]))  # when they came, when they will be answered
        return self._inboxes

    def reset(self, seeds: NDArray[np.int64]) -> None:
        """All nodes alive, idle and empty."""
        self._view = make_view(self.profile, seeds, self.cluster.speed)
        self._clock_s = np.zeros((self.lanes, 2))  # last arrival, and the interval's span
        self._alive = np.ones((self.lanes, self.nodes), bool)
        self._routing = self._joint
        self._inboxes.number[:] = self._again.number[:] = self._waiting.number[:] = 0

    def parts(self) -> tuple[tuple[NDArray[Any], ...], ...]:
        """All that the future depends on, for snapshots."""
        return (self._view, self._inboxes, self._waiting, (self._due_s, self._clock_s, self._alive))

    def admit(
        self,
        state: WorkloadState,
        routing: Routing | None,
        traffic: Traffic,
        memory: Memory,
        ledger: Ledger,
        rules: Rules,
        slowness: float,
    ) -> RoutedTraffic:
        """Draws an interval's requests and hands them out.

        Args:
            rules: of a node of speed 1.
            slowness: by which the time between arrivals is longer on this machine.

        Raises:
            InvalidInputError, UnknownNameError: see helm_gym.cluster.routing.check_routing and check_alive.
        """
        if routing is not None:
            check_routing(routing, self.lanes)
            self._routing = routing
        alive = np.ones_like(self._alive) if state.alive is None else np.asarray(state.alive, bool)
        check_alive(alive, self.lanes, self.nodes)
        sample_intervals(traffic, state.values, state.gaps_s, self._stream)
        self._stream.gap_s[:] *= slowness
        given_up = np.zeros(self.lanes, np.int64)
        self._again.number[:] = 0
        _wait(self._inboxes, ledger, self._clock_s, self._waiting, self._due_s)
        for lane, node in np.argwhere(self._alive & ~alive):
            given_up[lane] += self._lose(lane, node, memory, ledger)
            # What is routed again came earlier than this: no other node begins it before the loss is known.
            others = ledger.clock[lane * self.nodes : (lane + 1) * self.nodes, FREE_AT_S]
            np.maximum(others, self._clock_s[lane, 0], out=others)
        self._inboxes.number[:] = 0
        self._last_s = ledger.clock[:, NOW_S].copy()
        self._alive[:] = alive
        spills = np.zeros(self.lanes, np.int64)
        for lane in range(self.lanes):
            refresh(self._view, lane, memory, lane * self.nodes, ledger, alive[lane])
            self._hand_out(lane, traffic.items[lane], rules)
            spills[lane] = self._view.spilled[lane, 0]
        requests = self._inboxes.number.reshape(self.lanes, self.nodes).copy()
        rerouted = self._again.number[:, 0].copy()
        return RoutedTraffic(requests, alive.copy(), spills, rerouted, given_up, *self._preference(requests))

    def _preference(self, requests: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """``preferred`` and ``apart`` of RoutedTraffic."""
        preferred, apart = self._view.preferred.copy(), self._view.apart.copy()
        apart[:, NEXT:] /= np.maximum(preferred.sum(axis=1, keepdims=True), 1)
        apart[:, TIED] /= np.maximum(requests.sum(axis=1), 1)
        return preferred, apart

    def _hand_out(self, lane: int, items: NDArray[np.int32], rules: Rules) -> None:
        rule, weights, bound = RULES.index(self._routing.rule), self._routing.weights[lane], self._routing.bound
        start_s = float(self._clock_s[lane, 0])
        for requests, before_s in ((self._again, 0.0), (self._stream, start_s)):
            nodes = self._node_of[: requests.number[lane, 0]]
            end_s = route(self._view, lane, requests, items, before_s, rules, rule, weights, bound, nodes)
            _dispatch(requests, lane, before_s, nodes, self.nodes, self._last_s, self._inboxes)
            self._clock_s[lane] = end_s, end_s - start_s

    def close_interval(self, ledger: Ledger) -> None:
        """All nodes of a lane have been there for the same time, whenever their own requests came."""
        place = int(ledger.interval[0, 0] - 1) % ledger.sums.shape[1]
        ledger.sums[:, place, SPAN_S] = np.repeat(self._clock_s[:, 1], self.nodes)

    def _lose(self, lane: int, node: int, memory: Memory, ledger: Ledger) -> int:
        """Empties a node that is lost and keeps what it had not answered; returns how many requests are given up."""
        unit = lane * self.nodes + node
        given_up = int(_take_back(self._waiting, self._due_s, unit, self._again, lane))
        clear(memory, unit, int(memory.n[unit, N_EMB]), int(memory.n[unit, N_PAGES]), self.profile.rows_per_page)
        ledger.clock[unit, [FREE_AT_S, REFILL_CREDIT, DOWN_MS]] = 0.0
        ledger.sums[unit] = 0.0
        ledger.service_ms[unit] = ledger.sojourn_ms[unit] = np.inf
        ledger.user[unit], ledger.done_s[unit] = NO_USER, 0.0
        return given_up


@kernel
def _copy(source, i, j, target, u, k):
    """Request (i, j) of ``source`` becomes (u, k) of ``target``; its gap is the caller's to set."""
    target.user[u, k] = source.user[i, j]
    target.version[u, k] = source.version[i, j]
    target.length[u, k] = source.length[i, j]
    target.delta[u, k] = source.delta[i, j]
    target.candidate_count[u, k] = source.candidate_count[i, j]
    for c in range(source.candidate_count[i, j]):
        target.candidates[u, k, c] = source.candidates[i, j, c]


@kernel
def _dispatch(requests, lane, start_s, node_of, nodes, last_s, inboxes):
    """Adds a lane's requests to its nodes' inboxes; their gaps become those between a node's own arrivals.

    last_s: (units,), each one's last arrival so far.
    """
    arrival_s = start_s
    for r in range(node_of.shape[0]):
        arrival_s += requests.gap_s[lane, r]
        unit = lane * nodes + node_of[r]
        k = inboxes.number[unit, 0]
        _copy(requests, lane, r, inboxes, unit, k)
        inboxes.gap_s[unit, k] = arrival_s - last_s[unit]
        last_s[unit] = arrival_s
        inboxes.number[unit, 0] = k + 1


@kernel
def _wait(inboxes, ledger, clock_s, waiting, due_s):
    """Brings ``waiting`` up to date: what no unit has answered at its lane's time; what finds no room is dropped.

    inboxes: of the last interval. due_s: (2, units, room), arrival and answer of what is waiting.
    """
    units, room = waiting.user.shape
    nodes = units // clock_s.shape[0]
    for u in range(units):
        now_s, kept = clock_s[u // nodes, 0], 0
        for r in range(waiting.number[u, 0]):
            if due_s[1, u, r] > now_s:
                _copy(waiting, u, r, waiting, u, kept)
                due_s[0, u, kept], due_s[1, u, kept] = due_s[0, u, r], due_s[1, u, r]
                kept += 1
        place = (ledger.interval[u, 0] - 1) % ledger.sums.shape[1]
        for r in range(inboxes.number[u, 0]):
            done_s = ledger.done_s[u, place, r]
            if done_s > now_s and kept < room:
                _copy(inboxes, u, r, waiting, u, kept)
                due_s[0, u, kept] = done_s - ledger.sojourn_ms[u, place, r] * 1e-3
                due_s[1, u, kept] = done_s
                kept += 1
        waiting.number[u, 0] = kept


@kernel
def _take_back(waiting, due_s, unit, again, lane):
    """Moves what a lost unit has not answered to ``again``; returns how many requests there is no room for."""
    last_s, k = 0.0, again.number[lane, 0]
    for r in range(k):
        last_s += again.gap_s[lane, r]
    taken = min(waiting.number[unit, 0], again.user.shape[1] - k)
    for r in range(taken):
        _copy(waiting, unit, r, again, lane, k + r)
        again.gap_s[lane, k + r] = due_s[0, unit, r] - last_s
        last_s = due_s[0, unit, r]
    again.number[lane, 0] = k + taken
    given_up = waiting.number[unit, 0] - taken
    waiting.number[unit, 0] = 0
    return given_up
