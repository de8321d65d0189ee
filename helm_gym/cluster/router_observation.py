"""What a cluster shows and costs beside its nodes' own columns: the router's observation, each node's cost, the team's.

The router's observation has the same width for any number of nodes, so one router serves them all. Like a node's, it
is made of what a live cluster can report; what is lost is left out of every mean.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.cluster.routing import WEIGHTS
from helm_gym.errors import UnknownNameError
from helm_gym.kernels import lazy
from helm_gym.observation_schema import PLACES
from helm_gym.reward import COST_FIELDS
from helm_gym.telemetry import COLUMN, RoutedTraffic, Telemetry

ROUTER_LAYOUT_VERSION = 1
NODE_COLUMNS = (
    "alpha",
    "emb_hit_rate",
    "kv_hit_rate",
    "utilisation",
    "queue_depth",
    "service_mean",
    "sojourn_mean",
    "sojourn_p99",
    "slo_violations",
    "load",
    "returning_share",
    "mean_history",
)  # of helm_gym/observation.py; all lie in [0, 1]
STATISTICS = ("mean", "least", "greatest")  # over the nodes alive
TRAFFIC = (
    ("busiest_share", "requests that went to the busiest node / all"),
    ("spilled_share", "requests passed on because a node's load was bounded / all"),
    ("alive_share", "nodes alive / all"),
    ("size", "log2 of the number of nodes / 10"),
)
_SHOWN = np.array([PLACES[name].start for name in NODE_COLUMNS])
_COST_COLUMNS = np.array([COLUMN[name] for name in COST_FIELDS])


class ClusterStep(NamedTuple):
    """What a step of a cluster has beside that of a single node.

    Attributes:
        router: float32 (lanes, router width), the router's observation.
        node_terms: float64 (lanes, nodes, terms), each node's cost; 0 where it was given no request.
        node_reward: float64 (lanes, nodes), its negative sum.
        traffic: where the requests went.
    """

    router: NDArray[np.float32]
    node_terms: NDArray[np.float64]
    node_reward: NDArray[np.float64]
    traffic: RoutedTraffic


class RouterLayout:
    """Names, places and bounds of the router's columns: statistics over nodes, the traffic, its own last action."""

    def __init__(self) -> None:
        self.version = ROUTER_LAYOUT_VERSION
        nodes = [f"{name}_{statistic}" for statistic in STATISTICS for name in NODE_COLUMNS]
        self.names = [*nodes, *(name for name, _ in TRAFFIC), *(f"action_{name}" for name in WEIGHTS)]
        self.width = len(self.names)
        self.low, self.high = np.zeros(self.width, np.float32), np.ones(self.width, np.float32)
        self.low[-len(WEIGHTS) :] = -1.0

    def column(self, name: str) -> int:
        """Where a column stands.

        Raises:
            UnknownNameError: no such column.
        """
        if name not in self.names:
            raise UnknownNameError("router column", name, self.names)
        return self.names.index(name)

    def observe(
        self, nodes: NDArray[np.float32], traffic: RoutedTraffic, weights: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """The router's observation, (lanes, width).

        Args:
            nodes: the nodes' observations, (lanes, nodes, columns).
            traffic: of the same interval.
            weights: (lanes, 3), with which the interval's requests were routed.
        """
        alive, count = traffic.alive[:, :, None], nodes.shape[1]
        shown = nodes[:, :, _SHOWN]
        mean = np.where(alive, shown, np.float32(0)).sum(axis=1) / alive.sum(axis=1, dtype=np.float32)
        least = np.where(alive, shown, np.float32(np.inf)).min(axis=1)
        greatest = np.where(alive, shown, np.float32(-np.inf)).max(axis=1)
        total = np.maximum(traffic.requests.sum(axis=1), 1)
        of_traffic = (
            traffic.requests.max(axis=1) / total,
            traffic.spills / total,
            traffic.alive.mean(axis=1),
            np.full(len(nodes), np.log2(count) / 10),
        )
        action = np.sqrt(weights) - 1.0  # the inverse of routing.weights_of
        columns = np.concatenate([mean, least, greatest, np.stack(of_traffic, axis=1), action], axis=1)
        return np.clip(columns, self.low, self.high).astype(np.float32)


def outcome(
    layout: RouterLayout,
    telemetry: Telemetry,
    per_scale: NDArray[np.float64],
    memory: NDArray[np.float32],
    coefficients: NDArray[np.float64],
    weights: NDArray[np.float64],
    observation: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], ClusterStep]:
    """The team's reward (lanes,), its terms (terms, lanes) and the rest, from one interval's telemetry.

    A node counts for the team by the requests that it was given, so that an idle or lost one is no good one.

    Args:
        memory: as in ``passes.observe``; a lost node's is forgotten.
        observation: (lanes, nodes, columns), filled here; a lost node shows zeros.
    """
    traffic = telemetry.traffic
    assert traffic is not None
    lazy.passes().observe(telemetry.values, per_scale, memory, observation)
    lost = ~traffic.alive
    observation[lost], memory[lost] = 0.0, np.nan
    requests = traffic.requests
    node_terms = np.abs(telemetry.values[:, :, _COST_COLUMNS]) * coefficients * (requests > 0)[:, :, None]
    share = requests / np.maximum(requests.sum(axis=1, keepdims=True), 1)
    terms = np.ascontiguousarray((node_terms * share[:, :, None]).sum(axis=1).T)
    router = layout.observe(observation, traffic, weights)
    node_reward = 0.0 - node_terms.sum(axis=2)  # not a negated sum, which would be -0 for a node without requests
    return -terms.sum(axis=0), terms, ClusterStep(router, node_terms, node_reward, traffic)
