"""Text files from outside, plain or packed by gzip, as blocks of whole lines in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import os
import pathlib
import stat
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from helm_gym.errors import InvalidInputError

MAX_LINE_BYTES = 1 << 20  # Mooncake writes one id for 512 tokens: over 60 million tokens of context
BLOCK_BYTES = 2 << 20
MAX_EXPANSION, EXPANSION_FROM = 200, 64 << 20  # of gzip: bytes out for one in, looked at from so many bytes out
TOO_LONG = f"exceeds {MAX_LINE_BYTES} bytes; give a file of one request a line"
NOT_UTF8 = "is not UTF-8 text; give a file saved as UTF-8"

BOM = b"\xef\xbb\xbf"  # byte order mark of UTF-8
_GZIP = b"\x1f\x8b"
_UNPACK = "unpack it, or pack it with gzip"
_NOT_TEXT = {
    b"PK\x03\x04": ("a Zip archive (as .xlsx files are, too)", "unpack it, or save it as CSV"),
    b"PAR1": ("a Parquet file", "save it as CSV"),
    b"ARROW1": ("an Arrow file", "save it as CSV"),
    b"\x28\xb5\x2f\xfd": ("packed by Zstandard", _UNPACK),
    b"\xfd7zXZ\x00": ("packed by xz", _UNPACK),
    b"BZh": ("packed by bzip2", _UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
    b"version https://git-lfs": ("a pointer of Git LFS and not the file itself", "fetch that with `git lfs pull`"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines of a file: ``count`` of them, from number ``first`` on, each ended by a newline, the last one too."""

    first: int
    count: int
    text: bytes

    def after_first(self) -> Lines:
        at = self.text.index(b"\n") + 1
        return Lines(self.first + 1, self.count - 1, self.text[at:])

    def halves(self) -> tuple[Lines, Lines]:
        """The same, parted near the middle; there are two lines at least."""
        middle = len(self.text) // 2
        at = self.text.rfind(b"\n", 0, middle) + 1 or self.text.find(b"\n", middle) + 1
        left = self.text[:at]
        count = left.count(b"\n")
        return Lines(self.first, count, left), Lines(self.first + count, self.count - count, self.text[at:])


def longest_within(text: bytes, limit: int) -> bool:
    """Whether no line of a text that ends with one has more than ``limit`` bytes, its end included."""
    start = 0
    while len(text) - start > limit:
        start = text.rfind(b"\n", start, start + limit) + 1
        if start == 0:
            return False
    return True


def quoted_whole(lines: bytes) -> bool:
    """Whether all quotes come in pairs around a whole field, with none inside."""
    text = np.frombuffer(b"\n" + lines, np.uint8)
    quotes = np.flatnonzero(text == ord('"'))
    opening, closing = quotes[0::2], quotes[1::2]
    if len(opening) != len(closing):
        return False
    before, after = text[opening - 1], text[closing + 1]
    return bool(
        np.isin(before, np.frombuffer(b",\n", np.uint8)).all()
        and np.isin(after, np.frombuffer(b",\r\n", np.uint8)).all()
    )


def line_blocks(path: pathlib.Path) -> Iterator[Lines]:
    """Yields a file's lines, about ``BLOCK_BYTES`` of them at a time.

    A byte order mark is left out. A line may be too long yet (``MAX_LINE_BYTES``), or not UTF-8.

    Raises:
        InvalidInputError: the file cannot be read, is not a regular file, is of a kind that is not text, is damaged
            or expands beyond all recordings, or a line has no end within ``BLOCK_BYTES``.
    """
    number = 1
    with _readable(path), open_regular(path) as file:
        head = file.read(max(map(len, _NOT_TEXT)))
        file.seek(0)
        for magic, (what, to_do) in _NOT_TEXT.items():
            if head.startswith(magic):
                raise InvalidInputError(f"{path}: is {what}; {to_do}.")
        for block in _unpacked(path, file) if head.startswith(_GZIP) else _whole_lines(file):
            if number == 1:
                block = block.removeprefix(BOM)
            whole = block if block.endswith(b"\n") else block[: block.rfind(b"\n") + 1]
            count = whole.count(b"\n")
            if count:
                yield Lines(number, count, whole)
                number += count
            if len(block) - len(whole) > MAX_LINE_BYTES:
                raise InvalidInputError(f"{path}, line {number}: {TOO_LONG}.")
            if len(whole) < len(block):  # the last line
                yield Lines(number, 1, block[len(whole) :] + b"\n")


def first_lines(path: pathlib.Path, head: Lines) -> list[str]:
    """The first two lines of a file, or one."""
    raw = head.text.split(b"\n", 2)[: min(2, head.count)]
    if len(raw[0]) >= MAX_LINE_BYTES:
        raise InvalidInputError(f"{path}, line 1: {TOO_LONG}.")
    try:
        first = raw[0].decode()
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path}, line 1: {NOT_UTF8}.") from None
    # The second is looked at for its unit only; what is wrong about it is said when it is read.
    return [line.removesuffix("\r") for line in (first, *(line.decode(errors="replace") for line in raw[1:]))]


def _whole_lines(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    """Blocks that end with a line, but for the last one, and one with a line that is too long."""
    while block := file.read(BLOCK_BYTES):
        yield block if block.endswith(b"\n") else block + file.readline(MAX_LINE_BYTES + 1)


def open_regular(path: pathlib.Path) -> BinaryIO:
    """Opens a regular file for reading, without waiting for what is none: a pipe, a device.

    Raises:
        OSError: it cannot be opened.
        InvalidInputError: it is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise InvalidInputError(f"Cannot read {str(path)!r}: it is {kind}; give the path of a readable file.")
    return io.BufferedReader(io.FileIO(descriptor))


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(f"Cannot read {str(path)!r}: {reason}; give the path of a readable file.") from error


def _unpacked(path: pathlib.Path, file: BinaryIO) -> Iterator[bytes]:
    total = 0
    try:
        with gzip.GzipFile(fileobj=file) as packed:
            for block in _whole_lines(packed):
                total += len(block)
                if total > max(EXPANSION_FROM, MAX_EXPANSION * file.tell()):
                    raise InvalidInputError(
                        f"{path}: expands over {MAX_EXPANSION} times, as no recording does; give it unpacked if it is "
                        "one."
                    )
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInputError(f"{path}: is a damaged gzip file ({error}); make or fetch it again.") from error
