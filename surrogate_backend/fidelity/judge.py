"""Judges a surrogate by a log: runs it on the log's settings and holds what it reports against what was logged."""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from helm_gym.backend import Backend
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.provenance import describe_machine, versions
from surrogate_backend.data.excitation import SWEEP
from surrogate_backend.data.log import is_of_clusters
from surrogate_backend.fidelity import statistics as st
from surrogate_backend.fidelity.cases import Case, Setting, along, gather, stack
from surrogate_backend.fidelity.judgement import Choice, Judged, Judgement
from surrogate_backend.fidelity.measures import (
    EXPECTED_FIELDS,
    HIT_FIELDS,
    KEYS,
    MEASURES,
    PATH_FIELDS,
    PATH_KEYS,
)
from surrogate_backend.fidelity.rollout import Rollout, Twin, Work
from surrogate_backend.fidelity.trust import Stretch, Trust, map_trust

Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]  # what is under way, intervals done, intervals in all
LANES = 256
SWEEP_LANES, POLICY_LANES = 32, 64  # of each split and controller
SWEEP_BLOCKS, POLICY_BLOCKS = 20, 24  # of each episode
LEAST_SPLITS, LEAST_POLICIES = 5, 3
_NEEDS = {
    "repeat": "at least two episodes of the group 'repeat', with different request seeds",
    "sweep": f"the group 'sweep': at least {LEAST_SPLITS} evenly spaced splits from {SWEEP[0]} to {SWEEP[-1]}",
    "bias": "the group 'sweep'",
    "policy": f"the group 'policy': at least {LEAST_POLICIES} controllers",
}


def judge(
    checkpoint: pathlib.Path,
    log: pathlib.Path,
    profile: Profile,
    progress: Progress | None = None,
    open_twin: Callable[[int], Backend] | None = None,
    lanes: int = LANES,
) -> Judgement:
    """Runs the surrogate free and in closed loop on the settings of ``log`` and compares.

    Figures and floors are defined in ``measures.MEASURES``. Times are divided by telemetry's ``speed``, so that a
    measured log does not depend on how fast its machine was at the time; splits and controllers are compared, and
    expectations taken, without the intervals in which its host took the processor away (``cases``). A log that lacks
    episodes is judged by what it has.

    Args:
        checkpoint: of the surrogate.
        log: a folder of the design ``test``, of either rung.
        profile: that the log is of.
        progress: told what is under way and how far it is.
        open_twin: opens the surrogate with so many lanes, in place of the checkpoint's surrogate.
        lanes: episodes that the surrogate runs at once; expectations are averaged over as many. A cluster's surrogate,
            which is opened for each size anew, runs clusters.fidelity.LANES.

    Raises:
        InvalidInputError: a log that cannot be used, of another profile, or without episodes to judge by.
    """
    if is_of_clusters(log):
        from surrogate_backend.fidelity.cluster import ClusterTwin, gather_clusters

        settings, origin = gather_clusters(log, profile)
        if open_twin is not None:
            raise InvalidInputError(
                f"{log} is a log of clusters, which the checkpoint's own surrogate alone is run on."
            )
        of_clusters = ClusterTwin(profile, checkpoint, origin.rung)
        lanes, name = of_clusters.lanes, of_clusters.name
        runs = _run(of_clusters, settings, progress)
    else:
        settings, origin = gather(log, profile)
        if open_twin is None:
            from surrogate_backend.backend import SurrogateBackend

            backend: Backend = SurrogateBackend(profile, lanes=lanes, checkpoint=checkpoint, of=origin.rung)
        else:
            backend = open_twin(lanes)
        with contextlib.closing(backend):
            runs = _run(Twin(backend), settings, progress)
            name = backend.spec.name
    judged = tuple(_judge(setting, *run) for setting, run in zip(settings, runs, strict=True))
    floor, figures = (_over_settings([getattr(s, side) for s in judged], KEYS) for side in ("floor", "surrogate"))
    figures["stationary_bias"] = abs(figures["stationary_bias"])  # its sign belongs to the settings
    noises = [noise for s in settings if len(noise := _bias_noise(s))]
    floor["stationary_bias"] = st.noise_of_mean(noises) if noises else math.nan
    stands_on, missing = _basis(judged)
    return Judgement(
        rung=origin.rung,
        profile=profile.name,
        checkpoint=str(checkpoint),
        twin=name,
        lanes=lanes,
        machine=describe_machine(),
        date=datetime.date.today().isoformat(),
        versions=versions(),
        origin=origin,
        floor=floor,
        surrogate=figures,
        timing=_over_settings([s.timing for s in judged], PATH_KEYS),
        stands_on=stands_on,
        missing=missing,
        settings=judged,
        trust=_trust(judged),
    )


class Player(Protocol):
    """Runs cases on a surrogate: rollout.Surrogate, or clusters.fidelity.ClusterTwin."""

    @property
    def lanes(self) -> int: ...

    def steps(self, work: Work) -> int: ...

    def run(self, work: Work, stepped: Callable[[], None]) -> list[Rollout]: ...


def _run(
    twin: Player, settings: Sequence[Setting], progress: Progress | None
) -> list[tuple[Rollout | None, tuple[Rollout, ...], tuple[Rollout, ...]]]:
    """The surrogate's rollouts of each setting: of the repeats' schedule, of each split, of each controller."""
    done = total = 0

    def tell(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, total)

    lanes = twin.lanes
    fewer = max(2, lanes // 4)
    splits = [cases[0] for s in settings for cases in s.splits.values()]
    controllers = [cases[0] for s in settings for cases in s.controllers.values()]
    works = {
        "schedules": Work([s.repeats[0] for s in settings if s.repeats], lanes),
        "held splits": Work(splits, min(SWEEP_LANES, fewer)),
        "controllers": Work(controllers, min(POLICY_LANES, fewer), controlled=True),
    }
    total = sum(twin.steps(work) for work in works.values())
    repeats, sweeps, policies = (iter(twin.run(w, functools.partial(tell, what))) for what, w in works.items())
    return [
        (
            next(repeats) if s.repeats else None,
            tuple(itertools.islice(sweeps, len(s.splits))),
            tuple(itertools.islice(policies, len(s.controllers))),
        )
        for s in settings
    ]


def _judge(setting: Setting, repeat: Rollout | None, sweep: tuple[Rollout, ...], policy: tuple[Rollout, ...]) -> Judged:
    pairs: dict[str, tuple[float, float]] = {}  # figure -> floor, surrogate
    if repeat is not None and len(setting.repeats) > 1:
        for key, field in PATH_FIELDS.items():
            pairs[key] = st.path_error(repeat.series[field], stack(setting.repeats, field))
        kept = np.stack([case.kept for case in setting.repeats])
        for key, field in (EXPECTED_FIELDS | HIT_FIELDS).items():
            relative, middle = key in EXPECTED_FIELDS, np.nanmedian if key == "expected_sojourn_mape" else np.nanmean
            real = np.where(kept, stack(setting.repeats, field), np.nan)
            errors = st.expected_error(repeat.series[field], real, relative)
            pairs[key] = float(middle(errors[0])), float(middle(errors[1]))
    stars = None
    if sweep:
        real, mine = setting.curve, np.array([r.series["interval_service_ms"].mean() for r in sweep])
        bias = st.PERCENT * float((mine / real - 1.0).mean())
        noise = _bias_noise(setting)
        pairs["stationary_bias"] = float(np.abs(noise).mean()) if len(noise) else math.nan, bias
        if _whole(setting):
            pairs |= _alpha_star(setting, mine)
            splits = np.array([*setting.splits])
            stars = float(st.alpha_star(splits, real)), float(st.alpha_star(splits, mine))
    choice = None
    if len(policy) >= LEAST_POLICIES:
        choice, taus = _ranking(setting, policy)
        pairs["kendall_tau_mean"] = pairs["kendall_tau_min"] = taus
    said = [r.extrapolating for r in (repeat, *sweep, *policy) if r is not None and r.extrapolating is not None]
    return Judged(
        setting=setting,
        repeat=repeat,
        sweep=sweep,
        policy=policy,
        floor={key: pair[0] for key, pair in pairs.items()},
        surrogate={key: pair[1] for key, pair in pairs.items()},
        timing=_timing(setting),
        stars=stars,
        choice=choice,
        extrapolating=float(np.concatenate([flags.ravel() for flags in said]).mean()) if said else None,
    )


def _whole(setting: Setting) -> bool:
    """Whether the sweep can have an optimum: one that is cut off would have it at its end."""
    splits = np.array([*setting.splits])
    return bool(
        len(splits) >= LEAST_SPLITS
        and np.ptp(np.diff(splits)) < 1e-6
        and splits[0] <= setting.ends[0] + 1e-6
        and splits[-1] >= setting.ends[1] - 1e-6
    )


def _bias_noise(setting: Setting) -> Floats:
    """Samples of the bias that a perfect surrogate would show against one seed's sweep; none without repeats."""
    if not setting.sweep or len(setting.repeats) < 2:
        return np.empty(0)
    return st.seed_noise(stack(setting.repeats, "interval_service_ms"), setting.sweep[0].intervals)


def _alpha_star(setting: Setting, twin: Floats) -> dict[str, tuple[float, float]]:
    splits, real = np.array([*setting.splits]), setting.curve
    one, other = _halves(setting.splits.values(), "interval_service_ms", SWEEP_BLOCKS)
    first, second = (st.alpha_star(splits, half) for half in (one, other))
    mine = float(st.alpha_star(splits, twin))
    costs = [st.regret(splits, half, star) for half, star in zip(other.T, first.tolist(), strict=True)]
    return {
        "alpha_star_mae": (
            float(0.5 * np.abs(first - second).mean()),
            abs(mine - float(st.alpha_star(splits, real))),
        ),
        "alpha_star_regret": (0.25 * float(np.mean(costs)), st.regret(splits, real, mine)),
    }


def _ranking(setting: Setting, policy: Sequence[Rollout]) -> tuple[Choice, tuple[float, float]]:
    """What following the surrogate's ranking comes to; floor and surrogate's tau."""
    sojourn = "interval_sojourn_ms"
    controllers = setting.controllers
    real = np.array([along(cases, sojourn).mean() for cases in controllers.values()])
    lanes = np.stack([rollout.series[sojourn].mean(axis=1) for rollout in policy])  # (policies, lanes)
    mine = lanes.mean(axis=1)
    one, other = _halves(controllers.values(), sojourn, POLICY_BLOCKS)
    floor = float(np.mean([st.tau(a, b) for a, b in zip(one.T, other.T, strict=True)]))
    first, best = int(mine.argmin()), int(real.argmin())
    choice = Choice(
        twin=list(controllers)[first],
        real=list(controllers)[best],
        place=int((real < real[first]).sum()) + 1,
        policies=len(real),
        cost=st.PERCENT * float(real[first] / real[best] - 1.0),
        lane_tau=float(np.mean([st.tau(real, lane) for lane in lanes.T])),
    )
    return choice, (floor, st.tau(real, mine))


def _halves(compared: Iterable[Sequence[Case]], name: str, blocks: int) -> tuple[Floats, Floats]:
    """Means of one field over two halves of each one's episodes, of ``blocks`` blocks each; (compared, ways) each."""
    means = [st.halved_means(along(cases, name), blocks * len(cases)) for cases in compared]
    one, other = (np.stack(side) for side in zip(*means, strict=True))
    return one, other


def _timing(setting: Setting) -> dict[str, float]:
    """Path errors between an episode and its requests timed again."""
    first = {case.request_seed: case for case in setting.repeats}
    pairs = [(first[again.request_seed], again) for again in setting.retakes if again.request_seed in first]
    if not pairs:
        return {}
    once, twice = zip(*pairs, strict=True)
    return {
        key: float(st.pair_error(stack(twice, field), stack(once, field)).mean()) for key, field in PATH_FIELDS.items()
    }


def _over_settings(figures: Sequence[Mapping[str, float]], keys: Iterable[str]) -> dict[str, float]:
    """The mean over those settings that have a figure, and the least tau; NaN where none has."""
    found = {}
    for key in keys:
        values = [of[key] for of in figures if math.isfinite(of.get(key, math.nan))]
        aggregate = min if key == "kendall_tau_min" else np.mean
        found[key] = float(aggregate(values)) if values else math.nan
    return found


def _basis(judged: Sequence[Judged]) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """By figure, how many settings and episodes it stands on, and what it lacks."""
    stands_on, missing = {}, {}
    for measure in MEASURES:
        has = [s.setting for s in judged if measure.key in s.surrogate]
        stands_on[measure.key] = {
            "settings": len(has),
            "episodes": sum(len(setting.group(measure.group)) for setting in has),
        }
        lacks = [s.setting.label for s in judged if measure.key not in s.surrogate]
        needs = _NEEDS["bias" if measure.key == "stationary_bias" else measure.group]
        if not has:
            missing[measure.key] = f"No setting of the log has {needs}."
        elif not any(math.isfinite(s.floor.get(measure.key, math.nan)) for s in judged):
            missing[measure.key] = f"The floor needs {_NEEDS['repeat']} of the same setting."
        elif lacks:
            missing[measure.key] = f"Left out, for want of {needs}: {'; '.join(lacks)}."
    return stands_on, missing


def _trust(judged: Sequence[Judged]) -> Trust:
    stretches = []
    for s in judged:
        pairs = [(s.setting.repeats, s.repeat)] if s.repeat is not None else []
        pairs += zip(s.setting.splits.values(), s.sweep, strict=True)
        for cases, rollout in pairs:
            real = stack(cases, "service_mean_ms").mean(axis=0)
            stretches.append(
                Stretch(
                    error=st.PERCENT * (rollout.series["service_mean_ms"].mean(axis=0) / real - 1.0),
                    alpha=stack(cases, "alpha").mean(axis=0),
                    workload=cases[0].workload,
                )
            )
    return map_trust(stretches)
