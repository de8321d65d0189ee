"""Designed episodes: what a log must hold so that a surrogate can be learned from it, and what it is then evaluated on.

An episode is a workload path, the seed of its requests and what drives alpha, all fixed by the design's seed and the
episode's number: a collection that was cut off goes on, and one that is wanted longer gets further episodes.

- ``train``: every regime, and paths that vary each parameter of a workload (``excite``), under splits that are held,
  stepped, swept and walked; where a recording is given, its arrivals too (``trace``).
- ``test``: settings that are judged. Each is one path, served again and again: with sixteen request seeds under one
  schedule; twice with the same requests; at nine splits that are held on its stationary part; and by policies, those
  included that were trained or tuned on the surrogate alone. Splits and policies are compared with one another, so
  each request seed's are served in turns: what the machine does meanwhile, it does to all of them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.observation import ObservationLayout
from helm_gym.policies import from_run
from helm_gym.profile import Profile
from helm_gym.training import run_folder
from helm_gym.workload.demand import rate_for_load
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import INDEX, WorkloadPath, at_rest, poisson_gaps
from helm_gym.workload.traces import Trace

# To be ranked, some of each kind: the other rules come within one per cent of these on Burst, and would be ranked by
# noise. PID was tuned on the surrogate alone, and those of TRAINED were trained on it.
POLICIES = (
    *("static:0.2", "static:0.4", "static:0.5", "static:0.8", "random", "threshold", "miss-ratio-curve"),
    "pid",
)
TRAINED = ("ppo", "three-layer-ppo")
SWEEP = tuple(round(0.1 * k, 1) for k in range(1, 10))
REPEATS, SWEEP_SEEDS, POLICY_SEEDS, SWEEP_INTERVALS = 16, 3, 4, 100
TEST_REGIMES = ("burst", "trend", "mixed", "excite", "steady")
_SPLITS = REPEATS + 1  # where the held splits start in one setting of the test design
_DRIVEN = _SPLITS + SWEEP_SEEDS * len(SWEEP)  # where the policies do
_TRAIN_REGIMES = ("excite", "burst", "excite", "mixed", "excite", "trend", "excite", "steady")
_TRAIN_DRIVERS = ("steps", "hold", "walk", "steps", "sweep")
_STREAM = 0x45584349


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode of a design.

    Attributes:
        number: its place in the design.
        group: what it is for: ``train``, ``repeat``, ``retake``, ``sweep`` or ``policy``.
        setting: which path; episodes of one setting share it.
        regime: what drew the path.
        driver: a schedule of alpha (``hold``, ``steps``, ``walk``, ``sweep``) or a policy's name.
        path: the workload, one lane.
        request_seed: of the requests.
        schedule: target alpha of each interval, (intervals,); None where a policy drives.
    """

    number: int
    group: str
    setting: int
    regime: str
    driver: str
    path: WorkloadPath
    request_seed: int
    schedule: NDArray[np.float64] | None


def episode(
    design: str, number: int, profile: Profile, intervals: int, seed: int, trace: Trace | None = None
) -> Episode:
    """Episode ``number`` of a design; with a ``trace``, of the train design with its arrivals as one more regime.

    Raises:
        UnknownNameError: no such design.
        InvalidInputError: a trace for another design, or one with fewer requests than an interval.
    """
    if design not in DESIGNS:
        raise UnknownNameError("design", design, DESIGNS)
    if trace is None:
        return DESIGNS[design](number, profile, intervals, seed)
    if design != "train":
        raise InvalidInputError(f"Design '{design}' takes no recorded arrivals; leave the trace out, or take 'train'.")
    return _train(number, profile, intervals, seed, trace)


def _train(number: int, profile: Profile, intervals: int, seed: int, trace: Trace | None = None) -> Episode:
    setting, again = divmod(number, 2)  # each twice, with other requests: what differs is noise
    rng = np.random.default_rng([seed, setting, _STREAM])
    regimes = _TRAIN_REGIMES if trace is None else (*_TRAIN_REGIMES, "trace")
    regime = regimes[setting % len(regimes)]
    driver = _TRAIN_DRIVERS[setting % len(_TRAIN_DRIVERS)]  # 5 and 8 or 9: every pair comes up
    path = _path(regime, profile, intervals, int(rng.integers(2**40, 2**41)), trace)
    request_seed = int(rng.integers(2**40, 2**41)) + again
    schedule = schedule_splits(driver, rng, profile, intervals)
    return Episode(number, "train", setting, regime, driver, path, request_seed, schedule)


@functools.cache
def policies(profile: Profile) -> tuple[str, ...]:
    """Who controls a setting of the test design: ``TRAINED`` too, where they are shipped for the profile."""
    layout = ObservationLayout(profile)
    shipped = [name for name in TRAINED if run_folder.is_run(from_run.shipped_folder(name, "agents", layout))]
    return (*POLICIES, *shipped)


def _test(number: int, profile: Profile, intervals: int, seed: int) -> Episode:
    setting, place = divmod(number, episodes_for(1, profile))
    regime = TEST_REGIMES[setting % len(TEST_REGIMES)]
    rng = np.random.default_rng([seed, setting, _STREAM + 1])
    path_seed, first = (int(s) for s in rng.integers(2**42, 2**43, 2))
    path = _path(regime, profile, intervals, path_seed)
    schedule = schedule_splits("steps", rng, profile, intervals)
    if place <= REPEATS:  # the last of them has the first one's requests
        again = place == REPEATS
        group, request_seed = ("retake", first) if again else ("repeat", first + place)
        return Episode(number, group, setting, regime, "steps", path, request_seed, schedule)
    if place < _DRIVEN:
        seed_number, which = divmod(place - _SPLITS, len(SWEEP))
        split = np.full(SWEEP_INTERVALS, SWEEP[which])
        return Episode(number, "sweep", setting, regime, "hold", _stationary(path), first + seed_number, split)
    controllers = policies(profile)
    seed_number, which = divmod(place - _DRIVEN, len(controllers))
    return Episode(number, "policy", setting, regime, controllers[which], path, first + seed_number, None)


DESIGNS: dict[str, Callable[[int, Profile, int, int], Episode]] = {"train": _train, "test": _test}


def episodes_for(settings: int, profile: Profile) -> int:
    """How many episodes of the test design judge so many settings."""
    return settings * (_DRIVEN + POLICY_SEEDS * len(policies(profile)))


def round_of(design: str, number: int, profile: Profile) -> int:
    """The first of those episodes that are served in turns with episode ``number``."""
    place = number % episodes_for(1, profile)
    if design != "test" or place < _SPLITS:
        return number
    start, width = (_SPLITS, len(SWEEP)) if place < _DRIVEN else (_DRIVEN, len(policies(profile)))
    return number - (place - start) % width


def _path(regime: str, profile: Profile, intervals: int, seed: int, trace: Trace | None = None) -> WorkloadPath:
    if regime == "excite":
        return excite(profile, intervals, seed)
    return make_path(regime, profile, [seed], intervals, trace)


def _stationary(path: WorkloadPath) -> WorkloadPath:
    """The parameters of the path's middle, held: where a surrogate's optimum is compared with the true one."""
    middle = path.intervals // 2
    values = np.repeat(path.values[:, middle : middle + 1], SWEEP_INTERVALS, axis=1)
    if (values[0, :, INDEX["turnover"]] >= 1.0).all():  # a segment's edge
        values[:] = path.values[:, middle + 1 : middle + 2]
    shape = (1, SWEEP_INTERVALS)
    return WorkloadPath(values, poisson_gaps(*shape, path.gaps_s.shape[2]), np.zeros(shape, np.int64), (("held",),))


def excite(profile: Profile, intervals: int, seed: int) -> WorkloadPath:
    """A path whose segments draw every parameter anew, over wider ranges than any regime; a third of them drift."""
    rng = np.random.default_rng([seed, _STREAM + 2])
    values, load = np.tile(at_rest(profile), (intervals, 1)), np.zeros(intervals)
    segment, start, number = np.zeros(intervals, np.int64), 0, 0
    present = _setting(profile, rng)
    while start < intervals:
        stop = min(intervals, start + int(rng.integers(24, 110)))
        following = _setting(profile, rng)
        share = np.linspace(0.0, 1.0 if rng.random() < 1 / 3 else 0.0, stop - start)[:, None]
        values[start:stop] = present + share * (following - present)
        if start > 0 and rng.random() < 0.7:
            values[start, INDEX["turnover"]] = 1.0
        load[start:stop] = rng.uniform(0.3, 0.95)
        segment[start:stop] = number
        present = following
        start, number = stop, number + 1
    for name in ("hot_users", "delta_tokens", "candidates"):
        values[:, INDEX[name]] = np.round(values[:, INDEX[name]])
    values[:, INDEX["arrival_rate_rps"]] = _rates(profile, values, load, segment)
    gaps = poisson_gaps(1, intervals, profile.interval.requests)
    return WorkloadPath(values[None], gaps, segment[None], (("excite",) * number,))


def _setting(profile: Profile, rng: np.random.Generator) -> NDArray[np.float64]:
    p, model = profile.population, profile.model
    x = at_rest(profile)
    drawn = {
        "hot_share": rng.uniform(0.02, 0.98),
        "hot_users": p.hot_users * np.exp(rng.uniform(np.log(0.5), np.log(2.0))),
        "mean_history": min(p.mean_history * rng.uniform(0.6, 2.0), 0.65 * model.max_history),
        "item_zipf": np.clip(p.item_zipf + rng.uniform(-0.2, 0.5), 0.45, 1.35),
        "item_drift": 0.0 if rng.random() < 0.5 else rng.uniform(0, 40),
        "turnover": p.turnover * np.exp(rng.uniform(np.log(0.25), np.log(4.0))),
        "new_share": rng.uniform(0, 0.2) if rng.random() < 0.4 else rng.uniform(0, 1),
        "delta_tokens": p.delta_tokens * np.exp(rng.uniform(np.log(0.5), np.log(2.0))),
        "candidates": min(p.candidates * rng.uniform(0.5, 1.33), model.max_candidates),
    }
    if rng.random() < 0.5:  # half of the settings differ from the profile's rest in how people ask, and not in how much
        drawn |= {"delta_tokens": p.delta_tokens, "candidates": p.candidates}
    for name, value in drawn.items():
        x[INDEX[name]] = value
    return x


def _rates(
    profile: Profile, values: NDArray[np.float64], load: NDArray[np.float64], segment: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Arrival rates from the closed form, at the ends of each segment and in between by interpolation."""
    rates = np.empty(len(values))
    for number in range(segment[-1] + 1):
        inside = np.flatnonzero(segment == number)
        ends = values[[min(inside[0] + 1, inside[-1]), inside[-1]]]  # past the edge, whose turnover is not at rest
        first, last = rate_for_load(profile, ends, load[inside[[0, -1]]]).tolist()
        rates[inside] = np.linspace(first, last, len(inside))
    return rates


def schedule_splits(driver: str, rng: np.random.Generator, profile: Profile, intervals: int) -> NDArray[np.float64]:
    """Targets (intervals,) within the profile's bounds."""
    low, high = profile.pool.min_alpha, profile.pool.max_alpha
    if driver == "hold":
        targets = np.full(intervals, rng.uniform(low, high))
    elif driver == "steps":
        lengths = rng.integers(6, 90, intervals)
        targets = np.repeat(rng.uniform(low, high, intervals), lengths)[:intervals]
    elif driver == "sweep":
        turns = rng.uniform(low, high, int(rng.integers(4, 12)))
        targets = np.interp(np.linspace(0, len(turns) - 1, intervals), np.arange(len(turns)), turns)
    else:  # walk: as a controller goes, in small steps about where it wants to be
        targets = np.empty(intervals)
        at, goal = rng.uniform(low, high, 2)
        for t in range(intervals):
            if rng.random() < 0.03:
                goal = rng.uniform(low, high)
            at += np.clip(goal - at, -0.03, 0.03) + rng.normal(0.0, 0.012)
            at = targets[t] = np.clip(at, low, high)
    return np.clip(targets, low, high)
