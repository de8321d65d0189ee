"""The end of a season, and the beginning of the next.

Each is one transaction: a process that is killed in it has changed nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from helm_gym.errors import InvalidInputError
from leaderboard.board import BOARD_ACCOUNT, Board
from leaderboard.leases import REFERENCE_JOB
from leaderboard.queue import job_of
from leaderboard.season import BOARD_TASKS, Season
from leaderboard.store import Body
from leaderboard.submissions import BY_PLATFORM, REFERENCE, UNFINISHED, Submission, check_tasks, state_record
from leaderboard.tables import LEASES, SUBMISSIONS

Records = list[tuple[str, Body]]


def close_season(board: Board) -> str:
    """Ends the season: its key becomes public, and with it every hidden episode. Returns the key.

    Its board stays as it is, with the entries that are verified. What is being evaluated waits for the next season.

    Raises:
        InvalidInputError: it is closed already, or its key is not there.
    """
    with board.store.writing() as connection:
        return _close(board, connection)


def open_season(
    board: Board, tasks: Sequence[str] = (), hidden: int | None = None, horizon: int | None = None
) -> Season:
    """Opens the next season, with a key of its own; closes the former one where that is open.

    Entries of the former season are evaluated again, on those of their tasks that the new one has, behind new ones.

    Args:
        tasks: of the new season; those of the former where none is given.
        hidden: episodes a task, and as many for confirmation; as in the former season where not given.
        horizon: scored intervals; as in the former season where not given.

    Raises:
        InvalidInputError: a task that no board has, or a season's key that is not there.
    """
    with board.store.writing() as connection:
        former = board.season(connection)
        if board.store.season(connection)["closed"] is None:
            _close(board, connection)
        season = dataclasses.replace(
            former,
            number=former.number + 1,
            tasks=check_tasks(tasks, BOARD_TASKS) if tasks else former.tasks,
            hidden=hidden or former.hidden,
            confirmation=hidden or former.confirmation,
            horizon=horizon or former.horizon,
        )
        key_hash = hashlib.sha256(board.store.season_key(season.number)).hexdigest()
        records: Records = [("season", season.body(key_hash))]
        carried = sa.select(SUBMISSIONS).where(SUBMISSIONS.c.state.in_(("verified", *UNFINISHED)))
        for row in connection.execute(carried.order_by(SUBMISSIONS.c.seq)).mappings().all():
            records += _carried(connection, row, season)
        board.store.append_within(connection, records)
    return season


def _close(board: Board, connection: sa.Connection) -> str:
    season = board.store.season(connection)
    if season["closed"]:
        raise InvalidInputError(f"Season {season['season']} is closed already.")
    key = board.store.season_key(season["season"], season["key_hash"]).hex()
    running = connection.execute(sa.select(SUBMISSIONS.c.id).where(SUBMISSIONS.c.state == "running")).scalars().all()
    waits = "it waits for the next season"
    records: Records = [("season-closed", {"season": season["season"], "key": key})]
    records += [state_record(found, "queued", "season-closed", BY_PLATFORM, waits) for found in running]
    board.store.append_within(connection, records)
    # Whoever works on the season's episodes finds that the lease is gone, and writes nothing more.
    lost = LEASES.c.job.in_([job_of(found) for found in running]), LEASES.c.job.startswith(f"{REFERENCE_JOB}:")
    connection.execute(LEASES.delete().where(sa.or_(*lost)))
    shutil.rmtree(board.store.parts(season["season"]), ignore_errors=True)
    return key


def _carried(connection: sa.Connection, row: sa.RowMapping, season: Season) -> Records:
    """What becomes of an entry, verified or under way, when a season opens."""
    body = json.loads(row["body"])
    if row["track"] == REFERENCE and set(body["tasks"]) != set(season.tasks):
        return _replaced(connection, row, season)
    if not season.of_those(body["tasks"]):
        if row["state"] == "verified":
            return []
        detail = f"season {season.number} has none of its tasks; submit it again for others"
        return [state_record(row["id"], "cancelled", "season-closed", BY_PLATFORM, detail)]
    return [state_record(row["id"], "queued", "new-season")] if row["state"] == "verified" else []


def _replaced(connection: sa.Connection, row: sa.RowMapping, season: Season) -> Records:
    """One of the board's own is on every task of its season: for other tasks it is another submission."""
    name = str(json.loads(row["body"])["reference"])
    given = Submission(BOARD_ACCOUNT, name, REFERENCE, (), name, season.tasks, {})
    records: Records = [state_record(row["id"], "superseded", "new-season", "", given.id)]
    there: Any = connection.execute(sa.select(SUBMISSIONS.c.id).where(SUBMISSIONS.c.id == given.id)).scalar()
    if there is None:
        return [*records, ("submission", given.body()), state_record(given.id, "received")]
    return [*records, state_record(given.id, "queued", "new-season")]  # it was there two seasons ago
