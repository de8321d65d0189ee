"""Vectors of environments: Gymnasium's autoreset modes step by step, its wrappers, discrete actions of lanes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as wrappers

from helm_gym.envs.discrete import DiscreteActions, DiscreteVectorActions
from helm_gym.envs.partition_vector import PartitionVectorEnv
from helm_gym.errors import InvalidInputError

MODES = [mode.value for mode in AutoresetMode]
ID = "helm/Burst-v0"
UP = np.ones((2, 1), np.float32)


def native(mode: str | AutoresetMode = AutoresetMode.NEXT_STEP, **arguments: Any) -> gym.vector.VectorEnv:
    return gym.make_vec(ID, num_envs=2, autoreset_mode=mode, **{"intervals": 3, **arguments})


def synchronous(mode: str, **arguments: Any) -> gym.vector.VectorEnv:
    kwargs = {"intervals": 3, **arguments}
    return gym.make_vec(ID, num_envs=2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **kwargs)


@pytest.mark.parametrize("arguments", [{}, {"max_episode_steps": 2}], ids=["horizon", "max_episode_steps"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_gymnasiums_own(mode: str, arguments: dict[str, Any]) -> None:
    """Step by step, infos and their masks too, over three ends of episodes."""
    ours, theirs = native(mode, **arguments), synchronous(mode, **arguments)
    assert ours.metadata["autoreset_mode"] is AutoresetMode(mode) is theirs.metadata["autoreset_mode"]
    assert data_equivalence(ours.reset(seed=3), theirs.reset(seed=3), exact=True)
    rng, ends = np.random.default_rng(7), 0
    while ends < 3:
        action = rng.uniform(-1, 1, (2, 1)).astype(np.float32)
        step = ours.step(action)
        assert data_equivalence(step, theirs.step(action), exact=True)
        ended = step[3]
        ends += int(ended.all())
        if mode == "Disabled" and ended.any():
            start = [env.reset(options={"reset_mask": ended}) for env in (ours, theirs)]
            assert data_equivalence(*start, exact=True)


def test_next_step_ignores_the_action_after_the_end() -> None:
    env = native(AutoresetMode.NEXT_STEP)
    env.reset(seed=0)
    steps = [env.step(UP) for _ in range(4)]
    assert [step[3].tolist() for step in steps] == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]
    assert (steps[2][0][:, 1] > 0.7).all() and (steps[3][0][:, 1] == 0.5).all()  # target_alpha: moved, at the start
    assert (steps[3][1] == 0).all() and not any("final_obs" in step[4] for step in steps)


def test_same_step_returns_the_next_start_and_the_end_beside_it() -> None:
    env = native("SameStep")
    env.reset(seed=0)
    steps = [env.step(UP) for _ in range(4)]
    assert [step[3].tolist() for step in steps] == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]
    assert ["final_obs" in step[4] for step in steps] == [False, False, True, False]
    start, reward, _, _, info = steps[2]
    assert (start[:, 1] == 0.5).all() and (reward < 0).all()
    final = info["final_obs"]
    assert final.dtype == object and info["_final_obs"].all() and info["_final_info"].all()
    assert all(lane.shape == (46,) and lane.dtype == np.float32 and lane[1] > 0.7 for lane in final)
    assert info["final_info"]["seed"].tolist() == [0, 1] and (info["seed"] > 2**32).all()
    assert (reward == -sum(terms for name, terms in info["final_info"]["cost"].items() if name[0] != "_")).all()
    assert (steps[3][0][:, 1] > 0.5).all()  # no action was ignored
    again, _ = env.reset(seed=info["seed"].tolist())
    assert np.array_equal(again, start)


def test_disabled_waits_for_a_reset() -> None:
    env = native(AutoresetMode.DISABLED)
    env.reset(seed=0)
    ends = [env.step(UP)[3].all() for _ in range(3)]
    assert ends == [False, False, True]
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="autoreset is disabled; call reset"):
            env.step(UP)
    start, info = env.reset(options={"reset_mask": np.ones(2, bool)})
    assert (start[:, 1] == 0.5).all() and (info["seed"] > 2**32).all()
    assert not env.step(UP)[3].any()


@pytest.mark.parametrize("mode", MODES)
def test_recorded_statistics_are_the_episodes_own(mode: str) -> None:
    env = wrappers.RecordEpisodeStatistics(native(mode))
    env.reset(seed=0)
    rewards, reported = [], []
    rng = np.random.default_rng(7)
    while len(reported) < 3:
        _, reward, _, ended, info = env.step(rng.uniform(-1, 1, (2, 1)).astype(np.float32))
        if (reward < 0).all():  # no step that only starts an episode
            rewards.append(reward)
        if ended.all():
            assert info["_episode"].all()
            reported.append((info["episode"]["r"], info["episode"]["l"].tolist()))
            if mode == "Disabled":
                env.reset(options={"reset_mask": ended})
    assert [length for _, length in reported] == [[3, 3]] * 3 and len(rewards) == 9
    for number, (total, _) in enumerate(reported):
        np.testing.assert_allclose(total, np.sum(rewards[3 * number : 3 * number + 3], axis=0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")  # RescaleAction's
def test_gymnasiums_wrappers_do_with_ours_what_they_do_with_its_own(mode: str) -> None:
    def wrapped(env: gym.vector.VectorEnv) -> gym.vector.VectorEnv:
        env = wrappers.RescaleAction(wrappers.ClipReward(wrappers.NormalizeReward(env), -1, 1), -2.0, 2.0)
        return env if mode == "SameStep" else wrappers.FlattenObservation(env)  # which refuses that mode

    ours, theirs = wrapped(native(mode)), wrapped(synchronous(mode))
    assert data_equivalence(ours.reset(seed=3), theirs.reset(seed=3), exact=True)
    for _ in range(8):
        step = ours.step(2 * UP)
        assert data_equivalence(step, theirs.step(2 * UP), exact=True)
        if mode == "Disabled" and step[3].all():
            assert data_equivalence(ours.reset(), theirs.reset(), exact=True)


@pytest.mark.parametrize(("context", "shared_memory"), [("spawn", True), ("fork", False)])
def test_other_processes_step_the_same_lanes(context: str, shared_memory: bool) -> None:
    kwargs = {"context": context, "shared_memory": shared_memory}
    theirs = gym.make_vec(ID, num_envs=2, vectorization_mode="async", vector_kwargs=kwargs, intervals=3)
    ours = native()
    try:
        assert data_equivalence(ours.reset(seed=3), theirs.reset(seed=3), exact=True)
        for _ in range(5):
            assert data_equivalence(ours.step(UP), theirs.step(UP), exact=True)
    finally:
        theirs.close()


def test_what_an_agent_writes_into_the_last_observation_stays_with_it() -> None:
    untouched, scribbled = native("SameStep"), native("SameStep")
    for env in (untouched, scribbled):
        env.reset(seed=0)
    for _ in range(7):
        expected, (observation, *_, info) = untouched.step(UP), scribbled.step(UP)
        assert np.array_equal(observation, expected[0])
        observation.fill(9.0)
        for lane in info.get("final_obs", ()):
            lane.fill(9.0)


def test_every_observation_lies_within_the_space_whatever_the_actions() -> None:
    for task in ("burst-v0", "mixed-v0"):
        env = PartitionVectorEnv(8, task=task)
        observation, _ = env.reset(seed=0)
        rng = np.random.default_rng(0)
        for step in range(300):
            assert env.observation_space.contains(observation)
            extreme = rng.choice([-3e38, -1.0, 1.0, 3e38], (8, 1)) if step % 3 else np.full((8, 1), 1e300)
            observation, reward, *_ = env.step(extreme)
            assert np.isfinite(reward).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["deep", "pickle"])
@pytest.mark.parametrize("render_mode", [None, "ansi", "rgb_array"])
def test_a_copy_goes_on_as_its_original(copied: Any, render_mode: str | None) -> None:
    """Tree searches copy environments; ``SubprocVecEnv`` and ``AsyncVectorEnv`` hand them to other processes."""
    many = native(render_mode=render_mode, intervals=9)
    for env, action in ((gym.make(ID, render_mode=render_mode).unwrapped, UP[0]), (many, UP)):
        env.reset(seed=0)
        env.step(action)
        if render_mode:
            env.render()
        twin = copied(env)
        for _ in range(2):
            assert data_equivalence(env.step(action), twin.step(action), exact=True)
        if render_mode:
            assert data_equivalence(env.render(), twin.render(), exact=True)
        twin.step(-action)
        assert data_equivalence(env.reset(), twin.reset(), exact=True)


def test_a_closed_environment_says_so() -> None:
    for env, action in ((gym.make(ID), UP[0]), (gym.make(ID).unwrapped, UP[0]), (native(), UP)):
        env.reset(seed=0)
        env.close()
        env.close()
        for use in (lambda: env.step(action), env.reset):  # noqa: B023  (called at once)
            with pytest.raises(InvalidInputError, match="closed"):
                use()


def test_discrete_actions_of_lanes_are_those_of_single_environments() -> None:
    lanes = DiscreteVectorActions(gym.make_vec(ID, num_envs=3), bins=5)
    single = [DiscreteActions(gym.make(ID), bins=5) for _ in range(3)]
    assert lanes.single_action_space == single[0].action_space
    assert lanes.action_space == gym.spaces.MultiDiscrete([5, 5, 5])
    observations, _ = lanes.reset(seed=5)
    assert np.array_equal(observations, [env.reset(seed=5 + lane)[0] for lane, env in enumerate(single)])
    for actions in ([0, 2, 4], np.array([0, 2, 4]), (0, 1, 4), np.array([0, 1, 4], np.uint8), [0, 4, 4], [0, 0, 4]):
        masks = lanes.action_masks()
        assert masks.shape == (3, 5) and np.array_equal(masks, [env.action_masks() for env in single])
        observations, rewards, *_ = lanes.step(actions)
        steps = [env.step(action) for env, action in zip(single, actions, strict=True)]
        assert np.array_equal(observations, [step[0] for step in steps])
        assert np.array_equal(rewards, [step[1] for step in steps])
    assert masks[0].tolist() == [False, False, True, True, True]  # at the least alpha
    assert DiscreteVectorActions(gym.make_vec(ID, num_envs=2, action_mode="absolute"), bins=3).reset(seed=0)[0].any()


@pytest.mark.parametrize(
    "action", [-1, 5, 9, 10**30, 1.5, 2.0, True, None, "1", np.array([1]), np.float64(2)], ids=repr
)
def test_discrete_actions_refuse_what_is_none(action: Any) -> None:
    env = DiscreteActions(gym.make(ID), bins=5)
    env.reset(seed=0)
    with pytest.raises(InvalidInputError, match="is none; give a whole number from 0 to 4"):
        env.step(action)
    assert env.step(np.array(2))[4]["target_alpha"] == 0.5  # nothing had moved, and a whole number alone is one


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([-1, 0], "Action -1 of lane 0 is none; give a whole number from 0 to 4"),
        ([0, 5], "Action 5 of lane 1 is none"),
        ([1.0, 2.0], "give 2 whole numbers, one a lane"),
        ([True, False], "give 2 whole numbers"),
        ([1], "give 2 whole numbers"),
        (np.array([[1], [2]]), "give 2 whole numbers"),
        ([[1], [2, 3]], "give 2 whole numbers"),
        (np.ma.masked_array([1, 2], [True, False]), "give 2 whole numbers"),
        ("ab", "give 2 whole numbers"),
        (None, "give 2 whole numbers"),
        (3, "give 2 whole numbers"),
    ],
    ids=repr,
)
def test_discrete_actions_of_lanes_refuse_what_is_none(actions: Any, message: str) -> None:
    lanes = DiscreteVectorActions(native(), bins=5)
    lanes.reset(seed=0)
    with pytest.raises(InvalidInputError, match=message):
        lanes.step(actions)


def test_discrete_actions_wrap_partitions_alone() -> None:
    for wrong in (gym.make_vec("CartPole-v1", num_envs=2), gym.make(ID), None, synchronous("NextStep")):
        with pytest.raises(InvalidInputError, match="wraps a native vector of partitions"):
            DiscreteVectorActions(wrong)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(InvalidInputError, match="wraps a single partition environment"):
        DiscreteActions(native())  # type: ignore[arg-type]  # on purpose
    for bins in (1, 4, -3, 5.0, "5", None, True, 10**9 + 1):
        with pytest.raises(InvalidInputError, match="bins must be odd"):
            DiscreteActions(gym.make(ID), bins=bins)  # type: ignore[arg-type]  # on purpose
    for env in (DiscreteActions(gym.make(ID)), DiscreteVectorActions(native())):
        with pytest.raises(InvalidInputError, match="must be reset before it has masks"):
            env.action_masks()
