"""Interaction logs: a file of who took what and when, in one of the formats of ``readers.log_formats``.

What public logs really contain is named and counted (``Findings``), and nothing is dropped silently: a row that cannot
be read is an error that names its line, or, where that is asked for, left out, counted and listed.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.workload.readers.log_blocks import Rows, read_log_blocks, read_parquet_rows
from helm_gym.workload.readers.log_formats import LogLayout, detect_log, detect_parquet
from helm_gym.workload.readers.log_ids import Numbering
from helm_gym.workload.readers.text_blocks import Lines, first_lines, line_blocks, open_regular

MAX_ROWS = 100_000_000  # 1.6 GB while they are held, and as much again while they are sorted
LISTED = 10_000  # bad rows that are listed; all are counted

_PARQUET = b"PAR1"


class Batch(NamedTuple):
    """n interactions, in the order of the file.

    Attributes:
        time_ns: (n,) int64, since 1970, or since the log's beginning where its format counts so.
        user: (n,) int32, numbers from 0 on in order of appearance; empty where the format has no users.
        item: (n,) int32, likewise.
    """

    time_ns: NDArray[np.int64]
    user: NDArray[np.int32]
    item: NDArray[np.int32]


@dataclasses.dataclass
class Findings:
    """What a log contains besides good rows in order.

    Attributes:
        rows: that were read, the bad ones left out.
        bad: rows that were left out.
        bad_rows: line and reason of the first ``LISTED`` of them.
        damaged: what is wrong with the file's end, where it was read up to there; empty if nothing is.
        out_of_order: rows that are earlier than the row above; they are sorted.
        duplicates: rows whose user, item and time are another's; they are kept.
        other_unit: times in another unit than the format's, milliseconds for seconds, say; they are converted.
        users_of_one: users with one interaction; they are kept.
    """

    rows: int = 0
    bad: int = 0
    bad_rows: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    damaged: str = ""
    out_of_order: int = 0
    duplicates: int = 0
    other_unit: int = 0
    users_of_one: int = 0

    def told(self) -> list[str]:
        """A line each, for people, of what there is."""
        counts = (
            (self.bad, "rows cannot be read: left out"),
            (self.out_of_order, "rows are earlier than the row above: sorted by time"),
            (self.duplicates, "rows repeat another's user, item and time: kept"),
            (self.other_unit, "times are in another unit than the format's: converted"),
            (self.users_of_one, "users have one interaction: kept"),
        )
        return [f"{count:,} {what}" for count, what in counts if count] + [self.damaged] * bool(self.damaged)


@dataclasses.dataclass(frozen=True, eq=False)
class Log:
    """n interactions, n >= 2, in order of time.

    Attributes:
        name: the file's name without its endings.
        format: what was read.
        time_ns: (n,) int64, ascending.
        user: (n,) int32, numbers from 0 to ``users``; None where the format has no users.
        item: (n,) int32, numbers from 0 to ``items``.
        users, items: how many there are; no users where the format has none.
        findings: what the file contains besides.
    """

    name: str
    format: str
    time_ns: NDArray[np.int64]
    user: NDArray[np.int32] | None
    item: NDArray[np.int32]
    users: int
    items: int
    findings: Findings

    @property
    def span_s(self) -> float:
        return int(self.time_ns[-1] - self.time_ns[0]) / 1e9

    @property
    def summary(self) -> str:
        """Format, number of rows, users and items, and span, for people."""
        users = f"{self.users:,} users" if self.user is not None else "no users"
        return (
            f"{self.format}, {len(self.item):,} interactions, {users}, {self.items:,} items, "
            f"{self.span_s / 86_400:,.1f} days"
        )


def read_log(path: str | os.PathLike[str], skip_bad: bool = False) -> Log:
    """Reads a log, sorted by time: 16 bytes a row are held, and three times that while it is sorted.

    Args:
        path: the file, plain or packed by gzip, or Parquet; its ending does not matter (docs/logs.md).
        skip_bad: leave bad rows out, counted and listed in ``findings``, in place of raising at the first.

    Raises:
        InvalidInputError: see ``LogReader``; the log has fewer than two rows, no time between them, or too many.
    """
    reader = LogReader(path, skip_bad)
    parts: list[list[NDArray[Any]]] = [[], [], []]
    for batch in reader:
        parts[0].append(batch.time_ns)
        parts[1].append(batch.user)
        parts[2].append(batch.item)
        if reader.findings.rows > MAX_ROWS:
            raise InvalidInputError(
                f"{path}: holds over {MAX_ROWS:,} rows; give a part of it, or go through it with LogReader."
            )
    findings, has_users = reader.findings, bool(reader.layout.format.user)
    users, items = reader.users, reader.items
    reader.forget()
    if findings.rows < 2:
        raise InvalidInputError(f"{path}: holds {findings.rows} interaction(s); give a log with at least 2.")
    time_ns, user, item = (np.concatenate(parts.pop(0)) for _ in range(3))  # one by one: each frees its parts
    if findings.out_of_order:
        order = np.argsort(time_ns, kind="stable")
        time_ns, item = time_ns[order], item[order]
        if has_users:
            user = user[order]
        del order
    if time_ns[0] == time_ns[-1]:
        raise InvalidInputError(f"{path}: all {len(item)} interactions have one time; give a log that spans some time.")
    findings.duplicates = _duplicates(time_ns, user if has_users else np.zeros_like(item), item)
    if has_users:
        findings.users_of_one = int(np.count_nonzero(np.bincount(user, minlength=users) == 1))
    return Log(
        name=pathlib.PurePath(reader.path.name.removesuffix(".gz")).stem,
        format=reader.name,
        time_ns=time_ns,
        user=user if has_users else None,
        item=item,
        users=users,
        items=items,
        findings=findings,
    )


class LogReader:
    """Goes through a log once, a batch at a time, in memory that grows with the number of ids alone.

    Attributes:
        layout: the format, and how it is read.
        findings: what has been found up to now; ``duplicates`` and ``users_of_one`` are for ``read_log`` to find.

    Raises:
        InvalidInputError: the file cannot be read, is of none of the formats, or has a bad row; of a damaged file
            ``skip_bad`` keeps what comes before the damage, and says so.
    """

    def __init__(self, path: str | os.PathLike[str], skip_bad: bool = False):
        self.path, self.skip_bad = pathlib.Path(path), skip_bad
        self.findings = Findings()
        self._users, self._items = Numbering(), Numbering()
        self._latest_ns: int | None = None
        self._parquet = _is_parquet(self.path)
        self._rows: Iterator[Rows]
        if self._parquet:
            self._rows, self.layout = self._open_parquet()
        else:
            self._rows, self.layout = self._open_text()

    @property
    def name(self) -> str:
        """The format, and the unit of time where the format has several."""
        form = self.layout.format
        return f"{form.name}, times in {self.layout.unit}" if form.unit == "either" else form.name

    @property
    def users(self) -> int:
        """How many have been seen."""
        return len(self._users)

    @property
    def items(self) -> int:
        return len(self._items)

    def forget(self) -> None:
        """Frees the tables of ids."""
        self._users, self._items = Numbering(), Numbering()

    def __iter__(self) -> Iterator[Batch]:
        try:
            for rows in self._rows:
                if len(rows.time_ns):
                    yield self._batch(rows)
        except _Damaged as error:
            if not self.skip_bad:
                raise InvalidInputError(str(error)) from error
            self.findings.damaged = f"{error} What comes before is used."

    def _batch(self, rows: Rows) -> Batch:
        found = self.findings
        before = rows.time_ns[0] if self._latest_ns is None else self._latest_ns
        found.out_of_order += int(np.count_nonzero(np.diff(rows.time_ns, prepend=before) < 0))
        self._latest_ns = int(rows.time_ns[-1])
        found.rows += len(rows.time_ns)
        found.other_unit += rows.other_unit
        return Batch(rows.time_ns, self._users.number(rows.user), self._items.number(rows.item))

    def _bad(self, line: int, reason: str) -> None:
        where = "row" if self._parquet else "line"
        if not self.skip_bad:
            raise InvalidInputError(
                f"{self.path}, {where} {line}: {reason}; correct or remove it, or leave bad rows out with --skip-bad."
            )
        self.findings.bad += 1
        if len(self.findings.bad_rows) < LISTED:
            self.findings.bad_rows.append((line, reason))

    def _open_text(self) -> tuple[Iterator[Rows], LogLayout]:
        blocks = _until_damaged(line_blocks(self.path))
        try:
            head = next(blocks, None)
        except _Damaged as error:
            raise InvalidInputError(str(error)) from error
        layout = detect_log(str(self.path), [] if head is None else first_lines(self.path, head))
        rest = head if head is None or layout.first == 1 else head.after_first()
        return read_log_blocks(
            itertools.chain([rest] if rest and rest.count else [], blocks), layout, self._bad
        ), layout

    def _open_parquet(self) -> tuple[Iterator[Rows], LogLayout]:
        import pyarrow
        from pyarrow import parquet

        try:
            file = parquet.ParquetFile(self.path)
            layout = detect_parquet(str(self.path), file.schema_arrow.names)
        except (pyarrow.ArrowException, OSError) as error:
            raise InvalidInputError(
                f"{self.path}: is a damaged Parquet file ({error}); make or fetch it again."
            ) from error

        def rows() -> Iterator[Rows]:
            try:
                yield from read_parquet_rows(file, layout, self._bad)
            except (pyarrow.ArrowException, OSError) as error:
                raise _Damaged(f"{self.path}: is a damaged Parquet file ({error}); make or fetch it again.") from error
            except ValueError as error:
                raise InvalidInputError(f"{self.path}: {error}.") from error

        return rows(), layout


class _Damaged(InvalidInputError):
    """A file whose rest cannot be read."""


def _until_damaged(blocks: Iterator[Lines]) -> Iterator[Lines]:
    """The same, but what is wrong with the file in its midst is told apart from what is wrong with a row."""
    try:
        yield from blocks
    except InvalidInputError as error:
        raise _Damaged(str(error)) from error


def _is_parquet(path: pathlib.Path) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(len(_PARQUET)) == _PARQUET
    except (OSError, ValueError):  # said by who reads it
        return False


def _duplicates(time_ns: NDArray[np.int64], user: NDArray[np.int32], item: NDArray[np.int32]) -> int:
    """How many rows repeat another's user, item and time, by a hash of the three."""
    keys = time_ns.astype(np.uint64)
    for column in (user, item):
        keys ^= keys >> np.uint64(29)
        keys *= np.uint64(0xBF58476D1CE4E5B9)
        keys += column.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys.sort()
    return int(np.count_nonzero(keys[1:] == keys[:-1]))
