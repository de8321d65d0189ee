"""Ranges of fields, declared beside them, and the one check of a dataclass against them.

@dataclasses.dataclass(frozen=True)
class Pool:
    pages: Annotated[int, Within(2, 2**24)]
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any

from helm_gym.errors import InvalidInputError
from helm_gym.text import shown

NAME = 64  # characters of a name


@dataclasses.dataclass(frozen=True)
class Within:
    """The numbers from ``low`` to ``high``, both included; without ``low`` where it is ``above``.

    Attributes:
        or_nan: whether it may also be NaN, "not known".
    """

    low: float
    high: float
    above: bool = False
    or_nan: bool = False

    def __contains__(self, value: float) -> bool:
        if value != value:
            return self.or_nan
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        low, high = _number(self.low), _number(self.high)
        return f"above {low} and at most {high}" if self.above else f"{low} to {high}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e13 else f"{value:g}"


@dataclasses.dataclass(frozen=True)
class Text:
    """Printable texts of at most ``most`` characters."""

    most: int

    def __contains__(self, value: str) -> bool:
        return len(value) <= self.most and value.isprintable()

    def __str__(self) -> str:
        return f"a printable text of at most {self.most} characters"


@dataclasses.dataclass(frozen=True)
class Name:
    """What can be a file's name, anywhere, and the value of an option."""

    def __contains__(self, value: str) -> bool:
        return (
            0 < len(value) <= NAME
            and value.isprintable()
            and not set(value) & set("/\\")
            and not value.startswith((".", "-"))
            and value == value.strip()
        )

    def __str__(self) -> str:
        return (
            f"a name: 1 to {NAME} printable characters, without slashes, and with no dot, hyphen or space at its start"
        )


Range = Within | Text | Name


def check_name(what: str, name: str) -> str:
    """Returns ``name``.

    Raises:
        InvalidInputError: it is none.
    """
    if name not in Name():
        raise InvalidInputError(f"{what} must be {Name()}, not {shown(name)}.")
    return name


@functools.cache
def ranges_of(kind: Any) -> dict[str, tuple[Any, Range | None]]:
    """Type and range of each field of a dataclass, in their order."""
    found: dict[str, tuple[Any, Range | None]] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        bare, *extras = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        found[name] = bare, next((extra for extra in extras if isinstance(extra, Range)), None)
    return found


def check_ranges(instance: Any, where: str, key: str = "") -> None:
    """Checks the fields of a dataclass, and of those in it, against the ranges that they are declared with.

    Args:
        where: at the start of the sentence: the file, or what it is.
        key: of the instance, before its fields' names.

    Raises:
        InvalidInputError: a value is out of its range, which is said.
    """
    kind: Any = type(instance)
    for name, (_, allowed) in ranges_of(kind).items():
        value, full = getattr(instance, name), f"{key}.{name}".lstrip(".")
        for number, entry in enumerate(value if isinstance(value, tuple) else (value,)):
            if dataclasses.is_dataclass(entry):
                check_ranges(entry, where, f"{full}[{number}]" if isinstance(value, tuple) else full)
            elif allowed is not None and entry not in allowed:
                raise InvalidInputError(f"{where}: {full} must be {allowed}, not {shown(entry)}.")
