"""A block of lines at once, by column: what ``trace_lines`` accepts, a hundred times faster.

What is valid is defined there, for one line. Here a block is either read whole, with the values that reading its
lines one by one would give, or left to be parted: in the end few lines are left, and are read one by one. So a
file is refused by one definition only, and a test holds that nothing is read here that it would refuse.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.workload.readers.text_blocks import BOM, MAX_LINE_BYTES, Lines, longest_within, quoted_whole
from helm_gym.workload.readers.trace_formats import DATE, DATES, NUMBER, UNITS, WHOLE, ZONE, Layout
from helm_gym.workload.readers.trace_lines import MAX_TIME_NS, MAX_TOKENS, Request, parse_line

if TYPE_CHECKING:
    import pyarrow as pa

THREADS = 2
_CSV_LINE = 1 << 16  # bytes: Python's reader takes fields of 131,072 characters
_JSON_DIGITS = 4000  # Python reads no whole number of over 4,300 digits
_NO_SKELETON = bytes(set(range(256)) - set(b"{[]}I\n"))  # what is left out of text to see how it is nested
_DIGITS_TO_0 = bytes.maketrans(b"123456789", b"000000000")
_NONE, _NO_IDS = np.empty(0, np.int32), np.empty(0, np.uint32)
_FEW = 32  # lines that are read one by one


class Columns(NamedTuple):
    """n requests in the order of their lines.

    Attributes:
        line: number of the first one's line.
        time_ns: (n,) int64.
        tokens: (n,) int32; empty where the format has none.
        ids: uint32 or uint64, of all blocks of the inputs, one request's after another's; empty where there are none.
        counts: (n,) int32, how many ids each request has; empty where the format has none.
    """

    line: int
    time_ns: NDArray[np.int64]
    tokens: NDArray[np.int32]
    ids: NDArray[np.unsignedinteger[Any]]
    counts: NDArray[np.int32]


class LineError(ValueError):
    """A line that is no request."""

    def __init__(self, line: int, reason: str):
        super().__init__(reason)
        self.line = line


def read_blocks(blocks: Iterable[Lines], layout: Layout) -> Iterator[Columns]:
    """Yields the requests of a file, in order, those of each block in one part or several.

    Raises:
        LineError: the first line that is no request, after those before it.
        InvalidInputError: as ``blocks`` does, after what came before.
    """
    ahead: collections.deque[tuple[Lines, Future[Columns | None]]] = collections.deque()
    fault: InvalidInputError | None = None
    with ThreadPoolExecutor(THREADS) as pool:  # Arrow and the file need no lock of Python's
        try:
            for block in blocks:
                ahead.append((block, pool.submit(_read_at_once, block, layout)))
                if len(ahead) > THREADS:
                    done, columns = ahead.popleft()
                    yield from _read(done, columns.result(), layout)
        except InvalidInputError as error:
            fault = error
        while ahead:
            done, columns = ahead.popleft()
            yield from _read(done, columns.result(), layout)
    if fault is not None:
        raise fault


def _read(block: Lines, columns: Columns | None, layout: Layout) -> Iterator[Columns]:
    """Where a block was not read at once, parts it until it is, or until few lines are left."""
    if columns is not None:
        yield columns
    elif block.count > _FEW:
        for half in block.halves():
            yield from _read(half, _read_at_once(half, layout), layout)
    else:
        requests: list[Request] = []
        for number, raw in enumerate(block.text.split(b"\n")[: block.count], start=block.first):
            try:
                requests.append(parse_line(raw + b"\n", layout))
            except ValueError as error:
                if requests:
                    yield _columns(requests, block.first, layout)
                raise LineError(number, str(error)) from error
        yield _columns(requests, block.first, layout)


def _columns(requests: list[Request], line: int, layout: Layout) -> Columns:
    form = layout.format
    return Columns(
        line,
        np.array([request.time_ns for request in requests], dtype=np.int64),
        np.array([request.tokens for request in requests if form.tokens], dtype=np.int32),
        np.array([block for request in requests for block in request.blocks], dtype=np.uint64),
        np.array([len(request.blocks) for request in requests if form.blocks], dtype=np.int32),
    )


def _read_at_once(block: Lines, layout: Layout) -> Columns | None:
    """None where a line is no request, or where it takes ``parse_line`` to say."""
    import pyarrow

    try:
        # Arrow skips a byte order mark, which is one at the beginning of a file only, and there it has been left out.
        if b"\0" in block.text or block.text.startswith(BOM) or not (block.text.isascii() or block.text.decode()):
            return None
        return _read_jsonl(block, layout) if layout.format.kind == "jsonl" else _read_csv(block, layout)
    except (UnicodeDecodeError, pyarrow.ArrowInvalid):
        return None


def _read_csv(block: Lines, layout: Layout) -> Columns | None:
    import pyarrow
    from pyarrow import compute, csv

    text = block.text
    # Arrow ends a line at a lone \r, too.
    if b"\r" in text and text.count(b"\r") != text.count(b"\r\n"):
        return None
    quoted = b'"' in text
    if not longest_within(text, _CSV_LINE) or (quoted and not quoted_whole(text)):
        return None
    form, header = layout.format, layout.header
    used = [name for name in (form.time, form.tokens, form.output) if name]
    names = [str(header.index(name)) for name in used]  # others' names may occur twice
    table = csv.read_csv(
        pyarrow.BufferReader(text),
        read_options=csv.ReadOptions(
            use_threads=False, block_size=len(text) + 1, column_names=[str(i) for i in range(len(header))]
        ),
        parse_options=csv.ParseOptions(quote_char='"' if quoted else False, ignore_empty_lines=False),
        convert_options=csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pyarrow.string())),
    )
    if len(table) != block.count:  # a line that is empty, or one that ends within quotes
        return None
    times, *counts = (table[name].combine_chunks() for name in names)
    whole = [_matching(column, WHOLE) for column in counts]
    tokens = [compute.cast(column, pyarrow.int64()).to_numpy() for column in counts] if all(whole) else []
    if len(tokens) < len(counts) or any(column.max(initial=0) > MAX_TOKENS for column in tokens):
        return None
    time_ns = _times(times, layout.unit)
    if time_ns is None:
        return None
    return Columns(block.first, time_ns, tokens[0].astype(np.int32) if tokens else _NONE, _NO_IDS, _NONE)


def _times(column: pa.StringArray, unit: str) -> NDArray[np.int64] | None:
    import pyarrow
    from pyarrow import compute

    if unit in UNITS:
        if not _matching(column, NUMBER):
            return None
        return _count_ns(compute.cast(column, pyarrow.float64()).to_numpy(), UNITS[unit][1])
    zone = unit == DATES[1]
    if not _matching(column, DATE + ZONE if zone else DATE):
        return None
    dates = compute.cast(column, pyarrow.timestamp("ns", "UTC" if zone else None))
    time_ns = compute.cast(dates, pyarrow.int64()).to_numpy()
    return time_ns if _in_range(time_ns, MAX_TIME_NS) else None


def _count_ns(count: NDArray[np.float64], scale: int) -> NDArray[np.int64] | None:
    """``trace_lines.to_ns`` of all."""
    if not _in_range(count * scale, MAX_TIME_NS):
        return None
    whole = np.floor(count)
    return whole.astype(np.int64) * scale + np.rint((count - whole) * scale).astype(np.int64)


def _in_range(values: NDArray[Any], high: float) -> bool:
    return bool(((values >= 0) & (values <= high)).all())


def _matching(column: pa.StringArray, grammar: str) -> bool:
    from pyarrow import compute

    return compute.all(compute.match_substring_regex(column, f"^(?:{grammar})$"), min_count=0).as_py()


def _read_jsonl(block: Lines, layout: Layout) -> Columns | None:
    import pyarrow
    from pyarrow import json

    form = layout.format
    if not longest_within(block.text, MAX_LINE_BYTES) or not _lines_are_objects(block.text, block.count):
        return None
    whole, ids = pyarrow.int64(), pyarrow.list_(pyarrow.uint64())
    schema = dict.fromkeys((*form.tells, form.tokens, form.output), whole)
    schema |= {form.time: pyarrow.float64(), form.blocks: ids}
    table = json.read_json(
        pyarrow.BufferReader(block.text),
        read_options=json.ReadOptions(use_threads=False, block_size=len(block.text) + 1),
        parse_options=json.ParseOptions(pyarrow.schema(list(schema.items())), unexpected_field_behavior="ignore"),
    )
    columns = {name: table[name].combine_chunks() for name in schema}
    blocks = columns.pop(form.blocks)
    if len(table) != block.count or blocks.null_count:
        return None
    # to_numpy raises where there is a null, which stands for a key that a line lacks, too.
    tokens, output = columns[form.tokens].to_numpy(), columns[form.output].to_numpy()
    if not _in_range(tokens, MAX_TOKENS) or not _in_range(output, MAX_TOKENS):
        return None
    count = columns[form.time].to_numpy()
    if any(columns[key].null_count for key in form.tells):
        return None
    if form.whole and (count != np.floor(count)).any():
        return None
    time_ns = _count_ns(count, UNITS[layout.unit][1])
    if time_ns is None:
        return None
    flat = blocks.flatten().to_numpy()
    if flat.max(initial=0) < 2**32:
        flat = flat.astype(np.uint32)  # half the memory for what most files hold
    counts = np.diff(blocks.offsets.to_numpy()).astype(np.int32)
    return Columns(block.first, time_ns, tokens.astype(np.int32), flat, counts)


def _lines_are_objects(text: bytes, lines: int) -> bool:
    """Whether each line is an object with one list and nothing nested, or else is no JSON to Arrow either.

    Arrow reads objects that follow one another, whatever the lines, and crashes on ``null{}``. Besides, it reads
    brackets of any depth, whole numbers of any length and ``Inf`` in keys that nobody looks at; Python does not.
    """
    end = b"}\r\n" if b"\r" in text else b"}\n"
    return (
        text.translate(None, _NO_SKELETON) == b"{[]}\n" * lines
        and text.startswith(b"{")
        and text.endswith(end)
        and text.count(end + b"{") == lines - 1
        and (longest_within(text, _JSON_DIGITS) or b"0" * _JSON_DIGITS not in text.translate(_DIGITS_TO_0))
    )
