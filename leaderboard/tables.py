"""The tables that records are projected to, and how each record changes them."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from leaderboard.records import Record, canonical

METADATA = sa.MetaData()

RECORDS = sa.Table(
    "records",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("signature", sa.String(128), nullable=False),
)
SEASONS = sa.Table(
    "seasons",
    METADATA,
    sa.Column("season", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("key", sa.String(64)),
    sa.Column("opened", sa.String(32), nullable=False),
    sa.Column("closed", sa.String(32)),
)
# Who stands on the board of a season that is closed: it stays as it was, whatever becomes of them afterwards.
SEASON_ENTRIES = sa.Table(
    "season_entries",
    METADATA,
    sa.Column("season", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("submission", sa.String(32), primary_key=True, index=True),
)
TOKENS = sa.Table(
    "tokens",
    METADATA,
    sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column("account", sa.String(100), nullable=False),
    sa.Column("revoked", sa.Boolean, nullable=False),
)
SUBMISSIONS = sa.Table(
    "submissions",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False, index=True),
    sa.Column("account", sa.String(100), nullable=False, index=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("track", sa.String(16), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("received", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("fault", sa.String(16), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("changed", sa.String(32), nullable=False),
    sa.Column("runs", sa.Integer, nullable=False),
    sa.Column("checked", sa.Text),
)
STATES = sa.Table(
    "states",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("submission", sa.String(32), nullable=False, index=True),
    sa.Column("time", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("fault", sa.String(16), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)
SCORES = sa.Table(
    "scores",
    METADATA,
    sa.Column("seq", sa.Integer, nullable=False, index=True),
    sa.Column("submission", sa.String(32), primary_key=True),
    sa.Column("season", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.String(100), primary_key=True),
    sa.Column("split", sa.String(16), primary_key=True),
    sa.Column("rung", sa.String(16), primary_key=True),
    sa.Column("member", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", sa.Text, nullable=False),
)
REFERENCES = sa.Table(
    "reference_scores",
    METADATA,
    sa.Column("season", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.String(100), primary_key=True),
    sa.Column("split", sa.String(16), primary_key=True),
    sa.Column("rung", sa.String(16), primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)
PROJECTED = (SEASONS, SEASON_ENTRIES, TOKENS, SUBMISSIONS, STATES, SCORES, REFERENCES)

# Who works on what at present. Nothing of it is in the log: it is over as soon as the work is.
LEASES = sa.Table(
    "leases",
    METADATA,
    sa.Column("job", sa.String(200), primary_key=True),
    sa.Column("worker", sa.String(100), nullable=False),
    sa.Column("until", sa.Float, nullable=False),
    sa.Column("heartbeat", sa.Float, nullable=False),
    sa.Column("started", sa.Float, nullable=False),
    sa.Column("stage", sa.String(200), nullable=False),
    sa.Column("done", sa.Integer, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
)


def project(connection: sa.Connection, record: Record) -> None:
    """What a record changes in the tables; the one way in which they change."""
    body = record.body
    apply = _BY_KIND.get(record.kind)
    if apply is not None:
        apply(connection, record, body)


def _season(connection: sa.Connection, record: Record, body: Any) -> None:
    connection.execute(
        SEASONS.insert().values(season=body["season"], body=canonical(body), key=None, opened=record.time, closed=None)
    )


def _season_closed(connection: sa.Connection, record: Record, body: Any) -> None:
    which = SEASONS.c.season == body["season"]
    connection.execute(SEASONS.update().where(which).values(key=body["key"], closed=record.time))
    there = sa.select(sa.literal(body["season"]), SUBMISSIONS.c.id).where(SUBMISSIONS.c.state == "verified")
    connection.execute(SEASON_ENTRIES.insert().from_select(["season", "submission"], there))


def _token(connection: sa.Connection, record: Record, body: Any) -> None:
    connection.execute(TOKENS.delete().where(TOKENS.c.token_hash == body["token_hash"]))
    connection.execute(TOKENS.insert().values(**body))


def _submission(connection: sa.Connection, record: Record, body: Any) -> None:
    connection.execute(
        SUBMISSIONS.insert().values(
            id=body["submission"],
            seq=record.seq,
            account=body["account"],
            name=body["name"],
            track=body["track"],
            body=canonical(body),
            received=record.time,
            state="received",
            reason="",
            fault="",
            detail="",
            changed=record.time,
            runs=0,
        )
    )


def _check(connection: sa.Connection, record: Record, body: Any) -> None:
    which = SUBMISSIONS.c.id == body["submission"]
    connection.execute(SUBMISSIONS.update().where(which).values(checked=canonical(body)))


def _state(connection: sa.Connection, record: Record, body: Any) -> None:
    change = {key: body[key] for key in ("state", "reason", "fault", "detail")}
    connection.execute(
        STATES.insert().values(seq=record.seq, submission=body["submission"], time=record.time, **change)
    )
    # How often it was begun and did not end well: it is given up after a few times.
    begun = body["state"] in ("checking", "running")
    runs: Any = 0 if body["state"] in ("received", "queued") else SUBMISSIONS.c.runs + int(begun)
    which = SUBMISSIONS.c.id == body["submission"]
    connection.execute(SUBMISSIONS.update().where(which).values(changed=record.time, runs=runs, **change))


def _scores(connection: sa.Connection, record: Record, body: Any) -> None:
    place = {key: body[key] for key in ("submission", "season", "task", "split", "rung", "member")}
    kept = canonical({"episodes": body["episodes"], "where": body["where"]})
    if body["rung"] == "measured":  # a live column: the newest holds
        same = sa.and_(*(SCORES.c[key] == value for key, value in place.items()))
        connection.execute(SCORES.delete().where(same))
    connection.execute(SCORES.insert().values(seq=record.seq, body=kept, **place))


def _references(connection: sa.Connection, record: Record, body: Any) -> None:
    place = {key: body[key] for key in ("season", "task", "split", "rung")}
    kept = canonical({"episodes": body["episodes"], "where": body["where"]})
    connection.execute(REFERENCES.insert().values(body=kept, **place))


_BY_KIND = {
    "season": _season,
    "season-closed": _season_closed,
    "token": _token,
    "submission": _submission,
    "check": _check,
    "state": _state,
    "scores": _scores,
    "references": _references,
}


def rows(connection: sa.Connection) -> dict[str, list[dict[str, Any]]]:
    """All projected rows by table, sorted: what two ways to the same tables are compared by."""
    return {
        table.name: sorted(
            ({**row} for row in connection.execute(sa.select(table)).mappings()),
            key=lambda row: json.dumps(row, sort_keys=True, default=str),
        )
        for table in PROJECTED
    }
