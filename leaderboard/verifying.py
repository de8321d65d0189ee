"""The check of a published board: its log from the first record to the last, and an entry's scores, recomputed.

A published board is a stranger's: nothing that it names is opened before it is found to be one of ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from helm_gym import files
from helm_gym.errors import InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policies.onnx_check.rules import MAX_FILE_BYTES
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Policy
from helm_gym.text import shown
from leaderboard import evaluating, records
from leaderboard.evaluating import Tick
from leaderboard.publishing import LOG
from leaderboard.records import Record
from leaderboard.sandbox import SandboxedPolicy
from leaderboard.season import CONFIRMATION, DEVELOPMENT, HIDDEN, MEASURED, PROVISIONAL, RANKING, Season
from leaderboard.submissions import check_reference

_MAX_LOG_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Published:
    """A published board that was read, its chain found sound.

    Attributes:
        folder: where it lies.
        records: those that are told.
        hidden: how many are given by their hashes alone.
        public_key: whose signatures they have.
    """

    folder: pathlib.Path
    records: list[Record]
    hidden: int
    public_key: str

    def submission(self, entry: str) -> dict[str, Any]:
        """Raises InvalidInputError where there is none."""
        for record in self.records:
            if record.kind == "submission" and record.body["submission"] == entry:
                return dict(record.body)
        raise InvalidInputError(f"The published board has no entry '{entry}'; its pages name them.")

    def seasons(self) -> dict[int, tuple[Season, bytes | None]]:
        """Each season by its number, and its key where it is closed.

        Raises:
            InvalidInputError: a key is not the one whose hash was published when the season opened.
        """
        found: dict[int, tuple[Season, bytes | None]] = {}
        hashes: dict[int, str] = {}
        for record in self.records:
            if record.kind == "season":
                season = Season.of(record.body, self.records[0].body["profile"])
                found[season.number], hashes[season.number] = (season, None), record.body["key_hash"]
            if record.kind == "season-closed":
                number, key = record.body["season"], bytes.fromhex(record.body["key"])
                if hashlib.sha256(key).hexdigest() != hashes[number]:
                    raise InvalidInputError(f"The key of season {number} is not the one whose hash was published.")
                found[number] = found[number][0], key
        return found


@contextlib.contextmanager
def _as_written() -> Iterator[None]:
    """Whatever a stranger's record lacks, or has in another form, is one sentence."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InvalidInputError(f"The log has a record that no board writes ({shown(str(error))}).") from error


@_as_written()
def read_published(folder: pathlib.Path, public_key: str | None = None) -> Published:
    """Reads a published board and checks its log from the first record to the last.

    Args:
        public_key: whose it must be; that which its first record names where not given.

    Raises:
        InvalidInputError: no published board, or one whose log was changed.
    """
    content = files.read_bytes(folder / LOG, "Log", _MAX_LOG_BYTES, "give a folder that `publish` wrote")
    told: list[Record] = []
    hidden = 0
    previous = records.GENESIS
    key = public_key
    for number, line in enumerate(content.splitlines(), 1):
        where = f"{LOG}, line {number},"
        value = files.parse_json(line, where)
        if isinstance(value, dict) and set(value) == {"seq", "hash", "signature"}:
            records.check_signature(str(value["hash"]), str(value["signature"]), key, where)
            if value["seq"] != number:
                raise InvalidInputError(f"The log is broken at record {number}: one is missing, added or out of order.")
            previous, hidden = str(value["hash"]), hidden + 1
            continue
        record = records.from_line(value, where)
        if number == 1 and record.kind == "board":
            key = key or str(record.body["public_key"])
        records.check_record(record, number, previous, key)
        previous = record.digest
        told.append(record)
    if not told or told[0].kind != "board" or key is None:
        raise InvalidInputError(f"{folder / LOG} does not start with a board's own record.")
    return Published(folder, told, hidden, key)


@dataclasses.dataclass(frozen=True)
class Row:
    """One task's episodes of an entry, recomputed.

    Attributes:
        season: by its number.
        same: whether each figure of each episode is the same to the last bit.
        largest: difference of mean latency (ms).
        where: on what it was obtained there.
    """

    season: int
    task: str
    split: str
    rung: str
    member: int
    same: bool
    largest: float
    where: dict[str, Any]


def verify(published: Published, entry: str, unconfined: bool = False, tick: Tick | None = None) -> Iterator[Row]:
    """Recomputes an entry's scores from the published files: development episodes, and hidden ones of closed seasons.

    Raises:
        InvalidInputError: no such entry, or nothing of it that can be recomputed.
        RefusedError, PolicyFault: its policy does not run.
    """
    with _as_written():
        yield from _verify(published, entry, unconfined, tick)


def _verify(published: Published, entry: str, unconfined: bool, tick: Tick | None) -> Iterator[Row]:
    body = published.submission(entry)
    seasons = published.seasons()
    scores = [r.body for r in published.records if r.kind == "scores" and r.body["submission"] == entry]
    for row in scores:
        _check_place(row, seasons, body)
    if not scores:
        raise InvalidInputError(f"Entry '{entry}' has no scores that could be recomputed yet.")
    for member in sorted({row["member"] for row in scores}):
        with _opened(published, body, member, seasons[1][0].layout(), unconfined) as policy:
            for row in scores:
                if row["member"] != member or row["rung"] == MEASURED:
                    continue
                season, key = seasons[row["season"]]
                if key is None and row["split"] != DEVELOPMENT:
                    raise InvalidInputError(f"The log tells hidden episodes of season {season.number} and not its key.")
                seeds = season.seeds(row["task"], row["split"], key or b"")
                run = evaluating.run(season, row["task"], seeds, row["rung"], [policy], tick)
                found = evaluating.episodes_of(run, run.policies[0])
                far = max(
                    abs(a["mean_latency_ms"] - b["mean_latency_ms"])
                    for a, b in zip(found, row["episodes"], strict=True)
                )
                place = {name: row[name] for name in ("season", "task", "split", "rung", "member", "where")}
                yield Row(**place, same=found == row["episodes"], largest=far)


def _check_place(
    row: Mapping[str, Any], seasons: Mapping[int, tuple[Season, bytes | None]], body: Mapping[str, Any]
) -> None:
    """Raises InvalidInputError where a stranger's record says what none of ours does: a name may be a module's."""
    season, _ = seasons.get(row["season"], (None, None))
    if season is None:
        raise InvalidInputError(f"A record of scores has a season of {shown(row['season'])}, which no board writes.")
    known = {
        "task": season.tasks,
        "split": (DEVELOPMENT, HIDDEN, CONFIRMATION),
        "rung": (PROVISIONAL, RANKING, MEASURED),
        "member": range(max(1, len(body["files"]))),
    }
    for name, values in known.items():
        if row[name] not in values:
            raise InvalidInputError(f"A record of scores has a {name} of {shown(row[name])}, which no board writes.")
    count = {DEVELOPMENT: season.development, HIDDEN: season.hidden, CONFIRMATION: season.confirmation}[row["split"]]
    there = len(evaluating.values_of(row["episodes"]))
    if (there != count and row["rung"] != MEASURED) or not isinstance(row["where"]["machine"], str):
        raise ValueError(f"{count} episodes")


@contextlib.contextmanager
def _opened(
    published: Published, body: dict[str, Any], member: int, layout: ObservationLayout, unconfined: bool
) -> Iterator[Policy]:
    if body["reference"]:
        yield open_policy(check_reference(body["reference"]), layout)
        return
    digest = str(body["files"][member])
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise InvalidInputError(f"A file is named {shown(digest)}, and not by its SHA-256.")
    content = files.read_bytes(published.folder / "files" / f"{digest}.onnx", "Policy", MAX_FILE_BYTES)
    if hashlib.sha256(content).hexdigest() != digest:
        raise InvalidInputError(f"files/{digest}.onnx is not the file that was submitted.")
    with SandboxedPolicy(content, layout, unconfined=unconfined) as policy:
        yield policy
