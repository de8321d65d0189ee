"""A dataclass's YAML form: checked key by key when it is read, and written whole or not at all."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import typing
from collections.abc import Hashable
from typing import Any, Literal

import yaml

from helm_gym import files
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.ranges import ranges_of
from helm_gym.text import shorten, shown

MAX_BYTES = 256 * 1024  # 1,024 nodes and as many outages take half of it
_INSTEAD = "give a YAML file of text"
_REASON = 200  # characters of what the parser says
# What a damaged or hostile text makes PyYAML raise beside its own errors: of numbers, dates and tags that are none.
_NO_YAML = (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, OverflowError)


def _refusal(problem: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


class _Loader(yaml.SafeLoader):
    """Texts, numbers, booleans, lists and mappings; a date is a text. No aliases, which can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if isinstance(event := self.peek_event(), yaml.AliasEvent):
            raise _refusal(f"it has an alias (*{event.anchor}); write the value out", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        found: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in found:
                raise _refusal(f"it has the key {shown(key.value)} twice; give it once", key.start_mark)
            found.add(key.value)
        return super().construct_mapping(node, deep)


_KEPT = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _KEPT
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(kind: Any, path: pathlib.Path) -> Any:
    """Makes the dataclass ``kind`` of a YAML file.

    Raises:
        UnknownNameError: a key that ``kind`` does not have.
        InvalidInputError: the file is not YAML, or a value is of another type, out of its range or does not fit the
            others.
    """
    what = kind.__name__
    content = files.read_bytes(path, what, MAX_BYTES, _INSTEAD)
    try:
        data = yaml.load(content.decode("utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{what} {path} is no text in UTF-8 (byte {error.start}); {_INSTEAD}.") from error
    except RecursionError as error:
        raise InvalidInputError(f"{what} {path} is nested too deep; {_INSTEAD}.") from error
    except _NO_YAML as error:
        said = shorten(" ".join(str(error).split()).replace('in "<unicode string>", ', "at "), _REASON).rstrip(".")
        raise InvalidInputError(f"{what} {path} is not YAML: {said}.") from error
    return _build(kind, data, str(path), "")


def save(instance: Any, path: pathlib.Path) -> None:
    """Writes a dataclass as YAML.

    Raises:
        InvalidInputError: the place cannot be written to.
    """
    files.write(path, yaml.safe_dump(dataclasses.asdict(instance), sort_keys=False, width=100))


def from_fields(kind: Any, data: object, where: str) -> Any:
    """Makes the dataclass ``kind`` of its fields as plain values, checked as those of a YAML file are.

    Args:
        where: they come from, at the start of a sentence.

    Raises:
        UnknownNameError: a key that ``kind`` does not have.
        InvalidInputError: no mapping, or a value is of another type, out of its range or does not fit the others.
    """
    return _build(kind, data, where, "")


def _build(kind: Any, data: object, where: str, key: str) -> Any:
    """Makes the dataclass ``kind`` of a mapping, key by key, with errors that name file and key."""
    label = key or "the file"
    if not isinstance(data, dict):
        raise InvalidInputError(f"{where}: {label} must be a mapping, not {type(data).__name__}.")
    fields = ranges_of(kind)
    for name in data:
        if name not in fields:
            known = [f"{key}.{field}".lstrip(".") for field in fields]
            raise UnknownNameError(f"key in {where}", f"{key}.{name}".lstrip("."), known)
    values = {}
    for field in dataclasses.fields(kind):
        full = f"{key}.{field.name}".lstrip(".")
        if field.name in data:
            values[field.name] = _value(*fields[field.name], data[field.name], where, full)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InvalidInputError(f"{where}: {full} is missing.")
    return kind(**values)


def _value(hint: Any, allowed: Any, value: Any, where: str, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, key)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise InvalidInputError(f"{where}: {key} must be a list, not {shown(value)}.")
        inner = typing.get_args(hint)[0]
        return tuple(_value(inner, None, entry, where, f"{key}[{k}]") for k, entry in enumerate(value))
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            given = value if isinstance(value, str) else shown(value)
            raise UnknownNameError(f"value of {key} in {where}", given, map(str, typing.get_args(hint)))
        return value
    if hint is float and type(value) is int:
        value = float(value) if value.bit_length() < 1024 else math.inf
    if type(value) is not hint:
        raise InvalidInputError(f"{where}: {key} must be {hint.__name__}, not {shown(value)}{_advice(hint, value)}.")
    if allowed is not None and value not in allowed:
        raise InvalidInputError(f"{where}: {key} must be {allowed}, not {shown(value)}.")
    return value


def _advice(hint: Any, value: Any) -> str:
    """YAML takes 1e-5 for a text."""
    if hint is not float or not isinstance(value, str):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    return f" (in YAML a number has a point before its exponent: {number!r})" if "e" in value.lower() else ""
