"""A cluster for a single agent: all nodes' splits and the router's weights in one action; and what its forms share."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from helm_gym.actions import Mode
from helm_gym.cluster.routing import WEIGHTS, Routing, weights_of
from helm_gym.control_loop import ControlLoop, Step
from helm_gym.envs.arguments import ClusterLike, ProfileLike, TaskLike, TraceLike, choose_cluster, open_loop
from helm_gym.envs.cluster_render import ClusterScreen
from helm_gym.envs.info import describe_cluster, describe_lane
from helm_gym.envs.single_lane_env import LaneEnv
from helm_gym.envs.vector import Box, Floats


class ClusterEnv(LaneEnv):
    """
    ## Description

    N nodes, each as in `PartitionEnv`, behind a router that assigns the cluster's one stream of requests. Users have
    interests, so that a router which sends like to like makes nodes specialise, and a user's KV is where he was last
    served. Each step serves one control interval of N x 50 requests: first the router assigns all of them, in order of
    arrival, by what the nodes published at the interval's start and what it has itself sent since; then every node
    serves its own. Nodes may be lost and come back, with cold caches. `helm/cluster-v0` (PettingZoo) is the same
    cluster with one agent a node and one for the router.

    ## Action Space

    `Box(-1, 1, (N + 3,), float32)`.

    | Num | Action |
    |-----|--------|
    | 0 … N-1 | of each node, the change of its target alpha (`action_mode="delta"`) or the target (`"absolute"`) |
    | N | the router's weight of KV that a request would have to compute again |
    | N+1 | of embedding rows that it would have to fetch |
    | N+2 | of the time that it would have to wait |

    A weight is `(1 + a)²`: -1 switches its term off, 0 leaves it at its cost in ms, 1 makes it four times as dear. The
    action of a node that was lost in the interval before does nothing.

    ## Observation Space

    `Box(low, high, (46 N + 43,), float32)`: the nodes' observations, those of `PartitionEnv`, one after the other,
    zeros for a node that is lost; then the router's, whose width does not depend on N.

    | Num (from 46 N) | Observation | Min | Max | Meaning |
    |-----|-------------|-----|-----|---------|
    | 0–11 | …_mean | 0 | 1 | the mean over the nodes alive |
    | 12–23 | …_least | 0 | 1 | the least over the nodes alive |
    | 24–35 | …_greatest | 0 | 1 | the greatest over the nodes alive |
    | 36 | busiest_share | 0 | 1 | requests that went to the busiest node / all |
    | 37 | spilled_share | 0 | 1 | requests passed on because a node's load was bounded / all |
    | 38 | alive_share | 0 | 1 | nodes alive / all |
    | 39 | size | 0 | 1 | log2 of the number of nodes / 10 |
    | 40–42 | action_kv, action_emb, action_load | -1 | 1 | the router's action in the last interval |

    Means, leasts and greatests are of alpha, emb_hit_rate, kv_hit_rate, utilisation, queue_depth, service_mean,
    sojourn_mean, sojourn_p99, slo_violations, load, returning_share and mean_history, in this order.

    ## Rewards

    The negative cost of the interval: each node's, as in `PartitionEnv`, weighed by the requests that it was given, so
    that an idle or lost node does not count as a good one. `info["cost"]` holds its terms. `info` also holds, of each
    node, `alpha`, `target_alpha`, `requests` and `alive`; `spills` (requests passed on because of a bounded load),
    `rerouted` (requests of a lost node that others served again) and `given_up`; and for analysis only the hidden
    `workload`, its `segment`, and the episode's `seed`.

    ## Starting State

    As `PartitionEnv`: every node warm at the task's `start_alpha`, requests routed by the joint cost in ms (action 0).

    ## Episode End

    Truncation at the task's horizon (480 intervals). There is no termination: serving does not end.

    ## Arguments

    ```python
    >>> import gymnasium as gym, helm_gym
    >>> env = gym.make("helm/Cluster-v0", regime="burst", cluster=8)
    >>> env.action_space
    Box(-1.0, 1.0, (11,), float32)

    ```

    * `cluster`: the number of nodes (4 where not given), a YAML file, a `Cluster` of `helm_gym.cluster.topology`
      or a dict of its fields: nodes of other memory or speed, interests, load, outages.
    * `task` or `regime`, `profile`, `action_mode`, `trace`, `intervals`: see `PartitionEnv`. Of recorded arrivals an
      interval takes N x 50 in turn, at the cluster's load.
    * `backend`: `"modelled"` (default), `"surrogate"` (learned from it), or `"real"`, in `helm/ClusterLive-v0`, and
      `"real-ray"`, whose nodes are Ray actors.
    * `render_mode`: `"ansi"` or `"rgb_array"`: of every node its split, hit rates and load, of all the latency.

    ## Vectorized environment

    `gym.make_vec("helm/Cluster-v0", num_envs=n)` opens `ClusterVectorEnv`: n lanes of one control loop, each
    bit-identical to this environment under the same seed; `autoreset_mode` as in `PartitionEnv`.

    ## Version History

    * v0: initial version.
    """

    screen = ClusterScreen

    def __init__(
        self,
        task: TaskLike | None = None,
        regime: str | None = None,
        profile: ProfileLike | None = None,
        backend: str = "modelled",
        cluster: ClusterLike = 4,
        action_mode: Mode = "delta",
        trace: TraceLike | None = None,
        intervals: int | None = None,
        render_mode: str | None = None,
    ):
        """See the class.

        Raises:
            UnknownNameError: no such task, regime, profile, backend, action_mode or render_mode.
            InvalidInputError: as ``PartitionEnv``, and for a cluster that cannot be.
        """
        cluster = choose_cluster(cluster)
        loop = open_loop(1, task, regime, profile, backend, action_mode, trace, intervals, render_mode, cluster)
        super().__init__(loop, cluster_spaces(loop), render_mode)

    def apply(self, action: Floats) -> Step:
        return apply_joint(self.loop, action[None])

    def observe(self, outcome: Step) -> Floats:
        return global_state(outcome)[0]

    def describe(self, outcome: Step) -> dict[str, Any]:
        of_lane = {
            key: values[0] if values.ndim > 1 else values.item(0) for key, values in describe_cluster(outcome).items()
        }
        return describe_lane(self.loop, outcome, self._seed) | of_lane


def cluster_spaces(loop: ControlLoop) -> tuple[Box, Box]:
    """What one lane shows, as ``global_state``, and takes, as ``apply_joint``."""
    nodes, router = loop.shape[1], loop.router_layout
    assert router is not None
    low = np.concatenate([np.tile(loop.layout.low, nodes), router.low])
    high = np.concatenate([np.tile(loop.layout.high, nodes), router.high])
    return spaces.Box(low, high, dtype=np.float32), spaces.Box(-1.0, 1.0, (nodes + len(WEIGHTS),), np.float32)


def global_state(outcome: Step) -> Floats:
    """The nodes' observations and the router's, (lanes, nodes x columns + router columns)."""
    assert outcome.cluster is not None
    lanes = len(outcome.observation)
    return np.concatenate([outcome.observation.reshape(lanes, -1), outcome.cluster.router], axis=1)


def apply_joint(loop: ControlLoop, actions: Floats) -> Step:
    """Steps ``loop`` under ``actions`` (lanes, nodes + 3): the nodes', then the router's."""
    nodes = loop.shape[1]
    return loop.step(actions[:, :nodes, None], Routing("score", weights_of(actions[:, nodes:])))
