"""What commands share: all that they print, options, and how seeds are written.

Names, paths and metadata come from outside. Whatever is printed, as a line, a table, progress or JSON, is made
``plain`` here, so that none of them can move a terminal's cursor or turn the direction of writing.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import math
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.table import Table

from helm_gym import files
from helm_gym.errors import InvalidInputError
from helm_gym.text import literal, plain


class Tick(Protocol):
    """Says how far a stretch of work is."""

    def __call__(self, what: str, done: int, total: int, amount: int | None = None) -> None:
        """``what`` is under way; ``amount``: how many of the stage's units are done, where that is not ``done``."""


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Profile = Annotated[str, typer.Option("--profile", help="A profile's name (`helm-gym profiles`), or a YAML file.")]

MAX_SEEDS = 10_000
_PIPED_WIDTH = 200
_PLAIN_EVERY_S = 10.0


def strict(value: Any) -> Any:
    """``value`` as JSON can hold it: numpy's numbers made Python's, and null where a number is not finite."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if hasattr(value, "tolist"):
        return strict(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any) -> str:
    """Strict JSON; what is not printable is escaped in it, a byte of a file's name that is no UTF-8 too."""
    text = json.dumps(strict(value), indent=2, allow_nan=False, ensure_ascii=False)
    return text if text.replace("\n", "").isprintable() else re.sub(r"[^\n]", _json_character, text)


def _json_character(found: re.Match[str]) -> str:
    character = found[0]
    return character if character.isprintable() else json.dumps(character)[1:-1]


def say(*lines: object) -> None:
    """Lines on stdout."""
    for line in lines:
        typer.echo(plain(str(line)))


def print_json(value: Any) -> None:
    typer.echo(to_json(value))


def check_writable(option: str, path: pathlib.Path) -> None:
    """Makes the folder; raises InvalidInputError before the work, not behind it, where ``path`` cannot be written."""
    instead = "give another path"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # Not under its own name, which a kill would leave empty.
            tempfile.TemporaryFile(dir=path.parent).close()
        elif path.is_file():
            path.open("a").close()
        else:
            raise InvalidInputError(f"{option} {path} is there and is no file; {instead}.")
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{option} {path} cannot be written: {files.reason(error)}; {instead}.") from error


def console() -> Console:
    """Stdout; wide where it is piped, so that no table is folded for a terminal that is not there."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_PIPED_WIDTH)


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table of texts, the first column emphasised."""
    table = Table(title=literal(title), title_justify="left", box=None, pad_edge=False, header_style="dim")
    for number, heading in enumerate(headings):
        last = number == len(headings) - 1
        style = "bold" if number == 0 else ""
        table.add_column(literal(heading), style=style, no_wrap=not last, overflow="fold")
    for row in rows:
        table.add_row(*map(literal, row))
    console().print(table)


class Progress:
    """Says on stderr how far long work is: bars on a terminal, a line now and then elsewhere, nothing when quiet."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        if quiet:
            os.environ["HELM_GYM_QUIET"] = "1"  # kernels are compiled in silence, in processes of this one's, too
        self._console = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        if not self.quiet:
            print(plain(text), file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def stage(self, label: str, unit: str = "") -> Iterator[Tick]:
        """A stretch of work; the callback says how far it is. With a ``unit``, "steps" say, it shows how fast, too."""
        if self.quiet:
            yield lambda what, done, total, amount=None: None
            return
        pace = _Pace(unit)
        if self._console.is_terminal:
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            ends = TextColumn("{task.fields[pace]}") if unit else TimeRemainingColumn()
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), ends)
            with Bars(*columns, console=self._console, transient=True) as bars:
                task = bars.add_task(literal(label), total=None, pace="")

                def advance(what: str, done: int, total: int, amount: int | None = None) -> None:
                    text = pace.text(done, total, amount)
                    described = literal(f"{label}: {what}" if what else label)
                    bars.update(task, completed=done, total=total, description=described, pace=text)

                yield advance
        else:
            self.say(f"{label} ...")
            last = time.monotonic()

            def tick(what: str, done: int, total: int, amount: int | None = None) -> None:
                nonlocal last
                text = pace.text(done, total, amount) if unit else f"{done / max(1, total):.0%}"
                if time.monotonic() - last > _PLAIN_EVERY_S:
                    last = time.monotonic()
                    self.say(f"{label}: {text}{what and f', {what}'}")

            yield tick


class _Pace:
    """How fast work goes and how long it will take, since its first report: part of it may have been done before."""

    def __init__(self, unit: str):
        self._unit = unit
        self._start: tuple[float, int] | None = None

    def text(self, done: int, total: int, amount: int | None) -> str:
        now = time.monotonic()
        if self._start is None:
            self._start = now, done
        since, first = self._start
        if done <= first or now <= since:
            return f"{done}/{total}"
        rate = (done - first if amount is None else amount) / (now - since)
        left = datetime.timedelta(seconds=round((total - done) * (now - since) / (done - first)))
        return f"{done}/{total}, {rate:,.{0 if rate >= 100 else 1}f} {self._unit}/s, {left} left"


def open_by_name(where: str) -> Any:
    """What ``module:attribute`` names: helm_gym imports none of the packages that do the work."""
    module, _, attribute = where.partition(":")
    return getattr(importlib.import_module(module), attribute)


def parse_overrides(texts: Sequence[str]) -> dict[str, str]:
    """Hyper-parameters as ``--set`` gives them; raises InvalidInputError for what is not NAME=VALUE, or given twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InvalidInputError(f"--set '{text}' cannot be read; write NAME=VALUE, such as --set gamma=0.95.")
        if name in found:
            raise InvalidInputError(f"--set gives {name} twice; give it once.")
        found[name] = value
    return found


def parse_seeds(text: str) -> tuple[int, ...]:
    """``5``: seeds 0 to 4; ``0-9``, ``3,5`` or ``0-3,7``: those.

    Raises:
        InvalidInputError: anything else, a seed twice, or none.
    """
    how = "write how many (5), a range (0-9) or a list (3,5)."
    if not re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*,?", text):
        raise InvalidInputError(f"--seeds '{text}' cannot be read; {how}")
    if text.isdecimal():
        spans = [(0, int(text) - 1)]
    else:
        parts = (part.partition("-") for part in text.rstrip(",").split(","))
        spans = [(int(first), int(last or first)) for first, _, last in parts]
    if sum(max(0, last - first + 1) for first, last in spans) > MAX_SEEDS:
        raise InvalidInputError(f"--seeds '{text}' is more than {MAX_SEEDS} episodes; {how}")
    seeds = tuple(seed for first, last in spans for seed in range(first, last + 1))
    if not seeds or any(last < first for first, last in spans):
        raise InvalidInputError(f"--seeds '{text}' names no seed; {how}")
    if len(set(seeds)) < len(seeds):
        raise InvalidInputError(f"--seeds '{text}' names a seed twice; name each once.")
    return seeds
