"""Clusters judged: pairs of a node controller and a router through the same episodes, and their paired differences."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym import profile as profiles
from helm_gym.backend import open_backend
from helm_gym.cluster import Cluster
from helm_gym.control_loop import ControlLoop, Step
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.evaluation.machine import describe_machine, versions
from helm_gym.evaluation.statistics import bootstrap, iqm, paired_difference
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Oracle, Policy, open_policy
from helm_gym.profile import Profile
from helm_gym.routing import WEIGHTS, Router, Routing, open_router, weights_of
from helm_gym.tasks import Task
from helm_gym.workload.traces import Trace

Progress = Callable[[str, int, int], None]
Values = NDArray[np.float64]
_BOOTSTRAP_SEED = 0

METRICS = {  # by seed -> what it is; interval series are averaged over the scored intervals
    "mean_latency_ms": "mean sojourn of all requests",
    "p99_ms": "P99 of sojourn over all requests of an episode",
    "slo_satisfaction": "share of answers within the SLO",
    "throughput_rps": "answers a second, the cluster's",
    "service_ms": "mean service time",
    "emb_hit_rate": "row look-ups served from a pool, nodes alive averaged",
    "kv_hit_rate": "requests whose user's KV was there, nodes alive averaged",
    "utilisation": "busy share of time, nodes alive averaged",
    "mean_alpha": "EMB's share of the pools, nodes alive averaged",
    "imbalance": "standard deviation over nodes of their busy share, over its mean",
    "cost": "the team's cost",
    "moved_bytes": "of an episode, all nodes",
    "spilled": "share of requests that went elsewhere because a node's load was bounded",
    "rerouted": "requests of lost nodes that others served again",
    "given_up": "requests of lost nodes that found no room elsewhere",
    "requests": "answers of an episode",
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A controller that every node runs by itself, and a router."""

    controller: Policy
    router: Router

    @property
    def name(self) -> str:
        return f"{self.controller.name}+{self.router.name}"


def open_pair(text: str, layout: ObservationLayout) -> Pair:
    """Opens ``CONTROLLER+ROUTER``, such as ``three-layer-ppo+joint``.

    Raises:
        UnknownNameError: no such controller or router.
        InvalidInputError: no router, or an oracle.
        IncompatibleError: see helm_gym.policy.open_policy.
    """
    controller, plus, router = text.rpartition("+")
    if not plus:
        raise InvalidInputError(f"'{text}' names no router; write CONTROLLER+ROUTER, such as static:0.5+joint.")
    return Pair(open_controller(controller, layout), open_router(router, layout))


def open_controller(text: str, layout: ObservationLayout) -> Policy:
    """Opens what every node of a cluster is to run.

    Raises:
        InvalidInputError: an oracle: it is told a single node's workload.
        UnknownNameError, IncompatibleError: see helm_gym.policy.open_policy.
    """
    policy = open_policy(text, layout)
    if isinstance(policy, Oracle):
        raise InvalidInputError(f"'{text}' is told a single node's workload and cannot control a cluster's.")
    return policy


def play(loop: ControlLoop, pair: Pair, seed: int) -> Iterator[Step]:
    """One episode of a pair, interval by interval, on a loop of one lane."""
    controller, router = pair.controller, pair.router
    state, memory = controller.initial_state(loop.shape[1]), router.initial_state(1)
    step = loop.reset([seed], routing=Routing(router.rule, np.ones((1, len(WEIGHTS)))))
    while not step.done:
        assert step.cluster is not None
        action, state = controller.act(step.observation[0], state)
        weights, memory = router.act(step.cluster.router, memory)
        step = loop.step(np.asarray(action)[None], Routing(router.rule, weights_of(weights)))
        yield step


@dataclasses.dataclass(frozen=True)
class PairEpisodes:
    """One pair's scored intervals.

    Attributes:
        by_seed: each of ``METRICS``, (seeds,).
        series: (seeds, T) each: sojourn_ms, p99_ms (of the interval, all nodes), kv_hit_rate, emb_hit_rate, alpha,
            alive (share of nodes).
    """

    pair: str
    by_seed: dict[str, Values]
    series: dict[str, Values]


@dataclasses.dataclass(frozen=True)
class ClusterEvaluation:
    task: Task
    rung: str
    profile: str
    cluster: Cluster
    seeds: tuple[int, ...]
    pairs: tuple[PairEpisodes, ...]
    machine: str
    versions: dict[str, str]
    date: str

    def to_json(self) -> dict[str, Any]:
        """Each pair's figures (interquartile means over seeds), and how far it is above the first pair's, paired."""
        first = self.pairs[0]
        return {
            "task": self.task.name,
            "rung": self.rung,
            "profile": self.profile,
            "cluster": dataclasses.asdict(self.cluster),
            "nodes": self.cluster.size,
            "seeds": list(self.seeds),
            "machine": self.machine,
            "versions": self.versions,
            "date": self.date,
            "definition": "interquartile means over seeds with 95% bootstrap intervals; *_over_first: the pair's "
            "figure less the first pair's, seed by seed; series: by interval, means over seeds, where nodes were lost",
            "pairs": [
                {"name": pair.pair}
                | {name: figure(pair.by_seed[name]) for name in METRICS}
                | {
                    f"{name}_over_first": paired_difference(
                        pair.by_seed[name], first.by_seed[name], np.random.default_rng(_BOOTSTRAP_SEED)
                    ).to_json()
                    for name in ("mean_latency_ms", "p99_ms", "cost")
                }
                | _transient(pair)
                for pair in self.pairs
            ],
        }


def _transient(pair: PairEpisodes) -> dict[str, Any]:
    """How the cluster fared interval by interval, where a node was lost: the loss shows, and the return."""
    if pair.series["alive"].min() == 1.0:
        return {}
    return {"series": {name: values.mean(axis=0).tolist() for name, values in pair.series.items()}}


def figure(values: Values) -> dict[str, float | None]:
    """Interquartile mean over seeds with its interval."""
    return bootstrap((values,), iqm, np.random.default_rng(_BOOTSTRAP_SEED)).to_json()


def evaluate(
    task: Task,
    pairs: Sequence[Pair],
    cluster: Cluster,
    backend: str = "modelled",
    profile: Profile | None = None,
    seeds: Sequence[int] | None = None,
    trace: Trace | None = None,
    progress: Progress | None = None,
) -> ClusterEvaluation:
    """Runs each pair once a seed, on the same workloads.

    Args:
        backend: one that serves requests; its lanes are taken one by one.
        seeds: the task's where not given.
        trace: recorded arrivals, for the regime ``trace``.
        progress: told which pair is under way, and how many intervals are done, of how many.

    Raises:
        InvalidInputError: no pair, one twice, or a cluster that the backend cannot have.
        HelmError: the backend reports no single requests.
    """
    profile = profile or profiles.load(task.profile)
    chosen = tuple(task.seeds if seeds is None else seeds)
    names = [pair.name for pair in pairs]
    if not names or not chosen or len(set(names)) < len(names):
        raise InvalidInputError(f"An evaluation needs at least one seed and pairs that differ, not {names}.")
    intervals, done = task.settle + task.horizon, 0
    total = len(pairs) * len(chosen) * intervals
    with contextlib.closing(open_backend(backend, profile, cluster=cluster)) as opened:
        loop = ControlLoop(task, opened, trace=trace, intervals=intervals)

        def advance(name: str) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(name, done, total)

        episodes = []
        for pair in pairs:
            runs = [_Episode(loop, pair).run(seed, functools.partial(advance, pair.name)) for seed in chosen]
            episodes.append(
                PairEpisodes(
                    pair.name,
                    {name: np.array([by_seed[name] for by_seed, _ in runs], np.float64) for name in METRICS},
                    {name: np.stack([series[name] for _, series in runs]) for name in runs[0][1]},
                )
            )
        return ClusterEvaluation(
            task,
            opened.spec.rung,
            profile.name,
            cluster,
            chosen,
            tuple(episodes),
            describe_machine("cpu" if backend == "modelled" else profile.device),
            versions(),
            datetime.date.today().isoformat(),
        )


class _Episode:
    """One episode of a pair."""

    def __init__(self, loop: ControlLoop, pair: Pair):
        self.loop, self.pair = loop, pair
        self._intervals: list[dict[str, float]] = []
        self._sojourn_ms: list[NDArray[np.floating]] = []

    def run(self, seed: int, advance: Callable[[], None]) -> tuple[dict[str, float], dict[str, Values]]:
        """``METRICS`` of the scored intervals, and their series (T,)."""
        for t, step in enumerate(play(self.loop, self.pair, seed)):
            if t >= self.loop.task.settle:
                self._keep(step)
            advance()
        return self._summary()

    def _keep(self, step: Step) -> None:
        telemetry, traffic = step.telemetry, step.telemetry.traffic
        if telemetry.sojourn_ms is None or traffic is None:
            raise HelmError("This backend reports no single requests; evaluate clusters on 'modelled' or 'real'.")
        sojourn = telemetry.sojourn_ms[0][np.isfinite(telemetry.sojourn_ms[0])]
        alive, served = traffic.alive[0], traffic.requests[0]
        busy = telemetry["utilisation"][0, alive]
        self._sojourn_ms.append(sojourn.astype(np.float32))
        self._intervals.append(
            {
                "sojourn_ms": float(sojourn.mean()),
                "p99_ms": float(np.percentile(sojourn, 99)),
                "emb_hit_rate": float(telemetry["emb_hit_rate"][0, alive].mean()),
                "kv_hit_rate": float(telemetry["kv_hit_rate"][0, alive].mean()),
                "alpha": float(telemetry["alpha"][0, alive].mean()),
                "alive": float(alive.mean()),
                "violations": float(telemetry["interval_violations"][0] @ served / max(1, served.sum())),
                "service_ms": float(telemetry["interval_service_ms"][0] @ served / max(1, served.sum())),
                "utilisation": float(busy.mean()),
                "imbalance": float(busy.std() / max(1e-9, busy.mean())),
                "cost": -float(step.reward[0]),
                "moved_bytes": float(telemetry["moved_bytes"].sum()),
                "spilled": float(traffic.spills[0] / max(1, served.sum())),
                "rerouted": float(traffic.rerouted[0]),
                "given_up": float(traffic.given_up[0]),
                "span_s": float(telemetry["interval_arrival_s"][0].max()),
            }
        )

    def _summary(self) -> tuple[dict[str, float], dict[str, Values]]:
        series = {name: np.array([interval[name] for interval in self._intervals]) for name in self._intervals[0]}
        sojourn = np.concatenate(self._sojourn_ms)
        whole = ("moved_bytes", "rerouted", "given_up")
        averaged = ("service_ms", "emb_hit_rate", "kv_hit_rate", "utilisation", "imbalance", "cost", "spilled")
        by_seed = {
            "mean_latency_ms": float(sojourn.mean(dtype=np.float64)),
            "p99_ms": float(np.percentile(sojourn, 99)),
            "slo_satisfaction": 1.0 - float(series["violations"].mean()),
            "throughput_rps": len(sojourn) / (series["span_s"].sum() + 1e-3 * float(self._sojourn_ms[-1].max())),
            "mean_alpha": float(series["alpha"].mean()),
            "requests": float(len(sojourn)),
        }
        by_seed |= {name: float(series[name].sum()) for name in whole}
        by_seed |= {name: float(series[name].mean()) for name in averaged}
        assert all(math.isfinite(value) for value in by_seed.values())
        shown = ("sojourn_ms", "p99_ms", "emb_hit_rate", "kv_hit_rate", "alpha", "alive")
        return by_seed, {name: series[name] for name in shown}
