"""What a policy's file must be: the rules by id, the limits with their reasons, and how a refusal is written."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import NoReturn

from helm_gym.errors import RefusedError
from helm_gym.text import plain, shorten

MAX_FILE_BYTES = 8 * 2**20  # two million weights; the largest that is shipped has 98 kB
MAX_METADATA_ENTRIES, MAX_METADATA_BYTES = 64, 64 * 2**10  # shipped: 14 entries, 1.3 kB
MAX_NODES = 5_000  # functions expanded; onnxruntime takes half a microsecond a node and decision
MAX_FUNCTION_DEPTH = 8  # exporters nest functions three deep
MAX_VALUES = 50_000  # names that nodes read or write, and attributes that they have
MAX_PARTS = 200_000  # messages of protobuf in all, so that looking at each takes a fraction of a second
MAX_STATE = 16_384  # floats a row; 350 past observations
MAX_RANK, MAX_AXIS = 8, 2**24  # axes of a tensor, and the length of one
MAX_KNOWN = 64  # elements of a constant whose values are followed: shapes, axes, divisors
MAX_ROW_OPERATIONS = 50_000_000  # multiply-adds a row and decision; 5 ms on one core
MAX_ROW_BYTES = 2**19  # of all intermediate values of a row: 1,024 rows take 1 GiB as onnxruntime rounds up
MAX_FIXED_OPERATIONS = 50_000_000  # the same of what depends on no row, which is computed on opening
MAX_FIXED_BYTES = 32 * 2**20
MAX_ROW_MS = 50.0  # measured; an interval of 50 requests lasts about 150 ms
PROBE_SECONDS = 10.0  # after which the decisions that are tried are cut off
MAX_PROBE_BYTES = 512 * 2**20  # that the process may grow by while they are tried
MIN_OPSET, MAX_OPSET = 13, 25  # of the default domain: 13 made axes inputs; onnx 1.21 and onnxruntime know 25
MIN_IR, MAX_IR = 4, 13  # before 4 every weight had to be an input, too
MAX_SENTENCE = 360  # characters of a refusal, without the file's name

# id -> what must hold; docs/policies.md has the same table
RULES = {
    "file": "The path is a regular file that can be read, or a link to one.",
    "size": f"The file has at most {MAX_FILE_BYTES >> 20} MiB.",
    "format": f"One whole ONNX model of IR version {MIN_IR} to {MAX_IR}, without fields that are not known here.",
    "metadata": f"At most {MAX_METADATA_ENTRIES} entries and {MAX_METADATA_BYTES >> 10} KiB of metadata, each key "
    "once, saying what `helm-gym export` writes.",
    "checksum": "The checksum in the metadata is that of the rest of the file.",
    "made-for": "Made for the observation layout, clock and profile that are used.",
    "action": "Its action is the one that its place needs: a node's or a router's.",
    "opset": f"One version, {MIN_OPSET} to {MAX_OPSET}, of the default operator set.",
    "nodes": f"At most {MAX_NODES:,} nodes, functions expanded, {MAX_VALUES:,} names and attributes of them, and "
    f"{MAX_PARTS:,} parts in all.",
    "functions": f"Functions nest at most {MAX_FUNCTION_DEPTH} deep, never call themselves and use the model's own "
    "operator set.",
    "control-flow": "No branches and loops: a decision is one pass through the graph.",
    "training": "No training information, and no operator in training mode.",
    "external-data": "All weights are inside the file.",
    "types": "Tensors of float32, float64, int32, int64 and bool; nothing sparse, no strings, sequences, optionals.",
    "constants": "Each constant has as much data as its shape says, and no NaN.",
    "domain": "Operators of the default domain, and functions that are inside the file.",
    "random": "No operator that draws random numbers.",
    "operator": "Operators of the list in docs/policies.md.",
    "schema": "Nodes are as the ONNX standard describes them.",
    "signature": "Inputs obs [lanes, D] and state [lanes, S], outputs action [lanes, A] and state_out [lanes, S], "
    f"float32; S is at most {MAX_STATE:,}.",
    "fixed-batch": "Any number of lanes is taken.",
    "across-lanes": "No operator joins values of different lanes.",
    "lane-count": "The number of lanes shapes tensors and enters no value.",
    "shape": "Every shape follows from the file and the number of lanes and holds something; at most "
    f"{MAX_RANK} axes, each of at most {MAX_AXIS:,}.",
    "integer-division": "Integers are divided by constants only, and never by 0 or -1.",
    "operations": f"At most {MAX_ROW_OPERATIONS:,} multiply-adds a row, and {MAX_FIXED_OPERATIONS:,} that depend on "
    "no row.",
    "memory": f"Intermediate values take at most {MAX_ROW_BYTES >> 10} KiB a row, and {MAX_FIXED_BYTES >> 20} MiB "
    "where they depend on no row.",
    "runtime": "onnxruntime opens the graph and runs it without an error.",
    "finite": "Actions and states are finite, also on extreme observations.",
    "deterministic": "The same observation and state give the same action and state.",
    "batch": "A row gets the same action alone, among others and in any order.",
    "time": f"A decision of one row takes at most {MAX_ROW_MS:g} ms; those that are tried on opening at most "
    f"{PROBE_SECONDS:g} seconds.",
}


def refuse(rule: str, sentence: str) -> NoReturn:
    """Raises RefusedError of that rule, its sentence bounded and printable."""
    assert rule in RULES, rule
    raise RefusedError(rule, shown(sentence, MAX_SENTENCE))


def shown(text: str, limit: int = 60) -> str:
    """One line of ``text`` of at most ``limit`` characters, without what a terminal would obey."""
    cut = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return shorten(plain(" ".join(cut.split())), limit)


def quoted(name: str) -> str:
    """A name from the file as it can be shown."""
    return f"'{shown(name)}'"


def first_line(error: Exception) -> str:
    """What a library says of a file, as it can be shown."""
    return shown(str(error).strip().partition("\n")[0], 200)


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Puts the file's name before a refusal and its rule behind it."""
    try:
        yield
    except RefusedError as error:
        name = str(path) if len(str(path)) < 100 else f"...{str(path)[-96:]}"
        raise type(error)(error.rule, f"Policy {shown(name, 100)}: {error} (rule {error.rule})") from error
