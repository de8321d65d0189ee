"""Runs the surrogate: the schedules of a log replayed, and its controllers in closed loop, many lanes at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.backend import Backend
from helm_gym.control_loop import ControlLoop, start_warm
from helm_gym.policies.opening import open_policy
from helm_gym.tasks import Task
from helm_gym.telemetry import Telemetry
from helm_gym.workload.state import WorkloadPath, poisson_gaps
from surrogate_backend.fidelity.cases import SERIES, TIMES, Case

FIRST_SEED = 2**44  # a log's own seeds lie below


@dataclasses.dataclass(frozen=True)
class Rollout:
    """The surrogate's lanes of one case.

    Attributes:
        series: as a case's, (lanes, T) each.
        extrapolating: (lanes, T), whether the surrogate said so; None where it never says.
    """

    series: Mapping[str, NDArray[np.float64]]
    extrapolating: NDArray[np.bool_] | None


class Work(NamedTuple):
    """``each`` lanes of the surrogate for every case; ``controlled``: a policy drives it in closed loop."""

    cases: Sequence[Case]
    each: int
    controlled: bool = False


class _Job(NamedTuple):
    case: int
    seed: int


class Twin:
    """A backend whose lanes are handed out to cases.

    The k-th lanes of all cases have one seed: splits and controllers are compared on the same requests.

    Args:
        backend: any, of one node.
    """

    def __init__(self, backend: Backend):
        self.backend = backend

    @property
    def lanes(self) -> int:
        return self.backend.spec.lanes

    def steps(self, work: Work) -> int:
        """How many intervals ``run`` will step, of all lanes at once."""
        return sum(work.cases[batch[0].case].intervals for batch in self._batches(work))

    def run(self, work: Work, stepped: Callable[[], None]) -> list[Rollout]:
        """The rollouts of each case, in order; ``stepped`` is called after each interval of all lanes."""
        series = [{name: np.empty((work.each, case.intervals)) for name in SERIES} for case in work.cases]
        flags = [np.zeros((work.each, case.intervals), bool) for case in work.cases]
        says = True
        for batch in self._batches(work):
            # Lanes that are left over repeat the last job.
            filled = [*batch, *[batch[-1]] * (self.backend.spec.lanes - len(batch))]
            shape = len(filled), work.cases[batch[0].case].intervals
            record, flag = {name: np.empty(shape) for name in SERIES}, np.zeros(shape, bool)
            for t, telemetry in enumerate(self._play(work, filled)):
                speed = telemetry["speed"][:, 0]
                for name, column in record.items():
                    column[:, t] = telemetry[name][:, 0] / (speed if name in TIMES else 1.0)
                if telemetry.extrapolating is None:
                    says = False
                else:
                    flag[:, t] = telemetry.extrapolating[:, 0]
                stepped()
            for lane, job in enumerate(batch):
                place = job.seed - FIRST_SEED
                flags[job.case][place] = flag[lane]
                for name, column in record.items():
                    series[job.case][name][place] = column[lane]
        return [Rollout(s, f if says else None) for s, f in zip(series, flags, strict=True)]

    def _batches(self, work: Work) -> Iterator[list[_Job]]:
        """Jobs that can be stepped together, as many as there are lanes at most."""
        together: dict[tuple[float, ...], list[_Job]] = {}
        for number, case in enumerate(work.cases):
            # A control loop has one start for all lanes; a schedule may have its own.
            key = (case.intervals, case.warmup, case.start_alpha if work.controlled else 0.0)
            together.setdefault(key, []).extend(_Job(number, FIRST_SEED + k) for k in range(work.each))
        lanes = self.backend.spec.lanes
        for jobs in together.values():
            yield from (jobs[first : first + lanes] for first in range(0, len(jobs), lanes))

    def _play(self, work: Work, batch: Sequence[_Job]) -> Iterator[Telemetry]:
        cases, seeds = [work.cases[job.case] for job in batch], [job.seed for job in batch]
        profile, first = self.backend.spec.profile, cases[0]
        task = Task(
            "fidelity", "logged", "a log's episodes on its surrogate", profile.name, first.warmup,
            horizon=first.intervals, start_alpha=first.start_alpha,
        )  # fmt: skip
        if work.controlled:
            return self._controlled(task, cases, seeds)
        return self._scheduled(task, cases, seeds)

    def _scheduled(self, task: Task, cases: Sequence[Case], seeds: Sequence[int]) -> Iterator[Telemetry]:
        path = _path(cases)
        start = np.array([[case.start_alpha] for case in cases])
        asked = np.stack([case.asked_alpha for case in cases])
        start_warm(self.backend, task, path, seeds, start)
        for t in range(path.intervals):
            yield self.backend.step(asked[:, t, None].copy(), path.at(t))

    def _controlled(self, task: Task, cases: Sequence[Case], seeds: Sequence[int]) -> Iterator[Telemetry]:
        loop = ControlLoop(task, self.backend, "delta")
        step = loop.reset(seeds, _path(cases))
        drivers = [case.driver for case in cases]
        rows = {name: np.flatnonzero([driver == name for driver in drivers]) for name in dict.fromkeys(drivers)}
        policies = {name: open_policy(name, loop.layout) for name in rows}
        # A log's episodes have one lane, so each lane here is a policy's first.
        states = {name: np.repeat(policies[name].initial_state(1), len(rows[name]), axis=0) for name in rows}
        action = np.zeros((len(cases), 1, 1), np.float32)
        for _ in range(task.horizon):
            for name, at in rows.items():
                action[at, 0], states[name] = policies[name].act(step.observation[at, 0], states[name])
            step = loop.step(action)
            yield step.telemetry


def _path(cases: Sequence[Case]) -> WorkloadPath:
    """The cases' workloads side by side, with recorded arrivals where there are some."""
    values = np.stack([case.workload for case in cases])
    lanes, intervals = values.shape[:2]
    gaps = poisson_gaps(lanes, intervals, cases[0].gaps_s.shape[1])
    if any(np.isfinite(case.gaps_s[0, 0]) for case in cases):  # an episode's are all recorded, or none is
        gaps = np.stack([case.gaps_s for case in cases])
    return WorkloadPath(values, gaps, np.zeros((lanes, intervals), np.int64), (("logged",),) * lanes)
