"""What a regime writes, piece by piece, and how it becomes a path: the compiled half of ``regimes``.

A piece is a run of intervals over which each parameter is held or goes straight from one value to another. A segment is
one piece, or several that drift on from one another. Arrival rates follow from the load that a piece is offered.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.kernels.jit import kernel
from helm_gym.profile import Profile
from helm_gym.workload.demand import FAR, least_service
from helm_gym.workload.sampling import _uniform
from helm_gym.workload.state import INDEX, at_rest, bounds

SHORTEST = 20  # intervals: no piece is shorter, but for the last, so that it is known how many there is room for
RATE_KNOTS = 9  # a drifting piece's arrival rate is computed at so many places and interpolated

_RATE, _TURNOVER, _WIDTH = INDEX["arrival_rate_rps"], INDEX["turnover"], len(INDEX)


class Script(NamedTuple):
    """The episodes of a block of lanes. Shapes: L lanes, N pieces, P parameters."""

    intervals: int
    rest: NDArray[np.float64]  # (P,), the profile's own setting
    low: NDArray[np.float64]  # (P,), bounds that no regime's factors carry a setting over
    high: NDArray[np.float64]
    rng: NDArray[np.uint64]  # (L, 4), xoshiro256+
    pieces: NDArray[np.int64]  # (L,), how many are written
    kind: NDArray[np.int64]  # (L, N)
    segment: NDArray[np.int64]  # (L, N), number of the segment that a piece belongs to
    begin: NDArray[np.int64]  # (L, N), intervals
    end: NDArray[np.int64]
    load: NDArray[np.float64]  # (L, N), share of what a node at its best split can serve
    drifts: NDArray[np.bool_]  # (L, N)
    first: NDArray[np.float64]  # (L, N, P), the setting at the begin
    last: NDArray[np.float64]  # and at the end, where it drifts
    rate: NDArray[np.float64]  # (L, N, RATE_KNOTS), arrivals/s, from begin to end; the first one where it is held
    cursor: NDArray[np.int64]  # (L,), the piece that is being rendered
    scratch: NDArray[np.float64]  # (P,), a setting of a drift


def most_pieces(intervals: int) -> int:
    """How many pieces a lane has room for, N."""
    return intervals // SHORTEST + 4


def blank_script(profile: Profile, intervals: int, rng: NDArray[np.uint64]) -> Script:
    """Room for the episodes of as many lanes as there are generators."""
    lanes, pieces = len(rng), most_pieces(intervals)
    low, high = bounds(profile)
    written, cursor = np.zeros((2, lanes), np.int64)
    kind, segment, begin, end = np.zeros((4, lanes, pieces), np.int64)
    first, last = np.zeros((2, lanes, pieces, _WIDTH))
    return Script(
        intervals,
        at_rest(profile),
        low,
        high,
        rng,
        written,
        kind,
        segment,
        begin,
        end,
        np.zeros((lanes, pieces)),
        np.zeros((lanes, pieces), np.bool_),
        first,
        last,
        np.zeros((lanes, pieces, RATE_KNOTS)),
        cursor,
        np.zeros(_WIDTH),
    )


def seed_streams(seeds: NDArray[np.uint64], stream: int) -> NDArray[np.uint64]:
    """One generator a seed, (seeds, 4), independent of those of other streams: splitmix64 (Steele et al. 2014)."""
    start = _mix(seeds) ^ _mix(np.array([stream], np.uint64))
    return _mix(start[:, None] + np.arange(1, 5, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kernel
def uniform(rng, low, high):
    """A float64 in [low, high)."""
    return low + (high - low) * _uniform(rng)


@kernel
def integer(rng, low, high):
    """An integer in [low, high)."""
    return low + int((high - low) * _uniform(rng))


@kernel
def copy_setting(source, target):
    for i in range(_WIDTH):
        target[i] = source[i]


@kernel
def written(script, lane):
    """Up to which interval the lane is written."""
    pieces = script.pieces[lane]
    return script.end[lane, pieces - 1] if pieces > 0 else 0


@kernel
def _add_piece(script, lane, length, kind, load, segment, drifts):
    # Pieces behind the end have no length; where one too many is written, it takes the last one's place.
    begin, piece = written(script, lane), min(script.pieces[lane], script.kind.shape[1] - 1)
    script.pieces[lane] = piece + 1
    script.kind[lane, piece] = kind
    script.segment[lane, piece] = segment
    script.begin[lane, piece] = begin
    script.end[lane, piece] = min(begin + max(length, SHORTEST), script.intervals)
    script.load[lane, piece] = load
    script.drifts[lane, piece] = drifts
    return piece


def check_written(script: Script, regime: str) -> None:
    """Raises InvalidInputError where a regime did not write each lane to the end."""
    last = np.maximum(script.pieces, 1) - 1
    ends = script.end[np.arange(len(last)), last]
    if (ends < script.intervals).any():
        raise InvalidInputError(
            f"Regime '{regime}' writes {ends.min()} of {script.intervals} intervals; let it go on to script.intervals."
        )


@kernel
def _next_segment(script, lane):
    pieces = script.pieces[lane]
    return script.segment[lane, pieces - 1] + 1 if pieces > 0 else 0


@kernel
def hold(script, lane, length, kind, load):
    """A segment that holds a setting for ``length`` intervals, or to the end. Returns its piece, at rest."""
    piece = _add_piece(script, lane, length, kind, load, _next_segment(script, lane), False)
    copy_setting(script.rest, script.first[lane, piece])
    return piece


@kernel
def drift(script, lane, length, kind, load):
    """A segment that drifts for ``length`` intervals, or to the end. Returns its piece, at rest."""
    piece = _add_piece(script, lane, length, kind, load, _next_segment(script, lane), True)
    copy_setting(script.rest, script.first[lane, piece])
    copy_setting(script.rest, script.last[lane, piece])
    return piece


@kernel
def drift_on(script, lane, length):
    """The last segment drifts on for ``length`` intervals, or to the end. Returns the new piece, at rest at its end."""
    before = script.pieces[lane] - 1
    kind, load, segment = script.kind[lane, before], script.load[lane, before], script.segment[lane, before]
    piece = _add_piece(script, lane, length, kind, load, segment, True)
    copy_setting(script.last[lane, before], script.first[lane, piece])
    copy_setting(script.rest, script.last[lane, piece])
    return piece


@kernel
def _clip(script, setting):
    for i in range(_WIDTH):
        setting[i] = min(max(setting[i], script.low[i]), script.high[i])


@kernel
def set_rates(script, demand, users):
    """Arrival rates from the closed form, at the knots of each piece."""
    for lane in range(script.rng.shape[0]):
        at = demand.alphas.shape[0] // 2
        for piece in range(script.pieces[lane]):
            first, last = script.first[lane, piece], script.last[lane, piece]
            _clip(script, first)
            _clip(script, last)
            reach = FAR
            for knot in range(RATE_KNOTS if script.drifts[lane, piece] else 1):
                for i in range(_WIDTH):
                    script.scratch[i] = first[i] + knot / (RATE_KNOTS - 1) * (last[i] - first[i])
                service_ms, at = least_service(demand, script.scratch, users, at, reach)
                script.rate[lane, piece, knot] = script.load[lane, piece] / (service_ms * 1e-3)
                reach = 1


@kernel
def render(script, lane_offset, values, segment, kind):
    """Writes the script's lanes into the path's arrays, from lane ``lane_offset`` on.

    values: (intervals, lanes, parameters); segment: (intervals, lanes); kind: (lanes, segments).
    """
    for lane in range(script.rng.shape[0]):
        script.cursor[lane] = 0
        for piece in range(script.pieces[lane]):
            kind[lane_offset + lane, script.segment[lane, piece]] = script.kind[lane, piece]
    for t in range(script.intervals):
        for lane in range(script.rng.shape[0]):
            piece = script.cursor[lane]
            while t >= script.end[lane, piece] and piece + 1 < script.pieces[lane]:
                piece += 1
            script.cursor[lane] = piece
            begin, end = script.begin[lane, piece], script.end[lane, piece]
            first, last, rate = script.first[lane, piece], script.last[lane, piece], script.rate[lane, piece]
            row = values[t, lane_offset + lane]
            if script.drifts[lane, piece]:
                share = (t - begin) / (end - begin)
                for i in range(_WIDTH):
                    row[i] = first[i] + share * (last[i] - first[i])
                place = share * (RATE_KNOTS - 1)
                knot = int(place)
                row[_RATE] = rate[knot] + (place - knot) * (rate[knot + 1] - rate[knot])
            else:
                copy_setting(first, row)
                row[_RATE] = rate[0]
                if t > 0 and t == begin:
                    row[_TURNOVER] = 1.0  # other users come with another setting
            segment[t, lane_offset + lane] = script.segment[lane, piece]
