"""Storages of studies: what a kill leaves in them, what they refuse and how, and how processes begin one together."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import pathlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray
from optuna.trial import TrialState

from agents.tuning import result, search, storage, study
from agents.tuning.storage import StorageError, open_storage
from helm_gym import files
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.training import run_folder
from tests import postgres
from tests.agents.tunings import Bowl, make_plan, search_bowl_with, trials_of, tried

KINDS = ("sqlite", "journal", "postgresql")


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.serve() as started:
        yield started


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """A storage that is not there yet; a database of PostgreSQL holds those of other tests, too."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("server").url)
    return f"sqlite:///{tmp_path}/x.db" if request.param == "sqlite" else str(tmp_path / "x.journal")


def refusal(place: str | pathlib.Path) -> str:
    with pytest.raises(StorageError) as refused:
        open_storage(str(place))
    text = str(refused.value)
    assert text.startswith("--storage ") and len(text) < 500 and "\n" not in text
    return text


@pytest.mark.parametrize("name", ["x.journal", "sqlite:///x.db"])
def test_a_relative_path_is_of_the_folder_where_it_was_given(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened = optuna.create_study(storage=open_storage(name), study_name="x")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    opened.set_user_attr("kept", True)
    there = optuna.load_study(storage=open_storage(storage.locate(name).replace("elsewhere/", "")), study_name="x")
    assert there.user_attrs == {"kept": True} and not any((tmp_path / "elsewhere").iterdir())


def test_a_run_folder_may_have_any_name(tmp_path: pathlib.Path, bowl: type[Bowl]) -> None:
    folder = "what? 50% of a:b@c #{x} Größe"
    plan = make_plan(tmp_path / folder, trials=1, storage="")
    search.search(plan)
    assert [path.name for path in (tmp_path / folder).iterdir()] == ["study.db"] and len(tried(plan)) == 1


def test_a_lock_that_a_killed_process_has_left_is_no_lock(tmp_path: pathlib.Path, bowl: type[Bowl]) -> None:
    """Optuna's own is a link with the journal's path for a target, which dangles where that is relative."""
    plan = make_plan(tmp_path, trials=2, storage=str(tmp_path / "x.journal"))
    (tmp_path / "x.journal.lock").symlink_to("runs/x.journal")
    search.search(plan)
    assert len(tried(plan)) == 2


def test_a_lock_that_a_living_process_holds_is_not_waited_for_for_ever(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_storage(str(tmp_path / "x.journal"))
    monkeypatch.setattr(storage, "_PATIENCE_S", 0.3)
    with (tmp_path / "x.journal").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match=r"x\.journal failed \(another process has held its lock for"):
            optuna.create_study(storage=opened, study_name="x")
    optuna.create_study(storage=opened, study_name="x")


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_line_that_a_kill_has_cut_off_is_dropped(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, cut: int, bowl: type[Bowl]
) -> None:
    monkeypatch.setattr(study, "_TAKE_S", 0.0)  # the trial is one of this process, which is alive
    journals = [tmp_path / f"{name}.journal" for name in ("cut", "whole")]
    plans = [make_plan(tmp_path, trials=4, storage=str(journal)) for journal in journals]
    for plan in plans:
        search.search(plan)
    journals[0].write_bytes(journals[0].read_bytes()[:-cut])
    for plan in (make_plan(tmp_path, trials=6, storage=str(journal)) for journal in journals):
        search.search(plan)
    assert tried(plans[0]) == tried(plans[1])
    assert all(line.startswith(b'{"op_code"') and line.endswith(b"}") for line in journals[0].read_bytes().splitlines())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"meeting notes", "line 1 is no record of Optuna's"),
        (b"meeting notes\nsecond line\n", "line 1 is no record"),
        (b'{"op_code":99,"worker_id":"x"}\n', "cannot be opened"),
        (b'{"op_code":"0"}\n', "line 1 is no record"),
        (b"[" * 100_000 + b"\n", "line 1 is no record"),
        (b"\0" * 64, "line 1 is no record"),
    ],
)
def test_a_file_that_is_no_journal_is_named_and_left_as_it_is(
    tmp_path: pathlib.Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "server.log"
    path.write_bytes(content)
    text = refusal(path)
    assert sentence in text and str(path) in text and "move the file away, or give another --storage" in text
    assert path.read_bytes() == content


def test_a_damaged_journal_is_named_with_its_line(tmp_path: pathlib.Path, bowl: type[Bowl]) -> None:
    path = tmp_path / "x.journal"
    search.search(make_plan(tmp_path, trials=3, storage=str(path)))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:6], lines[6][:30] + b"\n", *lines[7:]]))
    assert "line 7 is no record of Optuna's" in refusal(path)


@pytest.mark.parametrize("name", ["x.journal", "x.db"])
def test_what_is_no_regular_file_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    def url(path: pathlib.Path) -> str:
        return str(path) if name == "x.journal" else f"sqlite:///{path}"

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).mkdir()
    assert "it is a folder" in refusal(url(tmp_path / "folder" / name))
    os.mkfifo(tmp_path / name)  # opening it would wait for a writer
    assert "it is no regular file" in refusal(url(tmp_path / name))
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / name).symlink_to("/dev/zero")
    assert "it is no regular file" in refusal(url(tmp_path / "link" / name))
    assert "Not a directory" in refusal(url(pathlib.Path("/dev/null/folder") / name))


def test_a_database_of_another_program_is_left_as_it_is(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "places.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    assert "it is another program's database, with a table 'bookmarks'" in refusal(f"sqlite:///{path}")
    path.with_name("notes.db").write_bytes(b"meeting notes")
    assert "it is no SQLite database" in refusal(f"sqlite:///{path.with_name('notes.db')}")
    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [0.3, 0.97])
def test_a_database_cut_short_is_a_sentence(tmp_path: pathlib.Path, kept: float, bowl: type[Bowl]) -> None:
    plan = make_plan(tmp_path, trials=3)
    search.search(plan)
    path = tmp_path / "study.db"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(StorageError) as refused:
        result.tune(make_plan(tmp_path, trials=5))
    assert f"--storage sqlite:///{path}" in str(refused.value) and "move the file away" in str(refused.value)


@pytest.mark.parametrize("kind", ["db", "journal"])
def test_a_storage_that_fails_meanwhile_is_a_sentence_and_no_bad_trial(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bowl: type[Bowl], kind: str
) -> None:
    path = tmp_path / f"x.{kind}"
    plan = make_plan(tmp_path, storage=f"sqlite:///{path}" if kind == "db" else str(path))
    serve = bowl.relative_costs

    def damaged(self: Bowl, policy: Any, seeds: Any) -> NDArray[np.float64]:
        if len(self.served) == 3:
            path.write_bytes(b"x" * 50_000)
        return serve(self, policy, seeds)

    monkeypatch.setattr(bowl, "relative_costs", damaged)
    with pytest.raises(StorageError, match=rf"--storage .*x\.{kind} failed \("):
        result.tune(plan)


def test_a_full_disk_is_no_bad_trial(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bowl: type[Bowl]) -> None:
    serve = bowl.relative_costs

    def full(self: Bowl, policy: Any, seeds: Any) -> NDArray[np.float64]:
        if len(self.served) == 3:
            files.write(pathlib.Path("/dev/full/x"), "")
        return serve(self, policy, seeds)

    monkeypatch.setattr(bowl, "relative_costs", full)
    with pytest.raises(InvalidInputError, match="/dev/full/x cannot be written"):
        search.search(make_plan(tmp_path))
    assert [trial.state for trial in trials_of(make_plan(tmp_path))].count(TrialState.PRUNED) == 0


def test_a_cost_that_is_no_number_is_a_bad_trial_and_not_tried_for_ever(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bowl: type[Bowl]
) -> None:
    serve = bowl.relative_costs

    def unbounded(self: Bowl, policy: Any, seeds: Any) -> NDArray[np.float64]:
        return serve(self, policy, seeds) * (np.nan if policy.settings.kp > 0.15 else 1.0)

    monkeypatch.setattr(bowl, "relative_costs", unbounded)
    trials = search.search(make_plan(tmp_path)).trials
    assert len(trials) == 8 and any("not finite" in trial.user_attrs.get(study.ERROR, "") for trial in trials)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://me:secret@h:port/x", "--storage postgresql://***@h:port/x cannot be opened; give a URL"),
        ("postgres//me:se:cr@et@h/x", "--storage postgres//***@h/x cannot be opened"),
        ("postgresql://me:secret@127.0.0.1:1/x", r"me:***@127.0.0.1:1/x cannot be opened (connection failed: "),
        ("postgresql://127.0.0.1:1/x?user=me&password=secret", "check that the server runs"),
        ("sqlite://", "a search is kept in a file"),
        ("sqlite:///:memory:", "a search is kept in a file"),
        ("mysql://me:secret@h/x", "needs a library that is missing"),
    ],
)
def test_a_url_that_does_not_lead_to_a_database_is_named_without_its_password(url: str, sentence: str) -> None:
    text = refusal(url)
    assert sentence in text and "secret" not in text and "cr@et" not in text


def test_a_wrong_password_and_a_server_that_is_down_are_sentences(server: postgres.Server) -> None:
    wrong = server.url.replace(server.password, "hunter22")
    text = refusal(wrong)
    assert "password authentication failed" in text and "hunter22" not in text
    missing = server.url.removesuffix("/helm") + "/nowhere"
    assert 'database "nowhere" does not exist' in refusal(missing)


@pytest.mark.long
def test_a_server_that_stops_meanwhile_is_a_sentence_and_the_search_goes_on_later(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bowl: type[Bowl]
) -> None:
    with postgres.serve() as own:
        plan = make_plan(tmp_path, storage=own.url)
        serve = bowl.relative_costs

        def stopped(self: Bowl, policy: Any, seeds: Any) -> NDArray[np.float64]:
            if len(self.served) == 3:
                own.stop()
            return serve(self, policy, seeds)

        with monkeypatch.context() as patched:
            patched.setattr(bowl, "relative_costs", stopped)
            with pytest.raises(StorageError, match=r"failed \(.*\); check that the server runs") as refused:
                result.tune(plan)
        assert own.password not in str(refused.value)
        own.start()
        monkeypatch.setattr(study, "_TAKE_S", 0.0)  # the trial under way is one of this process, which is alive
        search.search(plan)
        search.search(whole := make_plan(tmp_path / "whole"))
        assert tried(plan) == tried(whole)


def test_processes_that_begin_together_share_a_search(place: str, tmp_path: pathlib.Path) -> None:
    """All make the tables, the study and the first trial at the same moment, and each trial is one process's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.agents.tunings"])
    plan = make_plan(tmp_path, storage=place, study=tmp_path.name, trials=12)
    barrier, told = context.Barrier(3), context.SimpleQueue()
    processes = [context.Process(target=search_bowl_with, args=(plan, barrier, told), daemon=True) for _ in range(3)]
    for process in processes:
        process.start()
    served = [told.get() for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert not [said for said in served if isinstance(said, str)]
    trials = trials_of(plan)
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(ended) == 12 and {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert sorted(number for numbers in served for number in numbers) == sorted(trial.number for trial in ended)
    assert [trial.user_attrs[study.RANK] for trial in ended].count(0) == 1
    assert len({tuple(trial.params.values()) for trial in ended}) == 12, "the first settings are tried once"


def test_a_trial_that_another_took_for_dead_is_let_go_of(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bowl: type[Bowl]
) -> None:
    """A machine that slept, say: its trial was given to another, which counts."""
    plan, serve = make_plan(tmp_path, trials=4), bowl.relative_costs

    def asleep(self: Bowl, policy: Any, seeds: Any) -> NDArray[np.float64]:
        if len(self.served) == 2:
            running = [trial for trial in trials_of(plan) if trial.state is TrialState.RUNNING]
            other = optuna.load_study(storage=open_storage(plan.place), study_name=plan.study)
            study.give_back(other, running[0].number)
        return serve(self, policy, seeds)

    monkeypatch.setattr(bowl, "relative_costs", asleep)
    search.search(plan)
    assert [trial.state for trial in trials_of(plan)].count(TrialState.FAIL) == 1 and len(tried(plan)) == 4


def test_a_trial_whose_taker_died_before_it_could_say_so_is_tried_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bowl: type[Bowl]
) -> None:
    """It is in the name of the process that enqueued it, which lives on and is at none."""
    found = search.search(make_plan(tmp_path, trials=1))
    study._enqueue(found, {})
    found.ask()  # another process, which dies here
    monkeypatch.setattr(study, "_TAKE_S", 0.2)
    plan = make_plan(tmp_path, trials=3)
    search.search(plan)
    assert len(tried(plan)) == 3


def test_commands_that_end_together_leave_one_run(tmp_path: pathlib.Path, bowl: type[Bowl]) -> None:
    plan, said = make_plan(tmp_path, trials=3), []
    search.search(plan)
    with contextlib.ExitStack() as other:
        other.enter_context(result.alone(tmp_path, "held"))
        waiting = threading.Thread(target=lambda: said.append(result.tune(plan, progress=lambda *told: None)))
        waiting.start()
        time.sleep(1.0)
        assert waiting.is_alive() and not (tmp_path / result.TUNE).exists()
    waiting.join(60)
    assert said and (tmp_path / result.TUNE).is_file() and not (tmp_path / ".lock").exists()


def test_a_trial_that_was_put_into_the_queue_by_hand_is_tried(tmp_path: pathlib.Path, bowl: type[Bowl]) -> None:
    search.search(make_plan(tmp_path, trials=2))
    optuna.load_study(storage=open_storage(make_plan(tmp_path).place), study_name="x").enqueue_trial({"kp": 0.1234})
    search.search(plan := make_plan(tmp_path, trials=4))
    assert [params["kp"] for params in tried(plan)].count(0.1234) == 1 and len(tried(plan)) == 4


def test_a_training_is_not_written_over(tmp_path: pathlib.Path, bowl: type[Bowl]) -> None:
    plan = make_plan(tmp_path, trials=2)
    result.tune(plan)
    run = run_folder.read_run(tmp_path)
    run.facts = {"validation": {"cost": 1.0}}
    run_folder.write_run(tmp_path, run)
    with pytest.raises(HelmError, match="holds a training; give another folder"):
        result.tune(plan)
