"""Killed with SIGKILL at any moment, workers and all, a command goes on or begins anew, and ends as if it had not been.

Ten points a command, all over its run and in the middle of its writes (tests/killing.py); what is left on the disk is
looked at after each.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optuna
import pyarrow.parquet as pq
import pytest
from optuna.trial import FrozenTrial, TrialState

from agents.tuning import result, storage, study
from helm_gym import profile as profiles
from helm_gym import tasks
from helm_gym.locks import FOLDER_LOCK
from helm_gym.paper import table3
from helm_gym.profile import Interval
from helm_gym.training import run_folder
from surrogate_backend import checkpoint
from tests import killing, postgres
from tests.agents.trainings import scalars_of

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("HELM_GYM_KILLS", "10"))  # of each command
VARIES = {"machine", "date", "versions", "seconds", "env_share"}  # from run to run
PNG = b"\x89PNG\r\n\x1a\n"
Folder = Callable[[int], pathlib.Path]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[killing.Commands]:
    with killing.commands(tmp_path_factory.mktemp("commands")) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> Folder:
    """Makes folders; in each lies a profile that is quick to serve."""
    profile = profiles.load("cpu-small")
    population = dataclasses.replace(profile.population, users=1000, items=20_000)
    small = dataclasses.replace(profile, name="small", interval=Interval(10, 20), population=population)

    def make(number: int) -> pathlib.Path:
        made = tmp_path / str(number)
        made.mkdir()
        profiles.save(small, made / "small.yaml")
        return made

    return make


def without(values: Any, names: set[str] = VARIES) -> Any:
    """JSON without what differs from run to run."""
    if isinstance(values, dict):
        return {name: without(value, names) for name, value in values.items() if name not in names}
    return [without(value, names) for value in values] if isinstance(values, list) else values


def assert_tensors_equal(path: pathlib.Path, other: pathlib.Path) -> None:
    ours, theirs = run_folder.read_tensors(path)[0], run_folder.read_tensors(other)[0]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=f"{path} {name}")


def assert_whole(folder: pathlib.Path) -> None:
    """No file under its own name is half written."""
    for path in folder.rglob("*"):
        if path.name.startswith(".") or path.suffix == ".tmp" or not path.is_file():
            continue
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".png":
            content = path.read_bytes()
            assert content.startswith(PNG) and b"IEND" in content[-16:]
        elif path.suffix == ".svg":
            assert path.read_text(encoding="utf-8").rstrip().endswith("</svg>")
        elif path.suffix == ".safetensors":
            run_folder.read_tensors(path)
        elif path.suffix == ".parquet":
            pq.ParquetFile(path, page_checksum_verification=True).read()
        elif path.suffix == ".yaml":
            profiles.load(path)


def assert_no_litter(folder: pathlib.Path) -> None:
    left = [path.name for path in folder.rglob("*") if path.suffix == ".tmp" or path.name == FOLDER_LOCK]
    assert not left, left


TRAIN = (
    *("train", "ppo", "--out", "x", "--quiet", "--steps", "2560", "--set", "windows=2"),
    *(f"--set={name}={value}" for name, value in {"lanes": 8, "episode": 16, "n_steps": 8, "n_epochs": 2}.items()),
    *("--set=batch_size=64", "--set=hidden=8"),
)


def test_train(commands: killing.Commands, folder: Folder, tmp_path: pathlib.Path) -> None:
    whole = folder(100)
    length_s = commands.run(TRAIN, whole)
    for made in commands.kill_again_and_again(
        lambda _: TRAIN, folder, random.Random(1), KILLS, length_s, check=assert_whole
    ):
        assert_tensors_equal(made / "x" / run_folder.POLICY, whole / "x" / run_folder.POLICY)
        newest = sorted((whole / "x" / run_folder.CHECKPOINTS).iterdir())[-1]
        assert_tensors_equal(made / "x" / run_folder.CHECKPOINTS / newest.name, newest)
        ours, theirs = (without(run_folder.read_run(run / "x").to_json()) for run in (made, whole))
        assert ours == theirs and ours["status"] == "done"
        assert scalars_of(made / "x") == scalars_of(whole / "x"), "TensorBoard shows each step once"
        assert_no_litter(made)


TUNE = (
    *("tune", "pid", "--profile", "small.yaml", "--task", "burst-v0", "--horizon", "10", "--trials", "10"),
    *("--seeds-a-trial", "16", "--fresh-seeds", "8", "--top", "1", "--out", "x", "--quiet"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.serve() as started:
        yield started


@pytest.fixture(params=["sqlite", "journal-relative", "journal-absolute", "postgresql"])
def place(request: pytest.FixtureRequest) -> Callable[[pathlib.Path], str]:
    """The storage of a search in a folder, as it is given."""
    if request.param == "postgresql":
        url = request.getfixturevalue("server").url
        return lambda folder: str(url)
    if request.param == "sqlite":
        return lambda folder: "sqlite:///x.db"
    return lambda folder: "x.journal" if request.param == "journal-relative" else str(folder / "x.journal")


def study_of(folder: pathlib.Path) -> str:
    """A study's name; one database holds those of all folders."""
    return f"{folder.parent.name}-{folder.name}"[-64:]


def trials_in(place: str, folder: pathlib.Path) -> list[FrozenTrial]:
    given = place if "://127" in place or "@" in place else str(folder / place)
    if place.startswith("sqlite:///"):
        given = f"sqlite:///{folder / place.removeprefix('sqlite:///')}"
    return optuna.load_study(storage=storage.open_storage(given), study_name=study_of(folder)).trials


def assert_accounted_for(trials: list[FrozenTrial], wanted: int) -> None:
    """As many as were wanted came to an end, each of a rank of its own, and nothing is left under way."""
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    counted = [trial for trial in trials if trial.state is not TrialState.FAIL]
    assert sorted(trial.user_attrs[study.RANK] for trial in counted) == list(range(wanted))


def outcome(trials: list[FrozenTrial]) -> list[Any]:
    """What was tried and what came of it, in the order of ranks."""
    counted = [trial for trial in trials if trial.state is not TrialState.FAIL]
    counted.sort(key=lambda trial: trial.user_attrs[study.RANK])
    return [(trial.state, trial.params, trial.value, trial.intermediate_values) for trial in counted]


def figures_of(folder: pathlib.Path) -> Any:
    made = json.loads((folder / "x" / result.TUNE).read_text())
    # A trial's number differs where one before it was failed and tried again.
    return without(made, {*VARIES, "storage", "study", "trials", "trial"})


def test_tune(
    commands: killing.Commands, folder: Folder, place: Callable[[pathlib.Path], str], request: pytest.FixtureRequest
) -> None:
    """The sampler's draws depend on a trial's rank and on what was tried before it: so it tries the same."""

    def tune(there: pathlib.Path) -> tuple[str, ...]:
        return (*TUNE, "--storage", place(there), "--study", study_of(there))

    whole, rng = folder(100), random.Random(request.node.name)
    length_s = commands.run(tune(whole), whole)
    for made in commands.kill_again_and_again(tune, folder, rng, KILLS, length_s, check=assert_whole):
        trials = trials_in(place(made), made)
        assert_accounted_for(trials, 10)
        assert outcome(trials) == outcome(trials_in(place(whole), whole))
        assert figures_of(made) == figures_of(whole)
        assert run_folder.read_run(made / "x").settings == run_folder.read_run(whole / "x").settings
        assert_no_litter(made)


def test_tune_with_workers(commands: killing.Commands, folder: Folder) -> None:
    """With several, what is tried depends on who is first; but each trial is counted once, and none is lost."""

    def tune(there: pathlib.Path) -> tuple[str, ...]:
        return (*TUNE, "--storage", "sqlite:///x.db", "--study", study_of(there), "--workers", "2")

    length_s = commands.run(tune(whole := folder(100)), whole)
    for made in commands.kill_again_and_again(tune, folder, random.Random(3), KILLS, length_s, check=assert_whole):
        trials = trials_in("sqlite:///x.db", made)
        assert_accounted_for(trials, 10)
        began_with = json.loads((made / "x" / result.TUNE).read_text())["began_with"]["settings"]
        assert outcome(trials)[0][1].items() <= began_with.items()
        assert run_folder.read_run(made / "x").status == "done"


COLLECT = ("collect", "--profile", "small.yaml", "--out", "log", "--episodes", "34", "--intervals", "30", "--quiet")


def test_collect(commands: killing.Commands, folder: Folder) -> None:
    command, whole = (*COLLECT, "--workers", "2"), folder(100)
    length_s = commands.run(command, whole)
    for made in commands.kill_again_and_again(
        lambda _: command, folder, random.Random(4), KILLS, length_s, check=assert_whole
    ):
        assert [path.name for path in sorted((made / "log").iterdir())] == [
            path.name for path in sorted((whole / "log").iterdir())
        ]
        for path in (made / "log").glob("*.parquet"):
            ours, theirs = (pq.read_table(log / "log" / path.name).drop(["date", "machine"]) for log in (made, whole))
            assert ours.equals(theirs), path.name


FIT = ("fit", "log", "--profile", "small.yaml", "--out", "x", "--steps", "60", "--threads", "1", "--quiet")


def test_fit(commands: killing.Commands, folder: Folder, tmp_path: pathlib.Path) -> None:
    """It begins again, and comes to the same weights."""

    def make(number: int) -> pathlib.Path:
        made = folder(number)
        (made / "log").symlink_to(tmp_path / "100" / "log")
        return made

    commands.run(COLLECT, whole := folder(100))
    length_s = commands.run(FIT, whole)
    for made in commands.kill_again_and_again(
        lambda _: FIT, make, random.Random(5), KILLS, length_s, check=lambda there: assert_whole(there / "x")
    ):
        for name in (checkpoint.WEIGHTS, checkpoint.CARD):
            assert (made / "x" / name).is_file()
        assert (made / "x" / checkpoint.WEIGHTS).read_bytes() == (whole / "x" / checkpoint.WEIGHTS).read_bytes()
        ours, theirs = (json.loads((run / "x" / checkpoint.CARD).read_text()) for run in (made, whole))
        assert without(ours) == without(theirs)
        assert scalars_of(made / "x") == scalars_of(whole / "x")
        assert_no_litter(made / "x")


CALIBRATE = ("calibrate", "--profile", "small.yaml", "--seeds", "1", "--out", "mine.yaml", "--quiet")


def test_calibrate(commands: killing.Commands, folder: Folder) -> None:
    """It measures anew; the file is the one that it was, or a whole one."""
    length_s = commands.run(CALIBRATE, folder(100))
    for made in commands.kill_again_and_again(
        lambda _: CALIBRATE, folder, random.Random(6), KILLS, length_s, check=assert_whole
    ):
        assert profiles.load(made / "mine.yaml").cost.machine
        assert_no_litter(made)


REPRODUCE = ("reproduce", "table3", "--seeds", "2", "--out", "x", "--quiet")


def shorten() -> None:
    """Has table3 be made of short episodes."""

    def short_task(name: str) -> tasks.Task:
        return dataclasses.replace(tasks.find_task(name), warmup=4, settle=4, horizon=12)

    table3.find_task = short_task  # in a process of its own
    table3.METHODS = ("static:0.5", "miss-ratio-curve", "pid", "oracle")


def test_reproduce(commands: killing.Commands, folder: Folder) -> None:
    """What was measured is kept; the times of decisions alone are measured anew."""
    setup, whole = "tests.test_kills:shorten", folder(100)
    length_s = commands.run(REPRODUCE, whole, setup)
    files = sorted(path.name for path in (whole / "x").iterdir())
    assert files == ["table3.json", "table3.md", "table3.png", "table3.svg"]
    for made in commands.kill_again_and_again(
        lambda _: REPRODUCE, folder, random.Random(7), KILLS, length_s, setup, assert_whole
    ):
        assert sorted(path.name for path in (made / "x").iterdir()) == files
        assert_whole(made)
        ours, theirs = (json.loads((run / "x" / "table3.json").read_text()) for run in (made, whole))
        timed = {*VARIES, "decision_us", "decision_us_p99"}
        assert without(ours, timed) == without(theirs, timed)
