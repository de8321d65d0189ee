"""Episodes of a policy, interval by interval: a controller alone on its node, or one a node behind a router."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from helm_gym.cluster.routing import WEIGHTS, Router, Routing, weights_of
from helm_gym.control_loop import ControlLoop, Step
from helm_gym.errors import InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policies.opening import open_policy
from helm_gym.policies.router_opening import open_router
from helm_gym.policy import Oracle, Policy
from helm_gym.workload.state import WorkloadPath


@dataclasses.dataclass(frozen=True)
class Entrant:
    """What plays an episode: a controller that every node runs by itself and, in a cluster, a router."""

    policy: Policy
    router: Router | None = None

    @property
    def name(self) -> str:
        return self.policy.name if self.router is None else f"{self.policy.name}+{self.router.name}"


def open_entrant(text: str, layout: ObservationLayout, in_cluster: bool) -> Entrant:
    """Opens a policy by name, run folder or file; in a cluster ``CONTROLLER+ROUTER``, such as ``pid+joint``.

    Raises:
        UnknownNameError: no such policy or router.
        InvalidInputError: no router, or an oracle, in a cluster.
        IncompatibleError: see helm_gym.policies.opening.open_policy.
    """
    if not in_cluster:
        return Entrant(open_policy(text, layout))
    controller, plus, router = text.rpartition("+")
    if not plus:
        raise InvalidInputError(f"'{text}' names no router; write CONTROLLER+ROUTER, such as static:0.5+joint.")
    return Entrant(open_controller(controller, layout), open_router(router, layout))


def open_controller(text: str, layout: ObservationLayout) -> Policy:
    """Opens what every node of a cluster is to run.

    Raises:
        InvalidInputError: an oracle: it is told a single node's workload.
        UnknownNameError, IncompatibleError: see helm_gym.policies.opening.open_policy.
    """
    policy = open_policy(text, layout)
    if isinstance(policy, Oracle):
        raise InvalidInputError(f"'{text}' is told a single node's workload and cannot control a cluster's.")
    return policy


def play(loop: ControlLoop, entrant: Entrant, seeds: Sequence[int], path: WorkloadPath | None = None) -> Iterator[Step]:
    """Yields each step of one episode a lane.

    Args:
        loop: of a single node a lane, or of a cluster where the entrant has a router.
        seeds, path: see ``ControlLoop.reset``.
    """
    policy, router = entrant.policy, entrant.router
    (lanes, _), rows = loop.shape, math.prod(loop.shape)
    state = policy.initial_state(rows)
    memory, routing = np.zeros((lanes, 0), np.float32), None
    if router is not None:
        memory, routing = router.initial_state(lanes), Routing(router.rule, np.ones((lanes, len(WEIGHTS))))
    step = loop.reset(seeds, path, routing)
    while not step.done:
        action, state = policy.act(step.observation.reshape(rows, -1), state)
        if router is not None:
            assert step.cluster is not None
            weights, memory = router.act(step.cluster.router, memory)
            routing = Routing(router.rule, weights_of(weights))
        step = loop.step(np.asarray(action).reshape(*loop.shape, 1), routing)
        yield step
