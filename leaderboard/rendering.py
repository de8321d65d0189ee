"""Where pages and tables are made: one after another, beside the requests and never among them.

A server makes them in a process of its own, so that no request waits while ten thousand entries are ranked; a test in a
thread. Either runs ``make(pages, *arguments)``.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar, cast

from helm_gym.errors import HelmError
from leaderboard.board import Board
from leaderboard.pages import Pages
from leaderboard.sandbox.confine import end_with_parent
from leaderboard.standings import Standings
from leaderboard.store import Store, StoreError

T = TypeVar("T")
_NICE = 2  # behind the server, before its workers


class Renderer:
    """Makes what it is asked for in a thread of its own, in the order of asking.

    Args:
        board: whose pages they are.
        tokens: whether a token is required to submit.
    """

    def __init__(self, board: Board, tokens: bool = False):
        self._pages = Pages(board, Standings(board), tokens=tokens)
        self._thread = ThreadPoolExecutor(1, "pages")

    def submit(self, make: Callable[..., T], *given: Any) -> Future[T]:
        """``make(pages, *given)``, once it is its turn."""
        return self._thread.submit(make, self._pages, *given)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class ProcessRenderer(Renderer):
    """The same in a process of its own, which is started again where it has ended.

    Args:
        folder, url: of the board's store.
        tokens: whether a token is required to submit.
        environment: of the process.
    """

    def __init__(self, folder: pathlib.Path, url: str | None, tokens: bool, environment: dict[str, str]):
        self._settings = {"folder": str(folder), "url": url, "tokens": tokens, "parent": os.getpid()}
        self._environment, self._closed = environment, False
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._thread = ThreadPoolExecutor(1, "pages")

    def submit(self, make: Callable[..., T], *given: Any) -> Future[T]:
        """``make(pages, *given)``; ``make`` is a function that the process can import."""
        return self._thread.submit(self._ask, make, given)

    def close(self) -> None:
        self._closed = True
        super().close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _ask(self, make: Callable[..., T], given: tuple[Any, ...]) -> T:
        for _ in range(2):  # it may be killed at any time
            if self._closed:
                break
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._pipe is not None
            with contextlib.suppress(EOFError, OSError):
                self._pipe.send((make, given))
                good, answer = self._pipe.recv()
                if good:
                    return cast(T, answer)
                raise cast(Exception, answer)
            assert self._process is not None
            self._process.wait()
        raise StoreError("The process that makes the pages has ended; ask again, and see what the server prints.")

    def _start(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # it inherits that: Ctrl-C is the server's
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-P", "-m", "leaderboard.rendering"]
        told = json.dumps(self._settings | {"pipe": theirs.fileno()})
        self._process = subprocess.Popen([*command, told], env=self._environment, pass_fds=[theirs.fileno()])
        theirs.close()


def main() -> None:
    """Run by ``ProcessRenderer``: answers one request after another; ends with its parent."""
    settings = json.loads(sys.argv[1])
    end_with_parent(settings["parent"])
    os.nice(_NICE)
    pages: Pages | None = None
    pipe = Connection(settings["pipe"])
    while True:
        try:
            make, given = pipe.recv()
        except EOFError:
            return
        try:
            if pages is None:  # the database may be away at first
                board = Board(Store(pathlib.Path(settings["folder"]), settings["url"]))
                pages = Pages(board, Standings(board), tokens=settings["tokens"])
            pipe.send((True, make(pages, *given)))
        except HelmError as error:
            pipe.send((False, error))
        except Exception as error:
            traceback.print_exc()
            pipe.send((False, RuntimeError(f"{type(error).__name__}: {error}")))


if __name__ == "__main__":
    main()
