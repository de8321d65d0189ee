"""The parameters that describe a workload during one control interval, and their path over an episode."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.kernels import lazy
from helm_gym.profile import Profile


@dataclasses.dataclass(frozen=True)
class Parameter:
    name: str
    unit: str
    low: float
    high: float
    doc: str


PARAMETERS = (
    Parameter("hot_share", "share of requests", 0.0, 1.0, "requests that come from hot users"),
    Parameter("hot_users", "users", 1, 512, "users that are hot at a time (Zipf .5 among them)"),
    Parameter("mean_history", "tokens", 16, 1 << 16, "mean history length of a user who becomes active"),
    Parameter("item_zipf", "exponent", 0.4, 1.4, "skew of item popularity"),
    Parameter("item_drift", "ranks", 0.0, 1e5, "how far item popularity moves on in one interval"),
    Parameter("turnover", "share of hot users", 0.0, 1.0, "hot users replaced by others at the interval's start"),
    Parameter("new_share", "share of cold requests", 0.0, 1.0, "cold requests from users never seen before"),
    Parameter("delta_tokens", "tokens", 1, 256, "mean number of new history tokens a request"),
    Parameter("candidates", "items", 1, 4096, "items to be scored a request"),
    Parameter("arrival_rate_rps", "requests/s", 0.0, 1e6, "mean rate of arrivals at a node"),
)
INDEX = {parameter.name: i for i, parameter in enumerate(PARAMETERS)}


@dataclasses.dataclass(frozen=True)
class WorkloadState:
    """What a backend is told of one interval.

    Attributes:
        values: float64 (lanes, parameters), in the order of ``PARAMETERS``.
        gaps_s: float64 (lanes, requests), recorded time since the arrival before; NaN where arrivals are Poisson.
        alive: bool (lanes, nodes), which nodes of a cluster there are; None: all.
    """

    values: NDArray[np.float64]
    gaps_s: NDArray[np.float64]
    alive: NDArray[np.bool_] | None = None

    @property
    def poisson(self) -> bool:
        """Whether arrivals are Poisson; all lanes play recorded ones, or none does."""
        return bool(self.gaps_s[0, 0] != self.gaps_s[0, 0])


@dataclasses.dataclass(frozen=True)
class WorkloadPath:
    """The whole episode's workload, fixed by the seeds before it starts.

    Attributes:
        values: float64 (lanes, intervals, parameters); an interval's are contiguous where ``make_path`` made them.
        gaps_s: float64 (lanes, intervals, requests), recorded time since the arrival before, or ``poisson_gaps``.
        segment: int64 (lanes, intervals), number of the segment that an interval lies in; within a segment
            the parameters are held or drift smoothly.
        kind: a name for each lane's segments, ``kind[lane][segment]``; (lanes, most segments), where a lane has fewer
            with "" after them, or one sequence a lane.
        alive: bool (lanes, intervals, nodes), which nodes of a cluster there are; None: all.
    """

    values: NDArray[np.float64]
    gaps_s: NDArray[np.float64]
    segment: NDArray[np.int64]
    kind: NDArray[np.object_] | Sequence[Sequence[str]]
    alive: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        gaps = self.gaps_s.view()
        gaps.flags.writeable = False
        object.__setattr__(self, "gaps_s", gaps)

    @property
    def intervals(self) -> int:
        return self.values.shape[1]

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies: arrays keep the layout that kernels are compiled for, and Poisson gaps stay a single NaN."""
        poisson = bool(np.isnan(self.gaps_s[:1, :1]).all())
        gaps = self.gaps_s.shape if poisson else np.ascontiguousarray(self.gaps_s.transpose(1, 0, 2))
        values = np.ascontiguousarray(self.values.transpose(1, 0, 2))
        return _restored, (values, gaps, self.segment, self.kind, self.alive)

    def at(self, t: int) -> WorkloadState:
        alive = None if self.alive is None else self.alive[:, t]
        gaps = self.gaps_s[:, t] if self._poisson_gaps is None else self._poisson_gaps
        return WorkloadState(self.values[:, t], gaps, alive)

    @functools.cached_property
    def _poisson_gaps(self) -> NDArray[np.float64] | None:
        """Those of any interval, where ``poisson_gaps`` made them, laid out as recorded ones: kernels are compiled for
        one kind of array, read-only and contiguous.
        """
        if any(self.gaps_s.strides):
            return None
        gaps = np.full((len(self.gaps_s), self.gaps_s.shape[2]), np.nan)
        gaps.flags.writeable = False
        return gaps

    def kind_at(self, t: int) -> NDArray[np.object_]:
        """The kind of the segment that each lane is in, (lanes,)."""
        segment = self.segment[:, t]
        if isinstance(self.kind, np.ndarray):
            return np.asarray(self.kind[np.arange(len(segment)), segment])
        return np.array([kinds[k] for kinds, k in zip(self.kind, segment, strict=True)], object)

    def parameter(self, name: str) -> NDArray[np.float64]:
        """One parameter's path, (lanes, intervals)."""
        return self.values[:, :, INDEX[name]]


def at_rest(profile: Profile) -> NDArray[np.float64]:
    """The profile's own parameters, (parameters,), with the arrival rate still to be set."""
    p = profile.population
    rest = {
        "hot_share": p.hot_share,
        "hot_users": p.hot_users,
        "mean_history": p.mean_history,
        "item_zipf": p.item_zipf,
        "item_drift": 0.0,
        "turnover": p.turnover,
        "new_share": p.new_share,
        "delta_tokens": p.delta_tokens,
        "candidates": p.candidates,
        "arrival_rate_rps": 0.0,
    }
    return np.array([float(rest[parameter.name]) for parameter in PARAMETERS])


def _restored(
    values: NDArray[np.float64], gaps: tuple[int, int, int] | NDArray[np.float64], *others: Any
) -> WorkloadPath:
    """A path of its arrays as ``WorkloadPath.__reduce__`` lays them out."""
    gaps_s = poisson_gaps(*gaps) if isinstance(gaps, tuple) else gaps.transpose(1, 0, 2)
    return WorkloadPath(values.transpose(1, 0, 2), gaps_s, *others)


def poisson_gaps(lanes: int, intervals: int, requests: int) -> NDArray[np.float64]:
    """``gaps_s`` of Poisson arrivals: one NaN that stands for all, read-only, whatever the shape."""
    return np.broadcast_to(np.float64(np.nan), (lanes, intervals, requests))


def bounds(profile: Profile) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lowest and the highest values of the parameters, (parameters,) each, that the profile's model allows."""
    low, high = (np.array([getattr(p, end) for p in PARAMETERS], np.float64) for end in ("low", "high"))
    high[INDEX["mean_history"]] = profile.model.max_history
    return low, high


def limits(profile: Profile) -> NDArray[np.float64]:
    """The least and the highest values that a backend of ``profile`` takes, (2, parameters): its tables hold no more.

    Lengths, counts and shares may be 0, though no regime goes so far.
    """
    low, high = bounds(profile)
    low[np.arange(len(low)) != INDEX["item_zipf"]] = 0.0
    high[INDEX["candidates"]] = profile.model.max_candidates
    high[INDEX["hot_users"]] = profile.population.users // 2
    return np.stack([low, high])


def check_state(state: WorkloadState, limits: NDArray[np.float64], profile: Profile) -> None:
    """Raises InvalidInputError for a workload that a profile's model or tables cannot take; ``limits``: see there."""
    values, (low, high) = state.values, limits
    if lazy.passes().within(values, low, high, INDEX["arrival_rate_rps"]):
        return
    for wrong, bound, side in ((values > high, high, "most"), (values < low, low, "least")):
        if wrong.any():
            lane, k = np.argwhere(wrong)[0]
            raise InvalidInputError(
                f"Workload asks for {PARAMETERS[k].name} {values[lane, k]:g}; profile '{profile.name}' allows "
                f"at {side} {bound[k]:g}."
            )
    raise InvalidInputError("A workload's parameters must be finite and its arrival rate positive.")
