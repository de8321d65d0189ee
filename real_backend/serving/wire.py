"""What the service and a node's process tell each other: packets of a Unix socket, and memory that both see.

A packet is a fixed head and an array behind it; nothing is pickled. ``SOCK_SEQPACKET`` keeps packets whole and in
order, and says when the other side is gone.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

ASK, TARGET, ANSWER, REPORT, CACHED, READY, FAILED = range(1, 8)
MAX_PACKET = 1 << 17
CACHED_A_PACKET = 8192  # users whose KV a node lists in one

_HEAD = struct.Struct("<BBHIiiiid")  # kind, flag, count, number, four integers, a float
FIELDS = 4


def packet(
    kind: int,
    number: int = 0,
    fields: tuple[int, int, int, int] = (0, 0, 0, 0),
    value: float = 0.0,
    array: NDArray[Any] | None = None,
    flag: int = 0,
) -> bytes:
    head = _HEAD.pack(kind, flag, 0 if array is None else len(array), number, *fields, value)
    return head if array is None else head + array.tobytes()


class Packet:
    """A packet that has come."""

    __slots__ = ("_body", "count", "fields", "flag", "kind", "number", "value")

    def __init__(self, content: bytes):
        self.kind, self.flag, self.count, self.number, *fields, self.value = _HEAD.unpack_from(content)
        self.fields: tuple[int, int, int, int] = tuple(fields)
        self._body = content

    def array(self, dtype: Any) -> NDArray[Any]:
        """What follows the head; read-only."""
        return np.frombuffer(self._body, dtype, offset=_HEAD.size)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, 1 << 21)
    return pair


class SharedMemory:
    """Memory without a name, which a child sees by its descriptor; it is gone with the last process that has it."""

    def __init__(self, size: int, descriptor: int | None = None):
        if descriptor is None:
            descriptor = os.memfd_create("helm-gym", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, max(1, size))
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, max(1, size))

    def array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        count = int(np.prod(shape))
        return np.frombuffer(self._map, dtype, count).reshape(shape)
