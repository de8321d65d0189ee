"""A log of clusters and its surrogate, as the fidelity report takes them: intervals over all of a cluster's nodes."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from helm_gym.cluster.routing import RULES, Routing, weights_of
from helm_gym.cluster.topology import Cluster
from helm_gym.control_loop import ControlLoop, Step, start_warm
from helm_gym.play import open_entrant
from helm_gym.profile import Profile
from helm_gym.tasks import Task
from helm_gym.telemetry import Telemetry
from helm_gym.workload.state import WorkloadPath, poisson_gaps
from surrogate_backend.clusters.backend import ClusterSurrogate
from surrogate_backend.data.cluster_excitation import SWEEP
from surrogate_backend.data.cluster_log import LoggedCluster, read_clusters
from surrogate_backend.fidelity.cases import GROUPS, SERIES, Case, Origin, Setting, origin_of, to_settings
from surrogate_backend.fidelity.rollout import FIRST_SEED, Rollout, Work

LANES = 32  # of a schedule; clusters' lanes have many nodes
Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class ClusterCase(Case):
    """One real episode of a cluster; ``asked_alpha`` is the nodes' mean.

    Attributes:
        asked: (T, nodes); alive: bool (T, nodes); rule: (T,), index into RULES; weights: (T, 3).
    """

    cluster: Cluster
    asked: Floats
    alive: NDArray[np.bool_]
    rule: NDArray[np.int64]
    weights: Floats


class _Pooled:
    """``SERIES`` of a cluster's intervals: times over all requests of the last ones, rates over the nodes alive."""

    def __init__(self, intervals: int):
        self._service: collections.deque[Floats] = collections.deque(maxlen=intervals)
        self._sojourn: collections.deque[Floats] = collections.deque(maxlen=intervals)

    def add(
        self, service: Floats, sojourn: Floats, telemetry: Mapping[str, Floats], alive: NDArray[np.bool_]
    ) -> Floats:
        """The next interval, in the order of ``SERIES``; times of its requests, infinite where there is none."""
        own = [x[np.isfinite(x)] for x in (service, sojourn)]
        self._service.append(own[0])
        self._sojourn.append(own[1])
        found = {"interval_service_ms": own[0].mean(), "interval_sojourn_ms": own[1].mean()}
        for name, kept in (("service", self._service), ("sojourn", self._sojourn)):
            pooled = np.concatenate(kept)
            found |= {f"{name}_mean_ms": pooled.mean(), f"{name}_p99_ms": np.percentile(pooled, 99)}
        found |= {name: telemetry[name][alive].mean() for name in ("emb_hit_rate", "kv_hit_rate", "alpha")}
        return np.array([found[name] for name in SERIES])


def gather_clusters(folder: pathlib.Path, profile: Profile) -> tuple[tuple[Setting, ...], Origin]:
    """As cases.gather, of a log of clusters.

    Raises:
        InvalidInputError: a log that cannot be used, or one without episodes to judge by.
    """
    window = profile.interval.window // profile.interval.requests
    found: list[tuple[Mapping[str, object], Case]] = [
        (episode.constants, _case(episode, window)) for episode in read_clusters(folder, profile, GROUPS)
    ]
    origin = origin_of(folder, [(constants, case.intervals) for constants, case in found])
    return to_settings(folder, found, (SWEEP[0], SWEEP[-1])), origin


def _case(e: LoggedCluster, window: int) -> ClusterCase:
    pooled, series = _Pooled(window), np.empty((e.intervals, len(SERIES)))
    for t in range(e.intervals):
        now = {name: e.telemetry[name][t] for name in ("emb_hit_rate", "kv_hit_rate", "alpha")}
        series[t] = pooled.add(e.service_ms[t], e.sojourn_ms[t], now, e.alive[t])
    constants = e.constants
    return ClusterCase(
        driver=constants["driver"],
        request_seed=constants["request_seed"],
        start_alpha=constants["start_alpha"],
        warmup=constants["warmup"],
        workload=e.workload,
        gaps_s=np.full((e.intervals, 1), np.nan),
        asked_alpha=e.asked_alpha.mean(axis=1),
        series={name: series[:, k] for k, name in enumerate(SERIES)},
        kept=np.ones(e.intervals, bool),
        cluster=e.cluster,
        asked=e.asked_alpha,
        alive=e.alive,
        rule=e.rule,
        weights=e.weights,
    )


class ClusterTwin:
    """The surrogate of clusters, opened anew for each case: clusters differ in size."""

    name = ClusterSurrogate.name

    def __init__(self, profile: Profile, checkpoint: pathlib.Path, of: str, lanes: int = LANES):
        self.profile, self.checkpoint, self.of, self.lanes = profile, checkpoint, of, lanes

    def steps(self, work: Work) -> int:
        """How many intervals ``run`` will step."""
        return sum(case.intervals for case in work.cases)

    def run(self, work: Work, stepped: Callable[[], None]) -> list[Rollout]:
        """As rollout.Surrogate.run."""
        rollouts = []
        for case in work.cases:
            assert isinstance(case, ClusterCase)
            series, flags = (
                np.empty((len(SERIES), work.each, case.intervals)),
                np.empty((work.each, case.intervals), bool),
            )
            pooled = [_Pooled(self.profile.interval.window // self.profile.interval.requests) for _ in range(work.each)]
            for t, telemetry in enumerate(self._play(case, work.each, work.controlled)):
                service, sojourn, alive = telemetry.service_ms, telemetry.sojourn_ms, case.alive[t]
                assert service is not None and sojourn is not None and telemetry.extrapolating is not None
                for lane in range(work.each):
                    now = {name: telemetry[name][lane] for name in ("emb_hit_rate", "kv_hit_rate", "alpha")}
                    series[:, lane, t] = pooled[lane].add(service[lane], sojourn[lane], now, alive)
                flags[:, t] = telemetry.extrapolating[:, alive].any(axis=1)
                stepped()
            rollouts.append(Rollout({name: series[k] for k, name in enumerate(SERIES)}, flags))
        return rollouts

    def _play(self, case: ClusterCase, lanes: int, controlled: bool) -> Iterator[Telemetry]:
        seeds = [FIRST_SEED + k for k in range(lanes)]
        values = np.repeat(case.workload[None], lanes, axis=0)
        path = WorkloadPath(
            values,
            poisson_gaps(lanes, case.intervals, case.cluster.size * self.profile.interval.requests),
            np.zeros((lanes, case.intervals), np.int64),
            (("logged",),) * lanes,
            np.repeat(case.alive[None], lanes, axis=0),
        )
        task = Task(
            "fidelity", "logged", "a log's episodes on its surrogate", self.profile.name, case.warmup,
            horizon=case.intervals, start_alpha=case.start_alpha,
        )  # fmt: skip
        twin = ClusterSurrogate(self.profile, lanes, case.cluster, self.checkpoint, self.of)
        with contextlib.closing(twin) as backend:
            if controlled:
                yield from _controlled(ControlLoop(task, backend), case, path, seeds)
                return
            start = np.full((lanes, case.cluster.size), case.start_alpha)
            start_warm(backend, task, path, seeds, start, _routing(case, 0, lanes))
            for t in range(case.intervals):
                asked = np.repeat(case.asked[t : t + 1], lanes, axis=0)
                yield backend.step(asked, path.at(t), _routing(case, t, lanes))


def _routing(case: ClusterCase, t: int, lanes: int) -> Routing:
    return Routing(RULES[case.rule[t]], np.repeat(case.weights[t : t + 1], lanes, axis=0))


def _controlled(loop: ControlLoop, case: ClusterCase, path: WorkloadPath, seeds: Sequence[int]) -> Iterator[Telemetry]:
    """The case's pair in closed loop on all lanes."""
    lanes, nodes = loop.shape
    entrant = open_entrant(case.driver, loop.layout, in_cluster=True)
    policy, router = entrant.policy, entrant.router
    assert router is not None
    # A log's episodes have one lane, whose nodes are a policy's rows.
    state = np.tile(policy.initial_state(nodes), (lanes, 1))
    memory = np.tile(router.initial_state(1), (lanes, 1))
    step: Step = loop.reset(seeds, path, Routing(router.rule, np.ones((lanes, 3))))
    for _ in range(loop.intervals):
        assert step.cluster is not None
        action, state = policy.act(step.observation.reshape(lanes * nodes, -1), state)
        chosen, memory = router.act(step.cluster.router, memory)
        step = loop.step(np.asarray(action).reshape(lanes, nodes, 1), Routing(router.rule, weights_of(chosen)))
        yield step.telemetry
