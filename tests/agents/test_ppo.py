"""PPO and the training loop that on-policy agents share."""

from __future__ import annotations

import multiprocessing
import pathlib
import shutil
import time

import numpy as np
import pytest

from agents.network import Windows
from agents.ppo import PpoPolicy, Settings
from agents.training_env import TrainingEnv
from helm_gym import profile as profiles
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Policy
from helm_gym.training import run_folder
from helm_gym.training.run_folder import Run
from helm_gym.training.trainable import Training
from tests.agents.trainings import SMALL, STEPS, scalars_of, short_task, train_and_tell, train_small
from tests.conformance.policy import PolicyConformance, make_layout, observations

LAYOUT = make_layout()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("runs") / "ppo"


@pytest.fixture(scope="module")
def run(folder: pathlib.Path) -> Run:
    return train_small(folder)


def make_training(folder: pathlib.Path, seed: int = 0) -> Training:
    profile = profiles.load("cpu-small")
    settings = Settings(**SMALL)
    return Training(folder, short_task(), profile, LAYOUT, settings, seed, STEPS, lambda *_: None)


@pytest.mark.usefixtures("run")
class TestTrainedPpo(PolicyConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def policy(cls, layout: ObservationLayout, folder: pathlib.Path) -> Policy:
        cls.name = str(folder)
        return open_policy(cls.name, layout)


def test_a_run_says_what_it_was(folder: pathlib.Path, run: Run) -> None:
    read = run_folder.read_run(folder)
    assert read == run and (read.status, read.agent, read.task) == ("done", "ppo", "mixed-v0")
    assert read.settings["lanes"] == SMALL["lanes"] and read.settings["gamma"] == Settings().gamma
    assert 0 < read.facts["env_share"] < 1 and read.facts["seconds"] > 0
    assert read.origin.profile_fingerprint == LAYOUT.profile.fingerprint
    assert len(list((folder / run_folder.CHECKPOINTS).iterdir())) == 2


def test_the_policy_kept_is_the_one_that_validated_best(folder: pathlib.Path, run: Run) -> None:
    shown = scalars_of(folder)
    costs = dict(shown["validation/cost"])
    assert len(costs) == 8
    kept = run.facts["validation"]
    assert kept["cost"] == pytest.approx(min(costs.values())) == pytest.approx(costs[kept["step"]])
    assert {"train/loss", "rollout/ep_rew_mean"} <= set(shown)


def test_it_acts_as_stable_baselines3_would(tmp_path: pathlib.Path) -> None:
    from agents.sb3 import FrozenScale, make_ppo, mlp_actor

    training = make_training(tmp_path)
    env = TrainingEnv(training, Windows(LAYOUT, 2))
    model = make_ppo(env, 3)
    assert isinstance(model.policy.features_extractor, FrozenScale)
    model.policy.features_extractor.set_from(env.survey(np.random.default_rng(0)))
    policy = PpoPolicy(LAYOUT, training.settings, mlp_actor(model))
    state = policy.initial_state(5)
    for observation in observations(LAYOUT):
        features, _ = policy.features(observation, state)
        action, state = policy.act(observation, state)
        np.testing.assert_allclose(action, model.predict(features, deterministic=True)[0], atol=1e-5)
    env.close()


def test_windows_hold_the_newest_first_and_the_first_again_before_there_are_enough() -> None:
    windows, (a, b, c) = Windows(LAYOUT, 3), observations(LAYOUT, 6)[3:]
    state = windows.initial_state(len(a))
    for observation, wanted in ((a, (a, a, a)), (b, (b, a, a)), (c, (c, b, a))):
        features, state = windows(observation, state)
        np.testing.assert_array_equal(features, np.hstack(wanted))


def test_training_episodes_are_no_task_s_and_those_of_no_other_run(tmp_path: pathlib.Path) -> None:
    seeds = []
    for seed in (0, 0, 1):
        env = TrainingEnv(make_training(tmp_path, seed), Windows(LAYOUT, 2))
        env.reset()
        seeds.append(env.lanes.seeds.tolist())
        env.reset()
        assert set(env.lanes.seeds.tolist()).isdisjoint(seeds[-1])
        env.close()
    assert seeds[0] == seeds[1] and set(seeds[0]).isdisjoint(seeds[2])
    assert min(seeds[0]) >= 2**32


def test_a_reward_is_bounded_and_dearer_for_what_is_worse(tmp_path: pathlib.Path) -> None:
    env = TrainingEnv(make_training(tmp_path), Windows(LAYOUT, 2))
    env.reset()
    step = env.lanes.serve(np.zeros((4, 1), np.float32))
    # Lanes: an idle node; a tail beyond the SLO; the whole pool moved; a queue that has no end.
    terms = np.array([[0.1, 0.1, 0.1, 1e6], [0.0, 0.2 * 2, 0.0, 1e6], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.5, 0.0]])
    idle, tail, moved, endless = env.reward(step._replace(terms=terms))
    s = env.settings
    assert idle == pytest.approx(-0.1)
    assert tail == pytest.approx(-0.1 - s.excess_price) and moved == pytest.approx(-0.1 - s.move_price)
    assert endless == pytest.approx(-3 - 3 * s.excess_price - s.slo_price)
    env.close()


def test_a_training_killed_again_and_again_ends_as_an_unbroken_one(
    tmp_path: pathlib.Path, folder: pathlib.Path, run: Run
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["agents.ppo", "agents.sb3", "agents.training_env", "tests.agents.trainings"])
    random, killed = np.random.default_rng(5), tmp_path / "killed"
    reached: list[int] = []
    while True:
        here, there = context.Pipe()
        process = context.Process(target=train_and_tell, args=(killed, there))
        process.start()
        there.close()
        for _ in range(random.integers(4, 10)):
            last = here.recv()
            if last is None:
                break
            here.send("on")
        if last is None:
            process.join()
            break
        time.sleep(random.uniform(0, 0.02))  # wherever it is by then
        process.kill()
        process.join()
        reached.append(last)
    assert len(reached) >= 2 and reached == sorted(reached)  # each went on from near where the last was killed
    assert run_folder.read_run(killed).facts["validation"] == run.facts["validation"]
    for name in (run_folder.POLICY, f"{run_folder.CHECKPOINTS}/{STEPS:012d}.safetensors"):
        ours, theirs = (run_folder.read_tensors(path / name)[0] for path in (killed, folder))
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            np.testing.assert_array_equal(value, theirs[key], err_msg=key)
    shown = scalars_of(killed)
    assert shown == scalars_of(folder), "TensorBoard shows each step once, whatever was killed"
    rounds = [(number + 1) * STEPS // 8 for number in range(8)]
    for tag in ("validation/cost", "rollout/ep_rew_mean"):
        assert [step for step, _ in shown[tag]] == rounds
    assert [step for step, _ in shown["train/loss"]] == [(number + 1) * STEPS // 16 for number in range(16)]


def test_a_training_takes_whole_rounds_and_says_so(tmp_path: pathlib.Path) -> None:
    said: list[str] = []
    run = train_small(tmp_path / "x", steps=65, say=said.append)
    assert said == ["128 steps, 2 whole rounds of 64."]
    assert (run.steps, run.facts["total_steps"]) == (65, 128)
    assert [step for step, _ in scalars_of(tmp_path / "x")["validation/cost"]] == [64, 128]


def test_a_finished_training_goes_on_with_more_steps(tmp_path: pathlib.Path) -> None:
    """Its learning rate had fallen to nought over the steps that it had, so that it is another than a longer one."""
    folder, said = tmp_path / "x", list[str]()
    train_small(folder, steps=128)
    before, newest = scalars_of(folder), folder / run_folder.CHECKPOINTS / f"{128:012d}.safetensors"
    weights = run_folder.read_tensors(newest)[0]
    run = train_small(folder, steps=256, say=said.append)
    (text,) = said
    assert "256 steps, 4 whole rounds of 64. It goes on from step 128. The learning rate follows the number of" in text
    assert (run.status, run.steps, run.facts["total_steps"], run.facts["extended_at"]) == ("done", 256, 256, [128])
    after = scalars_of(folder)
    assert all(after[tag][: len(points)] == points for tag, points in before.items())
    assert [step for step, _ in after["validation/cost"]] == [64, 128, 192, 256]
    last = run_folder.read_tensors(folder / run_folder.CHECKPOINTS / f"{256:012d}.safetensors")[0]
    assert any((last[name] != value).any() for name, value in weights.items())
    assert train_small(folder, steps=256) == run
    with pytest.raises(InvalidInputError, match="steps 256 there and 128 here"):
        train_small(folder, steps=128)


def test_a_training_without_checkpoints_is_not_begun_again_in_its_folder(tmp_path: pathlib.Path) -> None:
    train_small(tmp_path, steps=64)
    shutil.rmtree(tmp_path / run_folder.CHECKPOINTS)
    with pytest.raises(InvalidInputError, match="holds no checkpoint to go on from"):
        train_small(tmp_path, steps=128)


def test_a_training_that_diverges_says_so(tmp_path: pathlib.Path) -> None:
    with pytest.raises(HelmError, match=r"Training diverged at step \d+: .* lower the learning_rate"):
        train_small(tmp_path / "x", learning_rate=1e6)


def test_hyper_parameters_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="n_steps 7 must divide episode"):
        Settings(n_steps=7)
    with pytest.raises(InvalidInputError, match=r"gamma must lie in 0 to 1, not 1\.5"):
        Settings(gamma=1.5)
    with pytest.raises(InvalidInputError, match="lanes must be above 0"):
        Settings(lanes=0)
