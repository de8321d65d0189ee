"""Run folders: what is kept of a training, what is refused, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from helm_gym import profile as profiles
from helm_gym.errors import HelmError, IncompatibleError, InvalidInputError, UnknownNameError
from helm_gym.observation import ObservationLayout
from helm_gym.policies import from_run
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Policy
from helm_gym.profile import Interval, Profile
from helm_gym.tasks import find_task
from helm_gym.training import run_folder, trainable
from helm_gym.training.run_folder import Tensors
from helm_gym.training.trainable import Trainable, Training
from tests.registering import give_name

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
    give_name(monkeypatch, "policy", "constant", CONSTANT, agent="constant")


def train(folder: pathlib.Path, profile: Profile = PROFILE, seed: int = 0, **overrides: Any) -> run_folder.Run:
    return trainable.train("constant", TASK, profile, folder, seed, overrides=overrides)


def open_on(folder: pathlib.Path, profile: Profile = PROFILE) -> Policy:
    return open_policy(str(folder), ObservationLayout(profile))


def test_a_run_opens_as_its_best_policy(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "x")
    policy = open_on(tmp_path / "x")
    action, _ = policy.act(np.zeros((2, 46), np.float32), policy.initial_state(2))
    assert policy.name == str(tmp_path / "x") and action.ravel().tolist() == pytest.approx([0.2, 0.2])


def test_an_interrupted_training_goes_on_from_its_newest_checkpoint(tmp_path: pathlib.Path) -> None:
    interrupted(tmp_path / "x")
    assert run_folder.read_run(tmp_path / "x").status == "training"
    newest = tmp_path / "x" / run_folder.CHECKPOINTS / f"{2:012d}.safetensors"
    newest.write_bytes(newest.read_bytes()[:-2])  # a disk that was full
    told = []
    trainable.train("constant", TASK, PROFILE, tmp_path / "x", 0, progress=lambda done, *_: told.append(done))
    assert told == [2, 3]  # the first checkpoint was whole
    assert run_folder.read_run(tmp_path / "x").facts == {"total_steps": 3, "rounds": 3}


def test_a_finished_training_is_not_begun_again(tmp_path: pathlib.Path) -> None:
    first = train(tmp_path / "x")
    told: list[int] = []
    again = trainable.train("constant", TASK, PROFILE, tmp_path / "x", progress=lambda done, *_: told.append(done))
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


@pytest.mark.parametrize(
    "left",
    [
        {},
        {".lock": b""},
        {".run.json.tmp": b'{"form'},
        {".lock": b"", ".profile.yaml.tmp": b"name: cpu", "profile.yaml": None},
        {".lock": b"", "profile.yaml": None, ".run.json.tmp": b""},
    ],
    ids=lambda left: "+".join(left),
)
def test_what_a_kill_leaves_of_a_beginning_is_begun_again(tmp_path: pathlib.Path, left: dict[str, bytes]) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for name, content in left.items():
        if content is None:
            profiles.save(PROFILE, folder / name)
        else:
            (folder / name).write_bytes(content)
    assert train(folder).status == "done"
    open_on(folder)
    assert profiles.load(folder / run_folder.PROFILE).fingerprint == PROFILE.fingerprint
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize(
    "content", [None, b"", b"name: cpu-sm", b"\xff", (profiles.PROFILES / "h200.yaml").read_bytes()]
)
def test_a_lost_or_half_written_profile_is_written_again(tmp_path: pathlib.Path, content: bytes | None) -> None:
    interrupted(tmp_path / "x")
    path = tmp_path / "x" / run_folder.PROFILE
    path.unlink() if content is None else path.write_bytes(content)
    train(tmp_path / "x")
    assert profiles.load(path) == dataclasses.replace(PROFILE, cost=profiles.load(path).cost)


@pytest.mark.parametrize("kept", [0, 7, 8, 100])
def test_a_half_written_checkpoint_is_passed_over(tmp_path: pathlib.Path, kept: int) -> None:
    interrupted(tmp_path / "x")
    checkpoints = sorted((tmp_path / "x" / run_folder.CHECKPOINTS).iterdir())
    for path in checkpoints:
        path.write_bytes(path.read_bytes()[:kept])
    (checkpoints[0].parent / "best.safetensors").write_bytes(b"")
    (checkpoints[0].parent / ".000000000009.safetensors.tmp").write_bytes(b"half")
    assert train(tmp_path / "x").facts == {"total_steps": 3, "rounds": 3}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (run_folder.RUN, b"", "run.json is not JSON"),
        (run_folder.RUN, b"[" * 100_000, "nested more than 64 deep"),
        (run_folder.RUN, b'{"format": 1}', "does not say its layout_version"),
        (run_folder.RUN, b"\xff", "no text in UTF-8"),
        (run_folder.POLICY, b"", "policy.safetensors cannot be read"),
        (run_folder.POLICY, b"12345678{", "policy.safetensors cannot be read"),
    ],
)
def test_what_cannot_be_mended_is_named(tmp_path: pathlib.Path, name: str, content: bytes, sentence: str) -> None:
    interrupted(tmp_path / "x")
    (tmp_path / "x" / name).write_bytes(content)
    with pytest.raises(HelmError) as refused:
        train(tmp_path / "x")
    assert sentence in str(refused.value)


def test_a_folder_that_only_looks_begun_is_left_alone(tmp_path: pathlib.Path) -> None:
    for name in ("tensorboard", "checkpoints"):
        (tmp_path / name).mkdir()
        with pytest.raises(InvalidInputError, match=rf"other things in it \({name}\)"):
            train(tmp_path)
        (tmp_path / name).rmdir()
    (tmp_path / run_folder.PROFILE).write_text("# mine")
    with pytest.raises(InvalidInputError, match="is there and is not profile 'cpu-small'"):
        train(tmp_path)
    assert (tmp_path / run_folder.PROFILE).read_text() == "# mine"


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "x", tmp_path / ("x" * 300), pathlib.Path("a\0b")):
        with pytest.raises(InvalidInputError, match="cannot be locked"):
            train(place)


def interrupted(folder: pathlib.Path) -> None:
    """A training that was broken off in its second round."""

    def interrupt(done: int, total: int, words: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainable.train("constant", TASK, PROFILE, folder, 0, progress=interrupt)


def test_two_processes_do_not_train_into_one_folder(tmp_path: pathlib.Path) -> None:
    def meanwhile(done: int, total: int, words: str) -> None:
        with pytest.raises(HelmError, match="Another process is training"):
            train(tmp_path / "x")

    trainable.train("constant", TASK, PROFILE, tmp_path / "x", 0, progress=meanwhile)


def test_hyper_parameters_are_read_by_their_types() -> None:
    made = trainable.make_settings(CONSTANT, {"gain": "2", "rounds": "1e3", "loud": "true", "kind": "x=y"}, "--set")
    assert made == Settings(2.0, 1000, True, "x=y")
    assert trainable.make_settings(CONSTANT, {"gain": 1, "loud": False}, "a run") == Settings(1.0)


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
        trainable.make_settings(CONSTANT, values, "--set")
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
        ({"seed": True}, "'seed' is True"),
        ({"steps": -1}, "'steps' is -1"),
        ({"steps": 10**400}, "'steps' is 1000"),
        ({"status": "over"}, "'status' is 'over'"),
        ({"window": float("inf")}, "does not say its window"),
        ({"profile": "../../x"}, "must be a name"),
        ({"agent": "x" * 100_000}, "Unknown agent to train 'xxx"),
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
        ({"weight": np.zeros(0)}, "does not hold a policy of constant"),
        ({"weight": np.zeros(1, np.complex64)}, "tensor 'weight' is not finite, or no number"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path: pathlib.Path, tensors: Tensors, sentence: str) -> None:
    train(tmp_path / "x")
    run_folder.write_tensors(tmp_path / "x" / run_folder.POLICY, tensors)
    with pytest.raises(InvalidInputError) as refused:
        open_on(tmp_path / "x")
    assert sentence in str(refused.value)


def safetensors(kind: str, shape: list[int], size: int) -> bytes:
    header = json.dumps({"weight": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (safetensors("BF16", [1], 2), "tensors of type BF16"),
        (safetensors("F8_E4M3", [1], 1), "tensors of type F8_E4M3"),
        (safetensors("F32", [2**40, 2**40], 0), "cannot be read"),
        (safetensors("F32", [0, 2**62], 0), "cannot be read"),
        (safetensors("BOOL", [], 1), "does not hold a policy"),
        ((2**63).to_bytes(8, "little"), "cannot be read"),
        ((100_000_000).to_bytes(8, "little") + b"{", "cannot be read"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "cannot be read"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_tensors_of_unusual_types_and_headers_are_refused(
    tmp_path: pathlib.Path, content: bytes, sentence: str
) -> None:
    train(tmp_path / "x")
    (tmp_path / "x" / run_folder.POLICY).write_bytes(content)
    with pytest.raises(InvalidInputError) as refused:
        open_on(tmp_path / "x")
    assert sentence in str(refused.value) and len(str(refused.value)) < 500


def test_a_runs_files_are_files(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "x")
    for name in (run_folder.POLICY, run_folder.RUN):
        (tmp_path / "x" / name).unlink()
        (tmp_path / "x" / name).symlink_to("/dev/zero")
        with pytest.raises(InvalidInputError, match="is no regular file but a device"):
            run_folder.read_run(tmp_path / "x") if name == run_folder.RUN else open_on(tmp_path / "x")


def test_broken_files_end_with_one_sentence(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "x")
    (tmp_path / "x" / run_folder.POLICY).write_bytes(b"\x80\x04 pickled")
    with pytest.raises(InvalidInputError, match=r"policy\.safetensors cannot be read"):
        open_on(tmp_path / "x")
    (tmp_path / "x" / run_folder.RUN).write_text("{")
    with pytest.raises(InvalidInputError, match=r"run\.json is not JSON"):
        open_on(tmp_path / "x")
    with pytest.raises(InvalidInputError, match=r"holds no run\.json"):
        open_on(tmp_path)


def test_a_training_without_a_policy_yet_says_so(tmp_path: pathlib.Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainable.train("constant", TASK, PROFILE, tmp_path / "x", 0, progress=interrupt)
    (tmp_path / "x" / run_folder.POLICY).unlink()
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
        from_run.open_shipped(CONSTANT, "agents", ObservationLayout(PROFILE))


def test_a_recording_is_not_trained_on(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidInputError, match="train on another"):
        trainable.train("constant", find_task("trace-v0"), PROFILE, tmp_path / "x")


def edit(folder: pathlib.Path, change: dict[str, Any]) -> None:
    values = json.loads((folder / run_folder.RUN).read_text())
    (folder / run_folder.RUN).write_text(json.dumps(values | change))
