"""Nodes of clusters as lanes: one policy, its parameters shared, is every node's controller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector.utils import batch_space

from helm_gym.control_loop import Step
from helm_gym.envs.arguments import ProfileLike, TaskLike, choose_cluster, open_loop
from helm_gym.envs.partition import lane_spaces
from helm_gym.envs.vector import Floats, LanesVectorEnv
from helm_gym.errors import InvalidInputError
from helm_gym.telemetry import Telemetry


class NodeLanes(LanesVectorEnv):
    """``num_envs`` nodes, ``cluster`` of each cluster, behind joint routing; a lane is a node.

    What a lane shows and takes is what ``PartitionVectorEnv``'s do. Its reward is its cluster's; ``Step.terms`` are the
    node's own. Seeds are the clusters': those of a cluster's nodes but the first are not looked at, and there must be
    some, so that ``reset`` and its autoreset, which draw seeds, cannot be used: ``start`` and ``serve`` are.

    Raises:
        InvalidInputError: as ``ClusterVectorEnv``, or a number of lanes that is no multiple of ``cluster``.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        cluster: int,
        task: TaskLike | None = None,
        profile: ProfileLike | None = None,
        backend: str = "surrogate",
        intervals: int | None = None,
    ):
        if num_envs % cluster:
            raise InvalidInputError(f"{num_envs} lanes cannot be clusters of {cluster} nodes; give a multiple of it.")
        lanes, of = num_envs // cluster, choose_cluster(cluster)
        loop = open_loop(lanes, task, None, profile, backend, "delta", None, intervals, None, of)
        super().__init__(loop, lane_spaces(loop))
        self.num_envs = num_envs
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def start(self, seeds: Sequence[int | None] | None = None) -> Step:
        """Starts the episodes of ``seeds``, one a lane."""
        if seeds is None or None in seeds:
            raise InvalidInputError("Lanes that are nodes of clusters need a seed each.")
        self.seeds, self.ended = np.array(seeds), False
        return self._apart(self.loop.reset(self.seeds[:: self.loop.shape[1]].tolist()))

    def apply(self, actions: Floats) -> Step:
        return self._apart(self.loop.step(actions.reshape(*self.loop.shape, 1)))

    def observe(self, outcome: Step) -> Floats:
        return outcome.observation[:, 0]

    def describe(self, outcome: Step) -> dict[str, Any]:
        return {}

    def _apart(self, outcome: Step) -> Step:
        """The clusters' outcome with a lane for each node."""
        assert outcome.cluster is not None
        nodes = self.loop.shape[1]
        terms = outcome.cluster.node_terms
        return outcome._replace(
            observation=outcome.observation.reshape(self.num_envs, 1, -1),
            reward=np.repeat(outcome.reward, nodes),
            terms=np.ascontiguousarray(terms.reshape(self.num_envs, -1).T),
            telemetry=Telemetry(outcome.telemetry.values.reshape(self.num_envs, 1, -1)),
        )
