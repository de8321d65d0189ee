"""The evaluation protocol: every policy through the same episodes, beside the references that scale its gains."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym import profile as profiles
from helm_gym.backend import MEASURED, Rung, open_backend
from helm_gym.control_loop import ControlLoop, Step
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.evaluation.machine import describe_machine, versions
from helm_gym.evaluation.metrics import best_static, split_of, static_name
from helm_gym.evaluation.optimum import GRID, MAX_LANES, cut_optimum, cut_path, offline_optimum
from helm_gym.evaluation.results import Episodes, Evaluation, Optimum
from helm_gym.machine_memory import require
from helm_gym.policy import Floats, Oracle, Policy, Truth, open_policy
from helm_gym.profile import Profile
from helm_gym.tasks import Task
from helm_gym.telemetry import ALPHA_GRID
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import WorkloadPath
from helm_gym.workload.traces import Trace

Progress = Callable[[str, int, int], None]

_MEASURED_SEEDS = 2  # an episode on the measured rung takes minutes
_TIMED_EVERY = 4  # decisions
_TELEMETRY = {  # field of Episodes -> field of telemetry
    "alpha": "alpha",
    "service_ms": "interval_service_ms",
    "emb_hit_rate": "emb_hit_rate",
    "kv_hit_rate": "kv_hit_rate",
    "moved_bytes": "moved_bytes",
    "h2d_critical_bytes": "h2d_critical_bytes",
    "arrival_s": "interval_arrival_s",
    "violations": "interval_violations",
}


def evaluate(
    task: Task,
    policies: Sequence[Policy],
    backend: str = "modelled",
    profile: Profile | None = None,
    seeds: Sequence[int] | None = None,
    trace: Trace | None = None,
    references: bool = True,
    clairvoyant: bool = False,
    progress: Progress | None = None,
    optimum: Optimum | None = None,
    path: WorkloadPath | None = None,
) -> Evaluation:
    """Runs each policy once a seed, and the references that were not asked for themselves.

    On the modelled rung the references are the statics at .1 ... .9 and the regime oracle. On others the best statics,
    by mean and by P99, are chosen by replay on the modelled rung, and only they and the oracle are run; the policies
    are replayed too, so that what their gain loses from that rung to the other can be told.

    Args:
        policies: with names that differ.
        backend: its name; one that serves a single lane takes the seeds one by one.
        profile: the task's where not given.
        seeds: the task's where not given; on the measured rung the first two of them.
        trace: recorded arrivals, for the regime ``trace``.
        references: False leaves them out, and with them every gain.
        clairvoyant: also runs the clairvoyant, which takes minutes.
        progress: told what is under way, and how many intervals of all lanes are done, of how many.
        optimum: the offline optimum of these episodes, settling included, where it was found before.
        path: the workload, settling included, in place of the one that the seeds draw; its requests are still theirs.

    Raises:
        InvalidInputError: no seed, a seed twice, or two policies of one name.
        HelmError: a policy returned what is no action, or the backend reports no requests.
    """
    profile = profile or profiles.load(task.profile)
    chosen = tuple(seeds) if seeds is not None else task.seeds[: _MEASURED_SEEDS if backend in MEASURED else None]
    _check_distinct("seed", chosen)
    _check_distinct("policy", [policy.name for policy in policies], least=0)
    intervals = task.settle + task.horizon
    served = len(policies) + (len(ALPHA_GRID) + 2) * references
    require(
        len(chosen) * intervals * (served * (4 * profile.interval.requests + 8 * len(_TELEMETRY)) + 16 * len(GRID)),
        f"An evaluation of {served} policies on {len(chosen):,} seeds, {intervals:,} intervals each,",
        "give fewer seeds or a shorter horizon",
    )
    path = path or make_path(task.regime, profile, chosen, intervals, trace)
    clairvoyant = clairvoyant or any(policy.name == "clairvoyant" for policy in policies)
    limits = ["oracle", "clairvoyant"][: 1 + clairvoyant] if references else []
    statics = [static_name(alpha) for alpha in ALPHA_GRID] if references else []

    # Elsewhere than on the modelled rung, the statics and the policies run there first and the best statics once more.
    replayed = [policy for policy in policies if policy.name != "clairvoyant"]  # which would take minutes more
    apart = len(statics) + len(replayed) + 2 if statics and backend != "modelled" else 0
    runs = {policy.name for policy in policies} | set(limits) | set(() if apart else statics)
    replays = len(GRID) if optimum is None else 0
    meter = _Meter(progress, (replays + len(runs) + apart) * len(chosen) * intervals, label="offline optimum")
    case = _Case(task, profile, chosen, path, trace)
    # Opened before the replay: a backend that this machine cannot have must not cost minutes first.
    with contextlib.closing(_Bench(backend, case, meter)) as bench:
        if optimum is None:
            optimum = offline_optimum(task, profile, path, chosen, advance=meter.advance)
        case.optimum = optimum
        asked = tuple(bench.run(policy) for policy in policies)
        if not references:
            return _result(bench, asked, {}, np.nan)
        if backend == "modelled":
            beside = {name: bench.run_name(name) for name in statics}
            best = best_static(beside)
            return _result(bench, asked, beside | {name: bench.run_name(name) for name in limits}, split_of(best))
        with contextlib.closing(_Bench("modelled", case, meter)) as twin:
            there = {name: twin.run_name(name) for name in statics}
            best, best_p99 = best_static(there), best_static(there, tail=True)
            there["oracle"] = twin.run_name("oracle")
            modelled = _result(twin, tuple(twin.run(policy) for policy in replayed), there, split_of(best))
        beside = {name: bench.run_name(name) for name in dict.fromkeys([best, best_p99, *limits])}
        return dataclasses.replace(_result(bench, asked, beside, split_of(best)), modelled=modelled)


def _result(bench: _Bench, asked: tuple[Episodes, ...], beside: dict[str, Episodes], best: float) -> Evaluation:
    """What a bench has run: the policies, and the references beside them."""
    case, scored = bench.case, slice(bench.case.task.settle, None)
    assert case.optimum is not None
    return Evaluation(
        task=case.task,
        rung=bench.rung,
        profile=case.profile.name,
        seeds=case.seeds,
        slo_ms=bench.slo_ms,
        path=cut_path(case.path, intervals=scored),
        optimum=cut_optimum(case.optimum, scored),
        policies=asked,
        references=beside,
        best_static=best,
        machine=describe_machine("cpu" if bench.backend == "modelled" else case.profile.device),
        versions=versions(),
        date=datetime.date.today().isoformat(),
    )


def _check_distinct(kind: str, given: Sequence[object], least: int = 1) -> None:
    if len(given) < least:
        raise InvalidInputError(f"An evaluation needs at least one {kind}.")
    twice = [x for i, x in enumerate(given) if x in given[:i]]
    if twice:
        raise InvalidInputError(f"The {kind} '{twice[0]}' was given twice; give each once.")


@dataclasses.dataclass
class _Meter:
    """Progress over all runs of an evaluation, in intervals of all lanes."""

    report: Progress | None
    total: int
    done: int = 0
    label: str = ""

    def advance(self, count: int) -> None:
        self.done = min(self.done + count, self.total)
        if self.report is not None:
            self.report(self.label, self.done, self.total)


@dataclasses.dataclass
class _Case:
    """What all runs of an evaluation share; the path and the optimum with settling."""

    task: Task
    profile: Profile
    seeds: tuple[int, ...]
    path: WorkloadPath
    trace: Trace | None
    optimum: Optimum | None = None


class _Bench:
    """A backend that runs policies through a case, each once."""

    def __init__(self, backend: str, case: _Case, meter: _Meter):
        self.backend, self.case, self.meter = backend, case, meter
        self.lanes = 1 if backend in MEASURED else min(MAX_LANES, len(case.seeds))
        self._loops: dict[int, ControlLoop] = {}
        self._done: dict[str, Episodes] = {}
        self._slo_ms: list[float] = []
        self.rung: Rung = self._loop(self.lanes).backend.spec.rung

    @property
    def slo_ms(self) -> float:
        """The SLO of this rung; a backend that measures sets it at each reset, and then it is their mean."""
        return float(np.mean(self._slo_ms or self._loop(self.lanes).backend.slo_ms))

    def close(self) -> None:
        for loop in self._loops.values():
            loop.backend.close()

    def run_name(self, name: str) -> Episodes:
        """A reference's episodes; those that it has if it was asked for itself."""
        return self._done[name] if name in self._done else self.run(open_policy(name, self._loop(self.lanes).layout))

    def run(self, policy: Policy) -> Episodes:
        """The policy's episodes, all seeds."""
        self.meter.label = policy.name
        seeds = len(self.case.seeds)
        parts = [self._run_block(policy, slice(first, first + self.lanes)) for first in range(0, seeds, self.lanes)]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._done[policy.name] = Episodes(policy.name, **arrays)
        return self._done[policy.name]

    def _loop(self, lanes: int) -> ControlLoop:
        """The control loop for so many lanes; opened once, for the measured backend takes long to open."""
        if lanes not in self._loops:
            case = self.case
            backend = open_backend(self.backend, case.profile, lanes=lanes)
            self._loops[lanes] = ControlLoop(case.task, backend, trace=case.trace, intervals=case.path.intervals)
        return self._loops[lanes]

    def _run_block(self, policy: Policy, lanes: slice) -> dict[str, Any]:
        """One episode a lane, side by side; the arrays of ``Episodes`` by name."""
        case, seeds = self.case, self.case.seeds[lanes]
        loop = self._loop(len(seeds))
        if isinstance(policy, Oracle):
            assert case.optimum is not None
            star = case.optimum.alpha_star[lanes]
            policy.prepare(Truth(case.task, case.profile, cut_path(case.path, lanes), seeds, star))
        step = loop.reset(seeds, cut_path(case.path, lanes))
        self._slo_ms += [loop.backend.slo_ms] * len(seeds)
        state = policy.initial_state(math.prod(loop.shape))
        kept: list[dict[str, NDArray[np.floating]]] = []
        decision_us: list[float] = []
        for t in range(loop.intervals):
            observation = step.observation.reshape(-1, step.observation.shape[-1])
            scored = t >= case.task.settle
            if scored and len(kept) % _TIMED_EVERY == 0:
                decision_us.append(_time_one(policy, observation, state))
            action, state = _decide(policy, observation, state, f"interval {t}", lanes.start, seeds)
            step = loop.step(action.reshape(*loop.shape, 1))
            if scored:
                kept.append(_record(step, self.backend))
            self.meter.advance(len(seeds))
        arrays = {name: np.stack([interval[name] for interval in kept], axis=1) for name in kept[0]}
        return arrays | {"decision_us": np.array(decision_us)}


def _time_one(policy: Policy, observation: Floats, state: Floats) -> float:
    """Time of one node's decision (us), which a batch's share would flatter. Its result is dropped: ``act`` is pure."""
    observation, state = observation[:1].copy(), state[:1].copy()
    start = time.perf_counter_ns()
    policy.act(observation, state)
    return (time.perf_counter_ns() - start) / 1e3


def _decide(
    policy: Policy, observation: Floats, state: Floats, when: str, first: int, seeds: Sequence[int]
) -> tuple[Floats, Floats]:
    """The policy's actions (lanes, 1) and next state; the lanes are those from ``first`` on.

    Raises:
        HelmError: an action or a state of a wrong shape or not finite; it names the policy, the interval, the lane and
            what was observed.
    """
    action, following = policy.act(observation, state)
    action, following = np.asarray(action), np.asarray(following)
    for what, given, shape in (("actions", action, (len(seeds), 1)), ("a state", following, state.shape)):
        if given.shape != shape:
            raise HelmError(
                f"Policy '{policy.name}' returned {what} of shape {given.shape} at {when} for {len(seeds)} lanes from "
                f"lane {first} (seed {seeds[0]}) on; {shape} is needed. Observed in that lane: {_text(observation[0])}."
            )
        bad = np.argwhere(~np.isfinite(given))
        if len(bad):
            lane = int(bad[0, 0])
            raise HelmError(
                f"Policy '{policy.name}' returned {what} of {given[tuple(bad[0])]} at {when} in lane {first + lane} "
                f"(seed {seeds[lane]}); they must be finite. Observed: {_text(observation[lane])}."
            )
    return action, following


def _text(observation: Floats) -> str:
    return np.array2string(observation, precision=4, separator=", ", max_line_width=10_000)


def _record(step: Step, backend: str) -> dict[str, NDArray[np.floating]]:
    """One interval of ``Episodes``, each (lanes,) or (lanes, requests)."""
    telemetry = step.telemetry
    if telemetry.sojourn_ms is None:
        raise HelmError(
            f"Backend '{backend}' reports no single requests, so P99 is unknown; evaluate on 'modelled' or 'real'."
        )
    interval: dict[str, NDArray[np.floating]] = {
        name: telemetry[field][:, 0].copy() for name, field in _TELEMETRY.items()
    }
    return interval | {"sojourn_ms": telemetry.sojourn_ms[:, 0].astype(np.float32), "cost": -step.reward}
