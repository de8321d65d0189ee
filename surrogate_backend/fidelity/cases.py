"""What a log holds to judge a surrogate by: its settings, and the episodes of each by what they are for."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from surrogate_backend.data.excitation import SWEEP
from surrogate_backend.data.log import LoggedEpisode, read_log

Floats = NDArray[np.float64]
GROUPS = ("repeat", "retake", "sweep", "policy")
TIMES = (
    *("service_mean_ms", "service_p99_ms", "sojourn_mean_ms", "sojourn_p99_ms"),
    *("interval_service_ms", "interval_sojourn_ms"),
)
SERIES = (*TIMES, "emb_hit_rate", "kv_hit_rate", "alpha")
_AFTERMATH = 10  # intervals: a queue of sixty milliseconds is gone by then


@dataclasses.dataclass(frozen=True)
class Case:
    """One real episode; arrays lead with its intervals.

    Attributes:
        driver: of alpha: a schedule's kind, or a policy's name.
        workload: (T, parameters); gaps_s: (T, requests), NaN where arrivals are Poisson.
        asked_alpha: (T,), the targets that were asked for.
        series: ``SERIES``, (T,) each; times over the machine's speed.
        kept: (T,), whether an interval counts in comparisons and expectations; see ``_undisturbed``.
    """

    driver: str
    request_seed: int
    start_alpha: float
    warmup: int
    workload: Floats
    gaps_s: Floats
    asked_alpha: Floats
    series: Mapping[str, Floats]
    kept: NDArray[np.bool_]

    @property
    def intervals(self) -> int:
        return len(self.workload)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One workload path and its episodes; a group that the log lacks is empty.

    Attributes:
        repeats: one schedule of alpha under different request seeds.
        retakes: repeats served again with the same requests.
        sweep: splits held on the path's stationary part, by ascending alpha; each with one request seed or more.
        policies: controllers on the path, each with one request seed or more.
        ends: least and largest split that a whole sweep has.
    """

    number: int
    regime: str
    repeats: tuple[Case, ...]
    retakes: tuple[Case, ...]
    sweep: tuple[Case, ...]
    policies: tuple[Case, ...]
    ends: tuple[float, float] = (SWEEP[0], SWEEP[-1])

    @property
    def label(self) -> str:
        return f"{self.number}: {self.regime}"

    @property
    def splits(self) -> dict[float, tuple[Case, ...]]:
        """The episodes of each held split, by its alpha."""
        alphas = dict.fromkeys(float(case.asked_alpha[0]) for case in self.sweep)
        return {alpha: tuple(case for case in self.sweep if case.asked_alpha[0] == alpha) for alpha in alphas}

    @property
    def curve(self) -> Floats:
        """Mean service time (ms) at each held split."""
        return np.array([along(cases, "interval_service_ms").mean() for cases in self.splits.values()])

    @property
    def controllers(self) -> dict[str, tuple[Case, ...]]:
        """The episodes of each controller, by its name."""
        names = dict.fromkeys(case.driver for case in self.policies)
        return {name: tuple(case for case in self.policies if case.driver == name) for name in names}

    @property
    def disturbed(self) -> float:
        """Share of the intervals of splits and controllers that is not kept."""
        kept = [case.kept for case in (*self.sweep, *self.policies)]
        return 1.0 - float(np.concatenate(kept).mean()) if kept else 0.0

    def group(self, name: str) -> tuple[Case, ...]:
        return {"repeat": self.repeats, "retake": self.retakes, "sweep": self.sweep, "policy": self.policies}[name]


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a log's figures come from."""

    folder: str
    rung: str
    machine: str
    dates: str
    code_version: str
    episodes: int
    intervals: int


def stack(cases: Sequence[Case], name: str) -> Floats:
    """One field of several episodes of one length, (episodes, T)."""
    return np.stack([case.series[name] for case in cases])


def along(cases: Sequence[Case], name: str) -> Floats:
    """One field of several episodes, one behind the other, in those intervals that are kept."""
    return np.concatenate([case.series[name][case.kept] for case in cases])


def gather(folder: pathlib.Path, profile: Profile) -> tuple[tuple[Setting, ...], Origin]:
    """Reads a log and puts its episodes into settings.

    Raises:
        InvalidInputError: a log that cannot be used (log.read_log), one without episodes to judge by, of more than
            one rung, or whose repeats are not of one path.
    """
    longest = _longest_ms(profile)
    found = [(e.constants, _case(e, longest)) for e in read_log(folder, profile, GROUPS)]
    origin = origin_of(folder, [(constants, case.intervals) for constants, case in found])
    return to_settings(folder, found, (SWEEP[0], SWEEP[-1])), origin


def to_settings(
    folder: pathlib.Path, episodes: Sequence[tuple[Mapping[str, Any], Case]], ends: tuple[float, float]
) -> tuple[Setting, ...]:
    """Puts episodes, each with its constants in the log, into settings; ends: of a whole sweep.

    Raises:
        InvalidInputError: repeats that are not of one path, or sweeps of different lengths.
    """
    found: dict[int, dict[str, list[Case]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    labels: dict[int, str] = {}
    for constants, case in episodes:
        found[constants["setting"]][constants["group"]].append(case)
        nodes = f", {constants['nodes']} nodes" if "nodes" in constants else ""
        labels[constants["setting"]] = f"{constants['regime']}{nodes}"
    return tuple(_setting(folder, n, labels[n], found[n], ends) for n in sorted(found))


def origin_of(folder: pathlib.Path, episodes: Sequence[tuple[Mapping[str, Any], int]]) -> Origin:
    """Where episodes come from, given each one's constants and number of intervals.

    Raises:
        InvalidInputError: none, or episodes of more than one rung.
    """
    if not episodes:
        raise InvalidInputError(
            f"Log {folder} holds no episode to judge a surrogate by; collect one with `helm-gym collect --design test`."
        )
    keys = ("rung", "machine", "date", "code_version")
    seen = {key: sorted({constants[key] for constants, _ in episodes}) for key in keys}
    if len(seen["rung"]) > 1:
        raise InvalidInputError(f"Log {folder} mixes the rungs {' and '.join(seen['rung'])}; judge each alone.")
    dates = seen["date"]
    return Origin(
        folder=str(folder),
        rung=seen["rung"][0],
        machine="; ".join(seen["machine"]),
        dates=dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
        code_version=", ".join(seen["code_version"]),
        episodes=len(episodes),
        intervals=sum(intervals for _, intervals in episodes),
    )


def _longest_ms(profile: Profile) -> float:
    """Time of the longest request there can be, that misses everything, by the cost model."""
    cost, history = profile.cost, profile.model.max_history
    tokens = history + profile.model.max_candidates
    computed = cost.base_ms + tokens * (cost.per_token_ms + history * cost.per_pair_ms) + history * cost.per_context_ms
    return computed + profile.link.latency_ms + tokens * profile.row_ms


def _case(episode: LoggedEpisode, longest_ms: float) -> Case:
    speed = episode.telemetry["speed"]
    constants = episode.constants
    # Longer than any request can take: its host took the processor away meanwhile.
    taken = np.flatnonzero((episode.service_ms > longest_ms * speed[:, None]).any(axis=1))
    kept = np.ones(len(speed), bool)
    for first in taken:
        kept[first : first + _AFTERMATH] = False
    return Case(
        driver=constants["driver"],
        request_seed=constants["request_seed"],
        start_alpha=constants["start_alpha"],
        warmup=constants["warmup"],
        workload=episode.workload,
        gaps_s=episode.gaps_s,
        asked_alpha=episode.asked_alpha,
        series={name: episode.telemetry[name] / (speed if name in TIMES else 1.0) for name in SERIES},
        kept=kept,
    )


def _undisturbed(cases: Sequence[Case]) -> tuple[Case, ...]:
    """Cases that were served in turns: what disturbed one of a request seed's counts in none of them.

    A request that the machine's host interrupts takes tens of milliseconds, and the queue behind it is longer than what
    tells two controllers apart; one request in twenty thousand is enough to change their order.
    """
    seeds = {case.request_seed for case in cases}
    kept = {seed: np.all([case.kept for case in cases if case.request_seed == seed], axis=0) for seed in seeds}
    return tuple(dataclasses.replace(case, kept=kept[case.request_seed]) for case in cases)


def _setting(
    folder: pathlib.Path, number: int, regime: str, groups: Mapping[str, list[Case]], ends: tuple[float, float]
) -> Setting:
    repeats, sweep = groups.get("repeat", []), groups.get("sweep", [])
    for case in repeats[1:]:
        same = case.intervals == repeats[0].intervals
        if not same or not (
            np.array_equal(case.workload, repeats[0].workload)
            and np.array_equal(case.asked_alpha, repeats[0].asked_alpha)
        ):
            raise InvalidInputError(
                f"Log {folder}: the repeats of setting {number} are not of one path and schedule; collect it again "
                "into an empty folder."
            )
    if len({case.intervals for case in sweep}) > 1:
        raise InvalidInputError(f"Log {folder}: the sweep of setting {number} has episodes of different lengths.")
    return Setting(
        number=number,
        regime=regime,
        repeats=tuple(repeats),
        retakes=tuple(groups.get("retake", [])),
        sweep=_undisturbed(sorted(sweep, key=lambda case: case.asked_alpha[0])),
        policies=_undisturbed(groups.get("policy", [])),
        ends=ends,
    )
