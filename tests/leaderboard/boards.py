"""Small boards for tests: one task, episodes of a few intervals."""

from __future__ import annotations

import pathlib
import socket

import numpy as np

from leaderboard.board import Board, Quota
from leaderboard.season import Season
from leaderboard.store import Store
from tests.helm_gym.hostile import model, node, stamped, weight

TASK = "steady-v0"
SMALL = Season(1, tasks=(TASK,), development=2, hidden=3, confirmation=2, horizon=4)
HONEST = stamped(model())


def make_board(folder: pathlib.Path, url: str | None = None, season: Season = SMALL, **quota: int) -> Board:
    board = Board(Store(folder, url), Quota(**quota) if quota else None)
    board.open(season=season)
    return board


def constant(action: float) -> bytes:
    """A policy that always acts the same: another file for another number."""
    nodes = [node("Mul", ["mean", "nought"], ["nothing"]), node("Add", ["nothing", "constant"], ["x"])]
    return stamped(model(nodes, [weight("nought", 0.0), weight("constant", np.full((1, 1), action))], action="x"))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def texts(board: Board) -> str:
    """All that a board's records say."""
    return "\n".join(record.text for record in board.store.log())
