"""The live column: a task's first entries with HSTU really running, an interval of each in turn.

Time on a machine that does other work is worth nothing, so that an operator starts this, and no worker does.
"""

from __future__ import annotations

import contextlib
import json

import sqlalchemy as sa

from helm_gym.errors import InvalidInputError
from helm_gym.policies.opening import open_policy
from leaderboard import evaluating
from leaderboard.board import Board
from leaderboard.evaluating import Tick
from leaderboard.sandbox import SandboxedPolicy
from leaderboard.season import HIDDEN, MEASURED
from leaderboard.standings import Standings
from leaderboard.tables import SUBMISSIONS


def measure(
    board: Board, task: str, top: int = 5, seeds: int = 2, unconfined: bool = False, tick: Tick | None = None
) -> list[str]:
    """Measures the first entries of a task on its first hidden episodes, and writes what came of it.

    Args:
        top: how many entries; those of the first group, and behind it in their order.
        seeds: how many episodes of each; one takes a minute or more.

    Returns:
        Their ids, the first of the board first.

    Raises:
        InvalidInputError: a task that the board does not have, or no entry on it.
    """
    with board.store.reading() as connection:
        season = board.season(connection)
        told = board.store.season(connection)
    if told["closed"]:
        raise InvalidInputError(f"Season {season.number} is closed and stays as it is; open the next one.")
    if task not in season.tasks:
        raise InvalidInputError(f"Task '{task}' is not on this board; it has {', '.join(season.tasks)}.")
    chosen = [row["entry"] for row in Standings(board).table(task)["rows"][:top]]
    if not chosen:
        raise InvalidInputError(f"No entry is evaluated on '{task}' yet.")
    with board.store.reading() as connection:
        found = connection.execute(sa.select(SUBMISSIONS.c.id, SUBMISSIONS.c.body).where(SUBMISSIONS.c.id.in_(chosen)))
        bodies = {row.id: json.loads(row.body) for row in found}
    episodes = season.seeds(task, HIDDEN, board.store.season_key(season.number, told["key_hash"]))[:seeds]
    with contextlib.ExitStack() as opened:
        policies = []
        for entry in chosen:
            body = bodies[entry]
            if body["reference"]:
                policy = open_policy(body["reference"], season.layout())
            else:
                content = board.store.get(body["files"][0])
                policy = opened.enter_context(SandboxedPolicy(content, season.layout(), unconfined=unconfined))
            policy.name = entry
            policies.append(policy)
        run = evaluating.run(season, task, episodes, "real", policies, tick)
    place = {"season": season.number, "task": task, "split": HIDDEN, "rung": MEASURED, "member": 0}
    where = evaluating.where(run)
    board.store.append(
        ("scores", place | {"submission": e.policy, "episodes": evaluating.episodes_of(run, e), "where": where})
        for e in run.policies
    )
    return chosen
