"""Workers that are killed at random: no submission is lost, none is scored twice, and all end in a final state."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import random
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from leaderboard.board import Board
from leaderboard.sandbox import missing
from leaderboard.submissions import FINAL
from tests import postgres
from tests.leaderboard.boards import constant, make_board

ROOT = pathlib.Path(__file__).parents[2]
LONGEST_S = 900.0

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {missing()}")


def start(folder: pathlib.Path, url: str | None) -> subprocess.Popen[bytes]:
    settings = {
        "folder": str(folder),
        "url": url,
        "unconfined": False,
        "references": False,
        "submissions": True,
        "lease_s": 2.0,
        "parent": os.getpid(),
    }
    command = [sys.executable, "-m", "leaderboard.worker", json.dumps(settings)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def sandboxes() -> set[int]:
    """Processes of policies that run at present."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if b"leaderboard.sandbox.child" in (path / "cmdline").read_bytes():
                found.add(int(path.name))
        except OSError:
            continue
    return found


def check(board: Board, entries: list[str]) -> None:
    assert board.store.check() > 0  # the log is sound, and the tables are what it says
    counted: collections.Counter[tuple[str, ...]] = collections.Counter()
    finals: collections.Counter[str] = collections.Counter()
    for record in board.store.log():
        body = record.body
        if record.kind == "scores":
            counted[tuple(str(body[key]) for key in ("submission", "task", "split", "rung", "member"))] += 1
        if record.kind == "state" and body["state"] in FINAL:
            finals[body["submission"]] += 1
    assert set(counted.values()) == {1} and finals == dict.fromkeys(entries, 1)
    assert {board.entry(entry)["state"] for entry in entries} == {"verified"}


def rounds(
    board: Board, folder: pathlib.Path, url: str | None, count: int, seed: int, crash: Callable[[], None] | None = None
) -> None:
    """Submits, and kills the worker again and again, and now and then, by ``crash``, the database."""
    rng, before = random.Random(seed), sandboxes()
    accounts = [f"user {k}" for k in range(-(-count // 5))]
    entries = [board.submit(accounts[k // 5], [constant(0.001 * (k + 1))], f"policy {k}") for k in range(count)]
    until, worker, kills = time.monotonic() + LONGEST_S, start(folder, url), 0
    try:
        while time.monotonic() < until:
            open_ones = [entry for entry in entries if board.entry(entry)["state"] not in FINAL]
            if not open_ones:
                break
            if kills < 2 + count // 2:
                # Loading takes it two seconds, so that these are moments of work.
                time.sleep(2.5 + 3 * rng.random())
                if crash is not None and kills % 2:
                    crash()  # under a worker that then has to go on
                    time.sleep(2 * rng.random())
                worker.kill()
                worker.wait()
                kills += 1
                worker = start(folder, url)
            else:
                time.sleep(0.5)
    finally:
        worker.kill()
        worker.wait()
    check(board, entries)
    end = time.monotonic() + 20
    while sandboxes() - before and time.monotonic() < end:
        time.sleep(0.05)
    assert not sandboxes() - before


def test_a_submission_survives_kills_of_their_worker(tmp_path: pathlib.Path) -> None:
    rounds(make_board(tmp_path), tmp_path, None, count=1, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_hundred_submissions_survive_kills_of_their_worker(database: str, tmp_path: pathlib.Path) -> None:
    if database == "sqlite":
        return rounds(make_board(tmp_path), tmp_path, None, count=100, seed=2)
    with postgres.serve() as server:

        def crash() -> None:
            server.stop()
            server.start()

        return rounds(make_board(tmp_path, server.url), tmp_path, server.url, count=20, seed=3, crash=crash)
