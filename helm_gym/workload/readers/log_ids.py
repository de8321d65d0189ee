"""Ids of users and items, whatever they look like, as small numbers: by a hash of 64 bits and a table that grows.

Two ids whose hashes are the same would be counted as one: of ten million ids, with a chance of 3 in a million.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from helm_gym.kernels.jit import kernel

if TYPE_CHECKING:
    import pyarrow as pa

_FIRST_SLOTS = 1 << 16


@kernel
def _mix(x):
    """The end of MurmurHash3: all bits of the result depend on all of ``x``."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


@kernel
def _hash_texts(offsets, data, keys):
    """FNV-1a of each text; offsets: (n + 1,), data: bytes, keys: (n,) uint64."""
    for i in range(keys.shape[0]):
        h = np.uint64(0xCBF29CE484222325)
        for j in range(offsets[i], offsets[i + 1]):
            h = (h ^ np.uint64(data[j])) * np.uint64(0x100000001B3)
        keys[i] = _mix(h)


@kernel
def _hash_numbers(numbers, keys):
    for i in range(keys.shape[0]):
        keys[i] = _mix(np.uint64(numbers[i]))


@kernel
def _number(keys, start, slots, codes, count, numbers):
    """Numbers the keys from ``start`` on, new ones in order; returns how far it came before the table was half full."""
    mask = np.uint64(slots.shape[0] - 1)
    for i in range(start, keys.shape[0]):
        if 2 * count[0] >= slots.shape[0]:
            return i
        key = keys[i]
        at = key & mask
        while codes[at] >= 0 and slots[at] != key:
            at = (at + np.uint64(1)) & mask
        if codes[at] < 0:
            slots[at], codes[at] = key, count[0]
            count[0] += 1
        numbers[i] = codes[at]
    return keys.shape[0]


@kernel
def _move(old_slots, old_codes, slots, codes):
    mask = np.uint64(slots.shape[0] - 1)
    for i in range(old_slots.shape[0]):
        if old_codes[i] >= 0:
            at = old_slots[i] & mask
            while codes[at] >= 0:
                at = (at + np.uint64(1)) & mask
            slots[at], codes[at] = old_slots[i], old_codes[i]


@kernel
def _objects_by_line(text, lines):
    """Whether each line is one JSON object as far as brackets and quotes go: nothing stands before or behind it."""
    depth, quoted, escaped, ended, found = 0, False, False, False, 0
    for i in range(text.shape[0]):
        c = text[i]
        if c == 10:  # the end of a line
            if quoted or depth != 0 or not ended:
                return False
            found += 1
            ended = False
        elif quoted:
            if escaped:
                escaped = False
            elif c == 92:  # backslash
                escaped = True
            elif c == 34:  # quote
                quoted = False
        elif ended:
            if c != 13:
                return False
        elif c == 34:
            if depth == 0:
                return False
            quoted = True
        elif c == 123 or c == 91:
            if depth == 0 and c == 91:
                return False
            depth += 1
        elif c == 125 or c == 93:
            depth -= 1
            if depth < 0:
                return False
            ended = depth == 0
        elif depth == 0:
            return False
    return found == lines


def objects_by_line(text: bytes, lines: int) -> bool:
    """Whether Arrow may read ``text`` as JSON: it crashes on some that has no object, or several, in a line."""
    return bool(_objects_by_line(np.frombuffer(text, np.uint8), lines))


def hash_texts(column: pa.StringArray) -> NDArray[np.uint64]:
    """A key for each text of a column without nulls."""
    keys = np.empty(len(column), np.uint64)
    if len(column):
        _, offsets, data = column.buffers()
        starts = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
        content = np.frombuffer(data, np.uint8) if data is not None else np.zeros(1, np.uint8)
        _hash_texts(starts, content, keys)
    return keys


def hash_numbers(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A key for each number: other than those of texts that look the same."""
    keys = np.empty(len(numbers), np.uint64)
    _hash_numbers(np.ascontiguousarray(numbers, np.int64), keys)
    return keys


class Numbering:
    """Numbers ids by their keys, in the order in which they come."""

    def __init__(self) -> None:
        self._slots, self._codes = np.zeros(_FIRST_SLOTS, np.uint64), np.full(_FIRST_SLOTS, -1, np.int32)
        self._count = np.zeros(1, np.int64)

    def __len__(self) -> int:
        return int(self._count[0])

    def number(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        """(n,) keys -> (n,) numbers from 0 on."""
        numbers = np.empty(len(keys), np.int32)
        done = _number(keys, 0, self._slots, self._codes, self._count, numbers)
        while done < len(keys):
            slots, codes = np.zeros(2 * len(self._slots), np.uint64), np.full(2 * len(self._slots), -1, np.int32)
            _move(self._slots, self._codes, slots, codes)
            self._slots, self._codes = slots, codes
            done = _number(keys, done, slots, codes, self._count, numbers)
        return numbers
