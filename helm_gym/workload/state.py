"""The parameters that describe a workload during one control interval, and their path over an episode."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

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
    """

    values: NDArray[np.float64]
    gaps_s: NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class WorkloadPath:
    """The whole episode's workload, fixed by the seeds before it starts.

    Attributes:
        values: float64 (lanes, intervals, parameters).
        gaps_s: float64 (lanes, intervals, requests) or NaN (Poisson).
        segment: int64 (lanes, intervals), number of the segment that an interval lies in; within a segment
            the parameters are held or drift smoothly.
        kind: a name for each lane's segments, ``kind[lane][segment]``.
    """

    values: NDArray[np.float64]
    gaps_s: NDArray[np.float64]
    segment: NDArray[np.int64]
    kind: tuple[tuple[str, ...], ...]

    @property
    def intervals(self) -> int:
        return self.values.shape[1]

    def at(self, t: int) -> WorkloadState:
        return WorkloadState(self.values[:, t], self.gaps_s[:, t])

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
