"""What a router costs in an episode, in front of nodes whose controller is held, on the modelled rung."""

from __future__ import annotations

import dataclasses

import numpy as np

from helm_gym.backend import open_backend
from helm_gym.cluster.routing import Router
from helm_gym.cluster.topology import Cluster, Node
from helm_gym.control_loop import ControlLoop
from helm_gym.observation import ObservationLayout
from helm_gym.play import Entrant, open_controller, play
from helm_gym.policy import Floats
from helm_gym.tasks import Task


@dataclasses.dataclass(frozen=True)
class Served:
    """One episode.

    Attributes:
        mean_ms, p99_ms: sojourn of its scored requests.
        seen: float32 (intervals, D), what the router saw in them.
    """

    mean_ms: float
    p99_ms: float
    seen: Floats

    @property
    def cost(self) -> float:
        """Mean of the logarithms of both: a tenth off either counts the same, in an easy episode and in a hard one."""
        return float(0.5 * (np.log(self.mean_ms) + np.log(self.p99_ms)))


class Episodes:
    """Plays episodes on clusters of any size; each size's backend is opened once.

    Args:
        controller: what every node runs, by name or path; see helm_gym.play.open_controller.
        intervals: that are scored, behind the task's settling.
    """

    def __init__(self, task: Task, layout: ObservationLayout, controller: str, intervals: int):
        self._task, self._layout, self._intervals = task, layout, intervals
        self._controller = open_controller(controller, layout)
        self._loops: dict[int, ControlLoop] = {}

    def play(self, router: Router, nodes: int, seed: int) -> Served:
        sojourn_ms, seen = [], []
        for t, step in enumerate(play(self._loop(nodes), Entrant(self._controller, router), [seed])):
            if t >= self._task.settle:
                assert step.cluster is not None and step.telemetry.sojourn_ms is not None
                sojourn_ms.append(step.telemetry.sojourn_ms[np.isfinite(step.telemetry.sojourn_ms)])
                seen.append(step.cluster.router[0])
        served = np.concatenate(sojourn_ms)
        return Served(float(served.mean(dtype=np.float64)), float(np.percentile(served, 99)), np.stack(seen))

    def close(self) -> None:
        for loop in self._loops.values():
            loop.backend.close()

    def _loop(self, nodes: int) -> ControlLoop:
        if nodes not in self._loops:
            backend = open_backend("modelled", self._layout.profile, cluster=Cluster((Node(nodes),)))
            self._loops[nodes] = ControlLoop(self._task, backend, intervals=self._task.settle + self._intervals)
        return self._loops[nodes]
