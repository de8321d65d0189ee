"""``helm-gym tune`` as a user meets it."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from typer.testing import CliRunner

from agents.tuning import result, search
from helm_gym.cli.main import app
from helm_gym.training import run_folder
from tests.agents.tunings import Bowl


def helm(*arguments: str | pathlib.Path) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def bowl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, "_plots", dict)
    monkeypatch.setattr(search, "Objective", Bowl)
    monkeypatch.setattr(result, "Objective", Bowl)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("pdi",), "Unknown agent to train 'pdi'; did you mean 'pid'?"),
        (("pid", "--task", "mxied-v0"), "did you mean 'mixed-v0'?"),
        (("pid", "--set", "kpp=1"), "Unknown hyper-parameter of pid in --set 'kpp'; did you mean 'kp'?"),
        (("pid", "--set", "kp"), "--set 'kp' cannot be read; write NAME=VALUE"),
        (("pid", "--set", "floor=0"), "floor above 0"),
        (("pid", "--backend", "real"), "Unknown backend of a search 'real'"),
        (("pid", "--steps", "5"), "nothing to train; leave --steps out"),
        (("pid", "--task", "trace-v0"), "tune on another"),
        (("pid", "--storage", "somewhere"), "--storage somewhere cannot be opened"),
        (("pid", "--trials", "0"), "--trials"),
    ],
)
def test_a_mistake_ends_with_one_sentence(
    arguments: tuple[str, ...], sentence: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = helm("tune", *arguments, "--out", "x", "--quiet")
    assert done.exit_code == 2, done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and sentence in errors[0] and done.stderr.endswith(f"{errors[0]}\n")
    assert not list(tmp_path.rglob("*.db"))


@pytest.mark.usefixtures("bowl")
def test_a_search_prints_what_it_leaves_behind_and_goes_on(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "runs" / "pid"
    command = ("tune", "pid", "--out", out, "--seeds-a-trial", "2", "--fresh-seeds", "2", "--top", "2", "--set", "kd=0")
    table = helm(*command, "--trials", "4", "--quiet")
    assert (table.exit_code, table.stderr) == (0, "")
    assert "began with" in table.stdout and f"helm-gym evaluate {out}" in " ".join(table.stdout.split())
    printed = helm(*command, "--trials", "6", "--json", "--quiet")
    figures = json.loads(printed.stdout)
    assert figures.pop("folder") == str(out)
    assert figures == json.loads((out / result.TUNE).read_text())
    assert figures["study"] == "pid-mixed-v0" and figures["storage"] == f"sqlite:///{out}/study.db"
    assert figures["trials"]["complete"] + figures["trials"]["pruned"] == 6
    assert run_folder.read_run(out).settings == figures["best"]["settings"]
    other = helm(*command[:-1], "kd=0.1", "--trials", "6", "--quiet")
    assert other.exit_code == 2 and "give another --study" in other.stderr
    elsewhere = helm(*command[:-1], "kd=0.1", "--trials", "1", "--study", "y", "--quiet")
    assert elsewhere.exit_code == 0
