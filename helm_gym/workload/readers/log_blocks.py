"""Rows of an interaction log: what one row may be, and a block of rows at once by pyarrow, with the same values.

A block that holds anything unusual is parted until few rows are left, and these are read one by one: there it is
said which row is bad, and why. So the usual file is read at pyarrow's pace, and validity has one definition.
"""

from __future__ import annotations

import collections
import csv
import datetime
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.workload.readers.log_formats import LogLayout, log_fields
from helm_gym.workload.readers.log_ids import hash_numbers, hash_texts, objects_by_line
from helm_gym.workload.readers.text_blocks import (
    BOM,
    MAX_LINE_BYTES,
    NOT_UTF8,
    TOO_LONG,
    Lines,
    longest_within,
    quoted_whole,
)
from helm_gym.workload.readers.trace_formats import DATE, EARLIEST_S, LATEST_S, NUMBER, UNITS, ZONE, short

if TYPE_CHECKING:
    import pyarrow as pa

THREADS = 2
PARQUET_ROWS = 1 << 16
MAX_RELATIVE_S = 100 * 365 * 86_400
_FEW = 32  # rows that are read one by one
_CSV_LINE = 1 << 16  # bytes: Python's reader takes fields of 131,072 characters
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_S = 10**9


class Rows(NamedTuple):
    """n interactions in the order of the file.

    Attributes:
        line: of the first one's line (of Parquet: its row).
        time_ns: (n,) int64.
        user: (n,) uint64 keys; empty where the format has none.
        item: (n,) uint64 keys.
        other_unit: how many of the times were in another unit than the format's.
    """

    line: int
    time_ns: NDArray[np.int64]
    user: NDArray[np.uint64]
    item: NDArray[np.uint64]
    other_unit: int = 0


Bad = Callable[[int, str], None]  # told of a bad row's line and what is wrong about it; raises where that is an error


def read_log_blocks(blocks: Iterable[Lines], layout: LogLayout, bad: Bad) -> Iterator[Rows]:
    """Yields the rows of a text file in order, but for the bad ones, of which ``bad`` is told.

    Raises:
        InvalidInputError: as ``blocks`` does, after what came before.
    """
    ahead: collections.deque[tuple[Lines, Future[Rows | None]]] = collections.deque()
    fault: InvalidInputError | None = None
    with ThreadPoolExecutor(THREADS) as pool:  # Arrow, kernels and the file need no lock of Python's
        try:
            for block in blocks:
                ahead.append((block, pool.submit(_at_once, block, layout)))
                if len(ahead) > THREADS:
                    done, rows = ahead.popleft()
                    yield from _read(done, rows.result(), layout, bad)
        except InvalidInputError as error:
            if not ahead:
                raise
            fault = error
        while ahead:
            done, rows = ahead.popleft()
            yield from _read(done, rows.result(), layout, bad)
    if fault is not None:
        raise fault


def _read(block: Lines, rows: Rows | None, layout: LogLayout, bad: Bad) -> Iterator[Rows]:
    if rows is not None:
        yield rows
    elif block.count > _FEW:
        for half in block.halves():
            yield from _read(half, _at_once(half, layout), layout, bad)
    else:
        yield _one_by_one(block, layout, bad)


def _one_by_one(block: Lines, layout: LogLayout, bad: Bad) -> Rows:
    import pyarrow

    found: list[tuple[str, str, int]] = []
    other = 0
    for number, raw in enumerate(block.text.split(b"\n")[: block.count], start=block.first):
        try:
            user, item, time_ns, own_unit = parse_row(raw, layout)
        except ValueError as error:
            bad(number, str(error))
            continue
        found.append((user, item, time_ns))
        other += not own_unit
    users, items, times = zip(*found, strict=True) if found else ((), (), ())
    return Rows(
        block.first,
        np.array(times, np.int64),
        hash_texts(pyarrow.array(users if layout.format.user else (), pyarrow.string())),
        hash_texts(pyarrow.array(items, pyarrow.string())),
        other,
    )


def parse_row(raw: bytes, layout: LogLayout) -> tuple[str, str, int, bool]:
    """Reads one row: user (empty where the format has none), item, time in ns, and whether that is in the own unit.

    Raises:
        ValueError: with what is wrong about it.
    """
    form = layout.format
    if len(raw) >= MAX_LINE_BYTES:
        raise ValueError(TOO_LONG)
    try:
        text = raw.decode().removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(NOT_UTF8) from None
    if not text:
        raise ValueError("is empty")
    used = [name for name in (form.user, form.item, form.time) if name]
    values = _object(text, used) if form.kind == "jsonl" else _fields(text, used, layout)
    *ids, time = values
    for name, value in zip(used, ids, strict=False):
        if not value:
            raise ValueError(f"has no {name}")
    time_ns, own_unit = _time_ns(time, form.time, layout)
    return ids[0] if form.user else "", ids[-1], time_ns, own_unit


def _fields(text: str, used: list[str], layout: LogLayout) -> list[str]:
    if layout.format.delimiter == "," and len(text) > csv.field_size_limit():
        raise ValueError(TOO_LONG)
    fields = log_fields(text, layout.format.delimiter)
    if len(fields) != len(layout.header):
        raise ValueError(f"has {len(fields)} columns, not {len(layout.header)}")
    return [fields[layout.header.index(name)] for name in used]


def _object(text: str, used: list[str]) -> list[str]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"is {short(record)}, not a JSON object")
    missing = [name for name in used if record.get(name) is None]
    if missing:
        raise ValueError(f"has no {missing[0]}")
    *ids, time = (record[name] for name in used)
    for name, value in zip(used, ids, strict=False):
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise ValueError(f"{name} is {short(value)}, not a text or a whole number")
    if not isinstance(time, str | int | float) or isinstance(time, bool):
        raise ValueError(f"{used[-1]} is {short(time)}, not a time")
    return [*map(str, ids), str(time)]


def _time_ns(text: str, name: str, layout: LogLayout) -> tuple[int, bool]:
    if layout.unit == "date":
        if not re.fullmatch(f"{DATE}{ZONE}?", text):
            raise ValueError(f"{name} is {short(text)}, not a date such as 2019-11-24 00:00:17.004101+00:00")
        whole, _, fraction = re.sub(f"{ZONE}$", "", text).partition(".")
        try:
            at = datetime.datetime.fromisoformat(whole + text[len(whole) + len(fraction) + bool(fraction) :])
        except ValueError as error:
            raise ValueError(f"{name} is {short(text)}, which no calendar has") from error
        since = (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)) - _EPOCH
        time_ns = (since.days * 86_400 + since.seconds) * _S + int(fraction.ljust(9, "0") or 0)
        if not EARLIEST_S * _S <= time_ns < LATEST_S * _S:
            raise ValueError(f"{name} is {short(text)}, not between 1990 and 2200")
        return time_ns, True
    if not re.fullmatch(f"-?(?:{NUMBER})", text):
        raise ValueError(f"{name} is {short(text)}, not a number")
    value, scale = float(text), UNITS[layout.unit][1]
    if layout.format.relative:
        if not 0 <= value * scale < MAX_RELATIVE_S * _S:
            raise ValueError(f"{name} is {short(text)}, not within a hundred years")
        return _to_ns(value, scale), True
    if value <= 0:
        raise ValueError(f"{name} is {short(text)}: {'zero' if value == 0 else 'negative'}")
    for own in (scale, *(other for _, other in UNITS.values())):
        if EARLIEST_S * _S <= value * own < LATEST_S * _S:
            return _to_ns(value, own), own == scale
    raise ValueError(f"{name} is {short(text)}, in no unit of time between 1990 and 2200")


def _to_ns(value: float, scale: int) -> int:
    whole = math.floor(value)
    return whole * scale + round((value - whole) * scale)


def _at_once(block: Lines, layout: LogLayout) -> Rows | None:
    """None where a row is bad, or where it takes ``parse_row`` to say."""
    import pyarrow

    try:
        # Arrow skips a byte order mark, which is one at the beginning of a file only, and there it has been left out.
        if b"\0" in block.text or block.text.startswith(BOM) or not (block.text.isascii() or block.text.decode()):
            return None
        columns = _jsonl_columns(block, layout) if layout.format.kind == "jsonl" else _csv_columns(block, layout)
        return None if columns is None else _rows(block.first, columns, layout)
    except (UnicodeDecodeError, pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
        return None


def _csv_columns(block: Lines, layout: LogLayout) -> list[pa.Array] | None:
    import pyarrow
    from pyarrow import csv as arrow_csv

    text, form = block.text, layout.format
    # Arrow ends a line at a lone \r, too.
    if b"\r" in text and text.count(b"\r") != text.count(b"\r\n"):
        return None
    quoted = form.delimiter == "," and b'"' in text
    if not longest_within(text, _CSV_LINE) or (quoted and not quoted_whole(text)):
        return None
    names = [str(layout.header.index(name)) for name in (form.user, form.item, form.time) if name]
    table = arrow_csv.read_csv(
        pyarrow.BufferReader(text),
        read_options=arrow_csv.ReadOptions(
            use_threads=False, block_size=len(text) + 1, column_names=[str(i) for i in range(len(layout.header))]
        ),
        parse_options=arrow_csv.ParseOptions(
            delimiter=form.delimiter, quote_char='"' if quoted else False, ignore_empty_lines=False
        ),
        convert_options=arrow_csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pyarrow.string())
        ),
    )
    if len(table) != block.count:  # a line that is empty, or one that ends within quotes
        return None
    return [table[name].combine_chunks() for name in names]


def _jsonl_columns(block: Lines, layout: LogLayout) -> list[pa.Array] | None:
    import pyarrow
    from pyarrow import json as arrow_json

    form = layout.format
    if not longest_within(block.text, MAX_LINE_BYTES) or not objects_by_line(block.text, block.count):
        return None
    ids, names = [name for name in (form.user, form.item) if name], [form.user, form.item, form.time]
    time = pyarrow.string() if layout.unit == "date" else pyarrow.float64()
    schema = pyarrow.schema([*((name, pyarrow.string()) for name in ids), (form.time, time)])
    table = arrow_json.read_json(
        pyarrow.BufferReader(block.text),
        read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(block.text) + 1),
        parse_options=arrow_json.ParseOptions(schema, unexpected_field_behavior="ignore"),
    )
    columns = [table[name].combine_chunks() for name in names if name]
    if len(table) != block.count or any(column.null_count for column in columns):
        return None
    return columns


def _rows(line: int, columns: list[pa.Array], layout: LogLayout) -> Rows | None:
    import pyarrow
    from pyarrow import compute

    *ids, time = columns
    # An id is empty exactly where two offsets are the same.
    if any((compute.binary_length(column).to_numpy() == 0).any() for column in ids):
        return None
    keys = [hash_texts(column) for column in ids]
    if layout.unit == "date":
        zoned = bool(len(time)) and re.search(f"{ZONE}$", time[0].as_py()) is not None
        if not _matching(time, DATE + (ZONE if zoned else "")):
            return None
        dates = compute.cast(time, pyarrow.timestamp("ns", "UTC" if zoned else None))
        time_ns = compute.cast(dates, pyarrow.int64()).to_numpy()
        if not ((time_ns >= EARLIEST_S * _S) & (time_ns < LATEST_S * _S)).all():
            return None
        return Rows(line, time_ns, keys[0] if layout.format.user else _NO_KEYS, keys[-1])
    if pyarrow.types.is_string(time.type):
        if not _matching(time, NUMBER):
            return None
        time = compute.cast(time, pyarrow.float64())
    counted = _count_ns(time.to_numpy(), layout)
    if counted is None:
        return None
    return Rows(line, counted[0], keys[0] if layout.format.user else _NO_KEYS, keys[-1], counted[1])


_NO_KEYS = np.empty(0, np.uint64)


def _matching(column: pa.StringArray, grammar: str) -> bool:
    from pyarrow import compute

    return compute.all(compute.match_substring_regex(column, f"^(?:{grammar})$"), min_count=0).as_py()


def _count_ns(count: NDArray[np.float64], layout: LogLayout) -> tuple[NDArray[np.int64], int] | None:
    """``_time_ns`` of all numbers, and how many are in another unit; None where one is bad."""
    own = UNITS[layout.unit][1]
    if layout.format.relative:
        good, scale = (count >= 0) & (count * own < MAX_RELATIVE_S * _S), np.full(len(count), own)
    else:
        scale = np.zeros(len(count), np.int64)
        for unit in (*(unit for _, unit in UNITS.values()), own):
            scale[(count * unit >= EARLIEST_S * _S) & (count * unit < LATEST_S * _S)] = unit
        good = scale > 0
    if not good.all():
        return None
    whole = np.floor(count)
    time_ns = whole.astype(np.int64) * scale + np.rint((count - whole) * scale).astype(np.int64)
    return time_ns, int(np.count_nonzero(scale != own))


def read_parquet_rows(file: Any, layout: LogLayout, bad: Bad) -> Iterator[Rows]:
    """Yields the rows of a ``pyarrow.parquet.ParquetFile``, but for the bad ones, of which ``bad`` is told.

    Raises:
        ValueError: a column holds neither ids nor times.
    """
    form = layout.format
    _check_types(file.schema_arrow, layout)
    names, row = [form.user, form.item, form.time], 1
    for batch in file.iter_batches(PARQUET_ROWS, columns=names):
        users, items, times = (batch.column(names.index(name)) for name in names)
        wrong = [np.asarray(column.is_null()) for column in (users, items, times)]
        count = _parquet_numbers(times)
        lost = np.logical_or.reduce(wrong)
        counted = _count_ns(count[~lost], layout)
        if counted is None:
            for at in np.flatnonzero(~lost):
                try:
                    _time_ns(f"{count[at]:.17g}", form.time, layout)
                except ValueError as error:
                    bad(row + int(at), str(error))
                    lost[at] = True
            counted = _count_ns(count[~lost], layout)
            assert counted is not None  # what is left is good one by one
        for name, nulls in zip(names, wrong, strict=True):
            for at in np.flatnonzero(nulls):
                bad(row + int(at), f"has no {name}")
        keep = ~lost
        keys = [_parquet_keys(column)[keep] for column in (users, items)]
        yield Rows(row, counted[0], keys[0], keys[1], counted[1])
        row += len(batch)


def _check_types(schema: pa.Schema, layout: LogLayout) -> None:
    from pyarrow import types

    form = layout.format
    for name in (form.user, form.item):
        kind = schema.field(name).type
        if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
            raise ValueError(f"the column {name} holds {kind}, not whole numbers or texts; of Yambda, give a flat file")
    kind = schema.field(form.time).type
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_timestamp(kind)):
        raise ValueError(f"the column {form.time} holds {kind}, not numbers or timestamps")


def _parquet_numbers(column: pa.Array) -> NDArray[np.float64]:
    """Times as counts; of timestamps, of milliseconds since 1970."""
    import pyarrow

    if pyarrow.types.is_timestamp(column.type):
        column = column.cast(pyarrow.timestamp("ms"), safe=False).cast(pyarrow.int64())
    return np.asarray(column.cast(pyarrow.float64(), safe=False).fill_null(0).to_numpy(zero_copy_only=False))


def _parquet_keys(column: pa.Array) -> NDArray[np.uint64]:
    import pyarrow

    if pyarrow.types.is_integer(column.type):
        return hash_numbers(column.fill_null(0).cast(pyarrow.int64(), safe=False).to_numpy(zero_copy_only=False))
    return hash_texts(column.fill_null("").cast(pyarrow.string()))
