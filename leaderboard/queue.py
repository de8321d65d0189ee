"""The order in which submissions are worked on, and where one stands in it."""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa

from leaderboard.records import seconds
from leaderboard.submissions import FINAL, REFERENCE, UNFINISHED
from leaderboard.tables import LEASES, SEASON_ENTRIES, STATES, SUBMISSIONS


def stood_before() -> sa.ColumnElement[bool]:
    """Whether a submission stands on the board of a season that is closed."""
    return SUBMISSIONS.c.id.in_(sa.select(SEASON_ENTRIES.c.submission))


def comes_last() -> sa.ColumnElement[bool]:
    """Whether a submission's evaluation waits for those of new ones: the board's own, and those of a season before."""
    return sa.or_(SUBMISSIONS.c.track == REFERENCE, stood_before())


def job_of(submission: str) -> str:
    """The name of its lease."""
    return f"submission:{submission}"


def progress(connection: sa.Connection, found: sa.RowMapping) -> dict[str, Any]:
    """Where a submission's row stands: place in the queue and expected wait, or stage and heartbeat of its worker."""
    if found["state"] in FINAL:
        return {}
    lease = connection.execute(sa.select(LEASES).where(LEASES.c.job == job_of(found["id"]))).first()
    if lease is not None:
        told = {"stage": lease.stage, "done": lease.done, "total": lease.total}
        return told | {"heartbeat_age_s": age_s(lease.heartbeat)}
    # The board's own entries come behind everybody's, and so do those of the season before.
    last = connection.execute(sa.select(comes_last()).where(SUBMISSIONS.c.id == found["id"])).scalar_one()
    earlier, first = SUBMISSIONS.c.seq < found["seq"], sa.not_(comes_last())
    ahead = sa.or_(first, earlier) if last else sa.and_(first, earlier)
    waiting = sa.select(sa.func.count()).select_from(SUBMISSIONS).where(SUBMISSIONS.c.state.in_(UNFINISHED), ahead)
    before = connection.execute(waiting).scalar_one()
    typical = _typical_s(connection)
    return {"place": before + 1, "expected_s": None if typical is None else round(typical * (before + 1))}


def _typical_s(connection: sa.Connection) -> float | None:
    """How long evaluations took lately: median of the newest ten, from running to verified."""
    begun = STATES.alias()
    start = sa.select(sa.func.max(begun.c.time)).where(
        begun.c.submission == STATES.c.submission, begun.c.state == "running"
    )
    done = sa.select(STATES.c.time, start.scalar_subquery().label("start")).where(STATES.c.state == "verified")
    newest = connection.execute(done.order_by(STATES.c.seq.desc()).limit(10)).all()
    took = [seconds(row.time) - seconds(row.start) for row in newest if row.start is not None]
    return sorted(took)[len(took) // 2] if took else None


def age_s(heartbeat: float) -> float:
    return round(max(0.0, time.time() - heartbeat), 1)
