"""The formats of recorded arrivals that are read: one table, and how a file's first lines say which it is."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Sequence

from helm_gym import registry
from helm_gym.errors import InvalidInputError

# Grammars of a CSV field, in the notation that Python's `re` and Arrow's RE2 share.
DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
ZONE = r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
NUMBER = r"[0-9]{1,20}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,2})?"
WHOLE = r"[0-9]{1,10}"

UNITS = {
    "s": ("seconds", 10**9),
    "ms": ("milliseconds", 10**6),
    "us": ("microseconds", 10**3),
    "ns": ("nanoseconds", 1),
}
DATES = ("date", "date and zone")  # the units besides: a date in UTC, and one that names its offset from UTC
EARLIEST_S, LATEST_S = 631_152_000, 7_258_118_400  # 1990 and 2200: what a count since 1970 may be
MAX_COLUMNS = 1000
COUNTED = tuple(f"arrival_{unit}" for unit in UNITS)


@dataclasses.dataclass(frozen=True)
class Format:
    """A published format of arrivals, a row a request.

    Attributes:
        name: as messages and the documentation call it.
        kind: ``csv`` with a header, or ``jsonl``, a JSON object a line.
        time: the column (or key) of arrival times.
        unit: of the time: a key of ``UNITS``, ``date``, or ``either`` where the first row tells.
        tokens: the column of input tokens; none where the format has none.
        output: the column of output tokens, checked and not kept: a recommender generates nothing.
        blocks: the key of a list of ids of the input's blocks, which tell what an earlier request left to reuse.
        tells: further columns without which it is not this format.
        whole: whether times are whole numbers; a fraction then says that the unit is another.
        alone: whether it has no other columns.
        source: where it is published.
    """

    name: str
    kind: str
    time: str
    unit: str
    tokens: str = ""
    output: str = ""
    blocks: str = ""
    tells: tuple[str, ...] = ()
    whole: bool = False
    alone: bool = False
    source: str = "your own file"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that a file of the format has, those it is told by first."""
        used = (self.time, self.tokens, self.output, self.blocks)
        return (*self.tells, *(name for name in used if name))


# Of those whose columns a file all has, the first is it: Qwen-Bailian's has all of Mooncake's, in another unit.
FORMATS: tuple[Format, ...] = (
    Format(
        "Azure LLM inference CSV",
        "csv",
        "TIMESTAMP",
        "date",
        tokens="ContextTokens",
        output="GeneratedTokens",
        source="github.com/Azure/AzurePublicDataset: AzureLLMInferenceTrace_*.csv of 2023 and, with offsets, 2024",
    ),
    Format(
        "BurstGPT CSV",
        "csv",
        "Timestamp",
        "s",
        tokens="Request tokens",
        output="Response tokens",
        tells=("Model", "Log Type"),
        source="github.com/HPMLL/BurstGPT, its releases: BurstGPT_*.csv, with and without Session ID",
    ),
    Format(
        "ServeGen CSV",
        "csv",
        "timestamp",
        "s",
        tokens="input_tokens",
        output="output_tokens",
        tells=("request_id",),
        source="github.com/alibaba/ServeGen: what its save_requests_to_csv writes",
    ),
    Format(
        "ServeGen multimodal CSV",
        "csv",
        "timestamp",
        "s",
        tokens="text_tokens",
        output="output_tokens",
        tells=("request_id",),
        source="github.com/alibaba/ServeGen: the same of its multimodal models",
    ),
    Format(
        "Qwen-Bailian JSONL",
        "jsonl",
        "timestamp",
        "s",
        tokens="input_length",
        output="output_length",
        blocks="hash_ids",
        tells=("chat_id",),
        source="github.com/alibaba-edu/qwen-bailian-usagetraces-anon: qwen_*_blksz_16.jsonl",
    ),
    Format(
        "Mooncake JSONL",
        "jsonl",
        "timestamp",
        "ms",
        tokens="input_length",
        output="output_length",
        blocks="hash_ids",
        whole=True,
        source="github.com/kvcache-ai/Mooncake: FAST25-release/traces/*.jsonl",
    ),
    *(Format(f"arrival times in {UNITS[unit][0]}", "csv", f"arrival_{unit}", unit, alone=True) for unit in UNITS),
    # Its header may be absent: then the first line is a time.
    Format("arrival times", "csv", "timestamp", "either", alone=True),
)


def formats() -> tuple[Format, ...]:
    """The table, and before it the formats that are registered as readers."""
    others = [(entry, entry.load()) for entry in registry.listed("reader").values()]
    wrong = next((entry for entry, form in others if not isinstance(form, Format)), None)
    if wrong is not None:
        raise InvalidInputError(f"Reader '{wrong.name}' is no Format of helm_gym.workload.readers.trace_formats.")
    return (*(form for _, form in others), *FORMATS)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the rows of one file are to be read.

    Attributes:
        unit: of its times, told by its first row where the format leaves it open: a key of ``UNITS`` or of ``DATES``.
        header: the names of a CSV file's columns, in order.
        first: number of the line of the first row.
    """

    format: Format
    unit: str
    header: tuple[str, ...] = ()
    first: int = 1

    @property
    def name(self) -> str:
        """The format, and the unit where the format has several."""
        if self.format.unit != "either":
            return self.format.name
        return f"arrival times in {UNITS[self.unit][0] + ' since 1970' if self.unit in UNITS else 'dates'}"


def detect(where: str, lines: Sequence[str]) -> Layout:
    """Tells the format by a file's first two lines, the second of which may be absent.

    Args:
        where: the file, for messages.
        lines: without their ends.

    Raises:
        InvalidInputError: no format of the table, or the unit of time cannot be told.
    """
    head = lines[0] if lines else ""
    if not head:
        raise InvalidInputError(f"{where}, line 1: is empty; give a trace in one of the formats of docs/traces.md.")
    if head.lstrip().startswith("{"):
        return _detect_jsonl(where, head)
    header = _fields(head)
    if len(header) == 1 and (unit := unit_of(header[0])) != "":
        form = next(form for form in FORMATS if form.unit == "either")
        return Layout(form, _told(where, 1, header[0], unit), (form.time,), first=1)
    found = next((form for form in formats() if form.kind == "csv" and _fits(form, header)), None)
    if found is None or len(header) > MAX_COLUMNS:
        raise InvalidInputError(f"{where}, line 1: {short(head)} starts no known trace format; {_hint(head, header)}.")
    twice = [name for name in found.columns if header.count(name) > 1]
    if twice:
        raise InvalidInputError(f"{where}, line 1: names the column {twice[0]} twice; name each once.")
    unit = found.unit
    if unit in ("date", "either"):
        row, at = _fields(lines[1]) if len(lines) > 1 else (), header.index(found.time)
        told = unit_of(row[at]) if at < len(row) else ""
        if unit == "date":
            unit = told if told in DATES else DATES[0]
        else:
            unit = _told(where, 2, row[at], told) if told else DATES[0]
    return Layout(found, unit, header, first=2)


def unit_of(text: str) -> str:
    """The unit that a time says by itself: one of ``DATES``, or of ``UNITS`` for a count since 1970.

    Returns:
        ``?`` for a number that may be of several units, and nothing for what is no time.
    """
    if re.fullmatch(DATE, text):
        return DATES[0]
    if re.fullmatch(DATE + ZONE, text):
        return DATES[1]
    if not re.fullmatch(NUMBER, text):
        return ""
    # No two units are possible at once: what is a time of our day in one of them is far off it in the others.
    since = float(text) / 10**9
    return next((unit for unit, (_, scale) in UNITS.items() if EARLIEST_S <= since * scale < LATEST_S), "?")


def _told(where: str, line: int, text: str, unit: str) -> str:
    if unit == "?":
        raise InvalidInputError(
            f"{where}, line {line}: {short(text)} does not say its unit of time; write it as the file's first line: "
            f"{', '.join(COUNTED[:-1])} or {COUNTED[-1]}."
        )
    return unit


def _fields(line: str) -> tuple[str, ...]:
    """Of a line of CSV; none where it is not CSV."""
    try:
        return tuple(next(csv.reader([line], strict=True), []))
    except csv.Error:
        return ()


def _fits(form: Format, header: Sequence[str]) -> bool:
    return set(form.columns) <= set(header) and (not form.alone or len(header) == 1)


def _detect_jsonl(where: str, head: str) -> Layout:
    """The first of the formats whose keys the first object has; the last where none: its reader says what is amiss."""
    forms = [form for form in formats() if form.kind == "jsonl"]
    try:
        record = json.loads(head)
    except (ValueError, RecursionError):
        record = {}
    form = next((form for form in forms if all(key in record for key in form.tells)), forms[-1])
    return Layout(form, form.unit)


def _hint(head: str, header: Sequence[str]) -> str:
    """What to do about a first line that is of no format."""
    for separator, called in ((";", "';'"), ("\t", "tabs")):
        if separator in head and "," not in head:
            return f"write commas between its columns in place of {called}"
    if head.startswith("["):
        return "write JSON as one object a line, without brackets around them"
    if re.fullmatch(r"[0-9]+,[0-9.]+,[0-9.]+,(Gamma|Weibull|),[0-9.]+,[0-9.]+", head):
        return "it holds ServeGen's rates, and no arrivals; write those with its save_requests_to_csv"
    if len(header) > 1 and all(unit_of(field) for field in header):
        return "it has no header; add the format's, and write decimals with a point and thousands without a sign"
    if len(header) == 1:
        return f"name its column by the unit: {', '.join(COUNTED[:-1])} or {COUNTED[-1]}"
    return "docs/traces.md lists the formats with their columns, such as " + ",".join(FORMATS[0].columns)


def short(value: object) -> str:
    """The value as a message shows it: printable, and no longer than a line can bear."""
    text = repr(value if not isinstance(value, str) else value[:60])
    return text if len(text) <= 60 else text[:57] + "..."
