"""Collection of clusters' episodes: what one looks like in the log; the rest is surrogate_backend/data/collect.py's."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from helm_gym.actions import absolute_action
from helm_gym.backend import open_backend
from helm_gym.cluster.routing import RULES, WEIGHTS, Routing, weights_of
from helm_gym.control_loop import ControlLoop, Step
from helm_gym.play import open_entrant
from helm_gym.tasks import Task
from helm_gym.telemetry import FIELDS
from helm_gym.workload.state import PARAMETERS
from surrogate_backend.data import cluster_excitation, cluster_log
from surrogate_backend.data.collect import Plan
from surrogate_backend.data.log import constants_of

WARMUP = 40  # intervals


@dataclasses.dataclass(frozen=True)
class ClusterPlan(Plan):
    """Episodes of clusters; ``trace`` is none."""

    def manifest(self) -> dict[str, Any]:
        return super().manifest() | {"clusters": True}

    def check(self) -> None:
        cluster_excitation.episode(self.design, 0, self.profile, 2, self.seed)

    def episode(self, number: int) -> cluster_excitation.ClusterEpisode:  # type: ignore[override]  # a cluster's in place of a node's
        return cluster_excitation.episode(self.design, number, self.profile, self.intervals, self.seed)

    def rounds(self, numbers: Iterable[int]) -> list[tuple[int, ...]]:
        return [(number,) for number in numbers]

    def serve(self, numbers: Sequence[int]) -> list[pa.Table]:
        return [pa.Table.from_pylist(list(_play(self, number)), schema=cluster_log.schema()) for number in numbers]


def _play(plan: ClusterPlan, number: int) -> Iterator[dict[str, Any]]:
    profile = plan.profile
    episode = plan.episode(number)
    start = 0.5 if episode.schedule is None else float(np.round(episode.schedule[0].mean(), 3))
    task = Task("collect", episode.regime, "designed excitation", profile.name, warmup=WARMUP, start_alpha=start)
    with contextlib.closing(open_backend(plan.backend, profile, cluster=episode.cluster)) as backend:
        mode = "delta" if episode.schedule is None else "absolute"
        loop = ControlLoop(task, backend, mode, intervals=episode.path.intervals)  # type: ignore[arg-type]  # a Mode
        constants = constants_of(backend.spec, number, episode, start, WARMUP)
        constants |= {"cluster": cluster_log.to_text(episode.cluster), "nodes": episode.cluster.size}
        for step, routing in _drive(episode, loop):
            for row in _rows(loop, step, routing):
                yield constants | row


def _drive(episode: cluster_excitation.ClusterEpisode, loop: ControlLoop) -> Iterator[tuple[Step, Routing]]:
    """Each interval's outcome, and how its requests were routed."""
    if episode.schedule is None:
        entrant = open_entrant(episode.driver, loop.layout, in_cluster=True)
        policy, router = entrant.policy, entrant.router
        assert router is not None
        state, memory = policy.initial_state(loop.shape[1]), router.initial_state(1)
        step = loop.reset([episode.request_seed], episode.path, Routing(router.rule, np.ones((1, 3))))
        for _ in range(loop.intervals):
            assert step.cluster is not None
            action, state = policy.act(step.observation[0], state)
            chosen, memory = router.act(step.cluster.router, memory)
            routing = Routing(router.rule, weights_of(chosen))
            step = loop.step(np.asarray(action)[None], routing)
            yield step, routing
        return
    assert episode.rule is not None and episode.weights is not None
    given = [Routing(RULES[rule], w[None]) for rule, w in zip(episode.rule, episode.weights, strict=True)]
    loop.reset([episode.request_seed], episode.path, given[0])
    for split, routing in zip(episode.schedule, given, strict=True):
        yield loop.step(absolute_action(loop.profile, split[None]), routing), routing


def _rows(loop: ControlLoop, step: Step, routing: Routing) -> Iterator[dict[str, Any]]:
    """One interval of each node."""
    assert loop.path is not None
    t, telemetry = loop.t - 1, step.telemetry
    traffic, service, sojourn = telemetry.traffic, telemetry.service_ms, telemetry.sojourn_ms
    assert traffic is not None and service is not None and sojourn is not None
    assert traffic.preferred is not None and traffic.apart is not None
    shared = {f"w_{p.name}": v for p, v in zip(PARAMETERS, loop.path.values[0, t].tolist(), strict=True)}
    shared |= {"interval": t, "rule": float(RULES.index(routing.rule)), "slo_ms": loop.backend.slo_ms}
    shared |= {f"weight_{name}": value for name, value in zip(WEIGHTS, routing.weights[0].tolist(), strict=True)}
    shared |= {"spills": float(traffic.spills[0]), "rerouted": float(traffic.rerouted[0])}
    shared |= dict(zip(("tied", "next_ms", "mean_ms"), traffic.apart[0].tolist(), strict=True))
    for node in range(loop.shape[1]):
        yield shared | {
            "node": node,
            "alive": float(traffic.alive[0, node]),
            "requests": float(traffic.requests[0, node]),
            "preferred": float(traffic.preferred[0, node]),
            "asked_alpha": float(loop.target[0, node]),
            **{field.name: telemetry[field.name][0, node] for field in FIELDS},
            "request_service_ms": _finite(service[0, node]),
            "request_sojourn_ms": _finite(sojourn[0, node]),
        }


def _finite(times: NDArray[np.floating]) -> NDArray[np.float32]:
    return times[np.isfinite(times)].astype(np.float32)
