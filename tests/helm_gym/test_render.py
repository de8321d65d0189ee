"""Pictures of an episode: what they say, and that they fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pettingzoo
import pytest

import helm_gym  # noqa: F401  (registers the environments)
from helm_gym.cluster.topology import Cluster, Node, Outage
from helm_gym.envs.cluster_render import OF_NODE, TEXT_BARS, TEXT_NODES
from helm_gym.envs.partition import PartitionEnv
from helm_gym.envs.render import LOST, RED, SIZE_PX, TEXT_INTERVALS, sparkline
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.profile import Interval, load
from helm_gym.tasks import find_task

UP = np.ones(1, np.float32)


def test_text_says_what_is_shown_and_grows_to_a_width() -> None:
    env = gym.make("helm/Burst-v0", render_mode="ansi")
    env.reset(seed=0)
    text = env.render()
    assert isinstance(text, str)
    assert text.splitlines()[0] == "burst-v0 · surrogate · interval 0 of 480 · calm"
    for _ in range(70):
        env.step(UP)
    text = env.render()
    assert isinstance(text, str)
    lines = text.splitlines()
    assert [line[:13].strip() for line in lines[1:-1]] == [
        "alpha",
        "EMB hit rate",
        "KV hit rate",
        "mean latency",
        "P99 latency",
    ]
    assert "0.95 → 0.95" in lines[1] and lines[1].endswith("█" * 10)
    assert {len(line) for line in lines[1:-1]} == {27 + TEXT_INTERVALS}
    assert lines[-1].startswith(f"SLO {load('cpu-small').slo_ms:.1f} ms, missed by ")


def test_bars_span_their_range() -> None:
    assert sparkline(np.array([0.0, 0.5, 1.0]), 0, 1) == "▁▅█"
    assert sparkline(np.array([-9.0, np.nan, 9.0]), 0, 1) == f"▁{LOST}█"


def assert_whole(frame: np.ndarray) -> None:
    """It has the size that is promised, and nothing touches its edges."""
    assert frame.dtype == np.uint8 and frame.shape == (SIZE_PX[1], SIZE_PX[0], 3)
    for edge in (frame[:2], frame[-2:], frame[:, :2], frame[:, -2:]):
        assert (edge == 255).all()


def test_image_changes_with_the_episode_and_nothing_is_cut_off() -> None:
    env = gym.make("helm/Burst-v0", render_mode="rgb_array")
    frames: list[np.ndarray] = []
    for episode in range(2):
        env.reset(seed=0)
        frames.append(np.asarray(env.render()))
        for _ in range(40 if episode == 0 else 0):
            env.step(UP)
        frames.append(np.asarray(env.render()))
    for frame in frames:
        assert_whole(frame)
    first, later, fresh, _ = frames
    assert not np.array_equal(first, later)
    assert np.array_equal(first, fresh)  # an episode leaves nothing behind in the next one's picture


def test_a_vector_environment_draws_each_lane() -> None:
    env = gym.make_vec("helm/Burst-v0", num_envs=2, render_mode="ansi")
    env.reset(seed=0)
    texts = env.render()
    assert texts is not None and ["lane 0" in texts[0], "lane 1" in texts[1]] == [True, True]
    images = gym.make_vec("helm/Burst-v0", num_envs=2, render_mode="rgb_array")
    images.reset(seed=0)
    frames = images.render()
    assert frames is not None and len(frames) == 2 and not np.array_equal(frames[0], frames[1])


def test_nothing_is_drawn_before_a_reset() -> None:
    lanes = gym.make_vec("helm/Burst-v0", num_envs=2, render_mode="ansi")
    for env in (PartitionEnv(render_mode="ansi"), PartitionEnv(render_mode="rgb_array"), lanes):
        with pytest.raises(InvalidInputError, match="must be reset before it is rendered"):
            env.render()


def test_render_modes_that_there_are_not() -> None:
    with pytest.raises(UnknownNameError, match="Unknown render_mode 'ansii'; did you mean 'ansi'"):
        PartitionEnv(render_mode="ansii")
    env = gym.make("helm/Burst-v0").unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def of_cluster(cluster: int | Cluster, render_mode: str, intervals: int = 6) -> dict[str, Any]:
    population = dataclasses.replace(load("cpu-small").population, users=1000, items=20_000)
    profile = dataclasses.replace(load("cpu-small"), interval=Interval(10, 20), population=population)
    task = dataclasses.replace(find_task("burst-v0"), warmup=2)
    return {"task": task, "profile": profile, "cluster": cluster, "intervals": intervals, "render_mode": render_mode}


ONE_LOST = Cluster((Node(3),), outages=(Outage(1, 2, 2),))


def test_text_of_a_cluster_lists_its_nodes_and_shows_which_was_lost_when() -> None:
    env = gym.make("helm/Cluster-v0", **of_cluster(ONE_LOST, "ansi"))
    env.reset(seed=0)
    texts = [env.render()]
    for _ in range(6):
        info = env.step(np.array([1, 1, 1, 0, 0, 0], np.float32))[-1]
        texts.append(env.render())
    assert "2 of 3 nodes" in str(texts[3]) and "3 of 3 nodes" in str(texts[-1])
    lines = str(texts[-1]).splitlines()
    assert lines[0].startswith("burst-v0 · modelled · interval 6 of 6 · 3 of 3 nodes · ")
    assert lines[1].split() == [name for name, _ in OF_NODE.values()]
    nodes = lines[2:5]
    assert [line[:8].strip() for line in nodes] == ["node 0", "node 1", "node 2"]
    assert len({len(line) for line in nodes}) == 1 and nodes[0].split()[2] == f"{info['alpha'][0]:.2f}"
    assert [line.count(LOST) for line in nodes] == [0, 2 * len(OF_NODE), 0]
    assert [line[:12] for line in lines[5:7]] == ["mean latency", "P99 latency "] and lines[7].startswith("SLO 5.5 ms")


def test_text_of_a_large_cluster_stays_a_page() -> None:
    env = gym.make("helm/Cluster-v0", **of_cluster(TEXT_NODES + 8, "ansi", TEXT_BARS + 5))
    env.reset(seed=0)
    for _ in range(TEXT_BARS + 5):
        env.step(np.zeros(TEXT_NODES + 11, np.float32))
    lines = str(env.render()).splitlines()
    assert len(lines) == TEXT_NODES + 6 and "and 8 more" in lines and max(map(len, lines)) <= 120


def test_image_of_a_cluster_changes_with_the_episode_and_shows_the_lost_in_red() -> None:
    env = pettingzoo.make("parallel", "helm/cluster-v0", **of_cluster(ONE_LOST, "rgb_array"))
    assert env.metadata["render_modes"] == ["ansi", "rgb_array"]
    frames = []
    for _ in range(2):
        env.reset(seed=0)
        frames.append(env.render())
        while env.agents:
            env.step({agent: np.zeros(env.action_space(agent).shape, np.float32) for agent in env.agents})
        frames.append(env.render())
    env.close()
    for frame in frames:
        assert_whole(frame)
    first, later, fresh, again = frames
    assert not np.array_equal(first, later)
    assert np.array_equal(first, fresh) and np.array_equal(later, again)
    red = np.array([int(RED[k : k + 2], 16) for k in (1, 3, 5)])
    grew = (later == red).all(axis=2).sum() - (first == red).all(axis=2).sum()
    assert grew > 1000  # a third of the time of a third of the nodes, on each of four maps


def test_other_forms_of_a_cluster_are_drawn_too() -> None:
    lanes = gym.make_vec("helm/Cluster-v0", num_envs=2, **of_cluster(2, "ansi"))
    lanes.reset(seed=0)
    texts = lanes.render()
    assert texts is not None and ["lane 0" in texts[0], "lane 1" in texts[1]] == [True, True]
    in_turn = pettingzoo.make("aec", "helm/cluster-v0", **of_cluster(2, "ansi"))
    in_turn.reset(seed=0)
    assert in_turn.render() == texts[0].replace(" · lane 0", "")
    with pytest.raises(UnknownNameError, match="Unknown render_mode 'human'"):
        pettingzoo.make("parallel", "helm/cluster-v0", **of_cluster(2, "human"))
    unseen = pettingzoo.make("parallel", "helm/cluster-v0")
    unseen.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert unseen.render() is None
