"""The regimes: seeded processes over a workload's parameters (environment.md, Regimes).

A regime writes the episodes of a block of lanes: the parameters of each segment, held or drifting, and the load that
it is offered. Loads are shares of what a node at its best split can serve, so that no kind of segment is light or
hopeless by accident; a burst brings more load than the calm around it. Regimes are compiled: a vector environment draws
thousands of episodes at once.

To add one, write a kernel that takes a ``Script`` and writes each of its lanes up to ``script.intervals``, and register
it (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from helm_gym import registry
from helm_gym.kernels.jit import kernel
from helm_gym.profile import Profile
from helm_gym.workload.demand import make_demand, make_users
from helm_gym.workload.script import (
    blank_script,
    check_written,
    copy_setting,
    drift,
    drift_on,
    hold,
    integer,
    most_pieces,
    render,
    seed_streams,
    set_rates,
    uniform,
    written,
)
from helm_gym.workload.state import INDEX, WorkloadPath, poisson_gaps
from helm_gym.workload.traces import Trace

KINDS = ("steady", "calm", "trend", "wave", "flood", "viral")  # of segments
_STEADY, _CALM, _TREND, _WAVE, _FLOOD, _VIRAL = range(len(KINDS))

# Loads asked of the closed form, set so that the modelled rung is busy .65 to .7 of the time in each burst (2026-11).
CALM_LOAD, TREND_LOAD = 0.55, 0.64
BURST_LOAD = (0.85, 0.73, 0.76)  # wave, flood, viral

_HOT_SHARE, _HOT_USERS, _MEAN_HISTORY = INDEX["hot_share"], INDEX["hot_users"], INDEX["mean_history"]
_ZIPF, _DRIFT, _TURNOVER, _NEW = INDEX["item_zipf"], INDEX["item_drift"], INDEX["turnover"], INDEX["new_share"]
_NAMES = np.array([*KINDS, ""], object)
_BLOCK = 128  # lanes written at a time: what is not yet rendered stays in a core's cache


@kernel
def _calm(script, rng, setting):
    """The profile's own setting, give or take."""
    rest = script.rest
    setting[_HOT_SHARE] = rest[_HOT_SHARE] * uniform(rng, 0.85, 1.15)
    setting[_HOT_USERS] = round(rest[_HOT_USERS] * uniform(rng, 0.75, 1.25))
    setting[_MEAN_HISTORY] = rest[_MEAN_HISTORY] * uniform(rng, 0.9, 1.1)
    setting[_ZIPF] = rest[_ZIPF] + uniform(rng, -0.04, 0.04)


@kernel
def _wave(script, rng, setting):
    """Many users return at once, with long histories."""
    rest, max_history = script.rest, script.high[_MEAN_HISTORY]
    setting[_HOT_SHARE] = uniform(rng, 0.9, 0.97)
    setting[_HOT_USERS] = round(rest[_HOT_USERS] * uniform(rng, 1.1, 1.6))
    setting[_MEAN_HISTORY] = min(rest[_MEAN_HISTORY] * uniform(rng, 1.6, 2.0), 0.65 * max_history)
    setting[_TURNOVER] = rest[_TURNOVER] * 0.5


@kernel
def _flood(script, rng, setting):
    """New users come whom nobody has seen before."""
    setting[_HOT_SHARE] = uniform(rng, 0.03, 0.12)
    setting[_NEW] = uniform(rng, 0.9, 1.0)


@kernel
def _viral(script, rng, setting):
    """A few items go viral: popularity gets steep."""
    setting[_ZIPF] = script.rest[_ZIPF] + uniform(rng, 0.35, 0.45)


@kernel
def _burst(script, rng, setting, kind):
    """Lays a burst over a calm."""
    if kind == _WAVE:
        _wave(script, rng, setting)
    elif kind == _FLOOD:
        _flood(script, rng, setting)
    elif kind == _VIRAL:
        _viral(script, rng, setting)


@kernel
def _anchor(script, rng, side, moves, setting):
    """A place where a trend turns, at one of the two ends of what drifts."""
    rest = script.rest
    if side == 0:
        setting[_HOT_SHARE] = uniform(rng, 0.15, 0.3)
        setting[_MEAN_HISTORY] = rest[_MEAN_HISTORY] * uniform(rng, 0.85, 1.0)
        setting[_NEW] = uniform(rng, 0.5, 0.9)
    else:
        setting[_HOT_SHARE] = uniform(rng, 0.75, 0.95)
        setting[_MEAN_HISTORY] = rest[_MEAN_HISTORY] * uniform(rng, 1.2, 1.7)
        setting[_NEW] = uniform(rng, 0.0, 0.2)
    setting[_ZIPF] = rest[_ZIPF] + uniform(rng, -0.05, 0.1)
    setting[_DRIFT] = moves


@kernel
def _drift(script, lane, length, legs):
    """Hot share, history length and item popularity drift from anchor to anchor, one at each end of a leg."""
    rng = script.rng[lane]
    # Anchors alternate between the two ends of what drifts, so that a trend is never flat.
    side, moves = integer(rng, 0, 2), uniform(rng, 0.0, 20.0)
    piece = drift(script, lane, length // legs, _TREND, TREND_LOAD)
    _anchor(script, rng, side, moves, script.first[lane, piece])
    _anchor(script, rng, 1 - side, moves, script.last[lane, piece])
    for leg in range(1, legs):
        piece = drift_on(script, lane, length * (leg + 1) // legs - length * leg // legs)
        _anchor(script, rng, (side + leg + 1) % 2, moves, script.last[lane, piece])


@kernel
def steady(script):
    """Parameters fixed."""
    for lane in range(script.rng.shape[0]):
        piece = hold(script, lane, script.intervals, _STEADY, TREND_LOAD)
        _calm(script, script.rng[lane], script.first[lane, piece])


@kernel
def trend(script):
    """Hot share, history length and item popularity drift over the horizon."""
    for lane in range(script.rng.shape[0]):
        _drift(script, lane, script.intervals, integer(script.rng[lane], 2, 4))


@kernel
def burst(script):
    """A calm that sudden jumps interrupt, each for some twenty to fifty intervals, then back."""
    for lane in range(script.rng.shape[0]):
        rng = script.rng[lane]
        calm = script.first[lane, hold(script, lane, integer(rng, 20, 48), _CALM, CALM_LOAD)]
        _calm(script, rng, calm)
        # Wave, flood and viral in one of their six orders, again and again.
        which, turn = integer(rng, 0, 3), integer(rng, 1, 3)
        while written(script, lane) < script.intervals:
            piece = hold(script, lane, integer(rng, 20, 52), _WAVE + which, BURST_LOAD[which])
            copy_setting(calm, script.first[lane, piece])
            _burst(script, rng, script.first[lane, piece], _WAVE + which)
            which = (which + turn) % 3
            if written(script, lane) < script.intervals:
                piece = hold(script, lane, integer(rng, 20, 48), _CALM, CALM_LOAD)
                copy_setting(calm, script.first[lane, piece])


@kernel
def mixed(script):
    """Segments of all kinds, for training: calms, drifts and bursts in random order."""
    for lane in range(script.rng.shape[0]):
        rng = script.rng[lane]
        while written(script, lane) < script.intervals:
            kind, length = integer(rng, _CALM, _VIRAL + 1), integer(rng, 24, 100)
            if kind == _TREND:
                _drift(script, lane, length, 1)
            else:
                load = uniform(rng, 0.4, 0.65) if kind == _CALM else BURST_LOAD[kind - _WAVE]
                setting = script.first[lane, hold(script, lane, length, kind, load)]
                _calm(script, rng, setting)
                _burst(script, rng, setting, kind)


def make_path(
    regime: str, profile: Profile, seeds: Sequence[int], intervals: int, trace: Trace | None = None
) -> WorkloadPath:
    """Draws one episode a seed.

    Args:
        regime: the name of a kernel that writes a ``Script``, or of an object whose ``draw(profile, seeds, intervals,
            trace)`` returns the path; with an argument, as in ``fitted:FILE``, of what makes one of it.
        seeds: one a lane; a lane's path depends on its own seed alone.
        intervals: length of the path.
        trace: the recorded arrivals, for ``trace``.

    Raises:
        UnknownNameError: no such regime.
        InvalidInputError: ``trace`` without a recording, or one with fewer requests than an interval; a regime that
            does not write its lanes to the end.
    """
    entry = registry.find("regime", regime)
    draw = entry.load()(entry.given) if entry.given else entry.load()
    if hasattr(draw, "draw"):
        path: WorkloadPath = draw.draw(profile, seeds, intervals, trace)
        return path
    lanes, demand, users = len(seeds), make_demand(profile), make_users()
    streams = seed_streams(np.asarray(seeds, np.int64).astype(np.uint64), 0x50415448)
    values, segment = np.empty((intervals, lanes, len(INDEX))), np.empty((intervals, lanes), np.int64)
    kind = np.full((lanes, most_pieces(intervals)), len(KINDS), np.int8)
    for first in range(0, lanes, _BLOCK):
        script = blank_script(profile, intervals, streams[first : first + _BLOCK])
        draw(script)
        check_written(script, regime)
        set_rates(script, demand, users)
        render(script, first, values, segment, kind)
    return WorkloadPath(
        values=values.transpose(1, 0, 2),
        gaps_s=poisson_gaps(lanes, intervals, profile.interval.requests),
        segment=segment.T,
        kind=_NAMES[kind[:, (kind < len(KINDS)).any(axis=0)]],
    )
