"""What both rungs share: one memory manager, one source of requests, one ledger, one report."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from helm_gym.backend import BackendSpec, Rung, check_allocation
from helm_gym.cluster.routing import Routing
from helm_gym.cluster.topology import Cluster
from helm_gym.errors import InvalidInputError
from helm_gym.machine_memory import bytes_a_unit, require
from helm_gym.profile import Profile
from helm_gym.telemetry import AT, WIDTH, Accounts, RoutedTraffic, Telemetry
from helm_gym.workload.sampling import make_requests, make_traffic, sample_intervals, traffic_bytes
from helm_gym.workload.state import WorkloadState, check_state, limits
from real_backend.accounts import close_accounts
from real_backend.cluster import FrontDoor, front_bytes
from real_backend.memory.layout import (
    DIRECT_ITEMS,
    Rules,
    is_hashed,
    make_memory,
    make_plan,
    make_rules,
    plan_bytes,
    with_speed,
)
from real_backend.memory.ledger import make_ledger
from real_backend.memory.prefill import prefill
from real_backend.memory.report import last_interval, telemetry_of

_LESS = "lower population.users or items, model.max_history or pool.pages, or run fewer lanes or nodes at a time"


def managed_bytes(profile: Profile, lanes: int, nodes: int) -> int:
    """Memory of a manager's caches, plans, requests and ledgers, and of the users that requests come from."""
    none = np.zeros(0, np.int64)
    parts = (make_memory(profile, none), make_requests(profile, 0), make_ledger(profile, 0, nodes))
    a_unit = sum(bytes_a_unit(part) for part in parts)
    return lanes * nodes * a_unit + plan_bytes(profile) + traffic_bytes(profile, lanes, nodes)


def _text(name: str, profile: Profile, lanes: int, nodes: int) -> str:
    counts = f"{lanes:,} lane{'s' * (lanes != 1)}" + (f" of {nodes:,} nodes" if nodes > 1 else "")
    return f"Backend '{name}' on profile '{profile.name}', {counts},"


class ManagedBackend:
    """Requests served out of managed pools; a subclass says how long each micro-batch takes.

    A node of a lane is a unit, and every array of the manager leads with (lanes x nodes) of them. Without a cluster
    each lane is one node with a stream of requests of its own; in a cluster a lane's stream goes through a front door.

    Attributes:
        rules: of a node of speed 1.
        speed: this machine's compute time over the cost model's; 1 where time is not measured.
    """

    name: ClassVar[str]
    rung: ClassVar[Rung]
    snapshots: ClassVar[bool]

    def __init__(self, profile: Profile, lanes: int = 1, cluster: Cluster | None = None):
        if lanes < 1:
            raise InvalidInputError(f"A backend needs at least one lane, not {lanes}.")
        nodes = 1 if cluster is None else cluster.size
        if cluster is not None and is_hashed(profile.population.items):
            raise InvalidInputError(
                f"A cluster's router lists each item: at most {DIRECT_ITEMS:,}, and profile '{profile.name}' has "
                f"{profile.population.items:,}; lower population.items, or take one node."
            )
        self.profile, self.cluster = profile if cluster is None else cluster.widen(profile), cluster
        need = self._memory_bytes(lanes, nodes)
        require(need, _text(self.name, profile, lanes, nodes), _LESS)
        self.spec = BackendSpec(
            self.name,
            self.rung,
            profile,
            lanes,
            nodes,
            deterministic=self.rung != "measured",
            snapshots=self.snapshots,
            cluster=cluster,
            memory_bytes=need,
        )
        self.speed = 1.0
        self._pages = np.full(1, profile.pool.pages) if cluster is None else cluster.pages(profile)  # (nodes,)
        self._set_rules(make_rules(profile))
        self._plan = make_plan(profile)
        self._requests = make_requests(profile, lanes)
        self._front: FrontDoor | None = None
        if cluster is not None:
            self._front = FrontDoor(self.profile, cluster, lanes)
            self._requests = self._front.make_inboxes()
        self._limits = limits(self.profile)
        self._started = False

    @property
    def slo_ms(self) -> float:
        return self.rules.slo_ms

    def reset(self, state: WorkloadState, seeds: NDArray[np.int64], alpha: NDArray[np.float64]) -> None:
        """See helm_gym.backend.Backend."""
        lanes, nodes = self.spec.lanes, self.spec.nodes
        pages = self._to_pages(alpha)
        check_state(state, self._limits, self.profile)
        seeds = np.asarray(seeds)
        tastes = () if self.cluster is None else (nodes, self.cluster.interests, self.cluster.interest_share)
        self._traffic = make_traffic(self.profile, state.values, seeds, *tastes)
        self._memory = make_memory(self.profile, pages, np.tile(self._pages, lanes))
        if self.profile.pool.prefilled:
            prefill(self._memory, self._traffic.items_of_rank, self._traffic.catalogue, self.profile.rows_per_page)
        self._ledger = make_ledger(self.profile, lanes * nodes, nodes)
        if self._front is not None:
            self._front.reset(seeds)
        self._started = True

    def step(self, allocation: NDArray[np.float64], state: WorkloadState, routing: Routing | None = None) -> Telemetry:
        """See helm_gym.backend.Backend."""
        if not self._started:
            raise InvalidInputError(f"Backend '{self.name}' was stepped before it was reset.")
        targets = self._to_pages(allocation)
        check_state(state, self._limits, self.profile)
        traffic = None
        if self._front is None:
            if routing is not None:
                raise InvalidInputError("A routing was given to a single node; open the backend with a cluster.")
            sample_intervals(self._traffic, state.values, state.gaps_s, self._requests)
            self._requests.gap_s[:] *= self.speed
        else:
            traffic = self._front.admit(
                state, routing, self._traffic, self._memory, self._ledger, self.rules, self.speed
            )
        self._serve(targets)
        if self._front is not None:
            self._front.close_interval(self._ledger)
        return self._report(targets, traffic)

    def _report(self, targets: NDArray[np.int64], traffic: RoutedTraffic | None) -> Telemetry:
        profile, shape = self.profile, (self.spec.lanes, self.spec.nodes)
        values = telemetry_of(self._memory, self._ledger, targets, self._rule_table, profile)
        values[:, AT.speed] = self.speed
        rings = (self._ledger.sojourn_ms, self._ledger.service_ms)
        sojourn, service = (last_interval(self._ledger, ring).copy().reshape(*shape, -1) for ring in rings)
        accounts = close_accounts(self._memory, self._ledger, profile)
        return Telemetry(
            values.reshape(*shape, WIDTH),
            sojourn,
            service,
            traffic=traffic,
            accounts=Accounts(accounts.reshape(*shape, -1)),
        )

    def _memory_bytes(self, lanes: int, nodes: int) -> int:
        """What this process will take once it has been reset."""
        profile = self.profile
        need = managed_bytes(profile, lanes, nodes)
        return need if self.cluster is None else need + front_bytes(profile, lanes, nodes)

    def _serve(self, targets: NDArray[np.int64]) -> None:
        """Serves the units' requests while their EMB moves towards ``targets`` (units,) pages."""
        raise NotImplementedError  # of the abstract method: each rung has its own

    def _to_pages(self, allocation: NDArray[np.float64]) -> NDArray[np.int64]:
        """EMB's pages of each unit, (units,); a unit's pool may be smaller than the profile's."""
        allocation = np.asarray(allocation)
        pages = check_allocation(self.profile, allocation, (self.spec.lanes, self.spec.nodes))
        if self.cluster is not None:
            pages = np.rint(allocation * self._pages).astype(np.int64)
        return pages.reshape(-1)

    def _set_rules(self, rules: Rules) -> None:
        self.rules = rules
        speeds = np.ones(1) if self.cluster is None else self.cluster.speed
        table = np.array([with_speed(rules, speed) for speed in speeds], np.float64)
        self._rule_table = np.tile(table, (self.spec.lanes, 1))  # (units, fields)

    def _parts(self) -> tuple[tuple[NDArray[Any], ...], ...]:
        front = () if self._front is None else self._front.parts()
        return (self._memory, self._traffic, self._ledger, *front)

    def snapshot(self) -> Any:
        """Copies of all arrays; the compiled manager keeps nothing elsewhere."""
        return tuple([array.copy() for array in part] for part in self._parts())

    def restore(self, snapshot: Any) -> None:
        """See helm_gym.backend.Backend."""
        for part, saved in zip(self._parts(), snapshot, strict=True):
            for array, value in zip(part, saved, strict=True):
                np.copyto(array, value)

    def close(self) -> None:
        """Nothing is held but memory."""
