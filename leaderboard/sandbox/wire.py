"""What parent and child say to each other, over two pipes: texts with their length, and arrays of known shape.

    parent: Setup as JSON, the file's bytes         child: Opened as JSON, or a fault
    parent: rows, observation, state                child: 0, action, state; or 1 and a fault

Both ends check every length before they read as much: neither trusts the other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym import files

Floats = NDArray[np.float32]
Read = Callable[[int], bytes]

COUNT = struct.Struct("<I")
MAX_TEXT = 256 * 2**10
DONE, FAULT = b"\0", b"\1"


def packed(text: str | bytes) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return COUNT.pack(len(content)) + content


def read_sized(read: Read, limit: int) -> bytes:
    """Bytes behind their length; raises ValueError where they are more than ``limit``."""
    (length,) = COUNT.unpack(read(COUNT.size))
    if length > limit:
        raise ValueError(f"{length} bytes were announced; at most {limit} are read")
    return read(length)


def read_object(read: Read) -> dict[str, Any]:
    """A JSON object; raises ValueError for anything else, HelmError where it is no JSON."""
    value = files.parse_json(read_sized(read, MAX_TEXT), "What came through the pipe")
    if not isinstance(value, dict):
        raise ValueError("a JSON object was expected")
    return value


def read_floats(read: Read, rows: int, width: int) -> Floats:
    """(rows, width), writable."""
    return np.frombuffer(bytearray(read(4 * rows * width)), np.float32).reshape(rows, width)
