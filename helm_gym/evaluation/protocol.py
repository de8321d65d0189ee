"""The evaluation protocol: every policy through the same episodes, beside the references that scale its gains."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from helm_gym import profile as profiles
from helm_gym.backend import Rung, is_measured, open_backend
from helm_gym.cluster.topology import Cluster
from helm_gym.control_loop import ControlLoop, draw_path
from helm_gym.errors import InvalidInputError
from helm_gym.evaluation.gains import best_static, split_of, static_name
from helm_gym.evaluation.optimum import GRID, MAX_LANES, cut_optimum, cut_path, offline_optimum
from helm_gym.evaluation.recording import Recording, Watched, join
from helm_gym.evaluation.results import Episodes, Evaluation, Optimum, bytes_kept
from helm_gym.machine_memory import require
from helm_gym.observation import ObservationLayout
from helm_gym.play import Entrant, open_entrant, play
from helm_gym.policy import Oracle, Policy, Truth
from helm_gym.profile import Profile
from helm_gym.provenance import describe_machine, versions
from helm_gym.tasks import Task
from helm_gym.telemetry import ALPHA_GRID
from helm_gym.workload.state import WorkloadPath
from helm_gym.workload.traces import Trace

Progress = Callable[[str, int, int], None]

_MEASURED_SEEDS = 2  # an episode on the measured rung takes minutes


def evaluate(
    task: Task,
    policies: Sequence[Policy | Entrant],
    backend: str = "modelled",
    profile: Profile | None = None,
    seeds: Sequence[int] | None = None,
    trace: Trace | None = None,
    references: bool = True,
    clairvoyant: bool = False,
    progress: Progress | None = None,
    optimum: Optimum | None = None,
    path: WorkloadPath | None = None,
    cluster: Cluster | None = None,
) -> Evaluation:
    """Runs each policy once a seed, and the references that were not asked for themselves.

    On the modelled rung the references are the statics at .1 ... .9 and the regime oracle. On others the best statics,
    by mean and by P99, are chosen by replay on the modelled rung, and only they and the oracle are run; the policies
    are replayed too, so that what their gain loses from that rung to the other can be told.

    Where time is measured, all that run are served in turns, an interval of each: what the machine does meanwhile, it
    does to all of them.

    Args:
        policies: with names that differ; a cluster's each with a router.
        backend: its name; one that serves a single lane takes the seeds one by one.
        profile: the task's where not given.
        seeds: the task's where not given; on the measured rung the first two of them.
        trace: recorded arrivals, for the regime ``trace``.
        references: False leaves them out and with them every gain, and the offline optimum unless it is given.
        clairvoyant: also runs the clairvoyant, which takes minutes.
        progress: told what is under way, and how many intervals of all lanes are done, of how many.
        optimum: the offline optimum of these episodes, settling included, where it was found before.
        path: the workload, settling included, in place of the one that the seeds draw; its requests are still theirs.
        cluster: whose nodes serve behind a router; a cluster has no offline optimum and no references.

    Raises:
        InvalidInputError: no seed, a seed twice, two policies of one name, or a policy without a router in a cluster.
        HelmError: a policy returned what is no action, or the backend reports no requests.
    """
    profile = profile or profiles.load(task.profile)
    chosen = tuple(seeds) if seeds is not None else task.seeds[: _MEASURED_SEEDS if is_measured(backend) else None]
    entrants = [entrant if isinstance(entrant, Entrant) else Entrant(entrant) for entrant in policies]
    _check_distinct("seed", chosen)
    _check_distinct("policy", [entrant.name for entrant in entrants], least=0)
    _check_routed(entrants, cluster)
    intervals = task.settle + task.horizon
    nodes = 1 if cluster is None else cluster.size
    served = len(entrants) + (len(ALPHA_GRID) + 2) * references
    require(
        len(chosen) * intervals * (served * bytes_kept(profile.interval.requests, nodes) + 16 * len(GRID)),
        f"An evaluation of {served} policies on {len(chosen):,} seeds, {intervals:,} intervals each,",
        "give fewer seeds or a shorter horizon",
    )
    path = path or draw_path(task, profile, chosen, intervals, trace, cluster)
    clairvoyant = clairvoyant or any(entrant.name == "clairvoyant" for entrant in entrants)
    scaled = references and cluster is None
    limits = ["oracle", "clairvoyant"][: 1 + clairvoyant] if scaled else []
    statics = [static_name(alpha) for alpha in ALPHA_GRID] if scaled else []

    # Elsewhere than on the modelled rung, the statics and the policies run there first and the best statics once more.
    elsewhere = [entrant for entrant in entrants if entrant.name != "clairvoyant"]  # which would take minutes more
    apart = len(statics) + len(elsewhere) + 2 if statics and backend != "modelled" else 0
    runs = {entrant.name for entrant in entrants} | set(limits) | set(() if apart else statics)
    replays = len(GRID) if optimum is None and scaled else 0
    meter = _Meter(progress, (replays + len(runs) + apart) * len(chosen) * intervals, label="offline optimum")
    case = _Case(task, profile, chosen, path, trace, cluster)
    # Opened before the replay: a backend that this machine cannot have must not cost minutes first.
    with contextlib.closing(_Bench(backend, case, meter)) as bench:
        if replays:
            optimum = offline_optimum(task, profile, path, chosen, advance=meter.advance)
        case.optimum = optimum
        if not scaled or backend == "modelled":
            beside = bench.open([*statics, *limits], entrants)
            ran = bench.run([*entrants, *beside.values()])
            found = {name: ran[name] for name in (*statics, *limits)}
            best = split_of(best_static({name: found[name] for name in statics})) if statics else np.nan
            return _result(bench, entrants, ran, found, best)
        with contextlib.closing(_Bench("modelled", case, meter)) as replay:
            ran = replay.run([*elsewhere, *replay.open([*statics, "oracle"], elsewhere).values()])
            there = {name: ran[name] for name in (*statics, "oracle")}
            held = {name: there[name] for name in statics}
            best_mean, best_p99 = best_static(held), best_static(held, tail=True)
            modelled = _result(replay, elsewhere, ran, there, split_of(best_mean))
        names = list(dict.fromkeys([best_mean, best_p99, *limits]))
        ran = bench.run([*entrants, *bench.open(names, entrants).values()])
        found = {name: ran[name] for name in names}
        return dataclasses.replace(_result(bench, entrants, ran, found, split_of(best_mean)), modelled=modelled)


def _result(
    bench: _Bench, asked: Sequence[Entrant], ran: dict[str, Episodes], beside: dict[str, Episodes], best: float
) -> Evaluation:
    """What a bench has run: the policies, and the references beside them."""
    case, scored = bench.case, slice(bench.case.task.settle, None)
    return Evaluation(
        task=case.task,
        rung=bench.rung,
        profile=case.profile.name,
        link=_link(case.profile, bench.rung),
        seeds=case.seeds,
        slo_ms=bench.slo_ms,
        path=cut_path(case.path, intervals=scored),
        optimum=None if case.optimum is None else cut_optimum(case.optimum, scored),
        policies=tuple(ran[entrant.name] for entrant in asked),
        references=beside,
        best_static=best,
        machine=describe_machine("cpu" if bench.backend == "modelled" else case.profile.device),
        versions=versions(),
        date=datetime.date.today().isoformat(),
        in_turns=bench.in_turns,
        trace="" if case.trace is None else f"{case.trace.name}: {case.trace.summary}",
        cluster=case.cluster,
    )


def _link(profile: Profile, rung: Rung) -> str:
    return "modelled" if rung == "modelled" or profile.link.modelled else "measured"


def _check_distinct(kind: str, given: Sequence[object], least: int = 1) -> None:
    if len(given) < least:
        raise InvalidInputError(f"An evaluation needs at least one {kind}.")
    twice = [x for i, x in enumerate(given) if x in given[:i]]
    if twice:
        raise InvalidInputError(f"The {kind} '{twice[0]}' was given twice; give each once.")


def _check_routed(entrants: Sequence[Entrant], cluster: Cluster | None) -> None:
    for entrant in entrants:
        if (entrant.router is None) != (cluster is None):
            raise InvalidInputError(
                f"'{entrant.name}' has {'no' if cluster is not None else 'a'} router; nodes of a cluster are evaluated "
                "as CONTROLLER+ROUTER, and a node that serves alone without one."
            )


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
    cluster: Cluster | None
    optimum: Optimum | None = None


class _Bench:
    """A backend that runs policies through a case: one after another or, where time is measured, in turns.

    Those that are served in turns have a backend each. Where in memory it lies makes one half a per cent faster or
    slower, so that which policy has which changes from block to block of seeds.
    """

    def __init__(self, backend: str, case: _Case, meter: _Meter):
        self.backend, self.case, self.meter = backend, case, meter
        self.in_turns = is_measured(backend)
        # A cluster's lane is as much as it has nodes, and a measured backend has one.
        self.lanes = 1 if self.in_turns or case.cluster is not None else min(MAX_LANES, len(case.seeds))
        self._loops: dict[tuple[int, int], ControlLoop] = {}
        self._slo_ms: list[float] = []
        self.rung: Rung = self._loop(self.lanes, 0).backend.spec.rung

    @property
    def slo_ms(self) -> float:
        """The SLO of this rung; a backend that measures sets it at each reset, and then it is their mean."""
        return float(np.mean(self._slo_ms or self._loop(self.lanes, 0).backend.slo_ms))

    def close(self) -> None:
        for loop in self._loops.values():
            loop.backend.close()

    def open(self, names: Sequence[str], asked: Sequence[Entrant]) -> dict[str, Entrant]:
        """References by name, without those that were asked for themselves."""
        there = {entrant.name for entrant in asked}
        layout = ObservationLayout(self.case.profile)
        return {name: open_entrant(name, layout, in_cluster=False) for name in names if name not in there}

    def run(self, entrants: Sequence[Entrant]) -> dict[str, Episodes]:
        """Each one's episodes, all seeds, by name."""
        width = max(1, len(entrants)) if self.in_turns else 1
        found: dict[str, Episodes] = {}
        for first in range(0, len(entrants), width):
            group = entrants[first : first + width]
            blocks = [self._run_block(group, number) for number in range(-(-len(self.case.seeds) // self.lanes))]
            found |= {parts[0].policy: join(parts) for parts in zip(*blocks, strict=True)}
        return found

    def _run_block(self, group: Sequence[Entrant], number: int) -> list[Episodes]:
        """One episode a lane of one block of seeds, an interval of each entrant in turn."""
        lanes = slice(number * self.lanes, (number + 1) * self.lanes)
        self.meter.label = group[0].name if len(group) == 1 else f"{len(group)} policies in turns"
        recordings = [Recording(entrant, self.backend) for entrant in group]
        playing = [
            self._play(recording, lanes, (place + number) % len(group)) for place, recording in enumerate(recordings)
        ]
        for _ in itertools.zip_longest(*playing):
            pass
        return [recording.episodes() for recording in recordings]

    def _play(self, recording: Recording, lanes: slice, place: int) -> Iterator[None]:
        """Plays and records, an interval each time that it is asked for one; ``place``: which backend serves it."""
        case, seeds = self.case, self.case.seeds[lanes]
        loop, path, entrant = self._loop(len(seeds), place), cut_path(case.path, lanes), recording.entrant
        if isinstance(entrant.policy, Oracle):
            if case.optimum is None:
                raise InvalidInputError(f"'{entrant.name}' is told the offline optimum; ask for references.")
            star = case.optimum.alpha_star[lanes]
            entrant.policy.prepare(Truth(case.task, case.profile, path, seeds, star))
        watched = Watched(entrant.policy, case.task.settle, seeds, lanes.start, loop.shape[1])
        for t, step in enumerate(play(loop, dataclasses.replace(entrant, policy=watched), seeds, path)):
            if t == 0:
                self._slo_ms += [loop.backend.slo_ms] * len(seeds)
            if t >= case.task.settle:
                recording.keep(step)
            self.meter.advance(len(seeds))
            yield
        recording.decision_us += watched.decision_us

    def _loop(self, lanes: int, place: int) -> ControlLoop:
        """A control loop for so many lanes; each is opened once, for the measured backend takes long to open."""
        if (lanes, place) not in self._loops:
            case = self.case
            backend = open_backend(self.backend, case.profile, lanes=lanes, cluster=case.cluster)
            self._loops[lanes, place] = ControlLoop(case.task, backend, trace=case.trace, intervals=case.path.intervals)
        return self._loops[lanes, place]
