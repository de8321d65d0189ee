"""One control interval after another, for any number of lanes and nodes: the loop that everything drives.

    workload -> backend -> telemetry -> observation -> policy -> action -> backend

Environments, evaluation and training differ only in who calls ``step``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from helm_gym.actions import Mode, apply_action
from helm_gym.backend import Backend
from helm_gym.cluster import router_observation
from helm_gym.cluster.router_observation import ClusterStep, RouterLayout
from helm_gym.cluster.routing import WEIGHTS, Routing
from helm_gym.cluster.topology import Cluster, in_cluster
from helm_gym.errors import InvalidInputError
from helm_gym.kernels import control_interval
from helm_gym.observation import ObservationLayout
from helm_gym.profile import Profile
from helm_gym.reward import TERMS, cost_coefficients
from helm_gym.tasks import Task
from helm_gym.telemetry import Telemetry
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import WorkloadPath, WorkloadState
from helm_gym.workload.traces import Trace


class Step(NamedTuple):
    """The outcome of one interval.

    Its arrays are of their own memory, but for the telemetry's: that is the backend's.

    Attributes:
        observation: float32 (lanes, nodes, width).
        reward: float64 (lanes,), the negative cost.
        terms: float64 (terms, lanes), the cost's terms in the order of ``reward.TERMS``.
        telemetry: what the backend reported.
        done: whether the path is at its end.
        cluster: the router's observation and each node's cost; None from a single node.
    """

    observation: NDArray[np.float32]
    reward: NDArray[np.float64]
    terms: NDArray[np.float64]
    telemetry: Telemetry
    done: bool
    cluster: ClusterStep | None = None


def start_warm(
    backend: Backend,
    task: Task,
    path: WorkloadPath,
    seeds: Sequence[int],
    target: NDArray[np.float64],
    routing: Routing | None = None,
) -> Telemetry:
    """Resets ``backend`` to the path's start and serves its first setting at ``target`` (lanes, nodes) until warm.

    Whoever replays an episode starts it here: another number of intervals, and the requests would be others.
    """
    backend.reset(path.at(0), np.asarray(seeds, np.int64), target)
    telemetry = _serve(backend, target, path.at(0), routing)
    for _ in range(task.warmup - 1):
        telemetry = backend.step(target, path.at(0))
    return telemetry


def _serve(backend: Backend, target: NDArray[np.float64], state: WorkloadState, routing: Routing | None) -> Telemetry:
    return backend.step(target, state) if routing is None else backend.step(target, state, routing)


def draw_path(
    task: Task,
    profile: Profile,
    seeds: Sequence[int],
    intervals: int,
    trace: Trace | None = None,
    cluster: Cluster | None = None,
) -> WorkloadPath:
    """The workload of the episodes that ``seeds`` stand for, (lanes, intervals); a cluster's where one is given."""
    folded = 1 if cluster is None or trace is None else cluster.size  # see in_cluster
    path = make_path(task.regime, profile, seeds, folded * intervals, trace)
    return path if cluster is None else in_cluster(path, cluster, profile, seeds)


class ControlLoop:
    """Drives a backend along a workload's path; its caller decides the actions.

    Args:
        task: regime, horizon, warm-up and weights.
        backend: opened for the task's profile, with as many lanes as episodes are wanted at once.
        mode: whether an action changes the target or is it.
        trace: recorded arrivals, for the regime ``trace``.
        intervals: length of an episode; the task's horizon where not given.

    Attributes:
        router_layout: the router's columns where the backend is a cluster, else None.
    """

    def __init__(
        self,
        task: Task,
        backend: Backend,
        mode: Mode = "delta",
        trace: Trace | None = None,
        intervals: int | None = None,
    ):
        self.task = task
        self.backend = backend
        self.profile = backend.spec.profile
        self.layout = ObservationLayout(self.profile)
        self.mode: Mode = mode
        self.trace = trace
        self.intervals = task.horizon if intervals is None else intervals
        self.path: WorkloadPath | None = None
        self.t = 0
        self.shape = backend.spec.lanes, backend.spec.nodes
        self.router_layout = None if backend.spec.cluster is None else RouterLayout()
        self._slo_ms = math.nan
        self._closed = False

    def reset(self, seeds: Sequence[int], path: WorkloadPath | None = None, routing: Routing | None = None) -> Step:
        """Starts one episode a lane, warm: ``warmup`` intervals of the first setting at ``start_alpha``.

        Args:
            seeds: one a lane; they draw the path and the requests.
            path: the workload to play in place of the one that the seeds draw; a cluster's is made by ``in_cluster``.
            routing: of a cluster's requests until a step gives another; by the joint cost in ms where not given.

        Raises:
            InvalidInputError: another number of seeds than lanes, or a loop that is closed.
        """
        self._check_open()
        if len(seeds) != self.shape[0]:
            raise InvalidInputError(f"{len(seeds)} seeds were given for {self.shape[0]} lanes.")
        if path is None:
            cluster = self.backend.spec.cluster
            path = draw_path(self.task, self.profile, seeds, self.intervals, self.trace, cluster)
        self.path, self.t = path, 0
        self.target = np.full(self.shape, self.task.start_alpha)
        telemetry = start_warm(self.backend, self.task, path, seeds, self.target, routing)
        self._memory = self.layout.memory(*self.shape)
        self._weights = np.ones((self.shape[0], len(WEIGHTS))) if routing is None else np.asarray(routing.weights)
        return self._outcome(telemetry)

    def step(self, action: ArrayLike, routing: Routing | None = None) -> Step:
        """Serves the next interval under ``action`` (lanes, nodes, 1).

        The action of a node that was lost in the last interval does nothing: it had nothing to see.

        Args:
            routing: of a cluster's requests from now on; as before where not given.

        Raises:
            InvalidInputError: not reset, past the end, an action of a wrong shape or not finite, or a routing that is
                not sound or that no cluster is there for.
        """
        path, t = self.path, self.t
        if path is None or t >= self.intervals:
            self._check_open()
            raise InvalidInputError(
                "The control loop must be reset before it is stepped, and again after its last step."
            )
        target = apply_action(self.profile, self.target, action, self.mode)
        if self.router_layout is not None:
            target = np.where(self._alive, target, self.target)
        telemetry = _serve(self.backend, target, path.at(t), routing)
        if routing is not None:
            self._weights = np.asarray(routing.weights)
        self.target, self.t = target, t + 1
        return self._outcome(telemetry)

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidInputError("The control loop is closed, and so is its environment; make another.")

    def close(self) -> None:
        """Ends the backend; afterwards nothing can be reset or stepped."""
        if not self._closed:
            self.backend.close()
        self._closed, self.path = True, None

    def _outcome(self, telemetry: Telemetry) -> Step:
        slo_ms = self.backend.slo_ms
        if slo_ms != self._slo_ms:  # most backends never change it
            self._slo_ms, self._per_scale = slo_ms, self.layout.per_scale(slo_ms)
            self._coefficients = cost_coefficients(slo_ms, self.task.weights, self.profile.pool.pages)
        lanes, nodes = self.shape
        observation = np.empty((lanes, nodes, self.layout.width), np.float32)
        if self.router_layout is not None:
            return self._of_cluster(telemetry, observation)
        reward, terms = np.empty(lanes), np.empty((len(TERMS), lanes))
        control_interval.outcome(
            telemetry.values, self._per_scale, self._memory, self._coefficients, observation, reward, terms
        )
        return Step(observation, reward, terms, telemetry, self.t >= self.intervals)

    def _of_cluster(self, telemetry: Telemetry, observation: NDArray[np.float32]) -> Step:
        assert self.router_layout is not None
        scales, weights = (self._per_scale, self._memory, self._coefficients), self._weights
        reward, terms, cluster = router_observation.outcome(
            self.router_layout, telemetry, *scales, weights, observation
        )
        self._alive = cluster.traffic.alive
        return Step(observation, reward, terms, telemetry, self.t >= self.intervals, cluster)
