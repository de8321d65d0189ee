"""One line of a trace is one request: what is valid is defined here, and said where it is not.

``trace_blocks`` reads a whole block of lines at once, and only what this module accepts, with the same values.
"""

from __future__ import annotations

import csv
import datetime
import json
import math
import re
from typing import NamedTuple

from helm_gym.workload.readers.text_blocks import MAX_LINE_BYTES, NOT_UTF8, TOO_LONG
from helm_gym.workload.readers.trace_formats import DATE, DATES, LATEST_S, NUMBER, UNITS, WHOLE, ZONE, Layout, short

MAX_TOKENS = 2**31 - 1
MAX_ID = 2**64 - 1  # of a block: hashes of 64 bits occur
MAX_TIME_NS = LATEST_S * 10**9

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Request(NamedTuple):
    time_ns: int
    tokens: int
    blocks: list[int]


def parse_line(raw: bytes, layout: Layout) -> Request:
    """Reads one line.

    Raises:
        ValueError: with what is wrong about it, and what to do.
    """
    if len(raw) > MAX_LINE_BYTES:
        raise ValueError(TOO_LONG)
    try:
        text = raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(NOT_UTF8) from None
    try:
        return _from_json(text, layout) if layout.format.kind == "jsonl" else _from_csv(text, layout)
    except ValueError as error:
        raise ValueError(f"{error}; correct or remove the line") from error


def to_ns(value: float, scale: int) -> int:
    """Nanoseconds of a count of units, each ``scale`` of them; exact where the count is whole."""
    whole = math.floor(value)
    return whole * scale + round((value - whole) * scale)


def _from_csv(text: str, layout: Layout) -> Request:
    try:
        fields = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise ValueError(f"is not CSV ({error})") from error
    form, header = layout.format, layout.header
    if len(fields) != len(header):
        raise ValueError(f"has {len(fields)} column(s) and not the {len(header)} of the header")
    if form.output:
        _tokens(form.output, fields[header.index(form.output)])
    time_ns = _time_ns(form.time, fields[header.index(form.time)], layout.unit)
    return Request(time_ns, _tokens(form.tokens, fields[header.index(form.tokens)]) if form.tokens else 0, [])


def _tokens(column: str, text: str) -> int:
    # int() alone would take '1_000', ' 7' and digits of other scripts, and be slow on thousands of digits.
    if not re.fullmatch(WHOLE, text) or int(text) > MAX_TOKENS:
        raise ValueError(f"{column} is {short(text)}, not a whole number from 0 to {MAX_TOKENS}")
    return int(text)


def _time_ns(column: str, text: str, unit: str) -> int:
    """Nanoseconds since 1970, or since the recording's own zero."""
    if unit in UNITS:
        name, scale = UNITS[unit]
        value = float(text) if re.fullmatch(NUMBER, text) else math.nan
        if not 0 <= value * scale <= MAX_TIME_NS:
            raise ValueError(f"{column} is {short(text)}, not a number of {name} from 0 to the year 2200")
        return to_ns(value, scale)
    match = re.fullmatch(f"({DATE})({ZONE})?", text)
    if match and bool(match[2]) is not (unit == DATES[1]):
        how = "names an offset" if match[2] else "names no offset"
        raise ValueError(f"{column} is {short(text)} and {how} from UTC, unlike the file's first row")
    time_ns = _date_ns(match[1], match[2] or "Z") if match else None
    if time_ns is None or not 0 <= time_ns <= MAX_TIME_NS:
        what = "a date from 1970 to 2200" if match else "a time such as '2023-11-16 18:15:46.6805900'"
        raise ValueError(f"{column} is {short(text)}, not {what}")
    return time_ns


def _date_ns(text: str, zone: str) -> int | None:
    """Nanoseconds since 1970, which datetime would cut to microseconds; None where there is no such date."""
    whole, _, fraction = text.partition(".")
    try:
        since = datetime.datetime.fromisoformat(whole + zone) - _EPOCH
    except (ValueError, OverflowError):
        return None
    return (since.days * 86_400 + since.seconds) * 10**9 + int(fraction.ljust(9, "0"))


def _from_json(text: str, layout: Layout) -> Request:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of nested brackets
        raise ValueError("is not JSON that can be read (a number too long or brackets too deep)") from error
    if not isinstance(record, dict):
        raise ValueError("is not a JSON object")
    form = layout.format
    missing = [key for key in form.columns if key not in record]
    if missing:
        raise ValueError(f"lacks the key(s) {', '.join(missing)}")
    name, scale = UNITS[layout.unit]
    time, blocks = record[form.time], record[form.blocks]
    # type() and not isinstance(): True is an int. NaN, which the json module reads, fails every comparison.
    if type(time) not in (int, float) or not 0 <= time * scale <= MAX_TIME_NS:
        raise ValueError(f"{form.time} is {short(time)}, not a number of {name} from 0 to the year 2200")
    if form.whole and time != math.floor(time):
        raise ValueError(f"{form.time} is {short(time)}, not a whole number of {name}; multiply it if it is of seconds")
    for key in (form.tokens, form.output):
        if type(record[key]) is not int or not 0 <= record[key] <= MAX_TOKENS:
            raise ValueError(f"{key} is {short(record[key])}, not a whole number from 0 to {MAX_TOKENS}")
    if type(blocks) is not list:
        raise ValueError(f"{form.blocks} is {short(blocks)}, not a list of whole numbers")
    wrong = [block for block in blocks if type(block) is not int or not 0 <= block <= MAX_ID]
    if wrong:
        raise ValueError(f"{form.blocks} holds {short(wrong[0])}, not a whole number from 0 to {MAX_ID}")
    return Request(to_ns(float(time), scale), record[form.tokens], blocks)
