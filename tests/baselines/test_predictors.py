"""Predictors of alpha*: what they learn from, what they learn, and how they act on it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import lightgbm
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from baselines.predictors import examples, gbdt, lstm
from baselines.predictors.features import Follower, WorkloadFeatures
from helm_gym import policy_origin
from helm_gym import profile as profiles
from helm_gym.backend import open_backend
from helm_gym.control_loop import ControlLoop
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.policies.lstm_cell import LstmCell
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Floats, Policy
from helm_gym.tasks import find_task
from helm_gym.training import run_folder, trainable
from helm_gym.training.run_folder import Run
from helm_gym.training.trainable import Training
from tests.conformance.policy import PolicyConformance, make_layout, observations, observe, settle

LAYOUT = make_layout()
SHORT = dataclasses.replace(find_task("mixed-v0"), warmup=2, settle=2, horizon=8)
SMALL = {"gbdt": {"trees": 40, "leaf_size": 20}, "lstm": {"hidden": 8, "epochs": 12, "batch": 8}}


def truth(returning: NDArray[np.float32]) -> NDArray[np.float32]:
    """The optimum of the episodes that are made up here: the more users return, the less EMB should have."""
    return (0.8 - 0.6 * returning).astype(np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run folder with made-up examples: two blocks in which the returning share jumps now and then."""
    folder = tmp_path_factory.mktemp("examples")
    run = Run("gbdt", "mixed-v0", policy_origin.Origin.of(LAYOUT), {}, seed=0, steps=2 * examples.BLOCK)
    run_folder.write_run(folder, run)
    rng = np.random.default_rng(5)
    for number in range(2):
        returning = np.repeat(rng.random((examples.MAX_LANES, 16)), examples.INTERVALS // 16, axis=1)
        seen = rng.random((examples.MAX_LANES, examples.INTERVALS, LAYOUT.width)).astype(np.float32)
        seen[:, :, LAYOUT.column("returning_share")] = returning
        block = {"observation": seen, "alpha_star": truth(returning)}
        run_folder.write_tensors(folder / examples.FOLDER / f"{number:04d}.safetensors", block)
    return folder


def train(
    name: str,
    folder: pathlib.Path,
    source: pathlib.Path,
    progress: trainable.Report | None = None,
    steps: int = 2,
    say: Callable[[str], None] | None = None,
) -> Run:
    overrides = SMALL[name] | {"examples": str(source)}
    profile = profiles.load("cpu-small")
    return trainable.train(name, SHORT, profile, folder, 0, steps * examples.BLOCK, overrides, progress, say)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, source: pathlib.Path) -> dict[str, pathlib.Path]:
    """Run folders of both predictors."""
    root = tmp_path_factory.mktemp("predictors")
    for name in SMALL:
        train(name, root / name, source)
    return {name: root / name for name in SMALL}


class TestGbdt(PolicyConformance):
    kind = "gbdt"

    @pytest.fixture(scope="class")
    @classmethod
    def policy(cls, folders: dict[str, pathlib.Path]) -> Policy:
        cls.name = str(folders[cls.kind])
        return open_policy(cls.name, LAYOUT)


class TestLstm(TestGbdt):
    kind = "lstm"


@pytest.mark.parametrize("name", SMALL)
def test_it_learns_the_optimum_and_goes_there(name: str, folders: dict[str, pathlib.Path]) -> None:
    run = run_folder.read_run(folders[name])
    assert run.facts["error"] < 0.06  # guessing the middle is wrong by .15
    policy = open_policy(str(folders[name]), LAYOUT)
    for returning in (0.1, 0.9):
        reached = settle(policy, LAYOUT, 0.5, 40, returning_share=returning, predicted=0.5, load=0.5)[-1]
        assert reached == pytest.approx(0.8 - 0.6 * returning, abs=0.1)


@pytest.mark.parametrize("name", SMALL)
def test_its_graph_does_what_it_does(name: str, folders: dict[str, pathlib.Path]) -> None:
    run = run_folder.read_run(folders[name])
    agent = trainable.find_trainable(name)
    settings = trainable.make_settings(agent, run.settings, name)
    tensors = run_folder.policy_tensors(folders[name], run)
    policy = trainable.build(agent, LAYOUT, settings, tensors, name)
    assert agent.graph is not None
    graph = onnxruntime.InferenceSession(agent.graph(LAYOUT, settings, tensors).SerializeToString())
    state = drawn_state = policy.initial_state(5)
    for observation in observations(LAYOUT, 30):
        action, state = policy.act(observation, state)
        drawn, drawn_state = graph.run(None, {"obs": observation, "state": drawn_state})
        np.testing.assert_allclose(drawn, action, atol=1e-5)
        np.testing.assert_allclose(drawn_state, state, atol=1e-5)


def test_no_controller_changes_what_a_predictor_sees() -> None:
    """So it can learn from episodes that another controlled, and its own actions cannot mislead it."""
    seen = []
    loop = ControlLoop(SHORT, open_backend("modelled", LAYOUT.profile, lanes=2), intervals=8)
    for action in (-1.0, 1.0):
        step = loop.reset((20_000, 20_001))
        while not step.done:
            step = loop.step(np.full((2, 1, 1), action))
        seen.append(step)
    low, high = (WorkloadFeatures(LAYOUT)(step.observation[:, 0]) for step in seen)
    np.testing.assert_array_equal(low, high)
    assert np.abs(seen[0].observation - seen[1].observation).max() > 0.5


def test_examples_are_labelled_with_the_offline_optimum_and_recorded_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "INTERVALS", 6)
    monkeypatch.setattr(examples, "BLOCK", 6 * examples.MAX_LANES)
    told: list[int] = []
    made = Training(
        tmp_path, SHORT, LAYOUT.profile, LAYOUT, None, 0, examples.BLOCK, lambda done, total, words: told.append(done)
    )
    first = examples.gather(made)
    assert first.observation.shape == (16, 6, LAYOUT.width) and first.alpha_star.shape == (16, 6)
    assert first.held_out.sum() == examples.HELD_OUT and set(first.regime) == {"mixed"}
    assert np.ptp(first.alpha_star) > 0.1 and first.alpha_star.min() >= 0.05 and first.alpha_star.max() <= 0.95
    assert told == sorted(told) and told[-1] == examples.BLOCK

    monkeypatch.setattr(examples, "offline_optimum", None)  # would fail if it were asked again
    np.testing.assert_array_equal(examples.gather(made).alpha_star, first.alpha_star)


def test_borrowing_more_examples_than_there_are_is_refused(tmp_path: pathlib.Path, source: pathlib.Path) -> None:
    with pytest.raises(InvalidInputError, match=r"fewer examples than .* decisions"):
        train("gbdt", tmp_path / "run", source, steps=3)


def test_the_kernel_says_what_lightgbm_says() -> None:
    """Also where a value lies on a threshold: LightGBM's are float64, ours float32."""
    rng = np.random.default_rng(3)
    x = rng.random((800, 42)).astype(np.float32).round(2)
    y = np.sin(5 * x[:, 0]) + x[:, 1] * x[:, 2]
    booster = lightgbm.train(
        {"num_leaves": 9, "verbosity": -1, "num_threads": 1}, lightgbm.Dataset(x, y), num_boost_round=25
    )
    tensors = gbdt.flatten([tree["tree_structure"] for tree in booster.dump_model()["tree_info"]])
    policy = gbdt.GbdtPolicy(LAYOUT, gbdt.Settings(), tensors)
    np.testing.assert_allclose(policy.predict(x), booster.predict(x), atol=1e-5)


@pytest.mark.parametrize(
    ("tensor", "place", "value"), [("left", 0, 0), ("right", 0, 10_000), ("feature", 0, 42), ("roots", 1, -1)]
)
def test_nodes_that_are_no_trees_are_refused(
    tmp_path: pathlib.Path, folders: dict[str, pathlib.Path], tensor: str, place: int, value: int
) -> None:
    """A kernel would loop for ever, or read what is not its own."""
    run = run_folder.read_run(folders["gbdt"])
    tensors = run_folder.policy_tensors(folders["gbdt"], run)
    tensors[tensor][place] = value
    run_folder.write_run(tmp_path, run)
    run_folder.write_tensors(tmp_path / run_folder.POLICY, tensors)
    with pytest.raises(InvalidInputError, match=r"does not hold a policy of gbdt.*train it again"):
        open_policy(str(tmp_path), LAYOUT)


def test_a_killed_fit_goes_on_to_the_weights_of_an_unbroken_one(
    tmp_path: pathlib.Path, folders: dict[str, pathlib.Path], source: pathlib.Path
) -> None:
    def kill(done: int, total: int, words: str) -> None:
        if words.startswith("epoch 5 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("lstm", tmp_path / "run", source, kill)
    told: list[str] = []
    resumed = train("lstm", tmp_path / "run", source, lambda done, total, words: told.append(words))
    assert told[0].startswith("epoch 6 ")
    assert resumed.facts["error"] == run_folder.read_run(folders["lstm"]).facts["error"]
    weights, unbroken = (
        run_folder.read_tensors(folder / run_folder.POLICY)[0] for folder in (tmp_path / "run", folders["lstm"])
    )
    for name, value in unbroken.items():
        np.testing.assert_array_equal(weights[name], value)


@pytest.mark.parametrize("name", ["gbdt", "lstm"])
def test_more_steps_are_more_examples_and_another_fit(
    name: str, tmp_path: pathlib.Path, folders: dict[str, pathlib.Path], source: pathlib.Path
) -> None:
    train(name, tmp_path / "run", source, steps=1)
    said: list[str] = []
    grown = train(name, tmp_path / "run", source, steps=2, say=said.append)
    assert said == [f"{2 * examples.BLOCK} steps, 2 whole rounds of {examples.BLOCK}."]
    assert (grown.status, grown.facts) == ("done", run_folder.read_run(folders[name]).facts)
    weights, unbroken = (
        run_folder.read_tensors(folder / run_folder.POLICY)[0] for folder in (tmp_path / "run", folders[name])
    )
    for key, value in unbroken.items():
        np.testing.assert_array_equal(weights[key], value)


def test_the_cell_is_torchs() -> None:
    torch.manual_seed(0)
    network, hidden, width = torch.nn.LSTM(5, 7), 7, 5
    tensors = {
        "inputs": network.weight_ih_l0,
        "recurrent": network.weight_hh_l0,
        "bias": network.bias_ih_l0 + network.bias_hh_l0,
    }
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    rng = np.random.default_rng(0)
    mean, scale = rng.random(width), 0.5 + rng.random(width)
    cell = LstmCell(arrays | {"mean": mean, "scale": scale}, width, hidden)
    x: Floats = rng.standard_normal((30, 3, width)).astype(np.float32)
    theirs = network(torch.from_numpy(((x - mean) / scale).astype(np.float32)))[0].detach().numpy()
    memory = np.zeros((3, cell.memory), np.float32)
    for features, wanted in zip(x, theirs, strict=True):
        units, memory = cell(features, memory)
        np.testing.assert_allclose(units, wanted, atol=1e-5)


def test_a_follower_smooths_and_rests_within_its_dead_band() -> None:
    follow = Follower(LAYOUT, smoothing=0.5, dead_band=0.03)
    state, goal = np.zeros((1, 2), np.float32), np.array([0.6], np.float32)
    action, state = follow(observe(LAYOUT, target_alpha=0.5), goal, state)
    assert state[0, 0] == pytest.approx(0.6)  # the first is taken as it is
    assert action[0, 0] == pytest.approx(0.1 / LAYOUT.profile.max_step, rel=1e-4)
    _, state = follow(observe(LAYOUT, target_alpha=0.6), goal - 0.2, state)
    assert state[0, 0] == pytest.approx(0.5)
    action, _ = follow(observe(LAYOUT, target_alpha=0.48), goal - 0.1, state)
    assert action[0, 0] == 0.0


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [(gbdt.Settings, {"smoothing": 0.0}), (gbdt.Settings, {"trees": 0}), (lstm.Settings, {"dead_band": -0.1}),
     (lstm.Settings, {"epochs": 0})],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings: type, wrong: dict[str, float]) -> None:
    with pytest.raises(HelmError):
        settings(**wrong)
