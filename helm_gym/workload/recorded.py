"""The regime ``trace``: recorded arrivals as a workload's path."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.workload.demand import rate_for_load
from helm_gym.workload.state import INDEX, WorkloadPath, at_rest, bounds
from helm_gym.workload.traces import Trace

_RATE_EVERY = 16  # the arrival rate is computed at every 16th interval and interpolated


class Recorded:
    """The regime ``trace``.

    Attributes:
        load: that the recording is scaled to, of what a node at its best split can serve.
    """

    load = 0.64

    def draw(self, profile: Profile, seeds: Sequence[int], intervals: int, trace: Trace | None) -> WorkloadPath:
        """See ``recorded_path``; raises InvalidInputError without a recording."""
        if trace is None:
            raise InvalidInputError("Regime 'trace' needs recorded arrivals; give a file with --trace PATH.")
        return recorded_path(profile, seeds, intervals, trace, self.load)


RECORDED = Recorded()


def recorded_path(profile: Profile, seeds: Sequence[int], intervals: int, trace: Trace, load: float) -> WorkloadPath:
    """Recorded arrivals: their gaps as they are, scaled as a whole to the load.

    What the recording knows sets the parameters of each interval: input lengths, relative to their mean, the
    history length; the share of returning requests, the hot share. What it does not know stays the profile's. A lane
    starts at a place in the recording that its seed draws, and goes round at the end.
    """
    n, size = len(trace.arrival_s), profile.interval.requests
    if n <= size:
        raise InvalidInputError(f"Trace '{trace.name}' has {n} requests; an interval alone needs more than {size}.")
    recorded = np.diff(trace.arrival_s, prepend=trace.arrival_s[0])
    recorded[0] = recorded[1:].mean()
    p, (low, high) = profile.population, bounds(profile)
    values = np.tile(at_rest(profile), (intervals, len(seeds), 1))
    gaps_s = np.empty((intervals, len(seeds), size))
    for lane, seed in enumerate(seeds):
        start = int(np.random.default_rng([seed, 0x54524143]).integers(n))
        picked = ((start + np.arange(intervals * size)) % n).reshape(intervals, size)
        x, gaps = values[:, lane], gaps_s[:, lane]
        if trace.tokens is not None:
            lengths = _smooth(trace.tokens[picked].mean(1)) / trace.tokens.mean()
            x[:, INDEX["mean_history"]] = np.clip(
                p.mean_history * lengths, 0.3 * p.mean_history, 0.6 * profile.model.max_history
            )
        if trace.returning is not None:
            x[:, INDEX["hot_share"]] = np.clip(_smooth(trace.returning[picked].mean(1)), 0.05, 0.95)
        np.clip(x, low, high, out=x)
        # One factor for the lane: the recording keeps its own bursts and lulls around the load it is given.
        gaps[:] = recorded[picked]
        if not gaps.any():
            raise InvalidInputError(
                f"Trace '{trace.name}' has {gaps.size} requests from number {start + 1} on that all arrive at once, "
                "so that they have no rate; give one with finer times, or a longer episode."
            )
        gaps *= (1.0 / _rates(profile, x, load)).mean() / gaps.mean()
        # All of an interval may have come in one instant, and a rate has an end.
        x[:, INDEX["arrival_rate_rps"]] = 1.0 / np.maximum(gaps.mean(1), 1.0 / high[INDEX["arrival_rate_rps"]])
    return WorkloadPath(
        values=values.transpose(1, 0, 2),
        gaps_s=gaps_s.transpose(1, 0, 2),
        segment=np.zeros((intervals, len(seeds)), np.int64).T,
        kind=np.full((len(seeds), 1), "trace", object),
    )


def _rates(profile: Profile, values: NDArray[np.float64], load: float) -> NDArray[np.float64]:
    """Arrival rate of each interval, (intervals,), of one lane's values (intervals, parameters)."""
    t = np.arange(len(values))
    knots = np.unique(np.append(t[::_RATE_EVERY], t[-1]))
    return np.asarray(np.interp(t, knots, rate_for_load(profile, values[knots], np.full(len(knots), load))))


def _smooth(x: NDArray[np.float64], width: int = 8) -> NDArray[np.float64]:
    """Running mean: lengths of fifty requests are too noisy to be a population's mean."""
    padded = np.pad(x, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
