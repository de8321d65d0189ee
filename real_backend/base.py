"""What both rungs share: one memory manager, one source of requests, one ledger, one report."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from helm_gym.backend import BackendSpec, Rung, check_allocation
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.telemetry import COLUMN, WIDTH, Telemetry
from helm_gym.workload.sampling import make_requests, make_traffic
from helm_gym.workload.state import WorkloadState, check_state, limits
from real_backend.memory.layout import make_memory, make_plan, make_rules
from real_backend.memory.report import last_interval, order, report
from real_backend.memory.serve import make_ledger


class ManagedBackend:
    """Requests served out of a managed pool; a subclass says how long each micro-batch takes.

    Attributes:
        speed: this machine's compute time over the cost model's; 1 where time is not measured.
    """

    name: ClassVar[str]
    rung: ClassVar[Rung]
    snapshots: ClassVar[bool]

    def __init__(self, profile: Profile, lanes: int = 1, nodes: int = 1):
        if nodes != 1:
            raise InvalidInputError(f"Backend '{self.name}' has one node, not {nodes}.")
        if lanes < 1:
            raise InvalidInputError(f"A backend needs at least one lane, not {lanes}.")
        self.spec = BackendSpec(
            self.name, self.rung, profile, lanes, nodes, deterministic=self.rung != "measured", snapshots=self.snapshots
        )
        self.profile = profile
        self.speed = 1.0
        self.rules = make_rules(profile)
        self._plan = make_plan(profile)
        self._requests = make_requests(profile, lanes)
        self._limits = limits(profile)
        self._started = False

    @property
    def slo_ms(self) -> float:
        return self.rules.slo_ms

    def reset(self, state: WorkloadState, seeds: NDArray[np.int64], alpha: NDArray[np.float64]) -> None:
        """See helm_gym.backend.Backend."""
        lanes = self.spec.lanes
        pages = check_allocation(self.profile, np.asarray(alpha), (lanes, 1))
        check_state(state, self._limits, self.profile)
        self._traffic = make_traffic(self.profile, state.values, np.asarray(seeds))
        self._memory = make_memory(self.profile, pages[:, 0])
        self._ledger = make_ledger(self.profile, lanes)
        self._started = True

    def step(self, allocation: NDArray[np.float64], state: WorkloadState) -> Telemetry:
        """See helm_gym.backend.Backend."""
        if not self._started:
            raise InvalidInputError(f"Backend '{self.name}' was stepped before it was reset.")
        targets = check_allocation(self.profile, np.asarray(allocation), (self.spec.lanes, 1))[:, 0]
        check_state(state, self._limits, self.profile)
        self._serve(targets, state)
        profile, requests = self.profile, self.profile.interval.requests
        values = np.zeros((self.spec.lanes, WIDTH))
        report(
            self._memory,
            self._ledger,
            order(self._ledger, requests),
            targets,
            self.rules,
            profile.row_bytes,
            profile.pool.page_bytes,
            profile.kv_bytes_per_token,
            values,
        )
        values[:, COLUMN["speed"]] = self.speed
        rings = (self._ledger.sojourn_ms, self._ledger.service_ms)
        sojourn, service = (last_interval(self._ledger, ring, requests).copy()[:, None, :] for ring in rings)
        return Telemetry(values[:, None, :], sojourn, service)

    def _serve(self, targets: NDArray[np.int64], state: WorkloadState) -> None:
        raise NotImplementedError  # of the abstract method: each rung has its own

    def snapshot(self) -> Any:
        """Copies of all arrays; the compiled manager keeps nothing elsewhere."""
        return tuple([array.copy() for array in part] for part in (self._memory, self._traffic, self._ledger))

    def restore(self, snapshot: Any) -> None:
        """See helm_gym.backend.Backend."""
        for part, saved in zip((self._memory, self._traffic, self._ledger), snapshot, strict=True):
            for array, value in zip(part, saved, strict=True):
                np.copyto(array, value)

    def close(self) -> None:
        """Nothing is held but memory."""
