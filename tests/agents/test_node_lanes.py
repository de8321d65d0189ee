"""Policies trained as the nodes of clusters: a lane is a node, and what is learned serves clusters of any size."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from agents.node_lanes import NodeLanes
from helm_gym import profile as profiles
from helm_gym.cluster.topology import find_cluster
from helm_gym.envs.cluster_vector import ClusterVectorEnv
from helm_gym.errors import InvalidInputError
from helm_gym.evaluation.protocol import evaluate
from helm_gym.observation import ObservationLayout
from helm_gym.play import open_entrant
from helm_gym.policies.opening import open_policy
from tests.agents.trainings import short_task, train_small


def test_a_lane_is_a_node_of_a_cluster_and_shares_its_reward() -> None:
    arguments = {"task": short_task(), "backend": "surrogate", "intervals": 5}
    nodes, clusters = NodeLanes(6, cluster=3, **arguments), ClusterVectorEnv(2, cluster=3, **arguments)
    apart, together = nodes.start([7, 7, 7, 8, 8, 8]), clusters.start([7, 8])
    action = np.linspace(-1, 1, 6, dtype=np.float32)[:, None]
    while not apart.done:
        np.testing.assert_array_equal(apart.observation[:, 0].reshape(2, 3, -1), together.observation)
        joint = np.concatenate([action.reshape(2, 3), np.zeros((2, 3), np.float32)], axis=1)  # routing as it is
        apart, together = nodes.serve(action), clusters.serve(joint)
        np.testing.assert_array_equal(apart.reward, np.repeat(together.reward, 3))
        np.testing.assert_allclose(apart.terms.sum(axis=0), -together.cluster.node_reward.ravel())


def test_lanes_that_are_no_whole_clusters_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidInputError, match="multiple"):
        NodeLanes(5, cluster=2, task=short_task())
    with pytest.raises(InvalidInputError, match="must divide lanes"):
        train_small(tmp_path / "run", cluster=3)
    with pytest.raises(InvalidInputError, match=r"backend must be surrogate or .* not 'real'"):
        train_small(tmp_path / "run", backend="real")


def test_what_nodes_learn_in_clusters_serves_a_cluster_of_another_size(tmp_path: pathlib.Path) -> None:
    assert train_small(tmp_path / "a", cluster=2).settings["cluster"] == 2
    layout = ObservationLayout(profiles.load("cpu-small"))
    pair = open_entrant(f"{tmp_path / 'a'}+joint", layout, in_cluster=True)
    evaluation = evaluate(short_task(), [pair], seeds=[0], cluster=find_cluster("3"))
    assert evaluation.policies[0].mean_latency_ms()[0] > 0


@pytest.mark.long
def test_nodes_learn_in_clusters_as_their_seed_says(tmp_path: pathlib.Path) -> None:
    """The same seed learns the same, in clusters something else than alone or on another backend."""
    for name, cluster in (("a", 2), ("b", 2), ("c", 0)):
        train_small(tmp_path / name, cluster=cluster)
    train_small(tmp_path / "d", cluster=2, backend="modelled")
    layout = ObservationLayout(profiles.load("cpu-small"))
    rows = np.random.default_rng(0).uniform(layout.low, np.minimum(layout.high, 3.0), (5, layout.width))
    said = []
    for name in ("a", "b", "c", "d"):
        policy = open_policy(str(tmp_path / name), layout)
        said.append(policy.act(rows.astype(np.float32), policy.initial_state(5))[0])
    np.testing.assert_array_equal(said[0], said[1])
    assert not np.array_equal(said[0], said[2]) and not np.array_equal(said[0], said[3])
