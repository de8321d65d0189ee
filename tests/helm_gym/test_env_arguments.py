"""What every form of an environment refuses, in the project's sentence, and what an ``EnvSpec`` keeps of the rest."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pettingzoo
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import data_equivalence
from hypothesis import given
from hypothesis import strategies as st

import helm_gym  # noqa: F401  (registers the environments)
from helm_gym import profile as profiles
from helm_gym.cluster.topology import Cluster, Node, Outage
from helm_gym.envs.arguments import SEEDS, check_options, check_seed
from helm_gym.envs.partition import PartitionEnv
from helm_gym.envs.partition_vector import PartitionVectorEnv
from helm_gym.errors import HelmError, InvalidInputError, UnknownNameError
from helm_gym.profile import Interval
from helm_gym.tasks import find_task
from helm_gym.workload.traces import Trace

POPULATION = dataclasses.replace(profiles.load("cpu-small").population, users=1000, items=20_000)
SMALL = dataclasses.replace(profiles.load("cpu-small"), interval=Interval(10, 20), population=POPULATION)
BURST = dataclasses.replace(find_task("burst-v0"), warmup=2)
RECORDED = dataclasses.replace(find_task("trace-v0"), warmup=2)
ARRIVALS = np.cumsum(np.tile([0.0, 0.001, 0.1], 100))
TRACE = Trace("made", ARRIVALS, np.arange(300) + 100, np.arange(300) % 3 == 0)
CLUSTER = Cluster((Node(2), Node(memory=0.9, speed=2.0)), outages=(Outage(1, 2, 2),))


def sb3(name: str) -> Callable[..., Any]:
    def make(**arguments: Any) -> Any:
        pytest.importorskip("stable_baselines3")
        from helm_gym.envs import sb3 as adapters

        return getattr(adapters, name)(2, **arguments)

    return make


NODE_FORMS: dict[str, Callable[..., Any]] = {
    "single": lambda **arguments: gym.make("helm/Partition-v0", **arguments),
    "vector": lambda **arguments: gym.make_vec("helm/Partition-v0", num_envs=2, **arguments),
    "sb3": sb3("PartitionVecEnv"),
}
CLUSTER_FORMS: dict[str, Callable[..., Any]] = {
    "cluster": lambda **arguments: gym.make("helm/Cluster-v0", **arguments),
    "cluster-vector": lambda **arguments: gym.make_vec("helm/Cluster-v0", num_envs=2, **arguments),
    "cluster-sb3": sb3("ClusterVecEnv"),
    "parallel": lambda **arguments: pettingzoo.make("parallel", "helm/cluster-v0", **arguments),
    "aec": lambda **arguments: pettingzoo.make("aec", "helm/cluster-v0", **arguments),
}
FORMS = NODE_FORMS | CLUSTER_FORMS
TIMES = dataclasses.replace(TRACE, arrival_s=ARRIVALS[::-1])


def refused(message: str, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    """With one sentence that a line can bear."""
    with pytest.raises(HelmError) as caught:
        call(*arguments, **keywords)
    said = str(caught.value)
    assert message in said and len(said) <= 500 and "\n" not in said and said.endswith((".", "?"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": []}, "task=[] cannot be used; give a task's name"),
        ({"task": 5}, "task=5 cannot be used"),
        ({"task": {}}, "task: name is missing"),
        ({"task": {"name": "x", "regime": "burst", "doc": "", "horizn": 1}}, "did you mean 'horizon'"),
        ({"task": {"name": "x", "regime": "burst", "doc": "", "horizon": 2.5}}, "task: horizon must be int, not 2.5"),
        ({"task": {"name": "x", "regime": "burst", "doc": "", "horizon": 10**9}}, "horizon must be 1 to 100,000"),
        ({"task": dataclasses.replace(BURST, regime="bursts")}, "Unknown task.regime 'bursts'; did you mean 'burst'"),
        ({"regime": 5}, "Unknown regime '5'"),
        ({"regime": ["burst"]}, "Unknown regime"),
        ({"profile": 3}, "profile=3 cannot be used; give a shipped profile's name"),
        ({"profile": ""}, "Unknown profile ''"),
        ({"profile": {"name": "x"}}, "profile: description is missing"),
        ({"profile": b"cpu-small"}, "profile=b'cpu-small' cannot be used"),
        ({"backend": None}, "Unknown backend 'None'"),
        ({"backend": ["modelled"]}, "Unknown backend"),
        ({"action_mode": 3}, "Unknown action_mode '3'"),
        ({"render_mode": "x"}, "Unknown render_mode 'x'"),
        ({"task": RECORDED, "trace": 5}, "trace=5 cannot be used; give the path of a recording"),
        ({"task": RECORDED, "trace": {"name": "x"}}, "cannot be used; give a recording's path or a Trace"),
        ({"task": RECORDED, "trace": TIMES}, "Trace 'made' is no recording"),
        ({"intervals": "5"}, "intervals='5' cannot be used; give a whole number, at least one interval"),
        ({"intervals": 2.5}, "intervals=2.5 cannot be used"),
        ({"intervals": True}, "intervals=True cannot be used"),
        ({"intervals": np.array([5])}, "intervals=array([5]) cannot be used"),
        ({"intervals": -1}, "intervals=-1 cannot be used"),
        ({"intervals": 10**9}, "intervals=1000000000 cannot be used; give a whole number, at least one interval and"),
        ({"intervals": 10**5000}, "cannot be used; give a whole number, at least one interval and at most 100,000"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
@pytest.mark.filterwarnings("ignore:.*render_mode.*:UserWarning")  # Gymnasium's own word on it
def test_arguments_of_a_wrong_type_or_size(form: str, arguments: dict[str, Any], message: str) -> None:
    refused(message, FORMS[form], **arguments)


@pytest.mark.parametrize("form", CLUSTER_FORMS)
@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (None, "cluster=None cannot be used; give a number of nodes"),
        (1.5, "cluster=1.5 cannot be used"),
        (True, "cluster=True cannot be used"),
        ([2], "cluster=[2] cannot be used"),
        ("²", "neither a number of nodes nor a YAML file"),
        ({}, "cluster: nodes is missing"),
        ({"nodes": 2}, "cluster: nodes must be a list, not 2"),
        ({"nodes": [{"count": 1.5}]}, "count must be int, not 1.5"),
        (1025, "1 to 1,024"),
    ],
    ids=str,
)
def test_clusters_of_a_wrong_type_or_size(form: str, cluster: Any, message: str) -> None:
    refused(message, CLUSTER_FORMS[form], cluster=cluster)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": "2"}, "num_envs='2' cannot be used; give a whole number, at least one lane"),
        ({"num_envs": 2.0}, "num_envs=2.0 cannot be used"),
        ({"num_envs": 10**9}, "num_envs=1,000,000,000 and intervals=480 needs about"),
        ({"num_envs": 10**400}, "cannot be used; give a whole number, at least one lane and at most"),
        ({"num_envs": 100_000, "intervals": 100_000}, "of memory, and"),
        ({"num_envs": 10**6, "backend": "modelled", "intervals": 1}, "of memory, and"),
        ({"max_episode_steps": 0}, "max_episode_steps=0 cannot be used"),
        ({"max_episode_steps": "3"}, "max_episode_steps='3' cannot be used"),
        ({"autoreset_mode": "samestep"}, "Unknown autoreset_mode 'samestep'; did you mean 'SameStep'"),
        ({"autoreset_mode": None}, "Unknown autoreset_mode 'None'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_vectors_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    refused(message, gym.make_vec, "helm/Burst-v0", **({"num_envs": 2} | arguments))
    refused(message, PartitionVectorEnv, **({"num_envs": 2} | arguments))


def test_what_only_some_forms_take() -> None:
    refused("max_cycles=0 cannot be used", CLUSTER_FORMS["parallel"], max_cycles=0)
    refused("max_cycles='3' cannot be used", CLUSTER_FORMS["aec"], max_cycles="3")
    refused("Unknown reward '3'", CLUSTER_FORMS["parallel"], reward=3)
    refused("leave autoreset_mode out", NODE_FORMS["sb3"], autoreset_mode="Disabled")
    refused("1,024 nodes, needs about", gym.make, "helm/Cluster-v0", cluster=1024)  # 1.4 TiB of tables
    refused("Unknown render_mode '3'", PartitionEnv, render_mode=3)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    name=st.sampled_from(["task", "regime", "profile", "backend", "action_mode", "trace", "intervals", "render_mode"]),
    value=JUNK,
)
def test_whatever_is_given_for_an_argument_works_or_is_a_sentence(name: str, value: Any) -> None:
    beside = {"task": "trace-v0"} if name == "trace" else {}
    try:
        PartitionVectorEnv(1, **beside, **{name: value}).close()
    except HelmError as error:
        assert len(str(error)) <= 500 and "\n" not in str(error)


@given(JUNK | st.integers(-5, 5) | st.integers(SEEDS - 5, SEEDS + 5))
def test_a_seed_is_a_whole_number_from_0_to_2_63(value: Any) -> None:
    if type(value) is int and 0 <= value < SEEDS:
        assert check_seed(value) == value
        return
    with pytest.raises(InvalidInputError, match="a seed is a whole number from 0 to"):
        check_seed(value)


@pytest.mark.parametrize("seed", [np.int64(7), np.uint32(7), np.array(7), np.uint8(7)], ids=repr)
def test_numpys_integers_are_seeds(seed: Any) -> None:
    single, many = (make(task=BURST, profile=SMALL, backend="modelled") for make in (PartitionEnv, PartitionVectorEnv))
    assert np.array_equal(single.reset(seed=seed)[0], single.reset(seed=7)[0])
    assert single.np_random_seed == 7 and type(single.reset(seed=seed)[1]["seed"]) is int
    assert many.reset(seed=seed)[1]["seed"].tolist() == [7] and many.np_random_seed == 7
    lanes = PartitionVectorEnv(2, task=BURST, profile=SMALL, backend="modelled")
    assert lanes.reset(seed=np.array([4, 2]))[1]["seed"].tolist() == [4, 2]
    parallel = CLUSTER_FORMS["parallel"](task=BURST, profile=SMALL, cluster=1)
    assert parallel.reset(seed=seed)[1]["router"]["seed"] == 7


def test_every_form_refuses_seeds_that_are_none() -> None:
    given_all = {"task": BURST, "profile": SMALL, "backend": "modelled"}
    for form, make in FORMS.items():
        env = make(**given_all)
        for seed in (-1, SEEDS, 1.5, "3", True, np.array([3])[:0], {3}):
            refused("seed", env.seed if "sb3" in form else env.reset, seed=seed)
    lanes = PartitionVectorEnv(2, **given_all)
    refused("cannot be used for 2 lanes", lanes.reset, seed=SEEDS - 1)
    refused("seed=2.0 cannot be used", lanes.reset, seed=[1, 2.0])
    refused("seed='2' cannot be used", lanes.start, [1, "2"])
    assert lanes.reset(seed=SEEDS - 2)[1]["seed"].tolist() == [SEEDS - 2, SEEDS - 1]


def test_a_reset_has_no_options_but_a_mask_of_all_lanes() -> None:
    given_all = {"task": BURST, "profile": SMALL, "backend": "modelled"}
    for form, make in FORMS.items():
        env = make(**given_all)
        if "sb3" in form:
            env.set_options({"path": 1})
            refused("reset has no option 'path'", env.reset)
            env.reset()  # as SB3 has it, options are for one reset
            continue
        env.reset(options={})
        message = "Unknown option of reset 'path'" if "vector" in form else "reset has no option 'path'"
        refused(message, env.reset, options={"path": 1})
        refused("options=['path'] cannot be used", env.reset, options=["path"])
    parallel = CLUSTER_FORMS["parallel"](**given_all)
    parallel.reset(options={"options": 1})  # PettingZoo's checkers
    refused("reset has no option 'options'", parallel.reset, options={"options": 2})
    lanes = PartitionVectorEnv(2, **given_all)
    refused("did you mean 'reset_mask'", lanes.reset, options={"reset_maks": np.ones(2, bool)})
    for mask in ([True, True], np.ones(3, bool), np.ones(2), "x"):
        refused("give a numpy array of 2 booleans", lanes.reset, options={"reset_mask": mask})
    assert check_options(None) == {}


ROUND_TRIPS: dict[str, tuple[str, dict[str, Any]]] = {
    "names": ("helm/Partition-v0", {"regime": "steady", "intervals": np.int64(5), "action_mode": "absolute"}),
    "objects": ("helm/Partition-v0", {"task": BURST, "profile": SMALL, "backend": "modelled", "intervals": 5}),
    "trace": (
        "helm/Trace-v0",
        {"task": RECORDED, "trace": TRACE, "profile": SMALL, "backend": "modelled", "intervals": 5},
    ),
    "cluster": ("helm/Cluster-v0", {"task": BURST, "profile": SMALL, "cluster": CLUSTER, "intervals": 5}),
}


def played(env: Any) -> list[Any]:
    action = np.full(env.action_space.shape, 0.4, np.float32)
    return [env.reset(seed=3), *(env.step(action) for _ in range(4))]


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_a_spec_survives_json_whatever_the_arguments_were(name: str) -> None:
    env_id, arguments = ROUND_TRIPS[name]
    env = gym.make(env_id, **arguments)
    assert env.spec is not None and env.spec.max_episode_steps == 5
    text = env.spec.to_json()
    assert isinstance(json.loads(text), dict)
    expected = played(env)
    for spec in (EnvSpec.from_json(text), env.spec):
        again = gym.make(spec)
        assert data_equivalence(played(again), expected, exact=True)
        assert again.spec is not None and again.spec.to_json() == text
    many = gym.make_vec(env_id, num_envs=2, max_episode_steps=3, autoreset_mode="SameStep", **arguments)
    assert many.spec is not None and many.spec.max_episode_steps == 3
    expected = played(many)
    again_many = gym.make_vec(EnvSpec.from_json(many.spec.to_json()))
    assert data_equivalence(played(again_many), expected, exact=True) and again_many.num_envs == 2


def test_files_are_kept_by_their_paths(tmp_path: pathlib.Path) -> None:
    machine, nodes = tmp_path / "small.yaml", tmp_path / "nodes.yaml"
    profiles.save(SMALL, machine)
    nodes.write_text("nodes: [{count: 2}]\n", encoding="utf-8")
    env = gym.make("helm/Cluster-v0", profile=machine, cluster=nodes)
    assert env.spec is not None
    kept = json.loads(env.spec.to_json())["kwargs"]
    assert kept == {"profile": str(machine), "cluster": str(nodes)}
    assert gym.make(EnvSpec.from_json(env.spec.to_json())).unwrapped.loop.shape == (1, 2)


def test_an_episode_is_as_long_as_its_spec_says() -> None:
    def length(env: Any) -> int:
        env.reset(seed=0)
        for step in range(1, 1000):
            *_, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
            if terminated or truncated:
                assert not terminated and env.spec.max_episode_steps == step
                return step
        raise AssertionError("no end")

    assert length(gym.make("helm/Steady-v0")) == 480
    assert length(gym.make("helm/Steady-v0", intervals=20)) == 20
    assert length(gym.make("helm/Steady-v0", intervals=600)) == 600  # no TimeLimit of the horizon cuts it
    assert length(gym.make("helm/Steady-v0", intervals=20, max_episode_steps=10)) == 10
    assert length(gym.make("helm/Steady-v0", intervals=20, max_episode_steps=-1)) == 20
    spec = gym.make("helm/Steady-v0", intervals=20).spec
    assert spec is not None and length(gym.make(spec)) == 20
    assert length(gym.make(spec, intervals=30)) == 20  # Gymnasium's: a spec's figure is a limit,
    assert length(gym.make(spec, intervals=30, max_episode_steps=-1)) == 30  # and this lifts it
    aware = gym.wrappers.TimeAwareObservation(gym.make("helm/Steady-v0", intervals=20))
    assert aware.observation_space.shape == (47,) and aware.observation_space.high[-1] == 20


def test_names_that_do_not_exist_are_known_before_anything_is_opened() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'ansi'"):
        CLUSTER_FORMS["parallel"](cluster=1024, render_mode="ansii")
