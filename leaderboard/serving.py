"""`helm-gym leaderboard serve`: the server, its workers, and what a new board starts with."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import uvicorn

from helm_gym.errors import HelmError, InvalidInputError
from leaderboard import leases
from leaderboard.app import make_app
from leaderboard.board import Board, Quota, RefusedSubmissionError
from leaderboard.rendering import ProcessRenderer
from leaderboard.sandbox import missing
from leaderboard.season import BOARD_TASKS, Season
from leaderboard.store import Store
from leaderboard.submissions import REFERENCES

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_RESTART_S = 1.0


class Workers:
    """Worker processes, each started again when it ends.

    Args:
        settings: of each, as ``leaderboard.worker.main`` takes them.
    """

    def __init__(self, settings: Sequence[dict[str, Any]]):
        told = [json.dumps(each | {"parent": os.getpid()}) for each in settings]
        self._commands = [[sys.executable, "-P", "-m", "leaderboard.worker", text] for text in told]
        self._stop = threading.Event()
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * len(told)
        # The kernel ends a worker with the thread that started it: this one lives as long as the process.
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # workers inherit it: Ctrl-C is ours
        while not self._stop.is_set():
            for place, process in enumerate(self.processes):
                if process is None or process.poll() is not None:
                    self.processes[place] = subprocess.Popen(self._commands[place], env=_environment())
            self._stop.wait(_RESTART_S)

    def close(self) -> None:
        """Ends them; what they were at is begun again by others."""
        self._stop.set()
        self._keeper.join()
        for process in filter(None, self.processes):
            process.terminate()
        until = time.monotonic() + 3.0
        for process in filter(None, self.processes):
            try:
                process.wait(timeout=max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, sys.path))
    return os.environ | {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "HELM_GYM_QUIET": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }


def open_board(
    folder: pathlib.Path,
    url: str | None = None,
    name: str = "HELM-Gym",
    tasks: Sequence[str] = (),
    hidden: int = 20,
    horizon: int | None = None,
    quota: Quota | None = None,
) -> Board:
    """A board's folder, opened; a new one has a first season of these tasks.

    Raises:
        InvalidInputError: the folder or the database cannot be used, or a task that no board has.
    """
    strange = [task for task in tasks if task not in BOARD_TASKS]
    if strange:
        raise InvalidInputError(f"Task '{strange[0]}' is on no board; take some of {', '.join(BOARD_TASKS)}.")
    board = Board(Store(folder, url), quota)
    chosen = tuple(task for task in BOARD_TASKS if task in tasks or not tasks)
    board.open(name, Season(1, tasks=chosen, hidden=hidden, confirmation=hidden, horizon=horizon))
    return board


def serve(
    folder: pathlib.Path,
    url: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8484,
    workers: int = 1,
    tokens: bool = False,
    unconfined: bool = False,
    references: bool = True,
    hosts: Sequence[str] = (),
    **board: Any,
) -> None:
    """Serves a board until it is interrupted.

    Args:
        references: whether a new board gets the agents and baselines of this repository, and the scale of its scores.
        hosts: names that it answers to beside those of loopback.
        board: see ``open_board``.

    Raises:
        HelmError: other machines could reach it and nobody needs a token, or this one cannot confine strangers' files.
    """
    if host not in _LOOPBACK and not tokens:
        raise InvalidInputError(
            f"--host {host} is for other machines to reach; add --tokens, so that accounts are told."
        )
    lacks = missing()
    if lacks and workers and not unconfined:
        raise HelmError(
            f"This machine cannot confine strangers' files: it lacks {'; '.join(lacks)}. Give --unconfined if you "
            "trust everybody who submits here."
        )
    opened = open_board(folder, url, **board)
    if references:
        with contextlib.suppress(RefusedSubmissionError):  # of a closed season, which is shown all the same
            for name in REFERENCES:
                opened.add_reference(name)
    settings = {
        "folder": str(folder.absolute()),
        "url": url,
        "unconfined": unconfined,
        "references": False,
        "submissions": True,
        "lease_s": leases.LEASE_S,
    }
    # References take minutes at a stretch: they have a process of their own, so that no submission waits for them.
    scaling = [settings | {"references": True, "submissions": False}] if references and workers else []
    started = Workers([*[settings] * workers, *scaling])
    try:
        names = [*_LOOPBACK, "[::1]", *hosts] if host in _LOOPBACK else [*hosts] or ["*"]
        app = make_app(opened, tokens, names, ProcessRenderer(folder.absolute(), url, tokens, _environment()))
        uvicorn.run(
            app,
            host=host,
            port=port,
            log_level="warning",
            server_header=False,
            limit_concurrency=400,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=3,
        )
    finally:
        started.close()
        opened.store.close()
