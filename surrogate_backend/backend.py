"""The surrogate as a backend: thousands of lanes, each step one compiled call."""

from __future__ import annotations

import functools
import pathlib
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from helm_gym.backend import BackendSpec, Rung, check_allocation
from helm_gym.cluster.routing import Routing
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.telemetry import WIDTH, Telemetry
from helm_gym.workload.state import WorkloadState, check_state, limits
from surrogate_backend import checkpoint as checkpoints
from surrogate_backend.kernels import step
from surrogate_backend.kernels.functions import LANES, F, aligned
from surrogate_backend.kernels.requests import make_keys
from surrogate_backend.layout import RUNGS, Sizes


@functools.lru_cache(maxsize=8)
def _constants(folder: pathlib.Path, profile: Profile, of: str) -> NDArray[np.float32]:
    """A checkpoint, ready to be stepped."""
    loaded = checkpoints.load(folder, profile)
    if "kind" in loaded.card:
        raise InvalidInputError(f"Checkpoint {folder} is of {loaded.card['kind']}, not of single nodes.")
    sizes = loaded.card.get("sizes")
    if sizes != Sizes().__dict__:
        raise InvalidInputError(f"Checkpoint {folder} has networks of other sizes ({sizes}); fit it again.")
    return step.pack(profile, loaded.tensors, of)


class SurrogateBackend:
    """A learned model of what an interval of the real backend reports.

    Deterministic; a lane is bit-identical whatever lanes run beside it. ``Telemetry.extrapolating`` says where it was
    asked for workloads or splits that it was not fitted to.

    Args:
        profile: that the checkpoint was fitted to.
        lanes: any number.
        checkpoint: a folder; the one shipped for the profile where not given.
        of: which rung it is the surrogate of, ``modelled`` or ``measured``; the shipped card says how far each is true.

    Raises:
        InvalidInputError: no checkpoint for the profile, or a number of lanes or nodes that there cannot be.
    """

    name: ClassVar[str] = "surrogate"
    rung: ClassVar[Rung] = "surrogate"

    def __init__(
        self,
        profile: Profile,
        lanes: int = 1,
        checkpoint: pathlib.Path | None = None,
        of: str = "modelled",
    ):
        if lanes < 1:
            raise InvalidInputError(f"A backend needs at least one lane, not {lanes}.")
        if of not in RUNGS:
            raise InvalidInputError(f"A surrogate stands for {' or '.join(RUNGS)}, not for '{of}'.")
        interval = profile.interval
        self._window = interval.window // interval.requests
        if (
            interval.requests > step.MAX_REQUESTS
            or self._window > step.MAX_INTERVALS
            or interval.window > step.MAX_WINDOW
        ):
            raise InvalidInputError(
                f"Profile '{profile.name}': a surrogate takes at most {step.MAX_REQUESTS} requests an interval and a "
                f"window of at most {step.MAX_WINDOW}."
            )
        if profile.pool.pages > step.MAX_PAGES:
            raise InvalidInputError(f"Profile '{profile.name}': a surrogate's pool has at most {step.MAX_PAGES} pages.")
        self.spec = BackendSpec(self.name, self.rung, profile, lanes, 1, deterministic=True, snapshots=True)
        self.profile = profile
        folder = checkpoints.find(None, profile) if checkpoint is None else checkpoint
        self._known = _constants(folder, profile, of)
        self._limits, slack = limits(profile), 0.5 / profile.pool.pages
        bounds = (profile.pool.min_alpha - slack, profile.pool.max_alpha + slack, *self._limits.ravel())
        self._bounds = np.array(bounds)
        self._columns = 1 if lanes == 1 else LANES
        self._scratch = aligned(np.zeros(step.SCRATCH * self._columns, F))
        self._shape, self._report = (lanes, 1), (lanes, 1, WIDTH)
        self._served = (2, -(-lanes // self._columns), interval.requests * self._columns)
        self._targets = np.empty(self._shape, np.int64)
        figures = (profile.pool.pages, interval.requests, self._window, profile.model.max_history)
        self._figures = np.array(figures, np.int64)
        self._serve = step.step_one if lanes == 1 else step.step_lanes
        self._state: step.State | None = None

    @property
    def slo_ms(self) -> float:
        return self.profile.slo_ms

    def reset(self, state: WorkloadState, seeds: NDArray[np.int64], alpha: NDArray[np.float64]) -> None:
        """See helm_gym.backend.Backend."""
        pages = check_allocation(self.profile, np.asarray(alpha), (self.spec.lanes, 1))
        check_state(state, self._limits, self.profile)
        self._state = step.make_state(state.values, make_keys(np.asarray(seeds, np.int64)), pages[:, 0], self._columns)

    def step(self, allocation: NDArray[np.float64], state: WorkloadState, routing: Routing | None = None) -> Telemetry:
        """See helm_gym.backend.Backend."""
        if routing is not None:
            raise InvalidInputError("A routing was given to a single node; open the backend with a cluster.")
        if self._state is None:
            raise InvalidInputError(f"Backend '{self.name}' was stepped before it was reset.")
        values, served, flags = np.empty(self._report), np.empty(self._served, F), np.empty(self._shape, np.bool_)
        rows, counters = self._state
        if allocation.shape != self._shape or not self._serve(
            self._known, rows, counters, state.values, state.gaps_s, allocation, self._bounds, self._figures,
            self._scratch, self._targets, values, served, flags,
        ):  # fmt: skip
            check_allocation(self.profile, allocation, self._shape)
            check_state(state, self._limits, self.profile)
        return _Served(values, served, flags)

    def snapshot(self) -> Any:
        """Copies of the state's arrays."""
        if self._state is None:
            raise InvalidInputError(f"Backend '{self.name}' has no state to keep before it is reset.")
        return step.State(self._state.rows.copy(), self._state.counters.copy())

    def restore(self, snapshot: Any) -> None:
        """See helm_gym.backend.Backend."""
        self._state = step.State(aligned(snapshot.rows), aligned(snapshot.counters))

    def close(self) -> None:
        """Nothing is held but memory."""


class _Served(Telemetry):
    """Telemetry whose single requests are put in order of lanes only when they are asked for."""

    _served: NDArray[np.float32]

    def __init__(
        self,
        values: NDArray[np.float64],
        served: NDArray[np.float32],
        flags: NDArray[np.bool_],
    ):
        # The dataclass is frozen, and setting one attribute after the other by its way costs half a microsecond.
        self.__dict__.update(values=values, extrapolating=flags, _served=served)

    @property
    def sojourn_ms(self) -> NDArray[np.float32]:
        return self._by_lane(1)

    @property
    def service_ms(self) -> NDArray[np.float32]:
        return self._by_lane(0)

    def _by_lane(self, which: int) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._served[which]
        blocks, lanes = len(rows), len(self.values)
        columns = 1 if lanes == 1 else LANES
        return rows.reshape(blocks, -1, columns).swapaxes(1, 2).reshape(blocks * columns, 1, -1)[:lanes]
