"""Recurrent and maskable PPO: sb3-contrib's, over the training loop that on-policy agents share."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from agents import maskable_ppo, recurrent_ppo
from agents.maskable_env import MaskableTrainingEnv, make_maskable_ppo
from agents.network import Windows
from agents.recurrent_sb3 import lstm_actor, make_recurrent_ppo
from agents.sb3 import mlp_actor
from agents.training_env import TrainingEnv
from helm_gym.errors import InvalidInputError
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Policy
from helm_gym.training import run_folder, trainable
from helm_gym.training.trainable import Training
from tests.agents.trainings import SMALL, STEPS, short_task, train_small
from tests.conformance.policy import PolicyConformance, make_layout, observations

LAYOUT = make_layout()
OVERRIDES: dict[str, dict[str, Any]] = {"recurrent-ppo": {"windows": 1}, "maskable-ppo": {"bins": 5}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Run folders of both agents."""
    root = tmp_path_factory.mktemp("runs")
    for name, overrides in OVERRIDES.items():
        train_small(root / name, name, **overrides)
    return {name: root / name for name in OVERRIDES}


class TestRecurrentPpo(PolicyConformance):
    kind = "recurrent-ppo"

    @pytest.fixture(scope="class")
    @classmethod
    def policy(cls, folders: dict[str, pathlib.Path]) -> Policy:
        cls.name = str(folders[cls.kind])
        return open_policy(cls.name, LAYOUT)


class TestMaskablePpo(TestRecurrentPpo):
    kind = "maskable-ppo"


@pytest.mark.parametrize("name", OVERRIDES)
def test_its_graph_does_what_it_does(name: str, folders: dict[str, pathlib.Path]) -> None:
    run, agent = run_folder.read_run(folders[name]), trainable.find_trainable(name)
    settings, tensors = (
        trainable.make_settings(agent, run.settings, name),
        run_folder.policy_tensors(folders[name], run),
    )
    policy = trainable.build(agent, LAYOUT, settings, tensors, name)
    assert agent.graph is not None
    graph = onnxruntime.InferenceSession(agent.graph(LAYOUT, settings, tensors).SerializeToString())
    state = drawn_state = policy.initial_state(5)
    for observation in observations(LAYOUT, 30):
        action, state = policy.act(observation, state)
        drawn, drawn_state = graph.run(None, {"obs": observation, "state": drawn_state})
        np.testing.assert_allclose(drawn, action, atol=1e-5)
        np.testing.assert_allclose(drawn_state, state, atol=1e-5)


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_killed_training_goes_on_to_the_weights_of_an_unbroken_one(
    name: str, tmp_path: pathlib.Path, folders: dict[str, pathlib.Path]
) -> None:
    """The recurrent one's memory, too: rounds begin with fresh episodes."""

    def kill(done: int, total: int, words: str) -> None:
        if done >= STEPS // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_small(tmp_path / "run", name, kill, **OVERRIDES[name])
    train_small(tmp_path / "run", name, **OVERRIDES[name])
    newest = [sorted((folder / run_folder.CHECKPOINTS).iterdir())[-1] for folder in (tmp_path / "run", folders[name])]
    resumed, unbroken = (run_folder.read_tensors(path)[0] for path in newest)
    assert newest[0].name == newest[1].name and resumed.keys() == unbroken.keys()
    for key, value in unbroken.items():
        np.testing.assert_array_equal(resumed[key], value)


def make_training(folder: pathlib.Path, settings: Any) -> Training:
    return Training(folder, short_task(), LAYOUT.profile, LAYOUT, settings, 0, STEPS, lambda *_: None)


def test_the_recurrent_policy_is_sb3s(tmp_path: pathlib.Path) -> None:
    settings = recurrent_ppo.Settings(**SMALL | OVERRIDES["recurrent-ppo"])
    env = TrainingEnv(make_training(tmp_path, settings), recurrent_ppo.Present(LAYOUT))
    model = make_recurrent_ppo(env, 0)
    with torch.no_grad():  # fresh actors hardly act
        for weights in model.policy.parameters():
            weights.mul_(3.0)
    policy = recurrent_ppo.RecurrentPpoPolicy(LAYOUT, settings, lstm_actor(model))
    state, theirs, first = policy.initial_state(5), None, np.ones(5, bool)
    for observation in observations(LAYOUT, 20):
        action, state = policy.act(observation, state)
        chosen, theirs = model.predict(observation, theirs, first, deterministic=True)
        np.testing.assert_allclose(action, chosen, atol=1e-5)
        first = np.zeros(5, bool)
    assert np.abs(action).max() > 1e-3  # and the comparison says something
    env.close()


def test_the_maskable_policy_is_sb3s_and_never_leaves_the_bounds(tmp_path: pathlib.Path) -> None:
    settings = maskable_ppo.Settings(**SMALL | OVERRIDES["maskable-ppo"])
    env = MaskableTrainingEnv(make_training(tmp_path, settings), Windows(LAYOUT, settings.windows))
    model = make_maskable_ppo(env, 0)
    policy = maskable_ppo.MaskablePpoPolicy(LAYOUT, settings, mlp_actor(model))
    state, pool = policy.initial_state(5), LAYOUT.profile.pool
    for observation in observations(LAYOUT, 20):
        observation[:, LAYOUT.column("target_alpha")] = [0.05, 0.07, 0.5, 0.93, 0.95]
        after = observation[:, [LAYOUT.column("target_alpha")]] + policy.values * LAYOUT.profile.max_step
        masks = (after > pool.min_alpha - 1e-4) & (after < pool.max_alpha + 1e-4)
        features, _ = policy.features(observation, state)
        chosen, _ = model.predict(features, deterministic=True, action_masks=masks)
        action, state = policy.act(observation, state)
        np.testing.assert_array_equal(action[:, 0], policy.values[chosen])
    env.close()


def test_masks_of_all_lanes_are_given_to_sb3_in_one_call(tmp_path: pathlib.Path) -> None:
    settings = maskable_ppo.Settings(**SMALL | OVERRIDES["maskable-ppo"])
    env = MaskableTrainingEnv(make_training(tmp_path, settings), Windows(LAYOUT, settings.windows))
    env.reset()
    assert np.stack(env.env_method("action_masks")).all()
    for _ in range(6):  # from .5 down to the bound in one lane, up in another, and nowhere in the rest
        env.step(np.array([0, 4, 2, 2]))
    masks = np.stack(env.env_method("action_masks"))
    np.testing.assert_array_equal(masks[0], [False, False, True, True, True])
    np.testing.assert_array_equal(masks[1], [True, True, True, False, False])
    assert masks[2:].all()
    env.close()


def test_the_recurrent_one_refuses_stacked_windows() -> None:
    with pytest.raises(InvalidInputError, match="windows must be 1"):
        recurrent_ppo.Settings(windows=3)


def test_a_policy_for_other_shapes_is_refused(tmp_path: pathlib.Path, folders: dict[str, pathlib.Path]) -> None:
    run = run_folder.read_run(folders["recurrent-ppo"])
    run.settings["hidden"] = 16
    run_folder.write_run(tmp_path, run)
    run_folder.write_tensors(tmp_path / run_folder.POLICY, run_folder.policy_tensors(folders["recurrent-ppo"], run))
    with pytest.raises(InvalidInputError, match="does not hold a policy of recurrent-ppo"):
        open_policy(str(tmp_path), LAYOUT)
