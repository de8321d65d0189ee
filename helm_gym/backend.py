"""The contract of a backend, and the one place that opens one by name."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from helm_gym import registry
from helm_gym.cluster.routing import Routing
from helm_gym.cluster.topology import Cluster
from helm_gym.errors import InvalidInputError
from helm_gym.kernels import lazy
from helm_gym.profile import Profile
from helm_gym.telemetry import Telemetry
from helm_gym.text import shown
from helm_gym.workload.state import WorkloadState

Rung = Literal["measured", "modelled", "surrogate"]


@dataclasses.dataclass(frozen=True)
class BackendSpec:
    """What a backend is.

    Attributes:
        name: its name on the command line and in ``gym.make(..., backend=name)``.
        rung: where its figures stand on the ladder of fidelity.
        lanes, nodes: the leading axes of everything it takes and reports.
        deterministic: False where it reports time that was measured.
        snapshots: whether ``snapshot`` and ``restore`` work.
        cluster: whose nodes a lane has; None: a single node.
        memory_bytes: of memory that it takes in this process once it has been reset, about; 0: not told.
    """

    name: str
    rung: Rung
    profile: Profile
    lanes: int
    nodes: int
    deterministic: bool
    snapshots: bool
    cluster: Cluster | None = None
    memory_bytes: int = 0


@runtime_checkable
class Backend(Protocol):
    """Serves requests under an allocation, one control interval at a time."""

    spec: BackendSpec

    @property
    def slo_ms(self) -> float:
        """The SLO that latencies of this backend are held against (ms)."""
        ...

    def reset(self, state: WorkloadState, seeds: NDArray[np.int64], alpha: NDArray[np.float64]) -> None:
        """Starts new episodes with cold caches.

        Args:
            state: the workload that users are drawn from.
            seeds: (lanes,); a lane's requests depend on its own seed alone.
            alpha: (lanes, nodes), EMB's share of the pool.
        """
        ...

    def step(self, allocation: NDArray[np.float64], state: WorkloadState, routing: Routing | None = None) -> Telemetry:
        """Serves one interval of ``state`` while the split moves towards ``allocation`` (lanes, nodes).

        Args:
            routing: how a cluster's router assigns requests; as it did before where not given, and by the joint cost at
                first.

        Raises:
            InvalidInputError: an alpha that is not finite or outside the profile's bounds, a routing that is not sound
                or that no cluster is there for, or a lane without a node that is alive.
        """
        ...

    def snapshot(self) -> Any:
        """Everything that the future depends on, as an opaque copy."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Continues from ``snapshot``, bit-identically where the backend is deterministic."""
        ...

    def close(self) -> None: ...


def open_backend(name: str, profile: Profile, lanes: int = 1, cluster: Cluster | None = None) -> Backend:
    """Opens a backend by name, or by ``module:attribute``, importing its package only now.

    What follows the name behind a colon, as in ``surrogate:runs/mine``, is handed on as a fourth argument.

    Raises:
        UnknownNameError: no such backend.
        InvalidInputError: what has the name is no backend; a number of lanes or a cluster that this backend cannot
            have; more memory than is free.
        IncompatibleError: libraries that it needs are missing or do not pair.
    """
    entry = registry.find("backend", name)
    given = (entry.given,) if entry.given else ()
    opened = entry.load()(profile, lanes, cluster, *given)
    if not isinstance(opened, Backend):
        raise InvalidInputError(f"Backend {shown(name)} lacks what helm_gym.backend.Backend says that it must have.")
    return opened


def is_measured(name: str) -> bool:
    """Whether the backend reports time that was measured: of one lane, its episodes take minutes.

    Its class says so by an attribute ``rung`` of value ``measured``.

    Raises: see ``open_backend``.
    """
    return getattr(registry.find("backend", name).load(), "rung", None) == "measured"


def check_allocation(profile: Profile, allocation: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Turns alpha into EMB's pages, (lanes, nodes).

    Raises:
        InvalidInputError: a wrong shape, or an alpha that is not finite or out of bounds.
    """
    if allocation.shape != shape:
        raise InvalidInputError(f"Allocation has shape {allocation.shape}; {shape} (lanes, nodes) is needed.")
    pool = profile.pool
    slack = 0.5 / pool.pages  # a target is a whole number of pages
    low, high, pages = pool.min_alpha - slack, pool.max_alpha + slack, np.empty(shape, np.int64)
    if lazy.passes().to_pages(allocation, low, high, pool.pages, pages):
        return pages
    finite = np.isfinite(allocation)
    if not finite.all():
        raise InvalidInputError(f"Allocation has an alpha that is not finite: {allocation[~finite][0]}.")
    outside = (allocation < low) | (allocation > high)
    raise InvalidInputError(
        f"alpha {allocation[outside][0]:g} is out of bounds; profile '{profile.name}' allows "
        f"{pool.min_alpha:g} to {pool.max_alpha:g}."
    )
