"""A served board of which server, worker, pages and database are killed at random while clients submit to it.

No submission is lost, none is scored twice, all end in a final state, nothing is left running, and the log and the
tables agree.
"""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from helm_gym.errors import HelmError
from leaderboard.board import Board
from leaderboard.client import Client
from leaderboard.sandbox import missing
from leaderboard.submissions import FINAL
from tests import postgres
from tests.leaderboard.boards import TASK, constant, free_port, make_board

ROOT = pathlib.Path(__file__).parents[2]
LONGEST_S = 1800.0
UNDER_WAY = 8  # submissions that are not finished, at which clients wait

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {missing()}")


def processes(folder: pathlib.Path, of: bytes = b"") -> set[int]:
    """Processes of a served board: each has its folder on the module path, the sandboxed ones too."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (path / "environ").read_bytes() and of in (path / "cmdline").read_bytes():
                found.add(int(path.name))
        except OSError:
            continue
    return found


class Served:
    """A board that is served by one process, its worker and the process that makes its pages."""

    def __init__(self, folder: pathlib.Path, url: str | None):
        self.port, self._folder = free_port(), folder
        options = ["--board", str(folder), "--port", str(self.port), "--no-references", "--tokens"]
        command = [sys.executable, "-m", "helm_gym.cli.main", "leaderboard", "serve", *options]
        self._command = [*command, *(["--database", url] if url else [])]
        self._environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "OMP_NUM_THREADS": "1"}
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, cwd=ROOT, env=self._environment, stdout=subprocess.DEVNULL)

    def kill(self, victim: str) -> None:
        """Kills the server with all that hangs on it, or one of its processes, which it starts again."""
        if victim == "server":
            self.process.kill()
            self.process.wait()
            return self.start()
        for pid in processes(self._folder, of=f"leaderboard.{victim}".encode()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def submit_all(board: Board, port: int, count: int, entries: list[str]) -> None:
    """As clients do: again where nobody answers, and not all at once."""
    tokens = [board.issue_token(f"user {k}") for k in range(-(-count // 5))]
    until = time.monotonic() + LONGEST_S
    for k in range(count):
        path = board.store.folder / f"policy-{k}.onnx"
        path.write_bytes(constant(0.001 * (k + 1)))
        with contextlib.closing(Client(f"http://127.0.0.1:{port}", tokens[k // 5])) as client:
            while len(entries) == k and time.monotonic() < until:
                with contextlib.suppress(HelmError):  # the server or the database is away
                    if sum(unfinished(board, entry) for entry in entries) < UNDER_WAY:
                        entries.append(client.submit([path], f"policy {k}", "policy"))
                        client.get(f"tasks/{TASK}")
                time.sleep(0.05)


def check(board: Board, entries: list[str], count: int) -> None:
    assert board.store.check() > 0  # the log is sound, and the tables are what it says
    scores: collections.Counter[tuple[str, ...]] = collections.Counter()
    finals: collections.Counter[str] = collections.Counter()
    submitted: list[str] = []
    for record in board.store.log():
        body = record.body
        if record.kind == "submission":
            submitted.append(body["submission"])
        if record.kind == "scores":
            scores[tuple(str(body[key]) for key in ("submission", "task", "split", "rung", "member"))] += 1
        if record.kind == "state" and body["state"] in FINAL:
            finals[body["submission"]] += 1
    assert len(entries) == count and submitted == entries
    assert set(scores.values()) == {1} and len(scores) == 4 * count
    assert finals == dict.fromkeys(entries, 1)
    assert {board.entry(entry)["state"] for entry in entries} == {"verified"}


def run(
    folder: pathlib.Path,
    count: int,
    victims: list[str],
    seed: int,
    url: str | None = None,
    crash: Callable[[], None] | None = None,
) -> None:
    """Serves a board, submits to it, and kills one victim after another, at random points of the whole time."""
    board, rng, entries = make_board(folder, url), random.Random(seed), list[str]()
    served = Served(folder, url)
    submitting = threading.Thread(target=submit_all, args=(board, served.port, count, entries), daemon=True)
    submitting.start()
    until = time.monotonic() + LONGEST_S
    try:
        for victim in victims:
            # Loading takes the server and its worker some three seconds: these are moments of it and of their work.
            time.sleep(7 * rng.random())
            if victim == "database":
                assert crash is not None
                crash()
            else:
                served.kill(victim)
        while time.monotonic() < until and (submitting.is_alive() or any(unfinished(board, e) for e in entries)):
            time.sleep(0.2)
    finally:
        served.end()
        submitting.join(20)
    check(board, entries, count)
    end = time.monotonic() + 20
    while processes(folder) and time.monotonic() < end:
        time.sleep(0.05)
    assert not processes(folder)
    board.store.close()


def unfinished(board: Board, entry: str) -> bool:
    return board.entry(entry)["state"] not in FINAL


def test_submissions_survive_kills_of_server_worker_and_pages(tmp_path: pathlib.Path) -> None:
    run(tmp_path, 4, ["worker", "server", "rendering"], seed=1)


@pytest.mark.long
def test_a_hundred_submissions_survive_kills_at_random_points(tmp_path: pathlib.Path) -> None:
    rng = random.Random(2)
    victims = rng.choices(["server", "worker", "rendering"], weights=[5, 4, 1], k=30)
    run(tmp_path, 100, victims, seed=2)


@pytest.mark.long
def test_submissions_survive_kills_of_the_database_and_of_whoever_uses_it(tmp_path: pathlib.Path) -> None:
    with postgres.serve() as server:

        def crash() -> None:
            server.stop()  # "immediate": its processes are ended where they are
            server.start()

        victims = ["database", "worker", "database", "server"] * 3
        run(tmp_path, 20, victims, seed=3, url=server.url, crash=crash)
