"""A board: who may hand in what, what becomes of it, and who works on it at present."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from helm_gym.errors import HelmError, InvalidInputError, UnknownNameError
from leaderboard.queue import age_s, progress, stood_before
from leaderboard.records import ago
from leaderboard.season import Season
from leaderboard.store import Store
from leaderboard.submissions import (
    BY_PLATFORM,
    BY_USER,
    FINAL,
    PLAYED,
    POLICY,
    REFERENCE,
    UNFINISHED,
    Submission,
    check_name,
    check_reference,
    check_tasks,
    check_track,
    check_write_up,
    state_record,
)
from leaderboard.tables import LEASES, STATES, SUBMISSIONS, TOKENS

BOARD_ACCOUNT = "helm-gym"  # whose the reference entries are
LOCAL_ACCOUNT = "local"  # whoever uses a board that requires no tokens
TOKEN_PREFIX = "hg_"
_DAY_S = 86_400


class NotFoundError(HelmError):
    """There is no such entry, or nothing of it for whoever asks."""


class RefusedSubmissionError(HelmError):
    """What may not be done now.

    Attributes:
        reason: its code: ``quota``, ``queue``, ``final`` or ``closed``.
    """

    def __init__(self, reason: str, sentence: str):
        super().__init__(sentence)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Quota:
    """What an account may hand in; what the platform failed at, and what was refused or called off, does not count.

    Attributes:
        a_day: submissions that were evaluated, in the last 24 hours.
        waiting: submissions that are not finished.
    """

    a_day: int = 20
    waiting: int = 5


class Board:
    """The store with its rules.

    Args:
        store: of the board, opened.
        quota: of each account but the board's own.
    """

    def __init__(self, store: Store, quota: Quota | None = None):
        self.store, self.quota = store, quota or Quota()

    def open(self, name: str = "HELM-Gym", season: Season | None = None) -> None:
        """Writes a new board's first records; does nothing to one that is there."""
        first = season or Season(1)
        self.store.open_board(
            name, first.profile, lambda number, key: dataclasses.replace(first, number=number).body(key)
        )

    def season(self, connection: sa.Connection, number: int | None = None) -> Season:
        """The season of that number, or the newest one; see ``Store.season``."""
        board = self.store.first_record()
        assert board is not None
        return Season.of(self.store.season(connection, number), board.body["profile"])

    def facts(self, season: int | None = None, task: str | None = None) -> dict[str, Any]:
        """What anybody may know of the board, of one season, the newest where none is given, and of all its seasons.

        Raises:
            NotFoundError: there is no such season, or it has no such task.
        """
        board = self.store.first_record()
        assert board is not None
        keys = ("season", "key_hash", "key", "tasks", "development", "hidden", "confirmation", "horizon")
        with self.store.reading() as connection:
            seasons = self.store.seasons(connection)
        told = [{key: each[key] for key in (*keys, "opened", "closed")} for each in seasons]
        chosen = next((each for each in told if season in (None, each["season"])), None)
        if chosen is None:
            raise NotFoundError(f"This board has no season {season}.")
        if task is not None and task not in chosen["tasks"]:
            raise NotFoundError(str(UnknownNameError("task of this board", task, chosen["tasks"])))
        return {key: board.body[key] for key in ("name", "public_key", "profile")} | chosen | {"seasons": told}

    # Accounts

    def issue_token(self, account: str) -> str:
        """A new token of an account; only its hash is kept."""
        if account == BOARD_ACCOUNT:
            raise InvalidInputError(f"Account '{account}' is the board's own; choose another name.")
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        body = {"account": check_name(account), "token_hash": _hash(token), "revoked": False}
        self.store.append([("token", body)])
        return token

    def revoke_tokens(self, account: str) -> int:
        """Ends all tokens of an account; how many there were."""
        with self.store.writing() as connection:
            held = TOKENS.c.account == account, TOKENS.c.revoked.is_(False)
            hashes = connection.execute(sa.select(TOKENS.c.token_hash).where(*held)).scalars().all()
            entries = [("token", {"account": account, "token_hash": found, "revoked": True}) for found in hashes]
            self.store.append_within(connection, entries)
        return len(hashes)

    def account_of(self, token: str) -> str | None:
        """Whose token it is; None where it is nobody's any more, or never was."""
        with self.store.reading() as connection:
            found = sa.select(TOKENS.c.account).where(TOKENS.c.token_hash == _hash(token), TOKENS.c.revoked.is_(False))
            return connection.execute(found).scalar()

    # Submissions

    def submit(
        self,
        account: str,
        contents: Sequence[bytes],
        name: str,
        track: str = POLICY,
        tasks: Sequence[str] = (),
        write_up: Mapping[str, Any] | None = None,
    ) -> str:
        """Takes policies in, to be checked and evaluated; returns the entry's id.

        The same thing handed in again is the same entry. Where that was called off, or the platform had failed at it,
        it is begun anew.

        Raises:
            InvalidInputError: a name, track, task or text that there cannot be.
            RefusedSubmissionError: the quota is used up.
            StoreError: the disk or the database fails; nothing was taken in.
        """
        check_track(track, len(contents))
        with self.store.reading() as connection:
            known = self.season(connection).tasks
        told = check_write_up(write_up or {})
        digests = tuple(hashlib.sha256(content).hexdigest() for content in contents)
        if len(set(digests)) < len(digests):
            raise InvalidInputError("Two of the files are the same; each training seed makes one of its own.")
        given = Submission(account, check_name(name), track, digests, "", check_tasks(tasks, known), told)
        # Before the record: a kill in between leaves a file that nobody asks for, and never a record without its file.
        for content in contents:
            self.store.put(content)
        return self._take(given)

    def add_reference(self, policy: str) -> str:
        """Takes an agent or baseline of this repository in, by name."""
        with self.store.reading() as connection:
            tasks = self.season(connection).tasks
        return self._take(Submission(BOARD_ACCOUNT, check_reference(policy), REFERENCE, (), policy, tasks, {}))

    def _take(self, given: Submission) -> str:
        with self.store.writing() as connection:
            found = connection.execute(sa.select(SUBMISSIONS).where(SUBMISSIONS.c.id == given.id)).first()
            if found is None:
                self._check_quota(connection, given.account)
                self.store.append_within(connection, [("submission", given.body()), state_record(given.id, "received")])
            elif found.state == "cancelled" or (found.state == "failed" and found.fault == BY_PLATFORM):
                self._check_quota(connection, given.account)
                self.store.append_within(connection, [state_record(given.id, "received", "again", BY_USER)])
        return given.id

    def _check_quota(self, connection: sa.Connection, account: str) -> None:
        if self.store.season(connection)["closed"]:  # its hidden seeds are known to everybody
            raise RefusedSubmissionError(
                "closed", "The season is closed and its hidden seeds are public; wait for another."
            )
        if account == BOARD_ACCOUNT:
            return
        own = SUBMISSIONS.c.account == account
        since = ago(_DAY_S)
        # Refused by the check, called off, or failed for the platform's sake: none of it counts.
        counted = sa.or_(SUBMISSIONS.c.state.not_in(("failed", "cancelled")), SUBMISSIONS.c.reason.startswith(PLAYED))
        count = sa.select(sa.func.count()).select_from(SUBMISSIONS)
        today = connection.execute(count.where(own, SUBMISSIONS.c.received >= since, counted)).scalar_one()
        open_ones = SUBMISSIONS.c.state.in_(UNFINISHED), sa.not_(stood_before())
        waiting = connection.execute(count.where(own, *open_ones)).scalar_one()
        if today >= self.quota.a_day:
            raise RefusedSubmissionError(
                "quota", f"Account '{account}' has had {today} evaluations in 24 hours, which is all it may; wait."
            )
        if waiting >= self.quota.waiting:
            raise RefusedSubmissionError(
                "queue", f"Account '{account}' has {waiting} submissions that are not finished; wait, or cancel one."
            )

    def cancel(self, account: str, submission: str) -> None:
        """Calls a submission off.

        Raises:
            NotFoundError: there is none, or it is another account's.
            RefusedSubmissionError: it is finished.
        """
        with self.store.writing() as connection:
            found = connection.execute(sa.select(SUBMISSIONS).where(SUBMISSIONS.c.id == submission)).first()
            if found is None or found.account != account:
                raise NotFoundError(f"There is no submission '{submission}' of account '{account}'.")
            if found.state in FINAL:
                raise RefusedSubmissionError("final", f"Submission '{submission}' is {found.state} already.")
            self.store.append_within(connection, [state_record(submission, "cancelled", "by-user", BY_USER)])

    # What there is

    def entry(self, submission: str) -> dict[str, Any]:
        """A submission with its states, and how far the work on it is.

        Raises:
            NotFoundError: there is none.
        """
        with self.store.reading() as connection:
            found = connection.execute(sa.select(SUBMISSIONS).where(SUBMISSIONS.c.id == submission)).mappings().first()
            if found is None:
                raise NotFoundError(f"There is no submission '{submission}'.")
            states = connection.execute(
                sa.select(STATES).where(STATES.c.submission == submission).order_by(STATES.c.seq)
            ).mappings()
            timeline = [{k: row[k] for k in ("time", "state", "reason", "fault", "detail")} for row in states]
            return _public(found) | {"timeline": timeline, "work": progress(connection, found)}

    def entries(
        self,
        account: str | None = None,
        first: int = 0,
        count: int | None = None,
        final: bool | None = None,
        oldest_first: bool = False,
    ) -> list[dict[str, Any]]:
        """Submissions, the newest first unless told otherwise.

        Args:
            account: whose; everybody's where not given.
            first, count: how many are left out, and how many are told at most.
            final: only those that are finished, or that are not.
        """
        order = SUBMISSIONS.c.seq if oldest_first else SUBMISSIONS.c.seq.desc()
        asked = sa.select(SUBMISSIONS).order_by(order).offset(first).limit(count)
        if account is not None:
            asked = asked.where(SUBMISSIONS.c.account == account)
        if final is not None:
            asked = asked.where(SUBMISSIONS.c.state.in_(FINAL if final else UNFINISHED))
        with self.store.reading() as connection:
            return [_public(row) for row in connection.execute(asked).mappings()]

    def is_submitted(self, digest: str) -> bool:
        """Whether a file of this SHA-256, 64 hexadecimal digits, was handed in by somebody."""
        assert digest.isalnum()
        with self.store.reading() as connection:
            found = connection.execute(sa.select(SUBMISSIONS.c.body).where(SUBMISSIONS.c.body.contains(f'"{digest}"')))
            return any(digest in json.loads(row.body)["files"] for row in found)

    def running_references(self) -> list[dict[str, Any]]:
        """Which references are run at present, and how far they are."""
        with self.store.reading() as connection:
            held = LEASES.c.job.startswith("references:"), LEASES.c.until > time.time()
            found = connection.execute(sa.select(LEASES).where(*held)).all()
        return [
            {"stage": row.stage, "done": row.done, "total": row.total, "heartbeat_age_s": age_s(row.heartbeat)}
            for row in found
        ]

    def variants(self, connection: sa.Connection) -> dict[str, int]:
        """How many submissions each account has made: with many, one is best by luck."""
        count = sa.select(SUBMISSIONS.c.account, sa.func.count()).group_by(SUBMISSIONS.c.account)
        return {row[0]: row[1] for row in connection.execute(count)}


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def _public(row: sa.RowMapping) -> dict[str, Any]:
    """A submission as it is shown to anyone."""
    body = json.loads(row["body"])
    checked = None if row["checked"] is None else json.loads(row["checked"])
    kept = {
        key: row[key] for key in ("id", "account", "name", "track", "received", "state", "reason", "fault", "detail")
    }
    kept |= {"changed": row["changed"], "runs": row["runs"]}
    kept |= {key: body[key] for key in ("files", "reference", "tasks", "write_up")}
    figures = None if checked is None else checked["figures"]
    return kept | {"check": figures, "duplicate_of": (figures or {}).get("duplicate_of", "")}
