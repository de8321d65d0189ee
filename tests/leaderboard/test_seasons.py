"""A season's end and the next one's beginning: what stays, what is evaluated again, what a kill leaves."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from helm_gym.errors import HelmError, InvalidInputError
from leaderboard import evaluating
from leaderboard.app import make_app
from leaderboard.board import Board, NotFoundError, RefusedSubmissionError
from leaderboard.leases import claim
from leaderboard.measuring import measure
from leaderboard.publishing import publish
from leaderboard.sandbox import missing
from leaderboard.season_change import close_season, open_season
from leaderboard.standings import Standings
from leaderboard.store import Store
from leaderboard.tables import SEASON_ENTRIES
from leaderboard.verifying import read_published, verify
from leaderboard.worker import Worker
from tests.leaderboard.boards import HONEST, SMALL, TASK, constant, make_board

ROOT = pathlib.Path(__file__).parents[2]
OTHER = "burst-v0"
HOST = "http://127.0.0.1"

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {missing()}")


@pytest.fixture
def board(tmp_path: pathlib.Path) -> Iterator[Board]:
    made = make_board(tmp_path / "board")
    yield made
    made.store.close()


def work(board: Board) -> None:
    worker = Worker(board, references=False)
    while worker.step():
        pass


def last(board: Board, entry: str) -> tuple[str, str]:
    found = board.entry(entry)
    return found["state"], found["reason"]


def seasons_of(board: Board, entry: str) -> list[int]:
    """The season of each of an entry's scores, in their order."""
    return [r.body["season"] for r in board.store.log() if r.kind == "scores" and r.body["submission"] == entry]


def test_a_closed_season_stays_as_it_was_and_its_entries_are_evaluated_in_the_next(board: Board) -> None:
    mine, other = board.submit("ada", [HONEST], "mine"), board.submit("bob", [constant(0.3)], "other")
    work(board)
    before = Standings(board).table(TASK)
    late = board.submit("ada", [constant(0.4)], "late")
    season = open_season(board)
    assert season == dataclasses.replace(SMALL, number=2)
    first, second = reversed(board.facts()["seasons"])
    assert hashlib.sha256(bytes.fromhex(first["key"])).hexdigest() == first["key_hash"] != second["key_hash"]
    assert second["key"] is None and board.store.season_key(2) != board.store.season_key(1)
    assert last(board, mine) == last(board, other) == ("queued", "new-season") and last(board, late)[0] == "received"
    work(board)
    assert last(board, mine)[0] == last(board, other)[0] == last(board, late)[0] == "verified"
    assert seasons_of(board, mine) == [1] * 4 + [2] * 4 and seasons_of(board, late) == [2] * 4
    newer = board.submit("ada", [constant(0.2)], "mine")
    work(board)
    assert last(board, mine)[0] == "superseded"
    standings = Standings(board)
    then, now = standings.table(TASK, season=1), standings.table(TASK)
    assert [(row["entry"], row["latency"]) for row in then["rows"]] == [
        (row["entry"], row["latency"]) for row in before["rows"]
    ]
    assert {row["entry"] for row in now["rows"]} == {other, late, newer}
    assert standings.compare(mine, other, season=1) and not standings.compare(mine, other)
    with pytest.raises(InvalidInputError, match="no season 3"):
        standings.table(TASK, season=3)
    board.store.check()


def test_while_no_season_is_open_files_are_checked_and_nothing_is_evaluated(board: Board) -> None:
    entry = board.submit("ada", [HONEST], "mine")
    close_season(board)
    work(board)
    assert last(board, entry) == ("queued", "") and not seasons_of(board, entry)
    with pytest.raises(RefusedSubmissionError, match="wait for another"):
        board.submit("ada", [constant(0.1)], "late")
    with pytest.raises(InvalidInputError, match="open the next one"):
        measure(board, TASK)
    assert claim(board.store, "w") is None  # no references of a closed season either
    open_season(board)
    work(board)
    assert last(board, entry)[0] == "verified" and set(seasons_of(board, entry)) == {2}


def test_a_worker_in_the_middle_of_a_job_follows_to_the_next_season(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = board.submit("ada", [HONEST], "mine")
    worker = Worker(board, references=False, lease_s=0.5)
    assert worker.step()
    began, run = threading.Event(), evaluating.run

    def endless(season: Any, task: str, seeds: Any, rung: str, policies: Any, tick: Any, **_: Any) -> Any:
        began.set()
        while True:
            tick("", 0, 1)
            time.sleep(0.01)

    monkeypatch.setattr(evaluating, "run", endless)
    threading.Thread(target=lambda: (began.wait(20), open_season(board)), daemon=True).start()
    assert worker.step()  # ends: its lease was of a season that is over
    assert last(board, entry) == ("queued", "season-closed") and not seasons_of(board, entry)
    monkeypatch.setattr(evaluating, "run", run)
    while worker.step():
        pass
    assert last(board, entry)[0] == "verified" and seasons_of(board, entry) == [2] * 4
    seeds = SMALL.seeds(TASK, "hidden", board.store.season_key(2))
    score = next(r.body for r in board.store.log() if r.kind == "scores" and r.body["rung"] == "modelled")
    again = evaluating.run(SMALL, TASK, seeds, "modelled", [_opened(board)], None)
    assert score["episodes"] == evaluating.episodes_of(again, again.policies[0])
    board.store.check()


def _opened(board: Board) -> Any:
    from leaderboard.sandbox import SandboxedPolicy

    return SandboxedPolicy(HONEST, SMALL.layout())


def test_a_score_that_was_played_in_the_former_season_is_not_written_in_the_next(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change comes when the episodes have been played, and before their score is written."""
    entry, run = board.submit("ada", [HONEST], "mine"), evaluating.run
    worker = Worker(board, references=False)
    assert worker.step()

    def played(*given: Any, **more: Any) -> Any:
        found = run(*given, **more)
        monkeypatch.setattr(evaluating, "run", run)
        open_season(board)
        return found

    monkeypatch.setattr(evaluating, "run", played)
    assert worker.step()
    assert not seasons_of(board, entry) and last(board, entry) == ("queued", "season-closed")


def test_new_submissions_come_before_those_of_the_former_season_and_no_quota_counts_these(
    tmp_path: pathlib.Path,
) -> None:
    board = make_board(tmp_path, a_day=9, waiting=1)
    old = board.submit("ada", [HONEST], "old")
    work(board)
    open_season(board)
    new = board.submit("ada", [constant(0.1)], "new")
    assert (board.entry(new)["work"]["place"], board.entry(old)["work"]["place"]) == (1, 2)
    names = [job.name for job in (claim(board.store, f"w{k}", references=False) for k in range(2)) if job]
    assert names == [f"submission:{new}", f"submission:{old}"]
    board.store.close()


def test_a_season_of_other_tasks_has_the_board_s_own_entries_and_of_others_those_that_share_a_task(
    board: Board,
) -> None:
    own, mine = board.add_reference("pid"), board.submit("ada", [HONEST], "mine")
    work(board)
    under_way = board.submit("bob", [constant(0.1)], "under way")
    assert open_season(board, tasks=[OTHER], hidden=2).hidden == 2
    assert last(board, mine)[0] == "verified" and last(board, under_way) == ("cancelled", "season-closed")
    assert last(board, own)[0] == "superseded"
    work(board)
    (row,) = Standings(board).table(OTHER)["rows"]
    assert row["name"] == "pid" and row["entry"] == board.entry(own)["detail"]
    assert {row["entry"] for row in Standings(board).table(TASK, season=1)["rows"]} == {own, mine}
    open_season(board, tasks=[TASK, OTHER])
    work(board)
    assert {row["name"] for row in Standings(board).table(TASK)["rows"]} == {"pid", "mine"}
    open_season(board, tasks=[OTHER])
    work(board)
    assert [row["entry"] for row in Standings(board).table(OTHER)["rows"]] == [row["entry"]]  # the one of two before
    with pytest.raises(HelmError, match="task of this board"):
        open_season(board, tasks=["trace-v0"])
    assert board.facts()["season"] == 4 and board.facts()["closed"] is None
    board.store.check()


def test_a_published_board_has_each_season_and_closed_ones_are_recomputed_whole(
    board: Board, tmp_path: pathlib.Path
) -> None:
    entry = board.submit("ada", [HONEST], "mine")
    work(board)
    open_season(board)
    work(board)
    site = tmp_path / "site"
    publish(board, site)
    for page in ("seasons/1/index.html", f"seasons/1/tasks/{TASK}.html", "index.html"):
        text = (site / page).read_text(encoding="utf-8")
        assert "mine" in text
        for link in re.findall(r'(?:href|action)="([^"#?]+)', text):
            assert link == "data:," or ((site / page).parent / link).is_file(), (page, link)
    published = read_published(site)
    assert published.hidden == 3  # of the second season
    rows = list(verify(published, entry))
    places = [(row.season, row.split, row.rung) for row in rows]
    assert all(row.same for row in rows) and len(places) == 5
    assert {(1, "hidden", "surrogate"), (1, "hidden", "modelled"), (2, "development", "modelled")} <= set(places)


def test_pages_and_api_have_the_former_season(board: Board) -> None:
    board.submit("ada", [HONEST], "mine")
    work(board)
    open_season(board)
    with TestClient(make_app(board), base_url=HOST) as client:
        assert [told["season"] for told in client.get("/api/v1/board").json()["seasons"]] == [2, 1]
        then = client.get(f"/api/v1/tasks/{TASK}", params={"season": 1}).json()
        assert (then["season"], then["closed"], len(then["rows"])) == (1, True, 1)
        assert client.get(f"/api/v1/tasks/{TASK}").json()["rows"] == []
        assert "Former seasons" in client.get("/").text
        for path in ("/seasons/1/index.html", f"/seasons/1/tasks/{TASK}.html", f"/seasons/1/methods/{TASK}.html"):
            answer = client.get(path)
            assert answer.status_code == 200 and "season 1" in answer.text.lower(), path
        for path in ("/seasons/3/index.html", f"/seasons/3/tasks/{TASK}.html", f"/api/v1/tasks/{TASK}?season=3"):
            assert client.get(path).status_code == 404, path
        assert client.get(f"/seasons/1/tasks/{OTHER}.html").status_code == 404
        with pytest.raises(NotFoundError):
            board.facts(7)


def test_a_board_of_a_version_without_seasons_gets_its_table_from_the_log(board: Board) -> None:
    entry = board.submit("ada", [HONEST], "mine")
    work(board)
    close_season(board)
    SEASON_ENTRIES.drop(board.store.engine)
    again = Board(Store(board.store.folder))
    again.store.check()
    assert [row["entry"] for row in Standings(again).table(TASK, season=1)["rows"]] == [entry]
    again.store.close()


CHANGES = """
import pathlib, sys
from leaderboard.board import Board
from leaderboard.season_change import open_season
from leaderboard.store import Store
board = Board(Store(pathlib.Path(sys.argv[1])))
while True:
    open_season(board)
    print("opened", flush=True)
"""


def test_a_kill_at_the_change_leaves_one_season_or_the_next(tmp_path: pathlib.Path) -> None:
    """A process opens one season after another and is killed; nothing is half done, and the entries go on."""
    board, rng = make_board(tmp_path), random.Random(5)
    entries = [board.submit(f"user {k}", [constant(0.1 * k)], f"policy {k}") for k in range(2)]
    work(board)
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", CHANGES, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == b"opened\n"
            time.sleep(0.2 * rng.random())
            process.kill()
        board.store.check()
        seasons = board.facts()["seasons"]
        assert [told["season"] for told in seasons] == list(range(len(seasons), 0, -1))
        assert [told["closed"] is None for told in seasons] == [True] + [False] * (len(seasons) - 1)
        for told in seasons:
            key = board.store.season_key(told["season"], told["key_hash"])
            assert told["key"] in (None, key.hex())
        work(board)
        assert {last(board, entry)[0] for entry in entries} == {"verified"}
    newest = board.facts()["season"]
    assert newest > 1 and all(seasons_of(board, entry)[-4:] == [newest] * 4 for entry in entries)
    board.store.close()
