"""Every registered environment: the checkers of its users' libraries, vector semantics, seeds, and errors."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode

import helm_gym
from helm_gym import profile as profiles
from helm_gym.envs.discrete import DiscreteActions
from helm_gym.envs.partition import PartitionEnv
from helm_gym.envs.partition_vector import PartitionVectorEnv
from helm_gym.envs.registration import ENVIRONMENTS
from helm_gym.errors import HelmError, InvalidInputError, UnknownNameError
from helm_gym.observation import ObservationLayout
from helm_gym.observation_schema import COLUMNS, FAST
from helm_gym.profile import Interval, Profile
from helm_gym.tasks import Task, find_task

SPECS = sorted((spec for spec in gym.registry.values() if spec.namespace == "helm"), key=lambda spec: spec.id)
STAY = np.zeros(1, np.float32)


@pytest.fixture(scope="module")
def small() -> Profile:
    """cpu-small with short intervals: resets that serve ten requests an interval, on the real backend too."""
    profile = profiles.load("cpu-small")
    population = dataclasses.replace(profile.population, users=1000, items=20_000)
    return dataclasses.replace(profile, interval=Interval(10, 20), population=population)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """200 arrivals, a second apart and then ten a second, as Azure records them."""
    path = tmp_path_factory.mktemp("traces") / "arrivals.csv"
    times = np.cumsum(np.where(np.arange(200) < 100, 1.0, 0.1))
    lines = [f"2023-11-16 18:{int(s) // 60:02d}:{s % 60:09.6f},{300 + k},44" for k, s in enumerate(times)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n", encoding="utf-8")
    return path


def arguments(spec: EnvSpec, profile: Profile, trace: pathlib.Path) -> dict[str, Any]:
    """The registered task with a short warm-up, a small profile on the real backend, a recording where it needs one."""
    task = dataclasses.replace(find_task(spec.kwargs.get("task", "mixed-v0")), warmup=2)
    given: dict[str, Any] = {"task": task, "intervals": 40}
    cluster = "Cluster" in spec.id
    if cluster or spec.kwargs.get("backend") == "real":
        given["profile"] = profile
    if cluster:
        given["cluster"] = 2
    return given | ({"trace": trace} if task.regime == "trace" else {})


def actions(steps: int, *shape: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(7)
    return (rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(steps))


def test_every_id_of_the_specification_is_registered() -> None:
    names = [f"helm/{name}{live}-v0" for name in ENVIRONMENTS for live in ("", "Live")]
    assert [spec.id for spec in SPECS] == sorted(names)
    for spec in SPECS:
        assert spec.nondeterministic is ("Live" in spec.id)
        assert spec.vector_entry_point is not None and spec.max_episode_steps is None


def test_importing_the_package_loads_neither_torch_nor_a_compiler() -> None:
    code = "import sys, helm_gym; print(sorted({'torch', 'numba', 'matplotlib', 'real_backend'} & set(sys.modules)))"
    root = pathlib.Path(helm_gym.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("checker", ["gymnasium", "stable-baselines3"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)
def test_checkers_pass_without_a_warning(spec: EnvSpec, checker: str, small: Profile, trace: pathlib.Path) -> None:
    given = arguments(spec, small, trace)
    check = gymnasium_check
    if checker == "stable-baselines3":
        check = pytest.importorskip("stable_baselines3.common.env_checker").check_env
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(gym.make(spec.id, **given).unwrapped)
    assert not [str(warning.message) for warning in caught]


def test_docstring_has_the_headings_and_the_table_of_the_layout() -> None:
    text = inspect.getdoc(PartitionEnv) or ""
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "Description",
        "Action Space",
        "Observation Space",
        "Rewards",
        "Starting State",
        "Episode End",
        "Arguments",
        "Vectorized environment",
        "Version History",
    ]
    layout = ObservationLayout(profiles.load("cpu-small"))
    rows = []
    changes = [(f"change_{name}", "since the last interval") for name in FAST]
    for name, doc in [*((column.name, column.doc) for column in COLUMNS), *changes]:
        place = layout.column(name)
        start = place if isinstance(place, int) else place.start
        number = str(place) if isinstance(place, int) else f"{place.start}–{place.stop - 1}"
        rows.append(f"| {number} | {name} | {layout.low[start]:g} | {layout.high[start]:g} | {doc} |")
    assert "\n".join(rows) == "\n".join(re.findall(r"^\| \d.*$", text, re.MULTILINE))
    assert f"`Box(low, high, ({layout.width},), float32)`" in text


@pytest.mark.parametrize("module", ["helm_gym.envs.partition", "helm_gym.envs.discrete"])
def test_examples_in_docstrings_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed


@pytest.mark.parametrize(
    "given",
    [
        {"seed": 3},
        {"seed": [9, 2, 9]},
        {"seed": 3, "make": {"max_episode_steps": 4}},
        {"seed": 3, "make": {"action_mode": "absolute"}},
    ],
    ids=["int", "list", "max_episode_steps", "absolute"],
)
def test_lanes_are_bit_identical_to_single_environments(given: dict[str, Any]) -> None:
    """Step by step, infos and their masks too, over two autoresets; SyncVectorEnv runs one single env a lane."""
    make = {"intervals": 6, **given.get("make", {})}
    native = gym.make_vec("helm/Burst-v0", num_envs=3, **make)
    single = gym.make_vec("helm/Burst-v0", num_envs=3, vectorization_mode="sync", **make)
    assert native.observation_space == single.observation_space and native.action_space == single.action_space
    assert data_equivalence(native.reset(seed=given["seed"]), single.reset(seed=given["seed"]), exact=True)
    ends = 0
    for action in actions(15, 3, 1):
        ours, theirs = native.step(action), single.step(action)
        assert data_equivalence(ours, theirs, exact=True)
        ends += int(ours[3].all())
    assert ends >= 2
    assert data_equivalence(native.reset(), single.reset(), exact=True)


def test_autoreset_is_next_step() -> None:
    env = gym.make_vec("helm/Steady-v0", num_envs=2, intervals=2)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    _, first = env.reset(seed=0)
    assert first["seed"].tolist() == [0, 1]
    *_, terminated, truncated, _ = env.step(np.ones((2, 1), np.float32))
    assert not truncated.any()
    last, reward, terminated, truncated, info = env.step(np.ones((2, 1), np.float32))
    assert truncated.all() and not terminated.any() and (reward < 0).all()
    assert (info["seed"] == first["seed"]).all()

    start, reward, terminated, truncated, info = env.step(np.ones((2, 1), np.float32))
    assert not truncated.any() and not terminated.any() and (reward == 0).all()
    assert (info["seed"] > 2**32).all()  # drawn: none that a task publishes
    assert (start[:, 1] == 0.5).all() and (last[:, 1] > 0.6).all()  # the action was ignored
    again, _ = env.reset(seed=info["seed"].tolist())
    assert (again == start).all()


def test_a_seed_fixes_all_later_workloads_whatever_the_actions() -> None:
    def played(action: float) -> list[tuple[list[int], list[float]]]:
        env = gym.make_vec("helm/Mixed-v0", num_envs=2, intervals=3)
        infos = [env.reset(seed=5)[1]]
        infos += [env.step(np.full((2, 1), action, np.float32))[4] for _ in range(9)]
        return [(info["seed"].tolist(), info["workload"]["hot_share"].tolist()) for info in infos]

    assert played(-1.0) == played(1.0)


def test_resets_without_a_seed_differ_and_can_be_played_again() -> None:
    env = gym.make("helm/Burst-v0", intervals=3)
    (first, info), (second, _) = env.reset(), env.reset()
    assert not np.array_equal(first, second)
    again, _ = env.reset(seed=info["seed"])
    assert np.array_equal(first, again)
    lanes = gym.make_vec("helm/Burst-v0", num_envs=2, intervals=3)
    assert len({*lanes.reset()[1]["seed"], *lanes.reset()[1]["seed"]}) == 4


def test_an_episode_is_truncated_at_its_horizon_and_then_over() -> None:
    env = gym.make("helm/Trend-v0", intervals=3)
    env.reset(seed=0)
    ends = [env.step(STAY)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    with pytest.raises(InvalidInputError, match="reset"):
        env.step(STAY)
    assert gym.make("helm/Trend-v0").get_wrapper_attr("loop").intervals == find_task("trend-v0").horizon


def test_reward_is_the_negative_sum_of_the_terms_in_info() -> None:
    env = gym.make("helm/Burst-v0")
    env.reset(seed=0)
    steps = [env.step(action) for action in actions(3, 1)]
    for observation, reward, _, _, info in steps:
        assert reward == pytest.approx(-sum(info["cost"].values()))
        assert info["alpha"] == pytest.approx(observation[0]) and 0 <= info["workload"]["hot_share"] <= 1
        assert info["segment"] == "calm" and info["cost"]["move"] > 0


def test_what_an_agent_writes_into_an_observation_stays_with_it() -> None:
    untouched, scribbled = [gym.make("helm/Burst-v0").unwrapped for _ in range(2)]
    untouched.reset(seed=0)
    scribbled.reset(seed=0)[0].fill(9.0)
    assert np.array_equal(untouched.step(STAY)[0], scribbled.step(STAY)[0])
    scribbled.step(STAY)


def test_what_an_agent_writes_into_infos_stays_with_it() -> None:
    untouched, scribbled = [PartitionVectorEnv(2, task="burst-v0") for _ in range(2)]
    untouched.reset(seed=0)
    _, info = scribbled.reset(seed=0)
    for array in (*info["cost"].values(), info["alpha"], info["target_alpha"], info["segment"], info["seed"]):
        if array.flags.writeable:
            array[:] = 0
    with pytest.raises(ValueError, match="read-only"):  # the workload that is yet to be served
        info["workload"]["hot_share"][:] = 0
    with pytest.raises(ValueError, match="read-only"):
        info["_alpha"][:] = False
    still = np.zeros((2, 1), np.float32)
    assert data_equivalence(untouched.step(still), scribbled.step(still), exact=True)


def test_infos_say_where_a_learned_backend_extrapolates(monkeypatch: pytest.MonkeyPatch) -> None:
    single = PartitionEnv(task="burst-v0", backend="modelled")
    many = PartitionVectorEnv(3, task="burst-v0", backend="modelled")
    assert "extrapolating" not in single.reset(seed=0)[1] and "extrapolating" not in many.reset(seed=0)[1]
    assert PartitionEnv(task="burst-v0").reset(seed=0)[1]["extrapolating"] in (True, False)
    for env, flags in ((single, [[True]]), (many, [[False], [True], [False]])):
        backend = env.loop.backend
        reported = dataclasses.replace(
            backend.step(env.loop.target, env.loop.path.at(0)), extrapolating=np.array(flags)
        )
        monkeypatch.setattr(backend, "step", lambda *_, reported=reported: reported)
    assert single.step(STAY)[4]["extrapolating"] is True
    info = many.step(np.zeros((3, 1), np.float32))[4]
    assert info["extrapolating"].tolist() == [False, True, False] and info["_extrapolating"].all()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.array([0.5 + 0j]), "Action is [(0.5+0j)]; (1,) numbers are needed"),
        (np.ma.masked_array([0.5], [True]), "Action is a masked array; (1,) numbers are needed"),
        (np.ma.masked_array([0.5], [False]), "Action is a masked array"),
        (np.array([True]), "Action is [True]; (1,) numbers are needed"),
        (np.array(["0.5"]), "Action is ['0.5']; (1,) numbers are needed"),
        (np.array([None]), "Action is [None]; (1,) numbers are needed"),
        (np.array([10**400], object), "numbers are needed"),
        ([[0.5], [0.5, 0.5]], "Action is [[0.5], [0.5, 0.5]]; (1,) numbers are needed"),
        ({"node": 0.5}, "Action has shape ()"),
        (0.5, "Action has shape (); (1,) is needed"),
        (None, "Action has shape (); (1,) is needed"),
        (np.zeros((1, 1), np.float32), "Action has shape (1, 1); (1,) is needed"),
        (np.array([np.nan], np.float32), "must be finite"),
    ],
    ids=lambda value: "" if isinstance(value, str) else repr(value)[:30],
)
def test_actions_that_are_no_numbers_change_nothing(action: Any, message: str) -> None:
    single, untouched = (gym.make("helm/Burst-v0", disable_env_checker=True) for _ in range(2))
    many = PartitionVectorEnv(2, task="burst-v0")
    for env in (single, untouched, many):
        env.reset(seed=0)
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        single.step(action)
    with pytest.raises(InvalidInputError, match=r"needed|finite"):
        many.step(np.array([action, action]) if type(action) is np.ndarray and action.ndim == 1 else action)
    expected = untouched.step(STAY)
    assert data_equivalence(single.step(STAY), expected, exact=True)
    assert np.array_equal(many.step(np.zeros((2, 1), np.float32))[0][0], expected[0])


@pytest.mark.parametrize(
    "action",
    [np.array([0.5], ">f4"), np.array([0.5], np.float16), np.array([0.5], np.longdouble), [0.5], (0.5,)],
    ids=["big-endian", "half", "long", "list", "tuple"],
)
def test_numbers_of_every_kind_are_actions(action: Any) -> None:
    env, expected = (gym.make("helm/Burst-v0", disable_env_checker=True) for _ in range(2))
    for each in (env, expected):
        each.reset(seed=0)
    assert data_equivalence(env.step(action), expected.step(np.array([0.5], np.float32)), exact=True)
    whole = env.step(np.array([1]))[4]["target_alpha"]
    assert whole == expected.step(np.array([1.0]))[4]["target_alpha"]


WRAPPERS: dict[str, Callable[[gym.Env], gym.Env]] = {
    "TimeAwareObservation": gym.wrappers.TimeAwareObservation,
    "FlattenObservation": gym.wrappers.FlattenObservation,
    "NormalizeObservation": gym.wrappers.NormalizeObservation,
    "NormalizeReward": gym.wrappers.NormalizeReward,
    "FrameStackObservation": lambda env: gym.wrappers.FrameStackObservation(env, 3),
    "DelayObservation": lambda env: gym.wrappers.DelayObservation(env, 2),
    "RecordEpisodeStatistics": gym.wrappers.RecordEpisodeStatistics,
    "RescaleAction": lambda env: gym.wrappers.RescaleAction(env, 0, 1),
    "ClipAction": gym.wrappers.ClipAction,
    "DiscretizeAction": lambda env: gym.wrappers.DiscretizeAction(env, 5),
    "StickyAction": lambda env: gym.wrappers.StickyAction(env, 0.5),
    "Autoreset": gym.wrappers.Autoreset,
    "RenderCollection": gym.wrappers.RenderCollection,
    "DiscreteActions": DiscreteActions,
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")  # RescaleAction's
def test_gymnasiums_wrappers_go_round_it_and_stay_in_its_spec(name: str) -> None:
    def total(env: gym.Env) -> tuple[float, bool]:
        env.reset(seed=0)
        env.action_space.seed(0)
        steps = [env.step(env.action_space.sample()) for _ in range(4)]
        assert env.observation_space.contains(steps[-1][0]) and not steps[-2][3]
        return sum(float(step[1]) for step in steps), steps[-1][3]

    env = WRAPPERS[name](gym.make("helm/Burst-v0", intervals=4, render_mode="ansi"))
    assert env.spec is not None
    reward, truncated = total(env)
    assert truncated
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert type(again) is type(env) and total(again) == (reward, True)


def test_an_absolute_action_is_the_target() -> None:
    env = gym.make("helm/Steady-v0", action_mode="absolute")
    env.reset(seed=0)
    assert env.step(np.array([1.0], np.float32))[4]["target_alpha"] == pytest.approx(0.95, abs=1e-3)
    assert env.step(np.array([-1.0], np.float32))[4]["target_alpha"] == pytest.approx(0.05, abs=1e-3)


def test_arguments_may_be_objects(small: Profile) -> None:
    task = Task("mine", "steady", "a shorter warm-up", warmup=1, start_alpha=0.3)
    env = gym.make("helm/Partition-v0", task=task, profile=small, backend="modelled")
    assert env.reset(seed=0)[1]["alpha"] == pytest.approx(0.3, abs=1e-3)
    assert gym.make("helm/Partition-v0", regime="trend").get_wrapper_attr("loop").task.name == "trend-v0"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"task": "brust-v0"}, UnknownNameError, "Unknown task 'brust-v0'; did you mean 'burst-v0'"),
        ({"regime": "bursts"}, UnknownNameError, "Unknown regime 'bursts'; did you mean 'burst'"),
        ({"task": "burst-v0", "regime": "burst"}, InvalidInputError, "exclude each other"),
        ({"profile": "cpu-smal"}, UnknownNameError, "Unknown profile 'cpu-smal'; did you mean 'cpu-small'"),
        ({"backend": "modeled"}, UnknownNameError, "Unknown backend 'modeled'; did you mean 'modelled'"),
        ({"action_mode": "deltas"}, UnknownNameError, "Unknown action_mode 'deltas'; did you mean 'delta'"),
        ({"task": "trace-v0"}, InvalidInputError, "give one with trace=PATH"),
        ({"task": "burst-v0", "trace": "arrivals.csv"}, InvalidInputError, "takes no trace"),
        ({"regime": "trace", "trace": "nowhere.csv"}, InvalidInputError, "nowhere.csv"),
        ({"intervals": 0}, InvalidInputError, "at least one interval"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_be_used(given: dict[str, Any], error: type[HelmError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        gym.make("helm/Partition-v0", **given)
    with pytest.raises(error, match=re.escape(message)):
        gym.make_vec("helm/Partition-v0", num_envs=2, **given)


def test_a_vector_environment_refuses_what_it_cannot_do() -> None:
    env = PartitionVectorEnv(2, task="steady-v0")
    with pytest.raises(InvalidInputError, match="must be reset"):
        env.step(np.zeros((2, 1), np.float32))
    with pytest.raises(InvalidInputError, match="3 seeds were given for 2 lanes"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(InvalidInputError, match="one clock"):
        env.reset(options={"reset_mask": np.array([True, False])})
    env.reset(seed=1, options={"reset_mask": np.array([True, True])})
    with pytest.raises(InvalidInputError, match="shape"):
        env.step(np.zeros((3, 1), np.float32))
    with pytest.raises(InvalidInputError, match="at least one lane"):
        gym.make_vec("helm/Steady-v0", num_envs=0)


def test_the_real_backend_has_one_lane() -> None:
    pytest.importorskip("torch")
    with pytest.raises(InvalidInputError, match="one lane"):
        gym.make_vec("helm/SteadyLive-v0", num_envs=2)


def test_masked_discrete_actions_stay_within_the_bounds() -> None:
    env = DiscreteActions(gym.make("helm/Steady-v0"), bins=5)
    env.reset(seed=0)
    targets = []
    while env.action_masks()[3]:
        targets.append(env.step(np.int64(np.flatnonzero(env.action_masks())[-1]))[4]["target_alpha"])
    assert targets == pytest.approx([0.6, 0.7, 0.8, 0.9, 0.95], abs=1e-3)  # the last by half a step, unclipped
    assert env.action_masks().tolist() == [True, True, True, False, False]
    absolute = DiscreteActions(gym.make("helm/Steady-v0", action_mode="absolute"))
    absolute.reset(seed=0)
    assert absolute.action_masks().all()


def test_discrete_actions_refuse_what_they_cannot_wrap() -> None:
    with pytest.raises(InvalidInputError, match="odd"):
        DiscreteActions(gym.make("helm/Steady-v0"), bins=4)
    with pytest.raises(InvalidInputError, match="CartPole"):
        DiscreteActions(gym.make("CartPole-v1"))


def test_discrete_actions_serve_maskable_ppo(small: Profile) -> None:
    sb3_contrib = pytest.importorskip("sb3_contrib")
    env = DiscreteActions(gym.make("helm/Steady-v0", intervals=8))
    model = sb3_contrib.MaskablePPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0).learn(16)
    assert model.num_timesteps == 16
