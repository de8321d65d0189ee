"""The adapter to Stable-Baselines3: its autoreset against Gymnasium's, what its algorithms read, seeds, and errors."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from helm_gym import profile as profiles
from helm_gym.envs.discrete import DiscreteActions
from helm_gym.envs.partition_vector import PartitionVectorEnv
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.profile import Interval, Profile
from helm_gym.tasks import find_task

pytest.importorskip("stable_baselines3")
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecCheckNan, VecFrameStack, VecMonitor, VecNormalize

from helm_gym.envs.sb3 import PartitionVecEnv

LANES, INTERVALS = 3, 5


@pytest.fixture(scope="module")
def arguments() -> dict[str, Any]:
    """Bursts of ten requests an interval, on few users, with a short warm-up."""
    profile = profiles.load("cpu-small")
    population = dataclasses.replace(profile.population, users=1000, items=20_000)
    small: Profile = dataclasses.replace(profile, interval=Interval(10, 20), population=population)
    return {
        "task": dataclasses.replace(find_task("burst-v0"), warmup=2),
        "profile": small,
        "backend": "modelled",
        "intervals": INTERVALS,
    }


def draw_rng() -> np.random.Generator:
    return np.random.default_rng(11)


def draw(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, (LANES, 1)).astype(np.float32)


def test_lanes_are_those_of_the_gymnasium_environment_but_for_the_autoreset(arguments: dict[str, Any]) -> None:
    """Over three episodes; where Gymnasium's next step ignores its actions, ours has started the episode already."""
    theirs, ours, rng = PartitionVectorEnv(LANES, **arguments), PartitionVecEnv(LANES, **arguments), draw_rng()
    assert ours.seed(7) == [7, 8, 9]
    first, info = theirs.reset(seed=7)
    np.testing.assert_array_equal(ours.reset(), first)
    for _ in range(3):
        assert [reset["seed"] for reset in ours.reset_infos] == info["seed"].tolist()
        for t in range(1, INTERVALS + 1):
            action = draw(rng)
            shown, reward, _, truncated, info = theirs.step(action)
            observation, rewards, dones, infos = ours.step(action)
            assert rewards.dtype == np.float32 and dones.dtype == np.bool_
            np.testing.assert_array_equal(rewards, reward.astype(np.float32))
            np.testing.assert_array_equal(dones, truncated)
            if t < INTERVALS:
                np.testing.assert_array_equal(observation, shown)
                assert infos == [{}] * LANES
                continue
            assert dones.all()
            for lane in range(LANES):
                np.testing.assert_array_equal(infos[lane]["terminal_observation"], shown[lane])
                assert infos[lane]["TimeLimit.truncated"] is True
            following, *_, info = theirs.step(draw(np.random.default_rng(0)))
            np.testing.assert_array_equal(observation, following)


def test_an_episodes_return_is_the_sum_of_its_rewards(arguments: dict[str, Any]) -> None:
    env, rng = PartitionVecEnv(LANES, max_episode_steps=4, **arguments), draw_rng()
    env.seed(3)
    env.reset()
    env.step(draw(rng))
    env.reset()  # gives an episode up: its rewards belong to no other
    for _ in range(2):
        steps = [env.step(draw(rng)) for _ in range(4)]
        total = np.sum([rewards for _, rewards, _, _ in steps], axis=0, dtype=np.float64)
        episodes = [info["episode"] for info in steps[-1][3]]
        assert [episode["l"] for episode in episodes] == [4] * LANES
        np.testing.assert_allclose([episode["r"] for episode in episodes], total, rtol=1e-6)


def test_nothing_that_a_step_returned_changes_later(arguments: dict[str, Any]) -> None:
    """SB3 keeps what it is given and adds to the rewards in place."""
    untouched, scribbled = PartitionVecEnv(LANES, **arguments), PartitionVecEnv(LANES, **arguments)
    for env in (untouched, scribbled):
        env.seed(5)
        env.reset()
    rng = draw_rng()
    for _ in range(INTERVALS + 2):
        action = draw(rng)
        expected, (observation, rewards, dones, infos) = untouched.step(action), scribbled.step(action)
        np.testing.assert_array_equal(observation, expected[0])
        np.testing.assert_array_equal(rewards, expected[1])
        assert [info.get("episode") for info in infos] == [info.get("episode") for info in expected[3]]
        observation.fill(9.0)
        rewards.fill(9.0)
        dones.fill(True)
        for info in infos:
            info["note"] = "mine"


def test_a_seed_fixes_every_later_episode(arguments: dict[str, Any]) -> None:
    def played(seed: int | None) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
        env, rng = PartitionVecEnv(LANES, **arguments), draw_rng()
        if seed is not None:
            env.seed(seed)
        seen = [env.reset()]
        seen += [np.asarray(env.step(draw(rng))[0]) for _ in range(2 * INTERVALS)]
        return [*seen, env.reset()], env.reset_infos

    once, again, other, unseeded = played(5), played(5), played(6), played(None)
    np.testing.assert_array_equal(once[0], again[0])
    assert once[1] == again[1]
    assert not np.array_equal(once[0], other[0]) and not np.array_equal(once[0], unseeded[0])
    assert all(info["seed"] > 2**32 for info in once[1])  # a seed is for one reset; later ones draw theirs


class Rewards(BaseCallback):
    """Keeps what the environment returned, before the algorithm adds to it."""

    def _on_training_start(self) -> None:
        self.seen: list[tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]] = []

    def _on_step(self) -> bool:
        values = self.locals
        self.seen.append((values["rewards"].copy(), values["dones"].copy(), values["infos"]))
        return True


def test_ppo_trains_and_bootstraps_what_was_cut_off(arguments: dict[str, Any]) -> None:
    env, kept = PartitionVecEnv(LANES, **arguments), Rewards()
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, gamma=0.9, seed=0, device="cpu")
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(LANES * 8, callback=kept)
    rewards = np.array([seen[0] for seen in kept.seen])
    ends = np.array([seen[1] for seen in kept.seen])
    assert np.flatnonzero(ends.all(axis=1)).tolist() == [INTERVALS - 1] and ends.sum() == LANES
    added = model.rollout_buffer.rewards - rewards
    assert (added[ends] != 0).all() and (added[~ends] == 0).all()
    model.learn(LANES * 8, callback=kept, reset_num_timesteps=False)
    assert model.num_timesteps == 2 * LANES * 8
    assert any((old != new).any() for old, new in zip(before, model.policy.parameters(), strict=True))
    assert model.ep_info_buffer is not None and len(model.ep_info_buffer) == 3 * LANES
    assert {episode["l"] for episode in model.ep_info_buffer} == {INTERVALS}


def test_sb3_evaluates_and_wraps_it_without_a_warning(arguments: dict[str, Any]) -> None:
    env = PartitionVecEnv(LANES, **arguments)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=0, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewards, lengths = evaluate_policy(model, env, n_eval_episodes=4, return_episode_rewards=True)
    assert isinstance(lengths, list) and lengths == [INTERVALS] * 4 and max(rewards) < 0
    wrapped = VecNormalize(PartitionVecEnv(LANES, **arguments), norm_reward=False)
    wrapped.reset()
    *_, infos = [wrapped.step(np.zeros((LANES, 1), np.float32)) for _ in range(INTERVALS)][-1]
    assert np.abs(infos[0]["terminal_observation"]).max() > 1.0  # normalised, as the others are


WRAPPED: dict[str, Callable[[PartitionVecEnv], Any]] = {
    "VecFrameStack": lambda env: VecFrameStack(env, 3),
    "VecNormalize of VecFrameStack": lambda env: VecNormalize(VecFrameStack(env, 3)),
    "VecFrameStack of VecNormalize": lambda env: VecFrameStack(VecNormalize(env), 3),
    "VecCheckNan": lambda env: VecCheckNan(env, raise_exception=True),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_sb3s_wrappers_see_the_last_observation_of_an_episode(name: str, arguments: dict[str, Any]) -> None:
    env = WRAPPED[name](PartitionVecEnv(LANES, **arguments))
    env.seed(1)
    first = env.reset()
    for _ in range(INTERVALS):
        observation, _, dones, infos = env.step(np.zeros((LANES, 1), np.float32))
    assert dones.all() and observation.shape == first.shape
    assert all(info["terminal_observation"].shape == first.shape[1:] for info in infos)


def test_sb3_runs_single_environments_in_processes_of_their_own(arguments: dict[str, Any]) -> None:
    made = {"seed": 5, "env_kwargs": arguments}
    here = make_vec_env("helm/Burst-v0", 2, **made)
    there = make_vec_env(
        "helm/Burst-v0", 2, **made, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "spawn"}
    )
    try:
        np.testing.assert_array_equal(here.reset(), there.reset())
        for _ in range(INTERVALS + 1):
            ours, theirs = (env.step(np.zeros((2, 1), np.float32)) for env in (here, there))
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1].astype(np.float32))  # SB3's own two differ in this
    finally:
        there.close()


def test_sb3_evaluates_while_it_trains_and_opens_what_it_saved(arguments: dict[str, Any], tmp_path: Path) -> None:
    env, seen = PartitionVecEnv(LANES, **arguments), PartitionVecEnv(1, **arguments)
    callback = EvalCallback(seen, eval_freq=4, n_eval_episodes=2, log_path=str(tmp_path), verbose=0)
    model = PPO("MlpPolicy", env, n_steps=4, batch_size=6, n_epochs=1, seed=0, device="cpu")
    model.learn(2 * LANES * 4, callback=callback)
    assert np.load(tmp_path / "evaluations.npz")["ep_lengths"].tolist() == [[INTERVALS] * 2] * 2
    model.save(tmp_path / "model.zip")
    opened = PPO.load(tmp_path / "model.zip", env=PartitionVecEnv(LANES, **arguments), device="cpu")
    assert opened.learn(LANES * 4).num_timesteps == LANES * 4


def test_sb3_contribs_time_feature_knows_the_horizon(arguments: dict[str, Any]) -> None:
    wrappers = pytest.importorskip("sb3_contrib.common.wrappers")
    env = wrappers.TimeFeatureWrapper(gym.make("helm/Burst-v0", **arguments))
    assert env.reset(seed=0)[0][-1] == 1.0
    left = [env.step(np.zeros(1, np.float32))[0][-1] for _ in range(INTERVALS)]
    np.testing.assert_allclose(left, np.linspace(1, 0, INTERVALS + 1)[1:], atol=1e-6)


def test_dqn_learns_with_discrete_actions(arguments: dict[str, Any]) -> None:
    env = DiscreteActions(gym.make("helm/Burst-v0", **arguments))
    model = DQN("MlpPolicy", env, learning_starts=4, buffer_size=32, batch_size=4, seed=0, device="cpu").learn(12)
    observation, _ = env.reset(seed=0)
    assert env.step(model.predict(observation)[0])[1] < 0


def test_a_copy_goes_on_as_its_original(arguments: dict[str, Any]) -> None:
    env = PartitionVecEnv(LANES, **arguments)
    env.seed(1)
    env.reset()
    still = np.zeros((LANES, 1), np.float32)
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        np.testing.assert_array_equal(twin.step(still)[0], copy.deepcopy(env).step(still)[0])


def test_attributes_and_methods_are_those_that_all_lanes_share(arguments: dict[str, Any]) -> None:
    env = PartitionVecEnv(LANES, render_mode="ansi", **arguments)
    env.reset()
    assert env.get_attr("render_mode") == ["ansi"] * LANES and env.render_mode == "ansi"
    assert env.get_attr("observation_space", [0, 2]) == [env.observation_space] * 2
    assert env.observation_space.shape == env.get_attr("loop", 1)[0].layout.low.shape
    assert not env.has_attr("action_masks") and env.has_attr("loop")
    env.set_attr("note", "ours")
    assert env.get_attr("note", 1) == ["ours"]
    assert "burst-v0" in env.env_method("render")[0][0]
    for refused in (lambda: env.set_attr("note", "mine", 0), lambda: env.env_method("render", indices=[0, 1])):
        with pytest.raises(InvalidInputError, match="lanes share"):
            refused()
    assert env.env_is_wrapped(Monitor) == [True] * LANES  # its work is done, which is what SB3 asks
    assert env.env_is_wrapped(VecMonitor, 0) == [False]
    env.close()


def test_what_a_step_meant_is_there_for_those_who_ask(arguments: dict[str, Any]) -> None:
    env = PartitionVecEnv(LANES, **arguments)
    env.seed(1)
    env.reset()
    _, rewards, _, _ = env.step(np.zeros((LANES, 1), np.float32))
    described = env.describe()
    terms = [value for name, value in described["cost"].items() if not name.startswith("_")]
    np.testing.assert_allclose(-np.sum(terms, axis=0), rewards, rtol=1e-6)
    assert described["seed"].tolist() == [1, 2, 3] and set(described["segment"]) == {"calm"}


def test_images_are_tiled(arguments: dict[str, Any]) -> None:
    env = PartitionVecEnv(2, render_mode="rgb_array", **arguments)
    env.reset()
    images = env.get_images()
    assert len(images) == 2 and images[0] is not None and images[0].shape == (720, 960, 3)
    assert env.render() is not None


def test_what_cannot_be_gets_the_projects_sentence(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="at least one lane"):
        PartitionVecEnv(0, **arguments)
    with pytest.raises(UnknownNameError, match="did you mean 'modelled'"):
        PartitionVecEnv(2, **{**arguments, "backend": "modeled"})
    env = PartitionVecEnv(LANES, **arguments)
    with pytest.raises(InvalidInputError, match="must be reset"):
        env.step(np.zeros((LANES, 1), np.float32))
    env.reset()
    with pytest.raises(InvalidInputError, match="shape"):
        env.step(np.zeros((LANES + 1, 1), np.float32))
    with pytest.raises(InvalidInputError, match="must be finite"):
        env.step(np.full((LANES, 1), np.nan, np.float32))


def test_the_real_backend_has_one_lane() -> None:
    with pytest.raises(InvalidInputError, match="one lane"):
        PartitionVecEnv(2, task="steady-v0", backend="real")
