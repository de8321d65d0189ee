"""The formats of interaction logs that are read: one table, and how a file's first lines say which it is."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Sequence

from helm_gym import registry
from helm_gym.errors import InvalidInputError
from helm_gym.workload.readers.trace_formats import NUMBER, UNITS, short, unit_of


@dataclasses.dataclass(frozen=True)
class LogFormat:
    """A published format of interactions, a row an interaction of a user with an item.

    Attributes:
        name: as messages and the documentation call it.
        kind: ``csv`` (columns parted by ``delimiter``), ``jsonl``, an object a line, or ``parquet``.
        user: the column (or key) of users; none where the format has none.
        item: of items.
        time: of times.
        unit: of the time: a key of ``UNITS``, ``date``, or ``either`` where the first row tells.
        delimiter: of a CSV file.
        header: the columns in order, where the file has no line that names them.
        row: what the first line looks like where there is no header, as a regular expression.
        tells: further columns without which it is not this format.
        relative: whether times count from the log's beginning, and so start at 0.
        source: where it is published.
    """

    name: str
    kind: str
    user: str
    item: str
    time: str
    unit: str
    delimiter: str = ","
    header: tuple[str, ...] = ()
    row: str = ""
    tells: tuple[str, ...] = ()
    relative: bool = False
    source: str = "your own file"

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that are read, and those it is told by."""
        return (*self.tells, *(name for name in (self.user, self.item, self.time) if name))


_ID = r"[0-9]{1,20}"
# Of those whose columns a file all has, the first is it.
LOG_FORMATS: tuple[LogFormat, ...] = (
    LogFormat(
        "Amazon Reviews 2023 CSV",
        "csv",
        "user_id",
        "parent_asin",
        "timestamp",
        "ms",
        tells=("rating",),
        source="amazon-reviews-2023.github.io: ratings only, 0-core and 5-core, with and without history",
    ),
    LogFormat(
        "Amazon Reviews 2023 JSONL",
        "jsonl",
        "user_id",
        "parent_asin",
        "timestamp",
        "ms",
        tells=("rating",),
        source="amazon-reviews-2023.github.io: user reviews, *.jsonl.gz",
    ),
    LogFormat(
        "Taobao UserBehavior CSV",
        "csv",
        "user",
        "item",
        "time",
        "s",
        header=("user", "item", "category", "behavior", "time"),
        row=rf"{_ID},{_ID},{_ID},(pv|buy|cart|fav),-?{_ID}",
        source="tianchi.aliyun.com, data set 649: UserBehavior.csv",
    ),
    LogFormat(
        "KuaiRand CSV",
        "csv",
        "user_id",
        "video_id",
        "time_ms",
        "ms",
        tells=("is_click",),
        source="kuairand.com: log_standard_*.csv, log_random_*.csv",
    ),
    LogFormat(
        "MovieLens u.data",
        "csv",
        "user",
        "item",
        "time",
        "s",
        delimiter="\t",
        header=("user", "item", "rating", "time"),
        row=rf"{_ID}\t{_ID}\t[0-9.]+\t-?{_ID}",
        source="grouplens.org: ml-100k/u.data",
    ),
    LogFormat(
        "MovieLens ratings.csv",
        "csv",
        "userId",
        "movieId",
        "timestamp",
        "s",
        tells=("rating",),
        source="grouplens.org: ml-latest, ml-20m, ml-25m, ml-32m",
    ),
    LogFormat(
        "RecBole atomic file",
        "csv",
        "user_id:token",
        "item_id:token",
        "timestamp:float",
        "s",
        delimiter="\t",
        source="recbole.io: *.inter",
    ),
    LogFormat(
        "Open Bandit CSV",
        "csv",
        "",
        "item_id",
        "timestamp",
        "date",
        tells=("position", "click", "propensity_score"),
        source="research.zozo.com/data.html and the package obp: all.csv, men.csv, women.csv; it names no users",
    ),
    LogFormat(
        "Yambda Parquet",
        "parquet",
        "uid",
        "item_id",
        "timestamp",
        "s",
        relative=True,
        source="huggingface.co/datasets/yandex/yambda: flat/*/*.parquet; times count from the log's beginning",
    ),
    LogFormat("interactions", "csv", "user_id", "item_id", "timestamp", "either"),
    LogFormat("interactions, parted by tabs", "csv", "user_id", "item_id", "timestamp", "either", delimiter="\t"),
    LogFormat("interactions JSONL", "jsonl", "user_id", "item_id", "timestamp", "either"),
    LogFormat("interactions Parquet", "parquet", "user_id", "item_id", "timestamp", "s"),
)


def log_formats() -> tuple[LogFormat, ...]:
    """The table, and before it the formats that are registered under the kind ``log-format``."""
    others = [(entry, entry.load()) for entry in registry.listed("log-format").values()]
    wrong = next((entry for entry, form in others if not isinstance(form, LogFormat)), None)
    if wrong is not None:
        raise InvalidInputError(f"Log format '{wrong.name}' is no LogFormat of helm_gym.workload.readers.log_formats.")
    return (*(form for _, form in others), *LOG_FORMATS)


@dataclasses.dataclass(frozen=True)
class LogLayout:
    """How the rows of one file are to be read.

    Attributes:
        unit: of its times: a key of ``UNITS``, or ``date``.
        header: the names of a CSV file's columns, in order.
        first: number of the line of the first row.
    """

    format: LogFormat
    unit: str
    header: tuple[str, ...] = ()
    first: int = 1


def detect_log(where: str, lines: Sequence[str]) -> LogLayout:
    """Tells the format by a text file's first two lines, the second of which may be absent.

    Raises:
        InvalidInputError: no format of the table, or the unit of time cannot be told.
    """
    head = lines[0] if lines else ""
    if not head.strip():
        raise InvalidInputError(f"{where}, line 1: is empty; give a log in one of the formats of docs/logs.md.")
    forms = log_formats()
    if head.lstrip().startswith("{"):
        return _detect_jsonl(where, head, [form for form in forms if form.kind == "jsonl"])
    for form in forms:
        if form.kind != "csv":
            continue
        if form.row:
            if re.fullmatch(form.row, head):
                return LogLayout(form, form.unit, form.header)
            continue
        header = log_fields(head, form.delimiter)
        if set(form.columns) <= set(header):
            twice = [name for name in form.columns if header.count(name) > 1]
            if twice:
                raise InvalidInputError(f"{where}, line 1: names the column {twice[0]} twice; name each once.")
            row = log_fields(lines[1], form.delimiter) if len(lines) > 1 else ()
            at = header.index(form.time)
            return LogLayout(form, _unit(where, 2, form, row[at] if at < len(row) else ""), header, first=2)
    raise InvalidInputError(
        f"{where}, line 1: {short(head)} starts no known format of logs; give it the header user_id,item_id,timestamp, "
        "or see docs/logs.md for the formats that are read."
    )


def detect_parquet(where: str, names: Sequence[str]) -> LogLayout:
    """Tells the format of a Parquet file by the names of its columns."""
    for form in log_formats():
        if form.kind == "parquet" and set(form.columns) <= set(names):
            return LogLayout(form, form.unit, tuple(names))
    raise InvalidInputError(
        f"{where}: has the columns {short(', '.join(names))} and is of no known format of logs; name three of them "
        "user_id, item_id and timestamp, or see docs/logs.md."
    )


def log_fields(line: str, delimiter: str) -> tuple[str, ...]:
    """Fields of a line of CSV; none where it is not CSV. Columns that are parted by tabs have no quotes."""
    if delimiter != ",":
        return tuple(line.split(delimiter))
    try:
        return tuple(next(csv.reader([line], strict=True), []))
    except csv.Error:
        return ()


def _unit(where: str, line: int, form: LogFormat, text: str) -> str:
    if form.unit != "either":
        return form.unit
    told = unit_of(text)
    if told in UNITS:
        return told
    if told == "?":
        raise InvalidInputError(
            f"{where}, line {line}: {short(text)} does not say its unit of time; write seconds, milliseconds, "
            "microseconds or nanoseconds since 1970, or dates."
        )
    return "date" if told or not re.fullmatch(NUMBER, text) else "s"


def _detect_jsonl(where: str, head: str, forms: Sequence[LogFormat]) -> LogLayout:
    """The first of the formats whose keys the first object has."""
    try:
        record = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where}, line 1: is no JSON ({error}); give an object a line.") from error
    form = next((form for form in forms if isinstance(record, dict) and set(form.columns) <= set(record)), None)
    if form is None:
        raise InvalidInputError(
            f"{where}, line 1: {short(head)} starts no known format of logs; give each object the keys user_id, "
            "item_id and timestamp, or see docs/logs.md."
        )
    return LogLayout(form, _unit(where, 1, form, str(record[form.time])))
