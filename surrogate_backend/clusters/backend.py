"""The surrogate of clusters as a backend: lanes of N nodes behind a router, each step one compiled call."""

from __future__ import annotations

import functools
import pathlib
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from helm_gym.backend import BackendSpec, Rung, check_allocation
from helm_gym.cluster.routing import RULES, WEIGHTS, Routing, check_alive, check_routing
from helm_gym.cluster.topology import Cluster
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.telemetry import WIDTH, RoutedTraffic, Telemetry
from helm_gym.workload.state import INDEX, WorkloadState, check_state, limits
from surrogate_backend import checkpoint as checkpoints
from surrogate_backend.clusters.kernels import step
from surrogate_backend.clusters.kernels.inputs import CONTEXT, NODES, OUTPUTS, SIZES, USERS, Context, constants
from surrogate_backend.clusters.kernels.report import RING
from surrogate_backend.clusters.kernels.serve import BOUND, LOAD, ROUTER, RULE
from surrogate_backend.clusters.kernels.tally import MAX_WINDOW
from surrogate_backend.clusters.layout import DRAWN, KIND, size_scale
from surrogate_backend.kernels import fluid, inputs, networks
from surrogate_backend.kernels.functions import LANES, F, aligned
from surrogate_backend.kernels.requests import make_keys
from surrogate_backend.layout import RUNGS, delay_ratio, moved_page_ms

_ARRIVAL = INDEX["arrival_rate_rps"]
_BEYOND = 1.5  # times the largest cluster that was logged: what lies beyond is not known
_MARGIN = 0.02


@functools.lru_cache(maxsize=8)
def _load(folder: pathlib.Path, profile: Profile) -> checkpoints.Checkpoint:
    loaded = checkpoints.load(folder, profile)
    if loaded.card.get("kind") != KIND:
        raise InvalidInputError(f"Checkpoint {folder} is a single node's; fit one to a log of `collect --clusters`.")
    if loaded.card.get("sizes") != SIZES.__dict__:
        raise InvalidInputError(f"Checkpoint {folder} has networks of other sizes; fit it again.")
    return loaded


class ClusterSurrogate:
    """A learned model of what an interval of a cluster reports.

    Deterministic; a lane is bit-identical whatever lanes run beside it. ``Telemetry.extrapolating`` says where it was
    asked for workloads, splits or more nodes than it was fitted to.

    Args:
        profile: that the checkpoint was fitted to.
        lanes: any number.
        cluster: of any size, unequal nodes and losses; of the catalogue and the interests that it was fitted to.
        checkpoint: a folder; the one shipped for the profile where not given.
        of: which rung it is the surrogate of; one that it was fitted to, the modelled one alone so far.

    Raises:
        InvalidInputError: no checkpoint for the profile, another catalogue or rung, or no lanes.
    """

    name: ClassVar[str] = "surrogate"
    rung: ClassVar[Rung] = "surrogate"

    def __init__(
        self,
        profile: Profile,
        lanes: int,
        cluster: Cluster,
        checkpoint: pathlib.Path | None = None,
        of: str = "modelled",
    ):
        if lanes < 1:
            raise InvalidInputError(f"A backend needs at least one lane, not {lanes}.")
        if of not in RUNGS:
            raise InvalidInputError(f"A surrogate stands for {' or '.join(RUNGS)}, not for '{of}'.")
        interval, nodes = profile.interval, cluster.size
        self._window = interval.window // interval.requests
        if self._window > step.MAX_INTERVALS:
            raise InvalidInputError(f"Profile '{profile.name}': a window has at most {step.MAX_INTERVALS} intervals.")
        if interval.window > MAX_WINDOW:
            raise InvalidInputError(f"Profile '{profile.name}': a window has at most {MAX_WINDOW} requests a node.")
        self.spec = BackendSpec(
            self.name, self.rung, profile, lanes, nodes, deterministic=True, snapshots=True, cluster=cluster
        )
        self.profile, self.cluster = cluster.widen(profile), cluster
        folder = checkpoints.find(None, profile, KIND) if checkpoint is None else checkpoint
        loaded = _load(folder, profile)
        fitted = loaded.card["cluster"]
        rungs = {entry["rung"] for entry in loaded.card["logs"]}
        if of not in rungs:
            raise InvalidInputError(
                f"Checkpoint {folder} was fitted to the {' and '.join(sorted(rungs))} rung, not '{of}'."
            )
        own = {name: getattr(cluster, name) for name in fitted}
        if own != fitted:
            raise InvalidInputError(
                f"Checkpoint {folder} was fitted to clusters of {fitted}, not {own}; fit one to those, or take backend "
                "'modelled'."
            )
        self._pages = cluster.pages(profile)
        self._known = _known(profile, cluster, loaded, of, self._pages)
        self._range = {name[6:]: array for name, array in loaded.tensors.items() if name.startswith("range.")}
        self._far = nodes > _BEYOND * float(self._range["nodes"][1])
        self._limits, units, blocks = limits(self.profile), lanes * nodes, -(-lanes * nodes // LANES)
        self._requests = nodes * interval.requests
        self._room = step.make_room(blocks, nodes, 2 * self._requests)
        self._context = Context(profile, cluster, lanes)
        self._routers = np.zeros((lanes, ROUTER), F)
        self._shape, self._units = (lanes, nodes), units
        self._state: step.State | None = None

    @property
    def slo_ms(self) -> float:
        return self.profile.slo_ms

    def reset(self, state: WorkloadState, seeds: NDArray[np.int64], alpha: NDArray[np.float64]) -> None:
        """See helm_gym.backend.Backend."""
        pages = self._to_pages(np.asarray(alpha))
        check_state(state, self._limits, self.profile)
        lanes, nodes = self._shape
        blocks, room = len(self._room.said), 2 * self._requests
        rows = np.zeros((blocks, step.STATE * LANES), F)
        rows[:, : fluid.STATE * LANES] = fluid.initial_state(np.repeat(state.values, nodes, axis=0))
        seeds = np.asarray(seeds, np.int64)
        of_nodes = make_keys((seeds[:, None] * 4096 + 1 + np.arange(nodes)).ravel())
        node_keys = np.zeros((2, blocks * LANES), np.uint32)
        node_keys[:, : self._units] = of_nodes
        self._state = step.State(
            rows=aligned(rows),
            ring=np.zeros((self._units, self._window, RING), F),
            free_ms=np.zeros(self._units, F),
            drawn=np.zeros(self._units, F),
            pages=pages,
            spans=np.zeros(lanes, F),
            clock=np.zeros((lanes, 3), np.int64),
            node_keys=node_keys.reshape(2, blocks, LANES).swapaxes(0, 1).reshape(blocks, -1).copy(),
            keys=make_keys(seeds),
            node_of=np.zeros((lanes, room), np.int32),
            came_ms=np.zeros((lanes, room), F),
            sojourn_ms=np.zeros((lanes, room), F),
            service_ms=np.zeros((lanes, room), F),
            alive=np.ones(self._units, np.bool_),
        )
        self._routing = Routing("score", np.ones((lanes, len(WEIGHTS))))

    def step(self, allocation: NDArray[np.float64], state: WorkloadState, routing: Routing | None = None) -> Telemetry:
        """See helm_gym.backend.Backend."""
        if self._state is None:
            raise InvalidInputError(f"Backend '{self.name}' was stepped before it was reset.")
        targets = self._to_pages(allocation)
        check_state(state, self._limits, self.profile)
        lanes, nodes = self._shape
        if routing is not None:
            check_routing(routing, lanes)
            self._routing = routing
        alive = np.ones(self._shape, bool) if state.alive is None else np.asarray(state.alive, bool)
        check_alive(alive, lanes, nodes)
        rule = RULES.index(self._routing.rule)
        moving = np.clip(targets - self._state.pages, -self._budget, self._budget)
        splits = ((self._state.pages + moving).reshape(self._shape) / self._pages).astype(F)
        context = self._context.update(splits, alive, rule, self._routing.weights)
        self._routers[:, RULE], self._routers[:, BOUND] = rule, self._routing.bound
        self._routers[:, LOAD] = self._routing.weights[:, WEIGHTS.index("load")]
        values = np.zeros((self._units, WIDTH))
        spills, rerouted, given_up = np.zeros((3, lanes), np.int64)
        step.step(
            self._known, self._state, self._room, state.values, state.gaps_s, state.poisson, targets, alive.reshape(-1),
            context.reshape(-1, CONTEXT), self._routers, nodes, self._requests,
            int(self._routing.rule == "consistent-hash"), F(size_scale(nodes)), values, spills, rerouted,
            given_up,
        )  # fmt: skip
        requests = self._count()
        traffic = RoutedTraffic(requests, alive.copy(), spills, rerouted, given_up)
        flagged = self._outside(state.values, splits)
        return _Served(values.reshape(lanes, nodes, WIDTH), flagged, traffic, self._state)

    @property
    def _budget(self) -> int:
        return self.spec.profile.pool.page_moves_per_interval

    def _count(self) -> NDArray[np.int64]:
        """Requests that each node served in the last interval, (lanes, nodes)."""
        assert self._state is not None
        place = (self._state.clock[0, 0] - 1) % self._window
        return self._state.ring[:, place, 0].astype(np.int64).reshape(self._shape)

    def _outside(self, values: NDArray[np.float64], splits: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Where a lane's workload, a split or the cluster's size was not logged, (lanes, nodes)."""
        low, high = self._range["low"], self._range["high"]
        margin = _MARGIN * (high - low) + 1e-6
        beyond = (values < low - margin) | (values > high + margin)
        beyond[:, _ARRIVAL] = False  # queues are simulated, not learned
        least, most = self._range["alpha"]
        return np.asarray(
            beyond.any(axis=1)[:, None] | (splits < least - _MARGIN) | (splits > most + _MARGIN) | self._far
        )

    def _to_pages(self, allocation: NDArray[np.float64]) -> NDArray[np.int64]:
        check_allocation(self.spec.profile, allocation, self._shape)
        return np.rint(allocation * self._pages).astype(np.int64).reshape(-1)

    def snapshot(self) -> Any:
        """Copies of the state's arrays, and the routing that goes on."""
        if self._state is None:
            raise InvalidInputError(f"Backend '{self.name}' has no state to keep before it is reset.")
        return step.State._make(array.copy() for array in self._state), self._routing

    def restore(self, snapshot: Any) -> None:
        """See helm_gym.backend.Backend."""
        state, self._routing = snapshot
        self._state = step.State._make(aligned(array) for array in state)

    def close(self) -> None:
        """Nothing is held but memory."""


def _known(
    profile: Profile, cluster: Cluster, loaded: checkpoints.Checkpoint, of: str, pages: NDArray[np.int64]
) -> step.Known:
    tensors, model = loaded.tensors, profile.model
    figures = (
        *(profile.row_ms, profile.row_bytes, profile.link.latency_ms, profile.pool.page_bytes),
        *(profile.pool.page_moves_per_interval, profile.slo_ms, model.max_history, profile.interval.requests),
        *(delay_ratio(profile), moved_page_ms(profile)),
    )
    return step.Known(
        *constants(profile, cluster),
        rest=inputs.rest(profile),
        weights=networks.pack(tensors, of, USERS, NODES, OUTPUTS, SIZES),
        fast=tensors["noise.fast"].ravel(),
        slow=tensors["noise.slow"].ravel(),
        persistence=tensors["noise.persistence"],
        attraction=np.stack([tensors[f"attraction.{rule}"] for rule in DRAWN]),
        hurdle=tensors["hurdle"],
        figures=np.array(figures, F),
        pages=pages,
    )


class _Served(Telemetry):
    """Telemetry whose single requests are put in order of nodes only when they are asked for, before the next step."""

    _state: step.State
    _steps: int

    def __init__(
        self, values: NDArray[np.float64], flags: NDArray[np.bool_], traffic: RoutedTraffic, state: step.State
    ):
        self.__dict__.update(
            values=values, extrapolating=flags, traffic=traffic, _state=state, _steps=int(state.clock[0, 0])
        )

    @property
    def sojourn_ms(self) -> NDArray[np.float32]:
        return self._by_node(self._state.sojourn_ms)

    @property
    def service_ms(self) -> NDArray[np.float32]:
        return self._by_node(self._state.service_ms)

    def _by_node(self, times: NDArray[np.float32]) -> NDArray[np.float32]:
        state: step.State = self._state
        assert self.traffic is not None
        if state.clock[0, 0] != self._steps:
            raise InvalidInputError("An interval's single requests must be read before the next one is served.")
        counts = self.traffic.requests
        out = np.full((*counts.shape, int(counts.max())), np.inf, F)
        for lane in range(len(counts)):
            number = int(state.clock[lane, 2])
            order = np.argsort(state.node_of[lane, :number], kind="stable")
            within = np.arange(number) - np.repeat(np.cumsum(counts[lane]) - counts[lane], counts[lane])
            out[lane, np.repeat(np.arange(counts.shape[1]), counts[lane]), within] = times[lane, order]
        return out
