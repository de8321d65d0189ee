"""The regimes: seeded processes over a workload's parameters (environment.md, Regimes).

A regime draws, for one lane, the parameters of each interval, the load that each setting is offered, and which
segment each interval lies in. Loads are shares of what a node at its best split can serve, so that no kind of segment
is light or hopeless by accident; a burst brings more load than the calm around it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.profile import Profile
from helm_gym.workload.demand import rate_for_load
from helm_gym.workload.state import INDEX, PARAMETERS, WorkloadPath, at_rest
from helm_gym.workload.traces import Trace

# Loads asked of the closed form, set so that the modelled rung is busy .65 to .7 of the time in each burst (2026-11).
CALM_LOAD, TREND_LOAD = 0.55, 0.64
BURST_LOAD = {"wave": 0.85, "flood": 0.73, "viral": 0.76}
_RATE_EVERY = 16  # a drifting setting's arrival rate is computed at every 16th interval and interpolated


@dataclasses.dataclass
class Script:
    """One lane's episode, written segment by segment: values (T, P), load (T,), segment (T,), a kind a segment."""

    values: NDArray[np.float64]
    load: NDArray[np.float64]
    segment: NDArray[np.int64]
    kinds: list[str]

    @classmethod
    def blank(cls, profile: Profile, intervals: int) -> Script:
        values = np.tile(at_rest(profile), (intervals, 1))
        return cls(values, np.full(intervals, CALM_LOAD), np.zeros(intervals, np.int64), [])

    def write(self, start: int, stop: int, kind: str, setting: dict[str, float], load: float) -> None:
        """Holds ``setting`` from ``start`` to ``stop``. Bursts bring their own users, so hot users change at edges."""
        stop = min(stop, len(self.load))
        for name, value in setting.items():
            self.values[start:stop, INDEX[name]] = value
        if start > 0:
            self.values[start, INDEX["turnover"]] = 1.0
        self.load[start:stop] = load
        self.segment[start:stop] = len(self.kinds)
        self.kinds.append(kind)


Regime = Callable[[Profile, np.random.Generator, int], Script]


def _calm(profile: Profile, rng: np.random.Generator) -> dict[str, float]:
    p = profile.population
    return {
        "hot_share": p.hot_share * rng.uniform(0.85, 1.15),
        "hot_users": round(p.hot_users * rng.uniform(0.75, 1.25)),
        "mean_history": p.mean_history * rng.uniform(0.9, 1.1),
        "item_zipf": p.item_zipf + rng.uniform(-0.04, 0.04),
    }


def _wave(profile: Profile, rng: np.random.Generator) -> dict[str, float]:
    """Many users return at once, with long histories."""
    p = profile.population
    return {
        "hot_share": rng.uniform(0.9, 0.97),
        "hot_users": round(p.hot_users * rng.uniform(1.1, 1.6)),
        "mean_history": min(p.mean_history * rng.uniform(1.6, 2.0), 0.65 * profile.model.max_history),
        "turnover": p.turnover * 0.5,
    }


def _flood(profile: Profile, rng: np.random.Generator) -> dict[str, float]:
    """New users come whom nobody has seen before."""
    return {"hot_share": rng.uniform(0.03, 0.12), "new_share": rng.uniform(0.9, 1.0)}


def _viral(profile: Profile, rng: np.random.Generator) -> dict[str, float]:
    """A few items go viral: popularity gets steep."""
    return {"item_zipf": profile.population.item_zipf + rng.uniform(0.35, 0.45)}


BURSTS = {"wave": _wave, "flood": _flood, "viral": _viral}


def steady(profile: Profile, rng: np.random.Generator, intervals: int) -> Script:
    """Parameters fixed."""
    script = Script.blank(profile, intervals)
    script.write(0, intervals, "steady", _calm(profile, rng), TREND_LOAD)
    return script


def _drift(script: Script, profile: Profile, rng: np.random.Generator, start: int, stop: int, anchors: int) -> None:
    """Hot share, history length and item popularity drift from anchor to anchor."""
    stop = min(stop, len(script.load))
    p = profile.population
    at = np.linspace(start, stop, anchors)
    t = np.arange(start, stop)
    # Anchors alternate between the two ends of what drifts, so that a trend is never flat.
    side = (np.arange(anchors) + rng.integers(2)) % 2
    ranges = {
        "hot_share": ((0.15, 0.3), (0.75, 0.95)),
        "mean_history": ((0.85 * p.mean_history, p.mean_history), (1.2 * p.mean_history, 1.7 * p.mean_history)),
        "new_share": ((0.5, 0.9), (0.0, 0.2)),
    }
    for name, (low, high) in ranges.items():
        ends = np.where(side == 0, rng.uniform(*low, anchors), rng.uniform(*high, anchors))
        script.values[start:stop, INDEX[name]] = np.interp(t, at, ends)
    zipf = p.item_zipf + rng.uniform(-0.05, 0.1, anchors)
    script.values[start:stop, INDEX["item_zipf"]] = np.interp(t, at, zipf)
    script.values[start:stop, INDEX["item_drift"]] = rng.uniform(0, 20)
    script.load[start:stop] = TREND_LOAD
    script.segment[start:stop] = len(script.kinds)
    script.kinds.append("trend")


def trend(profile: Profile, rng: np.random.Generator, intervals: int) -> Script:
    """Hot share, history length and item popularity drift over the horizon."""
    script = Script.blank(profile, intervals)
    _drift(script, profile, rng, 0, intervals, int(rng.integers(3, 5)))
    return script


def burst(profile: Profile, rng: np.random.Generator, intervals: int) -> Script:
    """A calm that sudden jumps interrupt, each for some twenty to sixty intervals, then back."""
    script = Script.blank(profile, intervals)
    calm = _calm(profile, rng)
    start, kinds = 0, rng.permutation(list(BURSTS))
    for number in range(intervals):
        stop = start + int(rng.integers(20, 48))
        script.write(start, stop, "calm", calm, CALM_LOAD)
        start, stop = stop, stop + int(rng.integers(20, 52))
        if start >= intervals:
            break
        kind = str(kinds[number % len(kinds)])
        script.write(start, stop, kind, calm | BURSTS[kind](profile, rng), BURST_LOAD[kind])
        start = stop
        if start >= intervals:
            break
    return script


def mixed(profile: Profile, rng: np.random.Generator, intervals: int) -> Script:
    """Segments of all kinds, for training: calms, drifts and bursts in random order."""
    script = Script.blank(profile, intervals)
    start = 0
    while start < intervals:
        kind = str(rng.choice(["calm", "trend", *BURSTS]))
        stop = start + int(rng.integers(24, 100))
        if kind == "trend":
            _drift(script, profile, rng, start, stop, 2)
        else:
            setting = _calm(profile, rng)
            if kind in BURSTS:
                setting |= BURSTS[kind](profile, rng)
            load = BURST_LOAD.get(kind, rng.uniform(0.4, 0.65))
            script.write(start, stop, kind, setting, load)
        start = stop
    return script


REGIMES: dict[str, Regime] = {"steady": steady, "trend": trend, "burst": burst, "mixed": mixed}


def _rates(profile: Profile, script: Script) -> NDArray[np.float64]:
    """Arrival rate of each interval, from the closed form at the edges of segments and at every 16th interval."""
    t = np.arange(len(script.load))
    edges = np.flatnonzero(np.diff(script.segment)) + 1
    knots = np.unique(np.concatenate([t[::_RATE_EVERY], [t[-1]], edges, edges - 1]))
    rest = script.values[knots].copy()
    # A wave's first interval replaces the hot users; the setting at rest is the next interval's.
    arriving = rest[:, INDEX["turnover"]] >= 1.0
    rest[arriving, INDEX["turnover"]] = script.values[np.minimum(knots[arriving] + 1, t[-1]), INDEX["turnover"]]
    return np.asarray(np.interp(t, knots, rate_for_load(profile, rest, script.load[knots])))


def make_path(
    regime: str, profile: Profile, seeds: Sequence[int], intervals: int, trace: Trace | None = None
) -> WorkloadPath:
    """Draws one episode a seed.

    Args:
        regime: a key of ``REGIMES``, or ``trace``.
        seeds: one a lane; a lane's path depends on its own seed alone.
        intervals: length of the path.
        trace: the recorded arrivals, for ``trace``.

    Raises:
        UnknownNameError: no such regime.
        InvalidInputError: ``trace`` without a recording, or one with fewer requests than an interval.
    """
    if regime == "trace":
        if trace is None:
            raise InvalidInputError("Regime 'trace' needs recorded arrivals; give a file with --trace PATH.")
        return _trace_path(profile, seeds, intervals, trace)
    if regime not in REGIMES:
        raise UnknownNameError("regime", regime, [*REGIMES, "trace"])
    scripts = [REGIMES[regime](profile, np.random.default_rng([seed, 0x50415448]), intervals) for seed in seeds]
    return _stack(profile, scripts, np.full((len(seeds), intervals, profile.interval.requests), np.nan))


def _stack(profile: Profile, scripts: list[Script], gaps_s: NDArray[np.float64]) -> WorkloadPath:
    low, high = (np.array([getattr(p, end) for p in PARAMETERS], np.float64) for end in ("low", "high"))
    high[INDEX["mean_history"]] = profile.model.max_history
    for script in scripts:
        # A profile near the edge of what is allowed must not be carried over it by a regime's factors.
        np.clip(script.values, low, high, out=script.values)
        script.values[:, INDEX["arrival_rate_rps"]] = _rates(profile, script)
    return WorkloadPath(
        values=np.stack([script.values for script in scripts]),
        gaps_s=gaps_s,
        segment=np.stack([script.segment for script in scripts]),
        kind=tuple(tuple(script.kinds) for script in scripts),
    )


def _trace_path(profile: Profile, seeds: Sequence[int], intervals: int, trace: Trace) -> WorkloadPath:
    """Recorded arrivals: their gaps as they are, scaled as a whole to the trend's load.

    What the recording knows sets the parameters of each interval: input lengths, relative to their mean, the
    history length; the share of returning requests, where it is recorded, the hot share. A lane starts at a place in
    the recording that its seed draws, and goes round at the end.
    """
    n, size = len(trace.arrival_s), profile.interval.requests
    if n <= size:
        raise InvalidInputError(f"Trace '{trace.name}' has {n} requests; an interval alone needs more than {size}.")
    gaps = np.diff(trace.arrival_s, prepend=trace.arrival_s[0])
    gaps[0] = gaps[1:].mean()
    p = profile.population
    scripts, all_gaps = [], np.empty((len(seeds), intervals, size))
    for lane, seed in enumerate(seeds):
        start = int(np.random.default_rng([seed, 0x54524143]).integers(n))
        picked = (start + np.arange(intervals * size)) % n
        script = Script.blank(profile, intervals)
        script.load[:] = TREND_LOAD
        script.kinds.append("trace")
        lengths = _smooth(trace.tokens[picked].reshape(intervals, size).mean(1)) / trace.tokens.mean()
        script.values[:, INDEX["mean_history"]] = np.clip(
            p.mean_history * lengths, 0.3 * p.mean_history, 0.6 * profile.model.max_history
        )
        if trace.returning is not None:
            returning = trace.returning[picked].reshape(intervals, size).mean(1)
            script.values[:, INDEX["hot_share"]] = np.clip(_smooth(returning), 0.05, 0.95)
        scripts.append(script)
        all_gaps[lane] = gaps[picked].reshape(intervals, size)
    path = _stack(profile, scripts, all_gaps)
    # One factor for the lane: the recording keeps its own bursts and lulls around the load it is given.
    wanted = (1.0 / path.parameter("arrival_rate_rps")).mean(1)
    all_gaps *= (wanted / all_gaps.mean((1, 2)))[:, None, None]
    path.values[:, :, INDEX["arrival_rate_rps"]] = 1.0 / np.maximum(all_gaps.mean(2), 1e-9)
    return path


def _smooth(x: NDArray[np.float64], width: int = 8) -> NDArray[np.float64]:
    """Running mean: lengths of fifty requests are too noisy to be a population's mean."""
    padded = np.pad(x, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
