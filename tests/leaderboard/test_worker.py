"""A submission's way from received to verified, and every way in which it can end elsewhere."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from helm_gym.errors import HelmError, InvalidInputError, UnknownNameError
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Policy
from leaderboard import evaluating, leases, references
from leaderboard.board import Board, NotFoundError, RefusedSubmissionError
from leaderboard.leases import Lease, LeaseLostError, claim
from leaderboard.measuring import measure
from leaderboard.pages import Pages
from leaderboard.sandbox import PolicyFault, missing
from leaderboard.season import HIDDEN, RANKING, hidden_seeds
from leaderboard.standings import Standings
from leaderboard.worker import Worker
from tests.leaderboard.boards import HONEST, SMALL, TASK, constant, make_board, texts

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {missing()}")


@pytest.fixture
def board(tmp_path: pathlib.Path) -> Iterator[Board]:
    made = make_board(tmp_path / "board")
    yield made
    made.store.close()


def work(board: Board, **options: Any) -> Worker:
    """All that there is to do."""
    worker = Worker(board, references=False, **options)
    while worker.step():
        pass
    return worker


def states(board: Board, entry: str) -> list[str]:
    return [row["state"] for row in board.entry(entry)["timeline"]]


def scores(board: Board, entry: str) -> dict[Any, Any]:
    return {
        (r.body["task"], r.body["split"], r.body["rung"]): r.body["episodes"]
        for r in board.store.log()
        if r.kind == "scores" and r.body["submission"] == entry
    }


def test_a_policy_is_verified_and_the_same_file_has_the_same_scores_again(board: Board) -> None:
    first = board.submit("ada", [HONEST], "mean", write_up={"method": "acts by the mean"})
    again = board.submit("bob", [HONEST], "copy")
    work(board)
    assert states(board, first) == ["received", "checking", "queued", "running", "verified"]
    assert scores(board, first) == scores(board, again)
    assert {split for _, split, _ in scores(board, first)} == {"hidden", "development", "confirmation"}
    assert len(scores(board, first)[TASK, HIDDEN, RANKING]) == SMALL.hidden
    assert board.entry(again)["duplicate_of"] == first and not board.entry(first)["duplicate_of"]
    assert board.entry(first)["check"]["confined"] is True
    assert board.store.check() > 10


def test_what_is_scored_is_what_the_protocol_says_of_the_same_seeds(board: Board) -> None:
    entry = board.add_reference("static:0.6")
    work(board)
    seeds = hidden_seeds(board.store.season_key(1), TASK, HIDDEN, SMALL.hidden)
    run = evaluating.run(SMALL, TASK, seeds, RANKING, [open_policy("static:0.6", SMALL.layout())], None)
    assert scores(board, entry)[TASK, HIDDEN, RANKING] == evaluating.episodes_of(run, run.policies[0])


def test_hidden_seeds_follow_from_the_key_and_are_in_no_record(board: Board) -> None:
    entry = board.submit("ada", [HONEST], "mean")
    work(board)
    key = board.store.season_key(1)
    seeds = {s for split in (HIDDEN, "confirmation") for s in hidden_seeds(key, TASK, split, 3)}
    assert len(seeds) == 6 and seeds == {
        s for split in (HIDDEN, "confirmation") for s in hidden_seeds(key, TASK, split, 3)
    }
    assert not seeds & set(hidden_seeds(key, "burst-v0", HIDDEN, 3)) and max(seeds) < 2**63
    told = texts(board) + str(board.entry(entry))
    assert not any(str(seed) in told for seed in seeds) and key.hex() not in told


def test_a_file_that_breaks_a_rule_is_refused_with_its_id_and_counts_for_nothing(tmp_path: pathlib.Path) -> None:
    board = make_board(tmp_path, a_day=1)
    for number in range(3):
        entry = board.submit("ada", [b"\x80\x04pickle" + bytes([number])], f"broken {number}")
        work(board)
        found = board.entry(entry)
        assert (found["state"], found["reason"], found["fault"]) == ("failed", "format", "policy")
        assert "no ONNX file" in found["detail"]
    board.submit("ada", [HONEST], "mean")
    with pytest.raises(RefusedSubmissionError, match="has had 1 evaluations in 24 hours") as refused:
        board.submit("ada", [constant(0.1)], "another")
    assert refused.value.reason == "quota"
    assert board.submit("bob", [constant(0.1)], "another")  # quotas are each account's own


def test_what_fails_while_it_plays_is_the_policy_s_fault_and_says_no_seed(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, observation: Any, state: Any) -> Any:
        raise PolicyFault("finite", "policy: its decision 12 was not finite.")

    entry = board.submit("ada", [HONEST], "mean")
    worker = Worker(board, references=False)
    assert worker.step()
    monkeypatch.setattr("leaderboard.sandbox.SandboxedPolicy.act", fails)
    assert worker.step()
    found = board.entry(entry)
    assert (found["state"], found["reason"], found["fault"]) == ("failed", "play-finite", "policy")
    assert found["detail"] == "policy: its decision 12 was not finite."


def test_a_fault_of_the_platform_counts_for_nobody_and_can_be_tried_again(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = make_board(tmp_path, a_day=1)
    entry = board.submit("ada", [HONEST], "mean")
    kept = board.store.path_of(board.entry(entry)["files"][0])
    kept.unlink()
    work(board)
    found = board.entry(entry)
    assert (found["state"], found["reason"], found["fault"]) == ("failed", "platform", "platform")
    assert "does not count" in found["detail"]
    assert board.submit("ada", [HONEST], "mean") == entry  # the file comes again with it
    work(board)
    assert board.entry(entry)["state"] == "verified"
    assert "InvalidInputError" in capsys.readouterr().err  # its operator is told


def test_an_error_that_names_a_seed_stays_with_the_operator(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise HelmError("Policy returned nan in lane 0 (seed 4711); Observed: [0.25]")

    monkeypatch.setattr(evaluating, "run", fails)
    entry = board.submit("ada", [HONEST], "mean")
    work(board)
    assert board.entry(entry)["fault"] == "platform" and "4711" not in texts(board) and "0.25" not in texts(board)


def test_it_can_be_called_off_by_its_author_alone_and_only_once(board: Board) -> None:
    entry = board.submit("ada", [HONEST], "mean")
    with pytest.raises(NotFoundError):
        board.cancel("bob", entry)
    board.cancel("ada", entry)
    work(board)
    assert states(board, entry) == ["received", "cancelled"]
    with pytest.raises(RefusedSubmissionError, match="cancelled already"):
        board.cancel("ada", entry)
    assert board.submit("ada", [HONEST], "mean") == entry
    work(board)
    assert board.entry(entry)["state"] == "verified"


def test_it_can_be_called_off_while_it_is_evaluated(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = board.submit("ada", [HONEST], "mean")
    worker = Worker(board, references=False, lease_s=0.5)
    assert worker.step()
    began = threading.Event()

    def endless(season: Any, task: str, seeds: Any, rung: str, policies: list[Policy], tick: Any, **_: Any) -> None:
        began.set()
        while True:
            tick("", 0, 1)
            time.sleep(0.01)

    monkeypatch.setattr(evaluating, "run", endless)
    threading.Thread(target=lambda: (began.wait(20), board.cancel("ada", entry)), daemon=True).start()
    assert worker.step()  # ends, since its lease says that it is called off
    assert states(board, entry)[-2:] == ["running", "cancelled"] and not scores(board, entry)


def test_a_dead_worker_s_job_is_begun_again_and_what_it_has_done_stays(board: Board) -> None:
    entry = board.submit("ada", [HONEST], "mean")
    worker = Worker(board, references=False)
    assert worker.step()
    job = claim(board.store, "dead", references=False)
    assert job is not None and job.kind == leases.EVALUATE
    assert claim(board.store, "other", references=False) is None  # its lease still runs
    late = claim(board.store, "other", references=False, now=time.time() + leases.LEASE_S + 1)
    assert late is not None and late.name == job.name
    timeline = board.entry(entry)["timeline"]
    assert (timeline[-1]["reason"], timeline[-1]["fault"]) == ("worker-lost", "platform")
    with pytest.raises(LeaseLostError):  # the dead one was only slow; it may write nothing any more
        Lease(board.store, "dead", job).append([("state", {})])
    Lease(board.store, "other", late).append([])


def test_a_worker_that_is_known_to_have_ended_is_not_waited_for(board: Board) -> None:
    board.submit("ada", [HONEST], "mean")
    name = leases.worker_name()
    place = name.partition(f"/{os.getpid()}/")[0]
    with subprocess.Popen(["sleep", "20"]) as alive:
        there = f"{place}/{alive.pid}/x"
        assert claim(board.store, there, references=False) is not None
        assert claim(board.store, name, references=False) is None
        alive.kill()
    job = claim(board.store, name, references=False)
    assert job is not None and job.kind == leases.CHECK
    assert (
        claim(board.store, f"elsewhere/{alive.pid}/x", references=False) is None
    )  # of this process nothing is known to be wrong


def test_what_ends_every_worker_is_given_up_and_is_the_platform_s_fault(board: Board) -> None:
    entry = board.submit("ada", [HONEST], "mean")
    now = time.time()
    for number in range(leases.MAX_RUNS):
        now += leases.LEASE_S + 1
        assert claim(board.store, f"w{number}", references=False, now=now) is not None
    assert claim(board.store, "last", references=False, now=now + leases.LEASE_S + 1) is None
    found = board.entry(entry)
    assert (found["state"], found["reason"], found["fault"]) == ("failed", "gave-up", "platform")


def test_checks_come_first_then_submissions_then_references_then_the_board_s_own(board: Board) -> None:
    reference = board.add_reference("pid")
    assert Worker(board, references=False).step()
    entry = board.submit("ada", [HONEST], "mean")
    order = [claim(board.store, "w") for _ in range(5)]
    assert [job.name for job in order if job] == [
        f"submission:{entry}",
        f"references:1:{TASK}:hidden",
        f"references:1:{TASK}:development",
        f"submission:{reference}",
    ]
    assert board.entry(entry)["work"]["heartbeat_age_s"] < 20
    scaling, _ = board.running_references()
    assert scaling["stage"] == "references" and scaling["heartbeat_age_s"] < 20
    assert "static splits and oracle" in Pages(board, Standings(board)).index()


def test_the_board_s_own_entries_make_way_for_submissions_and_these_for_checks(board: Board) -> None:
    own = board.add_reference("static:0.6")
    worker = Worker(board, references=False)
    assert worker.step()
    late = board.submit("ada", [HONEST], "mean")
    assert worker.step() and board.entry(late)["state"] == "queued"
    reference = leases.Job("", leases.EVALUATE, 1, {"comes_last": True})
    submitted = leases.Job("", leases.EVALUATE, 1, {"comes_last": False})
    assert leases.makes_way(board.store, reference) and not leases.makes_way(board.store, submitted)
    later = board.submit("ada", [constant(0.1)], "constant")
    assert leases.makes_way(board.store, submitted)  # a check takes a second
    assert (check := claim(board.store, "w", references=False)) and check.name == f"submission:{later}"
    assert (job := claim(board.store, "other", references=False)) and job.name == f"submission:{late}"
    assert not leases.makes_way(board.store, reference)  # somebody works on both
    assert states(board, own) == ["received", "checking", "queued"]


def test_a_played_score_is_not_played_again(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    own = board.add_reference("static:0.6")
    worker = Worker(board, references=False)
    assert worker.step()
    monkeypatch.setattr("leaderboard.worker.makes_way", lambda *_: True)
    for played in range(1, 5):
        assert worker.step()
        assert len(scores(board, own)) == played
    assert worker.step() and board.entry(own)["state"] == "verified" and board.entry(own)["runs"] == 1
    assert states(board, own).count("running") == 5


def test_references_go_on_from_the_episodes_that_are_finished(
    board: Board, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """A worker ends in the middle; what it has finished is not played again, and comes out as in one go."""
    rungs, seeds, parts = (RANKING,), (1, 2, 3), tmp_path / "parts"
    play = functools.cache(references._play)  # seconds of work
    played: list[Any] = []

    def some(season: Any, task: str, chosen: Any, *rest: Any) -> Any:
        played.append(tuple(chosen))
        if len(played) == 4:
            raise KeyboardInterrupt
        return play(season, task, chosen, *rest)

    monkeypatch.setattr(references, "_play", some)
    whole = references.evaluate(SMALL, TASK, seeds, rungs, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        references.evaluate(SMALL, TASK, seeds, rungs, parts)
    assert references.evaluate(SMALL, TASK, seeds, rungs, parts) == whole
    assert played == [(1, 2), (3,), (1, 2), (3,), (3,)]
    (parts / "0.json").write_text('{"where": {"versions": "of another version"}}')
    (parts / "2.json").write_text("{")
    assert references.evaluate(SMALL, TASK, seeds, rungs, parts) == whole
    assert played[5:] == [(1, 2), (3,)]


@pytest.mark.long
def test_references_scale_the_scores(board: Board) -> None:
    worker = Worker(board, references=True)
    while worker.step():
        pass
    found = {(r.body["split"], r.body["rung"]): r.body["episodes"] for r in board.store.log() if r.kind == "references"}
    assert set(found) == {("hidden", "surrogate"), ("hidden", "modelled"), ("development", "modelled")}
    assert set(found["hidden", "modelled"]) == {f"static:0.{k}" for k in range(1, 10)} | {"oracle"}
    assert {len(episodes) for episodes in found["hidden", "modelled"].values()} == {SMALL.hidden}
    assert not any(board.store.parts(1).iterdir())


def test_a_newer_version_takes_the_place_of_the_older_one(board: Board) -> None:
    old = board.submit("ada", [HONEST], "mine")
    work(board)
    new = board.submit("ada", [constant(0.2)], "mine")
    other = board.submit("bob", [constant(0.3)], "mine")
    work(board)
    assert board.entry(old)["state"] == "superseded" and board.entry(old)["detail"] == new
    assert board.entry(new)["state"] == board.entry(other)["state"] == "verified"
    with board.store.reading() as connection:
        assert board.variants(connection) == {"ada": 2, "bob": 1}


def test_a_method_takes_five_files_or_more_that_differ(board: Board) -> None:
    files = [constant(0.05 * k) for k in range(5)]
    for wrong, said in ((files[:4], "5 to 20 files"), ([*files, files[0]], "the same")):
        with pytest.raises(InvalidInputError, match=said):
            board.submit("ada", wrong, "a method", track="method")


@pytest.mark.long
def test_a_method_is_evaluated_member_by_member(board: Board) -> None:
    files = [constant(0.05 * k) for k in range(5)]
    entry = board.submit("ada", files, "a method", track="method")
    work(board)
    assert board.entry(entry)["state"] == "verified"
    members = {r.body["member"] for r in board.store.log() if r.kind == "scores"}
    assert members == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    "name",
    [
        "",
        " x",
        "x" * 61,
        "<script>alert(1)</script>",
        "\x1b[2Jx",
        "a/b",
        "../../etc",
        "x\u202ey",
        "'; DROP TABLE records;--",
        "a\nb",
    ],
)
def test_names_are_plain(name: str, board: Board) -> None:
    with pytest.raises(InvalidInputError, match="cannot be used; write at most 60"):
        board.submit("ada", [HONEST], name)


@pytest.mark.parametrize(
    ("write_up", "said"),
    [
        ({"metod": "x"}, "did you mean 'method'"),
        ({"method": "x" * 3000}, "at most 2000 printable"),
        ({"method": "\x1b[31mred"}, "printable"),
        ({"method": {"a": 1}}, "a text, or a list of texts"),
        (["method"], "is a mapping"),
    ],
)
def test_write_ups_are_texts(write_up: Any, said: str, board: Board) -> None:
    with pytest.raises(HelmError, match=said):
        board.submit("ada", [HONEST], "mine", write_up=write_up)
    with pytest.raises(UnknownNameError, match="task of this board"):
        board.submit("ada", [HONEST], "mine", tasks=["burst-v9"])


def test_tokens_are_kept_as_hashes_and_end_when_they_are_revoked(board: Board) -> None:
    token, other = board.issue_token("ada"), board.issue_token("ada")
    assert board.account_of(token) == board.account_of(other) == "ada"
    assert board.account_of(token[:-1]) is None and board.account_of("") is None
    assert token not in texts(board)
    with pytest.raises(InvalidInputError, match="is the board's own"):
        board.issue_token("helm-gym")
    assert board.revoke_tokens("ada") == 2
    assert board.account_of(token) is None and board.account_of(other) is None
    assert board.store.check() == 6


@pytest.mark.long
def test_the_first_entries_are_measured_and_the_newest_measurement_holds(board: Board) -> None:
    entry = board.submit("ada", [HONEST], "mean")
    other = board.add_reference("static:0.6")
    work(board)
    for _ in range(2):
        assert set(measure(board, TASK, top=2, seeds=1)) == {entry, other}
    rows = Standings(board).table(TASK)["rows"]
    assert all(row["measured"] > 0 for row in rows)
    assert board.store.check() > 20
    with pytest.raises(InvalidInputError, match="not on this board"):
        measure(board, "burst-v0")
