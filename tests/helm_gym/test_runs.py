"""Run folders: what is kept of a training, what is refused, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from helm_gym import profile as profiles
from helm_gym import runs, training
from helm_gym.errors import HelmError, IncompatibleError, InvalidInputError, UnknownNameError
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Policy, open_policy
from helm_gym.profile import Interval, Profile
from helm_gym.runs import Tensors
from helm_gym.tasks import find_task
from helm_gym.training import Trainable, Training

PROFILE = profiles.load("cpu-small")
TASK = find_task("mixed-v0")


@dataclasses.dataclass(frozen=True)
class Settings:
    gain: float = 0.5
    rounds: int = 3
    loud: bool = False
    kind: str = "plain"


class Constant:
    """Moves by what its one weight says, always."""

    def __init__(self, layout: ObservationLayout, settings: Settings, tensors: Tensors):
        self.name = "constant"
        self.weight = float(tensors["weight"][0])

    def initial_state(self, rows: int) -> np.ndarray:
        return np.zeros((rows, 0), np.float32)

    def act(self, observation: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full((len(observation), 1), self.weight, np.float32), state


def _learn(given: Training) -> Tensors:
    """A round a step; the weight counts rounds, and the second of them is the best."""
    there = given.restore()
    done = there.step if there else 0
    for step in range(done + 1, given.settings.rounds + 1):
        tensors = {"weight": np.array([step / 10], np.float32)}
        given.report_policy(step, abs(step - 2), tensors)
        given.save(step, tensors, {"step": step})
        given.progress(step, given.settings.rounds, "")
    given.facts["rounds"] = given.settings.rounds
    return given.best_policy()[0]


CONSTANT = Trainable("constant", Settings, 3, _learn, Constant)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training.TRAINABLE, "constant", f"{__name__}:CONSTANT")


def train(folder: pathlib.Path, profile: Profile = PROFILE, seed: int = 0, **overrides: Any) -> runs.Run:
    return training.train("constant", TASK, profile, folder, seed, overrides=overrides)


def open_on(folder: pathlib.Path, profile: Profile = PROFILE) -> Policy:
    return open_policy(str(folder), ObservationLayout(profile))


def test_a_run_opens_as_its_best_policy(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "x")
    policy = open_on(tmp_path / "x")
    action, _ = policy.act(np.zeros((2, 46), np.float32), policy.initial_state(2))
    assert policy.name == str(tmp_path / "x") and action.ravel().tolist() == pytest.approx([0.2, 0.2])


def test_an_interrupted_training_goes_on_from_its_newest_checkpoint(tmp_path: pathlib.Path) -> None:
    def interrupt(done: int, total: int, words: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train("constant", TASK, PROFILE, tmp_path / "x", 0, progress=interrupt)
    assert runs.read_run(tmp_path / "x").status == "training"
    newest = tmp_path / "x" / runs.CHECKPOINTS / f"{2:012d}.safetensors"
    newest.write_bytes(newest.read_bytes()[:-2])  # a disk that was full
    told = []
    training.train("constant", TASK, PROFILE, tmp_path / "x", 0, progress=lambda done, *_: told.append(done))
    assert told == [2, 3]  # the first checkpoint was whole
    assert runs.read_run(tmp_path / "x").facts == {"total_steps": 3, "rounds": 3}


def test_a_finished_training_is_not_begun_again(tmp_path: pathlib.Path) -> None:
    first = train(tmp_path / "x")
    told: list[int] = []
    again = training.train("constant", TASK, PROFILE, tmp_path / "x", progress=lambda done, *_: told.append(done))
    assert again == first and told == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gain": 0.7}, "gain 0.5 there and 0.7 here"),
        ({"seed": 4}, "seed 0 there and 4 here"),
        ({"profile": dataclasses.replace(PROFILE, slo_ms=9.0)}, "profile_fingerprint"),
    ],
)
def test_a_folder_of_another_training_is_refused(
    tmp_path: pathlib.Path, changes: dict[str, Any], sentence: str
) -> None:
    train(tmp_path / "x")
    with pytest.raises(InvalidInputError, match=sentence):
        train(tmp_path / "x", **changes)


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InvalidInputError, match="other things in it"):
        train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_do_not_train_into_one_folder(tmp_path: pathlib.Path) -> None:
    def meanwhile(done: int, total: int, words: str) -> None:
        with pytest.raises(HelmError, match="Another process is training"):
            train(tmp_path / "x")

    training.train("constant", TASK, PROFILE, tmp_path / "x", 0, progress=meanwhile)


def test_hyper_parameters_are_read_by_their_types() -> None:
    made = training.make_settings(CONSTANT, {"gain": "2", "rounds": "1e3", "loud": "true", "kind": "x=y"}, "--set")
    assert made == Settings(2.0, 1000, True, "x=y")
    assert training.make_settings(CONSTANT, {"gain": 1, "loud": False}, "a run") == Settings(1.0)


@pytest.mark.parametrize(
    ("values", "error", "sentence"),
    [
        ({"gian": "1"}, UnknownNameError, "Unknown hyper-parameter of constant in --set 'gian'; did you mean 'gain'?"),
        ({"rounds": "2.5"}, InvalidInputError, "rounds must be a whole number, not '2.5'"),
        ({"rounds": "inf"}, InvalidInputError, "rounds must be a whole number"),
        ({"gain": "nan"}, InvalidInputError, "gain must be a finite number"),
        ({"loud": "yes"}, InvalidInputError, "loud must be true or false"),
        ({"gain": float("nan")}, InvalidInputError, "gain must be a finite number"),
        ({"gain": None}, InvalidInputError, "gain must be a finite number"),
        ({"kind": 3}, InvalidInputError, "kind must be str"),
    ],
)
def test_hyper_parameters_that_cannot_be_are_refused(
    values: dict[str, Any], error: type[HelmError], sentence: str
) -> None:
    with pytest.raises(error) as refused:
        training.make_settings(CONSTANT, values, "--set")
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layout_version": 0}, "observation layout 0 there and 1 here"),
        ({"window": 100}, "requests a window 100 there and 200 here"),
        ({"requests": 25}, "requests an interval 25 there and 50 here"),
        ({"profile": "h200", "profile_fingerprint": "0"}, "profile 'h200' there and 'cpu-small' here"),
    ],
)
def test_a_run_for_something_else_is_refused_with_what_differs(
    tmp_path: pathlib.Path, change: dict[str, Any], sentence: str
) -> None:
    train(tmp_path / "x")
    edit(tmp_path / "x", change)
    with pytest.raises(IncompatibleError) as refused:
        open_on(tmp_path / "x")
    assert sentence in str(refused.value)


def test_a_run_is_refused_under_another_profile_of_the_same_name(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "x")
    with pytest.raises(IncompatibleError, match="fingerprint"):
        open_on(tmp_path / "x", dataclasses.replace(PROFILE, interval=Interval(50, 100)))
    open_on(tmp_path / "x", dataclasses.replace(PROFILE, name="renamed", description="the same machine"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 7}, "no run of format 1"),
        ({"settings": {"gian": 1.0}}, "did you mean 'gain'?"),
        ({"settings": {"gain": "much"}}, "gain must be a finite number"),
        ({"settings": None}, "'settings' is None"),
        ({"agent": "constnat"}, "did you mean 'constant'?"),
        ({"window": "wide"}, "does not say its window"),
        ({"seed": "one"}, "'seed' is 'one'"),
    ],
)
def test_a_broken_run_is_refused(tmp_path: pathlib.Path, change: dict[str, Any], sentence: str) -> None:
    train(tmp_path / "x")
    edit(tmp_path / "x", change)
    with pytest.raises(HelmError) as refused:
        open_on(tmp_path / "x")
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"weight": np.array([np.nan])}, "tensor 'weight' is not finite"),
        ({"wieght": np.zeros(1)}, "tensor 'weight' is missing"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path: pathlib.Path, tensors: Tensors, sentence: str) -> None:
    train(tmp_path / "x")
    runs.write_tensors(tmp_path / "x" / runs.POLICY, tensors)
    with pytest.raises(InvalidInputError) as refused:
        open_on(tmp_path / "x")
    assert sentence in str(refused.value)


def test_broken_files_end_with_one_sentence(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "x")
    (tmp_path / "x" / runs.POLICY).write_bytes(b"\x80\x04 pickled")
    with pytest.raises(InvalidInputError, match=r"policy\.safetensors cannot be read"):
        open_on(tmp_path / "x")
    (tmp_path / "x" / runs.RUN).write_text("{")
    with pytest.raises(InvalidInputError, match=r"run\.json cannot be read"):
        open_on(tmp_path / "x")
    with pytest.raises(InvalidInputError, match=r"holds no run\.json"):
        open_on(tmp_path)


def test_a_training_without_a_policy_yet_says_so(tmp_path: pathlib.Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train("constant", TASK, PROFILE, tmp_path / "x", 0, progress=interrupt)
    (tmp_path / "x" / runs.POLICY).unlink()
    with pytest.raises(InvalidInputError, match="holds no policy yet"):
        open_on(tmp_path / "x")


def test_what_is_nowhere_is_no_policy() -> None:
    layout = ObservationLayout(PROFILE)
    with pytest.raises(InvalidInputError, match="'no/such/run' is no folder or file"):
        open_policy("no/such/run", layout)
    with pytest.raises(UnknownNameError, match="did you mean 'pid'"):
        open_policy("pdi", layout)


def test_what_is_not_shipped_must_be_trained() -> None:
    with pytest.raises(InvalidInputError, match="No constant is shipped for profile 'cpu-small'; train one"):
        runs.open_shipped(CONSTANT, "agents", ObservationLayout(PROFILE))


def test_a_recording_is_not_trained_on(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidInputError, match="train on another"):
        training.train("constant", find_task("trace-v0"), PROFILE, tmp_path / "x")


def edit(folder: pathlib.Path, change: dict[str, Any]) -> None:
    values = json.loads((folder / runs.RUN).read_text())
    (folder / runs.RUN).write_text(json.dumps(values | change))
