"""``helm-gym train`` and ``export`` as a user meets them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from typer.testing import CliRunner

from helm_gym.cli.main import app
from helm_gym.training import run_folder


def helm(*arguments: str | pathlib.Path) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "pop", "--out", "x"), "Unknown agent to train 'pop'; did you mean 'ppo'?"),
        (("train", "ppo", "--out", "x", "--task", "mxied-v0"), "did you mean 'mixed-v0'?"),
        (("train", "ppo", "--out", "x", "--set", "hiden=8"), "Unknown hyper-parameter of ppo in --set 'hiden'; did yo"),
        (("train", "ppo", "--out", "x", "--set", "gamma"), "--set 'gamma' cannot be read; write NAME=VALUE"),
        (("train", "ppo", "--out", "x", "--set", "gamma=high"), "gamma must be a finite number, not 'high'"),
        (("train", "ppo", "--out", "x", "--set", "gamma=2"), "gamma must be 0 to 1, not 2.0"),
        (("train", "ppo", "--out", "x", "--set", "gamma=.9", "--set", "gamma=.8"), "gives gamma twice"),
        (("train", "ppo", "--out", "x", "--task", "trace-v0"), "train on another"),
        (("train", "ppo", "--out", "/dev/null/x"), "--out /dev/null/x/run.json cannot be written"),
        (("train", "ppo"), "--out is missing"),
        (("export", "no/run", "--out", "x.onnx"), "no/run is no run folder"),
        (("export", "no/run", "--out", "x.pt"), "must end in .onnx"),
        (("export", "no/run", "--out", "x.onnx", "--scores", "y.json"), "add --card"),
    ],
)
def test_a_mistake_ends_with_one_sentence(
    arguments: tuple[str, ...], sentence: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = helm(*arguments)
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and sentence in errors[0] and result.stderr.endswith(f"{errors[0]}\n")
    assert not any(tmp_path.rglob("*.safetensors"))


def test_hyper_parameters_are_listed(tmp_path: pathlib.Path) -> None:
    listed = json.loads(helm("train", "ppo", "--settings", "--json").stdout)
    assert listed["settings"]["gamma"] == 0.9 and listed["steps"] > 0
    changed = helm("train", "ppo", "--settings", "--set", "gamma=0.5").stdout
    gamma = next(line.split() for line in changed.splitlines() if line.startswith("gamma"))
    assert gamma[:2] == ["gamma", "0.5"] and "PPO;" in gamma


def test_a_training_prints_what_it_leaves_behind(tmp_path: pathlib.Path) -> None:
    out, settings = tmp_path / "x", ("--set", "kp=0.1", "--seed", "3", "--steps", "5")
    first = helm("train", "pid", "--out", out, *settings, "--json")
    assert first.exit_code == 0, first.stderr
    printed = json.loads(first.stdout)
    assert (printed["folder"], printed["status"], printed["settings"]["kp"], printed["seed"]) == (
        str(out),
        "done",
        0.1,
        3,
    )
    assert run_folder.read_run(out).to_json() == {key: value for key, value in printed.items() if key != "folder"}

    refused = helm("train", "pid", "--out", out, "--seed", "3", "--steps", "5")
    assert refused.exit_code == 2 and "kp 0.1 there and 0.05 here" in refused.stderr


def test_a_training_says_before_it_begins_how_many_steps_it_takes(tmp_path: pathlib.Path) -> None:
    small = ("--set", "lanes=2", "--set", "episode=8", "--set", "n_steps=8", "--set", "hidden=4")
    command = ("train", "ppo", "--out", tmp_path / "x", *small, "--set", "batch_size=8")
    done = helm(*command, "--steps", "20", "--json")
    assert "train ppo: 32 steps, 2 whole rounds of 16." in done.stderr.splitlines()
    printed = json.loads(done.stdout)
    assert (printed["steps"], printed["facts"]["total_steps"]) == (20, 32)
    more = helm(*command, "--steps", "33")
    assert "48 steps, 3 whole rounds of 16. It goes on from step 32. The learning rate follows" in more.stderr
    assert "total_steps 48" in more.stdout and helm(*command, "--steps", "20").exit_code == 2


def test_a_run_that_another_profile_made_is_refused_by_evaluate(tmp_path: pathlib.Path) -> None:
    helm("train", "pid", "--out", tmp_path / "x", "--profile", "h200")
    result = helm("evaluate", tmp_path / "x", "--task", "burst-v0")
    assert result.exit_code == 2 and "profile 'h200' there and 'cpu-small' here" in result.stderr


SCORES_WITHOUT_NAMES = '{"task": 1, "rung": 2, "seeds": 3, "machine": 4, "date": 5, "policies": [{}]}'


@pytest.mark.parametrize("text", ["{", "[]", '{"task": "burst-v0"}', "[" * 100_000, SCORES_WITHOUT_NAMES])
def test_scores_that_are_no_evaluation_are_refused(tmp_path: pathlib.Path, text: str) -> None:
    helm("train", "pid", "--out", tmp_path / "x")
    (tmp_path / "scores.json").write_text(text)
    result = helm(
        "export", tmp_path / "x", "--out", tmp_path / "p.onnx", "--card", "--scores", tmp_path / "scores.json"
    )
    assert result.exit_code == 2 and "`helm-gym evaluate --json`" in result.stderr
    assert not (tmp_path / "p.onnx").exists()


def test_agents_says_what_can_be_trained() -> None:
    listed = {entry["name"]: entry for entry in json.loads(helm("agents", "--json").stdout)["agents"]}
    assert listed["pid"]["trainable"] and not listed["static:ALPHA"]["trainable"]
