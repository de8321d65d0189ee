"""The cluster's environments: PettingZoo's checkers, agents that come and go, rewards, determinism, lanes, errors."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import importlib
import inspect
import pathlib
import pickle
import re
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pettingzoo
import pytest
from gymnasium.utils.env_checker import data_equivalence
from pettingzoo.test import api_test, parallel_api_test, seed_test
from pettingzoo.test.state_test import state_test
from pettingzoo.utils.conversions import aec_to_parallel_wrapper, parallel_to_aec

from helm_gym import profile as profiles
from helm_gym.cluster.router_observation import NODE_COLUMNS, STATISTICS, TRAFFIC, RouterLayout
from helm_gym.cluster.topology import Cluster, Node, Outage, in_cluster
from helm_gym.envs.cluster_gymnasium import ClusterEnv
from helm_gym.envs.cluster_pettingzoo import ClusterParallelEnv
from helm_gym.envs.partition import PartitionEnv
from helm_gym.errors import HelmError, InvalidInputError, UnknownNameError
from helm_gym.observation import ObservationLayout
from helm_gym.observation_schema import PLACES
from helm_gym.profile import Interval
from helm_gym.tasks import find_task
from helm_gym.workload.regimes import make_path
from helm_gym.workload.traces import Trace

POPULATION = dataclasses.replace(profiles.load("cpu-small").population, users=1000, items=20_000)
SMALL = dataclasses.replace(profiles.load("cpu-small"), interval=Interval(10, 20), population=POPULATION)
ID, INTERVALS = "helm/cluster-v0", 8
STILL = {"node_0": np.zeros(1), "node_1": np.zeros(1), "router": np.zeros(3)}
# Node 0 joins in interval 2; node 1 is lost for good in interval 4; node 2 is away in intervals 3 to 5.
COMING_AND_GOING = Cluster((Node(3),), outages=(Outage(0, 0, 2), Outage(1, 4, 99), Outage(2, 3, 3)))
# PettingZoo's advice for agents that are all alike.
OF_UNLIKE_AGENTS = ("<descriptor>_<number>", "different observation space sizes", "Observations are different shapes")


def given(**more: Any) -> dict[str, Any]:
    task = dataclasses.replace(find_task("burst-v0"), warmup=2)
    return {"task": task, "profile": SMALL, "cluster": 2, "intervals": INTERVALS, **more}


def opened(**more: Any) -> ClusterParallelEnv:
    env = pettingzoo.make("parallel", ID, **given(**more))
    assert isinstance(env, ClusterParallelEnv)
    return env


def still(env: ClusterParallelEnv) -> dict[str, np.ndarray]:
    return {agent: np.zeros(env.action_space(agent).shape, np.float32) for agent in env.agents}


def rollout(seed: int, **more: Any) -> Iterator[Any]:
    env = opened(**more)
    yield env.reset(seed=seed), env.agents
    rng = np.random.default_rng(7)
    while env.agents:
        actions = {agent: rng.uniform(-1, 1, env.action_space(agent).shape) for agent in env.agents}
        yield env.step(actions), env.agents, env.state()


@pytest.mark.parametrize("cluster", [2, COMING_AND_GOING], ids=["all-there", "coming-and-going"])
def test_pettingzoo_checkers_pass(cluster: int | Cluster) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parallel_api_test(opened(cluster=cluster), num_cycles=2 * INTERVALS)
        api_test(pettingzoo.make("aec", ID, **given(cluster=cluster)), num_cycles=2 * INTERVALS)
        if cluster == 2:  # it seeds the action spaces of the agents that are there at reset and of no other
            seed_test(lambda: pettingzoo.make("aec", ID, **given(cluster=cluster)), num_cycles=2 * INTERVALS)
        state_test(pettingzoo.make("aec", ID, **given(cluster=cluster)), opened(cluster=cluster))
    expected = (*OF_UNLIKE_AGENTS, *(() if cluster == 2 else ("Observation numpy array is all zeros",)))
    assert not [str(w.message) for w in caught if not any(text in str(w.message) for text in expected)]


def test_a_rollout_is_fixed_by_its_seed_to_the_last_bit() -> None:
    first, again, other = (list(rollout(seed, cluster=COMING_AND_GOING)) for seed in (3, 3, 4))
    assert len(first) == INTERVALS + 1
    assert data_equivalence(first, again, exact=True)
    for ours, theirs in zip(first, other, strict=True):
        assert not data_equivalence(ours[0], theirs[0])


def test_agents_join_stay_while_they_are_away_and_leave() -> None:
    env = opened(cluster=COMING_AND_GOING, reward="node")
    _, infos = env.reset(seed=1)
    assert list(infos) == env.agents == ["node_1", "node_2", "router"]
    seen = []
    while env.agents:
        observations, rewards, terminations, truncations, infos = env.step(still(env))
        assert observations.keys() == rewards.keys() == terminations.keys() == truncations.keys() == infos.keys()
        seen.append((env.agents, infos, observations, rewards, terminations))
    agents = [entry[0] for entry in seen]
    assert ["node_0" in names for names in agents[:-1]] == [False] * 2 + [True] * 5
    assert ["node_1" in names for names in agents[:-1]] == [True] * 4 + [False] * 3
    assert all("node_2" in names for names in agents[:-1]) and agents[-1] == []
    assert [names["node_2"]["alive"] for _, names, *_ in seen] == [True] * 3 + [False] * 3 + [True] * 2
    for _, infos, observations, rewards, terminations in seen[3:6]:
        assert not observations["node_2"].any() and rewards["node_2"] == 0 and not terminations["node_2"]
        assert infos["node_2"]["requests"] == 0
    _, infos, observations, _, terminations = seen[4]
    assert terminations == {"node_0": False, "node_1": True, "node_2": False, "router": False}
    assert not infos["node_1"]["alive"] and not observations["node_1"].any()
    assert observations["node_0"].any() and infos["node_0"]["requests"] >= 30
    assert infos["router"]["rerouted"] > 0  # what node 1 had not answered
    assert all(truncated for truncated in truncations.values())


def test_the_action_of_a_node_that_is_away_does_nothing() -> None:
    env = opened(cluster=Cluster((Node(2),), outages=(Outage(1, 2, 3),)))
    env.reset(seed=1)
    targets = []
    for _ in range(INTERVALS):
        infos = env.step({agent: np.ones(env.action_space(agent).shape) for agent in env.agents})[4]
        targets.append(env.loop.target[0, 1])
    assert infos["node_1"]["alive"]
    np.testing.assert_allclose(targets, [0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.9, 0.95])


def test_the_team_pays_for_requests_and_a_node_for_its_own() -> None:
    team, own = opened(), opened(reward="node")
    for env in (team, own):
        env.reset(seed=2)
    _, shared, _, _, infos = team.step(STILL)
    _, rewards, _, _, _ = own.step(STILL)
    assert len(set(shared.values())) == 1 and shared["router"] == rewards["router"]
    requests = [infos[node]["requests"] for node in ("node_0", "node_1")]
    assert sum(requests) == 20
    assert rewards["router"] == pytest.approx(np.average([rewards["node_0"], rewards["node_1"]], weights=requests))
    for node in ("node_0", "node_1"):
        assert rewards[node] == pytest.approx(-sum(infos[node]["cost"].values()))


def test_what_the_router_is_shown_has_one_width_and_leaves_the_lost_out() -> None:
    widths = set()
    for size in (1, 2, 3):
        env = opened(cluster=size)
        observations, _ = env.reset(seed=1)
        widths.add(observations["router"].shape)
        assert env.observation_space("router").contains(observations["router"])
    assert widths == {(43,)}
    env = opened(cluster=Cluster((Node(3),), outages=(Outage(1, 0, 99),)))
    env.reset(seed=1)
    observations, *_ = env.step(still(env) | {"router": np.array([-1.0, 0.5, 1.0])})
    layout, router = env.loop.router_layout, observations["router"]
    assert layout is not None and len(layout.names) == env.observation_space("router").shape[0]
    hits = [observations[node][PLACES["emb_hit_rate"]] for node in ("node_0", "node_2")]
    for name, value in (("mean", np.mean(hits)), ("least", np.min(hits)), ("greatest", np.max(hits))):
        assert router[layout.column(f"emb_hit_rate_{name}")] == pytest.approx(value)
    assert router[layout.column("alive_share")] == pytest.approx(2 / 3)
    assert router[layout.column("size")] == pytest.approx(np.log2(3) / 10)
    assert router[-3:] == pytest.approx([-1.0, 0.5, 1.0])
    with pytest.raises(UnknownNameError, match="did you mean 'alive_share'"):
        layout.column("alive_shares")


def test_the_routers_action_sends_requests_elsewhere() -> None:
    def requests(action: list[float]) -> list[int]:
        env = opened(cluster=3)
        env.reset(seed=1)
        return [env.step(still(env) | {"router": np.array(action)})[4]["node_0"]["requests"] for _ in range(4)]

    assert requests([1.0, -1.0, -1.0]) != requests([-1.0, -1.0, 1.0])


def test_state_is_what_the_single_agent_sees() -> None:
    env, single = opened(cluster=COMING_AND_GOING), gym.make("helm/Cluster-v0", **given(cluster=COMING_AND_GOING))
    env.reset(seed=5)
    observation, _ = single.reset(seed=5)
    assert env.state_space == single.observation_space and single.action_space.shape == (6,)
    for _ in range(INTERVALS):
        assert np.array_equal(env.state(), observation)
        rewards = env.step(still(env))[1]
        observation, reward, *_ = single.step(np.zeros(6, np.float32))
        assert reward == rewards["router"]


@pytest.mark.parametrize("cluster", [2, COMING_AND_GOING], ids=["all-there", "coming-and-going"])
def test_lanes_are_bit_identical_to_single_environments(cluster: int | Cluster) -> None:
    """Step by step, infos and their masks too, over an autoreset; SyncVectorEnv runs one single env a lane."""
    native = gym.make_vec("helm/Cluster-v0", num_envs=2, **given(cluster=cluster))
    single = gym.make_vec("helm/Cluster-v0", num_envs=2, vectorization_mode="sync", **given(cluster=cluster))
    assert native.observation_space == single.observation_space and native.action_space == single.action_space
    assert data_equivalence(native.reset(seed=3), single.reset(seed=3), exact=True)
    rng, ends = np.random.default_rng(7), 0
    for _ in range(INTERVALS + 3):
        actions = rng.uniform(-1, 1, native.action_space.shape).astype(np.float32)
        ours, theirs = native.step(actions), single.step(actions)
        assert data_equivalence(ours, theirs, exact=True)
        ends += int(ours[3].all())
    assert ends == 1


def test_episodes_end_at_max_cycles_and_can_be_played_again() -> None:
    env = opened(max_cycles=2)
    first, infos = env.reset()
    again, _ = env.reset(seed=infos["router"]["seed"])
    assert infos["router"]["seed"] > 2**32 and data_equivalence(first, again, exact=True)
    assert not any(env.step(STILL)[3].values())
    assert all(env.step(STILL)[3].values()) and env.agents == []
    with pytest.raises(InvalidInputError, match="must be reset"):
        env.step(STILL)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (STILL | {"node_2": np.zeros(1)}, "given for 'node_2', which is none of the agents ['node_0', 'node_1'"),
        ({"node_0": np.zeros(1), "router": np.zeros(3)}, "No action was given for 'node_1'"),
        ({"node_0": np.zeros(1), "node_1": np.zeros(1)}, "No action was given for 'router'"),
        (STILL | {"node_1": np.zeros(2)}, "'node_1' has shape (2,); (1,) is needed"),
        (STILL | {"node_1": None}, "'node_1' has shape (); (1,) is needed"),
        (STILL | {"node_0": ["up"]}, "'node_0' is ['up']; (1,) numbers are needed"),
        (STILL | {"router": np.zeros((1, 3))}, "'router' has shape (1, 3); (3,) is needed"),
        (STILL | {"router": np.array([0, np.nan, 0])}, "'router' is [0.0, nan, 0.0]; it must be finite"),
        (STILL | {"node_0": np.array([np.inf])}, "'node_0' is [inf]; it must be finite"),
        ([np.zeros(1)] * 3, "must be a mapping from agents to actions, not list"),
    ],
)
def test_actions_that_cannot_be_used_change_nothing(actions: Any, message: str) -> None:
    env = opened()
    env.reset(seed=1)
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        env.step(actions)
    kept = opened()
    kept.reset(seed=1)
    assert data_equivalence(env.step(STILL), kept.step(STILL), exact=True)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"reward": "teams"}, UnknownNameError, "Unknown reward 'teams'; did you mean 'team'"),
        ({"task": "trace-v0"}, InvalidInputError, "has no recording; give one with trace=PATH"),
        ({"cluster": 0}, InvalidInputError, "1 to 1,024"),
        ({"cluster": -3}, InvalidInputError, "neither a number of nodes nor a YAML file"),
        ({"cluster": "nowhere.yaml"}, InvalidInputError, "nowhere.yaml cannot be read"),
        ({"backend": "modeled"}, UnknownNameError, "did you mean 'modelled'"),
        ({"intervals": 0}, InvalidInputError, "at least one interval"),
    ],
)
def test_arguments_that_cannot_be_used(more: dict[str, Any], error: type[HelmError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        opened(**more)


@pytest.mark.parametrize(
    "action", [np.array([0.5 + 0j]), np.ma.masked_array([0.5], [True]), np.array([True]), [None]], ids=repr
)
def test_actions_that_are_no_numbers_are_refused_by_every_form(action: Any) -> None:
    parallel, in_turn = opened(), pettingzoo.make("aec", ID, **given())
    parallel.reset(seed=1)
    in_turn.reset(seed=1)
    with pytest.raises(InvalidInputError, match=r"The action of 'node_1' is .*; \(1,\) numbers are needed"):
        parallel.step(STILL | {"node_1": action})
    with pytest.raises(InvalidInputError, match="The action of 'node_1' is"):
        for own in (np.zeros(1), action, np.zeros(3)):
            in_turn.step(own)
    single = gym.make("helm/Cluster-v0", disable_env_checker=True, **given())
    single.reset(seed=1)
    with pytest.raises(InvalidInputError, match="numbers are needed"):
        single.step(np.ma.masked_array(np.zeros(5), True) if np.ma.isMaskedArray(action) else np.repeat(action, 5))


def test_a_clipped_action_and_one_beyond_are_the_same() -> None:
    far, near = opened(), opened()
    for env in (far, near):
        env.reset(seed=1)
    huge = {agent: np.full(action.shape, 1e300) for agent, action in STILL.items()}
    one = {agent: np.ones(action.shape) for agent, action in STILL.items()}
    assert data_equivalence(far.step(huge), near.step(one), exact=True)


def test_conversions_to_turns_and_back_change_nothing() -> None:
    there, back = opened(cluster=COMING_AND_GOING), parallel_to_aec(opened(cluster=COMING_AND_GOING))
    again = aec_to_parallel_wrapper(back)
    assert data_equivalence(there.reset(seed=3), again.reset(seed=3), exact=True)
    while there.agents:
        assert there.agents == again.agents
        actions = still(there)
        ours, theirs = there.step(actions), again.step(actions)
        assert data_equivalence(ours[0], theirs[0], exact=True) and ours[1] == dict(theirs[1])
        assert ours[2:4] == theirs[2:4]
    assert again.agents == []


def test_a_closed_cluster_says_so_and_one_that_never_began_has_no_state() -> None:
    env = opened()
    with pytest.raises(InvalidInputError, match="must be reset before it has a state"):
        env.state()
    env.reset(seed=1)
    env.close()
    env.close()
    with pytest.raises(InvalidInputError, match="must be reset before it is stepped"):
        env.step(STILL)
    with pytest.raises(InvalidInputError, match="closed"):
        env.reset()


@pytest.mark.parametrize("form", ["parallel", "aec"])
def test_a_copy_goes_on_as_its_original(form: str) -> None:
    env = pettingzoo.make(form, ID, **given(render_mode="rgb_array"))
    env.reset(seed=1)
    env.render()
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        twin.reset(seed=2)
        assert not np.array_equal(twin.state(), env.state())
        twin.reset(seed=1)
        assert np.array_equal(twin.state(), env.state()) and np.array_equal(twin.render(), env.render())


def test_recorded_arrivals_come_in_their_order_at_the_pace_of_a_cluster() -> None:
    rng, size = np.random.default_rng(0), 2 * SMALL.interval.requests
    recorded = Trace("made", np.cumsum(rng.exponential(size=400)), rng.integers(100, 900, 400), None)
    task, pace = dataclasses.replace(find_task("trace-v0"), warmup=2), 0.5 * 1.5  # load, and the mean speed
    cluster = Cluster((Node(), Node(speed=2.0)), load=0.5)
    env = opened(task=task, cluster=cluster, trace=recorded)
    env.reset(seed=3)
    path = env.loop.path
    assert path is not None and path.gaps_s.shape == (1, INTERVALS, size) and path.intervals == INTERVALS
    node = make_path("trace", SMALL, [3], 2 * INTERVALS, recorded)
    np.testing.assert_allclose(path.gaps_s.ravel(), node.gaps_s.ravel() / (2 * pace))
    np.testing.assert_allclose(path.parameter("mean_history")[0, 0], node.parameter("mean_history")[0, :2].mean())
    np.testing.assert_allclose(path.parameter("arrival_rate_rps"), 1 / (2 * path.gaps_s.mean(axis=2)))
    served = [env.step(still(env))[4] for _ in range(INTERVALS)]
    assert [info["node_0"]["requests"] + info["node_1"]["requests"] for info in served] == [size] * INTERVALS
    first, again = (list(rollout(3, task=task, trace=recorded)) for _ in range(2))
    assert data_equivalence(first, again, exact=True)
    with pytest.raises(InvalidInputError, match="makes one interval of 2 of recorded arrivals; 5 are no multiple"):
        in_cluster(make_path("trace", SMALL, [3], 5, recorded), cluster, SMALL, [3])


def test_a_cluster_without_a_node_alive_is_said() -> None:
    env = opened(cluster=Cluster((Node(2),), outages=(Outage(0, 3, 2), Outage(1, 4, 2))))
    with pytest.raises(InvalidInputError, match="no node alive in some interval"):
        env.reset(seed=1)


def test_the_joint_action_is_checked() -> None:
    env = gym.make("helm/Cluster-v0", **given())
    env.reset(seed=1)
    with pytest.raises(InvalidInputError, match=re.escape("shape (4,); (5,) is needed")):
        env.step(np.zeros(4, np.float32))
    with pytest.raises(InvalidInputError, match="'load' of lane 0 is nan"):
        env.step(np.array([0, 0, 0, 0, np.nan], np.float32))
    with pytest.raises(InvalidInputError, match="lane 0, node 1 is inf"):
        env.step(np.array([0, np.inf, 0, 0, 0], np.float32))


def test_stable_baselines_trains_on_lanes_of_clusters() -> None:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO

    from helm_gym.envs.sb3 import ClusterVecEnv

    lanes = ClusterVecEnv(2, **given())
    model = PPO("MlpPolicy", lanes, n_steps=INTERVALS + 1, batch_size=6, n_epochs=1, seed=0).learn(18)
    assert model.num_timesteps == 18


def test_docstring_has_the_headings_and_the_table_of_the_routers_layout() -> None:
    text, layout = inspect.getdoc(ClusterEnv) or "", RouterLayout()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == re.findall(
        r"^## (.+)$", inspect.getdoc(PartitionEnv) or "", re.MULTILINE
    )
    rows, count = [], len(NODE_COLUMNS)
    for k, name in enumerate(STATISTICS):
        rows.append(f"| {k * count}–{(k + 1) * count - 1} | …_{name} | 0 | 1 | the {name} over the nodes alive |")
        assert layout.names[k * count] == f"{NODE_COLUMNS[0]}_{name}"
    rows += [f"| {layout.column(name)} | {name} | 0 | 1 | {doc} |" for name, doc in TRAFFIC]
    rows.append(
        f"| {layout.width - 3}–{layout.width - 1} | {', '.join(layout.names[-3:])} | -1 | 1 | "
        "the router's action in the last interval |"
    )
    section = text[text.index("## Observation Space") : text.index("## Rewards")]
    assert "\n".join(rows) == "\n".join(re.findall(r"^\| \d.*$", section, re.MULTILINE))
    assert f"{', '.join(NODE_COLUMNS[:-1])} and {NODE_COLUMNS[-1]}" in " ".join(section.split())
    columns = ObservationLayout(SMALL).width
    assert f"`Box(low, high, ({columns} N + {layout.width},), float32)`" in section


def test_the_file_shown_in_the_docs_is_a_cluster(tmp_path: pathlib.Path) -> None:
    text = (pathlib.Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    file = tmp_path / "cluster.yaml"
    file.write_text(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0], encoding="utf-8")
    shown = opened(cluster=file).loop.backend.spec.cluster
    assert shown is not None and shown.size == 4 and shown.outages == (Outage(0, 100, 60),)


@pytest.mark.parametrize("module", ["helm_gym.envs.cluster_pettingzoo", "helm_gym.envs.cluster_gymnasium"])
def test_examples_in_docstrings_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed
