"""Recorded traces: the Azure LLM inference (2023) and Mooncake formats, read line by line and checked.

Both record requests in order of arrival, and both published files are in order throughout, so a line that goes back
in time is an error and not something to sort: it says that the file was joined or edited wrongly.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError

AZURE_COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
MOONCAKE_KEYS = ("timestamp", "input_length", "output_length", "hash_ids")
MAX_LINE_BYTES = 1 << 20  # Mooncake writes one id for 512 tokens: over 60 million tokens of context
MAX_TOKENS = 2**31 - 1
COMMON_SHARE = 0.9  # of the requests; a block that more of them hold is the service's prompt, not a user's history

_MAX_MS = 1e15  # 30,000 years: no clock, and still exact as a float
_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:[0-9]{2})?"
)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """A recorded sequence of n requests, n >= 2, that spans some time.

    Attributes:
        name: The file's name without its ending.
        arrival_s: (n,) float64, seconds since the first request; starts at 0 and never decreases.
        tokens: (n,) int64, input tokens of each request.
        returning: (n,) bool, whether an earlier request left part of this one's input to reuse; None where the
            format does not tell (Azure).
    """

    name: str
    arrival_s: NDArray[np.float64]
    tokens: NDArray[np.int64]
    returning: NDArray[np.bool_] | None


class _Request(NamedTuple):
    time_ns: int
    tokens: int
    blocks: list[int]


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Reads a trace, its format told by its first line: Azure's header, or a JSON object as Mooncake has.

    Output lengths are checked and not kept, for a recommender generates nothing. Further keys of a JSON object are
    not looked at. Times are kept to the nanosecond.

    Args:
        path: The file; its ending does not matter.

    Raises:
        InvalidInputError: The file cannot be read, is in neither format, has a malformed line or one that goes back
            in time, or holds fewer than two requests or no time between them.
    """
    path = pathlib.Path(path)
    lines = _lines(path)
    _, head = next(lines, (1, ""))
    if not head:
        raise InvalidInputError(
            f"{path}, line 1: is empty; give a trace in the Azure 2023 (CSV) or Mooncake (JSONL) format."
        )
    mooncake = head.lstrip().startswith("{")
    if mooncake:
        lines = itertools.chain([(1, head)], lines)
    elif head.replace('"', "").split(",") != AZURE_COLUMNS:
        raise InvalidInputError(
            f"{path}, line 1: {_short(head)} starts no known trace format; give a CSV file whose header is "
            f"'{','.join(AZURE_COLUMNS)}' or JSON lines with the keys {', '.join(MOONCAKE_KEYS)}."
        )
    requests = _requests(path, lines, _mooncake_request if mooncake else _azure_request)
    if len(requests) < 2:
        raise InvalidInputError(f"{path}: holds {len(requests)} request(s); give a trace with at least 2.")
    start = requests[0].time_ns
    if requests[-1].time_ns == start:
        raise InvalidInputError(
            f"{path}: all {len(requests)} requests arrive at once; give a trace that spans some time."
        )
    return Trace(
        name=path.stem,
        arrival_s=np.array([(request.time_ns - start) / 10**9 for request in requests]),
        tokens=np.array([request.tokens for request in requests], dtype=np.int64),
        returning=_returning([request.blocks for request in requests]) if mooncake else None,
    )


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Yields (line number, text without its end); bytes are split first so that a fault is known by its line."""
    try:
        with path.open("rb") as file:
            for number in itertools.count(1):
                raw = file.readline(MAX_LINE_BYTES + 1)
                if not raw:
                    return
                if len(raw) > MAX_LINE_BYTES:
                    raise InvalidInputError(
                        f"{path}, line {number}: exceeds {MAX_LINE_BYTES} bytes; give a file of one request a line."
                    )
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise InvalidInputError(
                        f"{path}, line {number}: is not UTF-8 text; give an unpacked trace saved as UTF-8."
                    ) from None
                yield number, text.removesuffix("\n").removesuffix("\r")
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(
            f"Cannot read trace {str(path)!r}: {reason}; give the path of a readable file."
        ) from error


def _requests(path: pathlib.Path, lines: Iterator[tuple[int, str]], parse: Callable[[str], _Request]) -> list[_Request]:
    """Parses every line; ``parse`` raises ValueError with the reason where a line is malformed."""
    requests: list[_Request] = []
    for number, text in lines:
        try:
            request = parse(text)
        except ValueError as error:
            raise InvalidInputError(f"{path}, line {number}: {error}; correct or remove the line.") from error
        if requests and request.time_ns < requests[-1].time_ns:
            raise InvalidInputError(f"{path}, line {number}: is earlier than the line above it; sort the file by time.")
        requests.append(request)
    return requests


def _azure_request(text: str) -> _Request:
    """One line of the CSV file: '2023-11-16 18:15:46.6805900,374,44', UTC where it names no offset."""
    try:
        fields = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise ValueError(f"is not CSV ({error})") from error
    if len(fields) != len(AZURE_COLUMNS):
        raise ValueError(f"has {len(fields)} column(s) and not the {len(AZURE_COLUMNS)} of the header")
    _azure_tokens("GeneratedTokens", fields[2])
    return _Request(_azure_time_ns(fields[0]), _azure_tokens("ContextTokens", fields[1]), [])


def _azure_tokens(column: str, text: str) -> int:
    # int() alone would take '1_000', ' 7' and digits of other scripts, and be slow on thousands of digits.
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > MAX_TOKENS:
        raise ValueError(f"{column} is {_short(text)}, not a whole number from 0 to {MAX_TOKENS}")
    return int(text)


def _azure_time_ns(text: str) -> int:
    """Nanoseconds since 1970. The files have seven decimals, and datetime would cut the seventh."""
    wrong = f"TIMESTAMP is {_short(text)}, not a time such as '2023-11-16 18:15:46.6805900'"
    match = _TIMESTAMP.fullmatch(text)
    if not match:
        raise ValueError(wrong)
    seconds, fraction, offset = match.groups()
    try:
        since = datetime.datetime.fromisoformat(seconds + (offset or "Z")) - _EPOCH
    except ValueError:
        raise ValueError(wrong) from None
    return (since.days * 86_400 + since.seconds) * 10**9 + int((fraction or "").ljust(9, "0"))


def _mooncake_request(text: str) -> _Request:
    """One JSON object: timestamp (ms), input_length, output_length (tokens), hash_ids (blocks of the input)."""
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of nested brackets
        raise ValueError("is not JSON that can be read (a number too long or brackets too deep)") from error
    if not isinstance(record, dict):
        raise ValueError("is not a JSON object")
    missing = [key for key in MOONCAKE_KEYS if key not in record]
    if missing:
        raise ValueError(f"lacks the key(s) {', '.join(missing)}")
    time_ms, blocks = record["timestamp"], record["hash_ids"]
    # type() and not isinstance(): True is an int. NaN, which the json module reads, fails every comparison.
    if type(time_ms) not in (int, float) or not 0 <= time_ms <= _MAX_MS:
        raise ValueError(f"timestamp is {_short(time_ms)}, not a number of milliseconds from 0")
    for key in ("input_length", "output_length"):
        if type(record[key]) is not int or not 0 <= record[key] <= MAX_TOKENS:
            raise ValueError(f"{key} is {_short(record[key])}, not a whole number from 0 to {MAX_TOKENS}")
    if type(blocks) is not list or not all(type(block) is int for block in blocks):
        raise ValueError(f"hash_ids is {_short(blocks)}, not a list of whole numbers")
    return _Request(round(time_ms * 10**6), record["input_length"], blocks)


def _returning(blocks: list[list[int]]) -> NDArray[np.bool_]:
    """Whether each request holds a block of an earlier one, blocks that nearly every request holds apart.

    In Mooncake's conversation trace block 0, the service's prompt, leads all 12,031 requests, and the next most
    common block is in 43 (0.4%): any threshold between the two gives the same answer, 38.7% returning. A trace of a
    handful of requests by one user shows nothing but common blocks and nobody returning.
    """
    counts = Counter(itertools.chain.from_iterable(set(ids) for ids in blocks))
    common = {block for block, count in counts.items() if count >= COMMON_SHARE * len(blocks)}
    returning = np.zeros(len(blocks), dtype=np.bool_)
    seen: set[int] = set()
    for i, ids in enumerate(blocks):
        own = set(ids) - common
        returning[i] = not own.isdisjoint(seen)
        seen |= own
    return returning


def _short(value: object) -> str:
    """The value as a message shows it: printable, and no longer than a line can bear."""
    text = repr(value if not isinstance(value, str) else value[:60])
    return text if len(text) <= 60 else text[:57] + "..."
