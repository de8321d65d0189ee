"""Ways in which a file can be wrong: damaged as bytes, with values that cannot be, or no file at all."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import pathlib
import re
import shutil
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st

from helm_gym.ranges import Within, ranges_of

Draw = Any  # what hypothesis hands to a composite
Way = Callable[[bytes], st.SearchStrategy[bytes]]
Content = bytes | Callable[[pathlib.Path], None]  # or what makes something of the path that is no such file

_WORDS = (
    *("0", "-1", "1", "2", "0.5", "1e30", "1e308", "-0.0", "nan", ".nan", "NaN", "inf", "-.inf", "Infinity", "1e999"),
    *("5", "16", "64", "1000", "100000", "4294967296", "9" * 30, "9" * 5000, "0x" + "f" * 3000, "true", "null", "~"),
    *('"x"', "''", "[]", "{}", "[1, 2]", "{a: 1}", '{"a": 1}', "- " * 200, "[" * 2000, "2026-13-45", "1:30"),
    *("!!python/object:x y", "!!binary aGk=", "&a [*a]", "*a", "../../x", '"\\u001b[31m"', "\x1b[2J", '"\u202e"'),
    *("x" * 3000, '"' + "y" * 70_000 + '"'),
)
_TOKEN = re.compile(r'"[^"\n]*"|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|[\w./-]+')


def _fifo(path: pathlib.Path) -> None:
    os.mkfifo(path)


def _endless(path: pathlib.Path) -> None:
    path.symlink_to("/dev/zero")


def _folder(path: pathlib.Path) -> None:
    path.mkdir()


def _loop(path: pathlib.Path) -> None:
    path.symlink_to(path.name)


def _nothing(path: pathlib.Path) -> None:
    """The file is missing."""


_NO_FILE = (_fifo, _endless, _folder, _loop, _nothing)


def put(path: pathlib.Path, content: Content) -> None:
    """Writes a mutated file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)


@st.composite
def mutated(draw: Draw, content: bytes, suffix: str, own: Way | None = None) -> Content:
    """``content`` of a file that ends in ``suffix``, made wrong in one to three ways that fit it."""
    ways = {
        ".yaml": (words, words, words, damaged),
        ".json": (words, words, damaged, deep),
        ".jsonl": (words, words, damaged, deep),
        ".csv": (words, words, damaged),
        ".safetensors": (tensors, tensors, damaged),
        ".parquet": (columns, columns, damaged),
        ".onnx": (graphs, graphs, damaged),
    }.get(suffix, (damaged,))
    if own is not None and draw(st.booleans()):
        return draw(own(content))
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(_NO_FILE))
    for _ in range(draw(st.integers(1, 3))):
        content = draw(draw(st.sampled_from(ways))(content))
    return content


@st.composite
def extreme(draw: Draw, kind: type, content: bytes) -> bytes:
    """One to three numbers of a dataclass's YAML at the ends of the ranges that it declares, or somewhere between."""
    data = yaml.safe_load(content)
    places = [place for place in _numbers(kind, data) if isinstance(place[2], Within)]
    for _ in range(draw(st.integers(1, 3))):
        holder, name, allowed, whole = draw(st.sampled_from(places))
        low, high = allowed.low, allowed.high
        there, least = holder[name], low + 1e-3 * allowed.above
        values = (
            least,
            high,
            math.sqrt(max(least, 1e-3) * high),
            low + 1,
            low + 7,
            10 * there,
            3 * there,
            there / 3,
            there / 10,
        )
        value = min(max(draw(st.sampled_from(values)), least), high)
        holder[name] = int(value) if whole else float(value)
    return yaml.safe_dump(data).encode()


def _numbers(kind: type, data: Any) -> Iterator[tuple[Any, Any, Any, bool]]:
    """Where the numbers are: what holds them, under which key, their range, and whether they are whole."""
    for name, (hint, allowed) in ranges_of(kind).items():
        if name not in data:
            continue
        listed = isinstance(data[name], list)
        for holder, key in [(data[name], k) for k in range(len(data[name]))] if listed else [(data, name)]:
            inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
            if dataclasses.is_dataclass(inner):
                yield from _numbers(inner, holder[key])
            elif inner in (int, float):
                yield holder, key, allowed, inner is int


@st.composite
def damaged(draw: Draw, content: bytes) -> bytes:
    """Bytes cut off, turned, left out, doubled or put in."""
    at = draw(st.integers(0, len(content)))
    length = draw(st.sampled_from((1, 2, 8, 64, 1000)))
    return draw(
        st.sampled_from(
            (
                content[:at],
                content[:at] + bytes(b ^ 0x55 for b in content[at : at + length]) + content[at + length :],
                content[:at] + content[at + length :],
                content[:at] + content[at : at + length] * 3 + content[at + length :],
                content[:at] + b"\xff\x00\x1b" * length + content[at:],
                b"",
            )
        )
    )


@st.composite
def words(draw: Draw, content: bytes) -> bytes:
    """A value, a key or a name replaced, left out or doubled."""
    text = content.decode("utf-8", errors="surrogateescape")
    found = list(_TOKEN.finditer(text))
    if not found:
        return content
    token = found[draw(st.integers(0, min(len(found), 400) - 1))]
    word = draw(st.sampled_from((*_WORDS, "", token[0] * 2, "-" + token[0], token[0] + "0" * 6)))
    return (text[: token.start()] + word + text[token.end() :]).encode("utf-8", errors="surrogateescape")


@st.composite
def deep(draw: Draw, content: bytes) -> bytes:
    bracket = draw(st.sampled_from((b"[", b'{"a":')))
    return bracket * draw(st.sampled_from((70, 1000, 100_000))) + content


_DTYPES = ("F32", "F64", "F16", "BF16", "F8_E4M3", "I8", "I32", "I64", "U64", "BOOL", "C64", "X")


@st.composite
def tensors(draw: Draw, content: bytes) -> bytes:
    """A tensor of another type, shape, name or place, one less, or one of values that are odd."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        name = draw(st.sampled_from([key for key in header if key != "__metadata__"]))
    except (ValueError, IndexError, UnicodeDecodeError):
        return content
    data, way = (
        content[8 + length :],
        draw(st.sampled_from(("type", "shape", "drop", "rename", "offset", "values", "facts"))),
    )
    entry = header[name]
    if way == "type":
        entry["dtype"] = draw(st.sampled_from(_DTYPES))
    elif way == "shape":
        shapes = ([], [1], [0], entry["shape"][::-1], [*entry["shape"], 1], [2**40, 2**40], [-1], [1, *entry["shape"]])
        entry["shape"] = draw(st.sampled_from(shapes))
    elif way == "drop":
        del header[name]
    elif way == "rename":
        header[draw(st.sampled_from(("x", "\x1b[31m", "n" * 5000, name + " ")))] = header.pop(name)
    elif way == "offset":
        entry["data_offsets"] = draw(st.sampled_from(([0, 2**62], [5, 1], [-1, 4], [0, 0])))
    elif way == "values":
        start, stop = entry["data_offsets"]
        odd = draw(
            st.sampled_from((b"\x00\x00\xc0\x7f", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x7f\x7f\x7f\x7f"))
        )
        data = data[:start] + (odd * ((stop - start) // 4 + 1))[: stop - start] + data[stop:]
    else:
        facts = ("{", "[]", "[" * 5000, '{"cost": "x"}', '{"cost": NaN}', "{}", '{"step": 1e999}')
        header["__metadata__"] = {"facts": draw(st.sampled_from(facts))}
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + data


@st.composite
def columns(draw: Draw, content: bytes) -> bytes:
    """A column less, twice, of another name or type, or with a value that is odd; rows less or more."""
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError, ValueError):
        return content
    at = draw(st.integers(0, table.num_columns - 1))
    name, values = table.column_names[at], table.column(at).to_pylist()
    way = draw(st.sampled_from(("drop", "twice", "rename", "values", "values", "text", "rows", "none")))
    if way == "drop":
        table = table.remove_column(at)
    elif way == "twice":
        table = table.append_column(name, table.column(at))
    elif way == "rename":
        table = table.rename_columns([n + "\x1b[31m" if n == name else n for n in table.column_names])
    elif way == "rows":
        table = draw(st.sampled_from((table.slice(0, 0), table.slice(1), pa.concat_tables([table] * 50))))
    elif way == "text":
        table = table.set_column(at, name, pa.array(["\x1b[31m" * 2000] * table.num_rows))
    elif way == "none":
        table = table.set_column(at, name, pa.array([None] * table.num_rows, table.column(at).type))
    elif values and isinstance(values[0], int | float | str):
        odd = draw(st.sampled_from((-1, 0, 1e300, float("nan"), float("inf"), 2**31 - 1, "\u202e", "")))
        values[draw(st.integers(0, len(values) - 1))] = odd
        try:
            table = table.set_column(at, name, pa.array(values, table.column(at).type))
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return content
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


@st.composite
def graphs(draw: Draw, content: bytes) -> bytes:
    """A node less or elsewhere, another shape, type or fact; mostly with the checksum that goes with it."""
    import onnx

    from helm_gym.policies.onnx_check import checksum

    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception:  # protobuf's have no common base
        return content
    graph = model.graph
    way = draw(st.sampled_from(("drop", "operator", "shape", "type", "fact", "fact", "names", "opset", "twice")))
    if way in ("drop", "operator", "names", "twice") and graph.node:
        at = draw(st.integers(0, len(graph.node) - 1))
        if way == "drop":
            del graph.node[at]
        elif way == "operator":
            graph.node[at].op_type = draw(
                st.sampled_from(("Loop", "RandomNormal", "MatMul", "Tile", "X\x1b[31m", "Reshape"))
            )
        elif way == "twice":
            graph.node.append(graph.node[at])
        elif graph.node[at].input:
            graph.node[at].input[0] = draw(st.sampled_from(("nowhere", "", "\x1b[31m", "obs")))
    elif way in ("shape", "type") and (values := [*graph.input, *graph.output]):
        value = values[draw(st.integers(0, len(values) - 1))]
        if way == "type":
            value.type.tensor_type.elem_type = draw(st.integers(0, 23))
        elif value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[-1].dim_value = draw(st.sampled_from((0, 1, 3, 10**9, -1)))
    elif way == "fact" and model.metadata_props:
        entry = model.metadata_props[draw(st.integers(0, len(model.metadata_props) - 1))]
        entry.value = draw(st.sampled_from(("", "0", "9" * 5000, "\x1b[31m", "../../x", "nan", "-1")))
    elif way == "opset" and model.opset_import:
        model.opset_import[0].version = draw(st.sampled_from((0, 1, 99999)))
    for entry in model.metadata_props:
        if entry.key == "checksum" and draw(st.integers(0, 3)):
            entry.value = checksum(model)
    return bytes(model.SerializeToString())


@dataclasses.dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        files: good ones, by their paths; one of them is made wrong.
        commands: that read them.
        prepare: what else they need, in a folder.
        way: of making a file wrong that is this kind's own.
        good: whether the first command ends with status 0 where no file is wrong.
    """

    name: str
    files: Callable[[], dict[str, bytes]]
    commands: tuple[tuple[str, ...], ...]
    prepare: Callable[[pathlib.Path], object] = lambda folder: None
    way: Way | None = None
    good: bool = True
