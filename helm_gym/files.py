"""Files from and for outside: read only if they are files, only so far, and written whole or not at all.

Whatever opens a file that a user or a stranger names (a profile, a trace, a policy, a run) opens it here.
"""

from __future__ import annotations

import errno
import json
import os
import pathlib
import stat
from typing import Any

from helm_gym.errors import InvalidInputError

MIB = 2**20
MAX_JSON_BYTES = 64 * MIB
MAX_DEPTH = 64  # of lists and objects in one another
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))
_BLOCK = 4 * MIB


def read_bytes(path: pathlib.Path, what: str, limit: int, instead: str = "give another file") -> bytes:
    """A regular file's content.

    The size is that of what is read and not what the file system says; what never ends (a pipe, a device) is not
    opened for longer than it takes to see that.

    Args:
        what: names it at the start of a sentence, such as ``Profile``.
        limit: bytes that it may have.
        instead: what to do where it cannot be read, at the sentence's end.

    Raises:
        InvalidInputError: it is not there, not readable, no regular file or too large.
    """
    try:
        content = read_start(path, limit + 1)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{what} {path} cannot be read: {reason(error)}; {instead}.") from error
    if len(content) > limit:
        raise InvalidInputError(f"{what} {path} is larger than {_size(limit)}; {instead}.")
    return content


def read_start(path: pathlib.Path, count: int) -> bytes:
    """At most the first ``count`` bytes of a regular file.

    Raises:
        OSError: it is not there, not readable, or no regular file.
        ValueError: a path with a NUL byte.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer blocks else
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
            raise OSError(errno.EINVAL, f"it is no regular file but {kind}")
        content = bytearray()
        while len(content) < count and (block := os.read(descriptor, min(_BLOCK, count - len(content)))):
            content += block
        return bytes(content)
    finally:
        os.close(descriptor)


def parse_json(content: bytes | str, where: str, instead: str = "give another file") -> Any:
    """What JSON says, nested at most ``MAX_DEPTH`` deep, so that nothing that walks through it runs out of stack.

    Args:
        where: the file, and the line where there is one, at the start of a sentence.

    Raises:
        InvalidInputError: no UTF-8, no JSON, or deeper.
    """
    value: Any = None
    deep = False
    try:
        value = json.loads(content if isinstance(content, str) else content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{where} is no text in UTF-8 (byte {error.start}); {instead}.") from error
    except ValueError as error:  # of json, or of a number with thousands of digits
        raise InvalidInputError(f"{where} is not JSON ({reason(error)}); {instead}.") from error
    except RecursionError:
        deep = True
    if deep or _deeper_than(value, MAX_DEPTH):
        raise InvalidInputError(f"{where} is JSON nested more than {MAX_DEPTH} deep; {instead}.")
    return value


def read_json(path: pathlib.Path, what: str, limit: int = MAX_JSON_BYTES, instead: str = "give another file") -> Any:
    """``parse_json`` of ``read_bytes``.

    Raises:
        InvalidInputError: see both.
    """
    return parse_json(read_bytes(path, what, limit, instead), f"{what} {path}", instead)


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file whole or not at all; what a kill leaves is ``unfinished(path)``.

    Raises:
        InvalidInputError: the place cannot be written to.
    """
    beside = unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of bytes that are no UTF-8 may stand in a text.
        beside.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
        beside.replace(path)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be written: {reason(error)}; give another folder.") from error


def unfinished(path: pathlib.Path) -> pathlib.Path:
    """Where ``write`` writes before it gives a file its name."""
    return path.with_name(f".{path.name}.tmp")


def reason(error: Exception) -> str:
    """What an error says, in few words: the system's own where it has some."""
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip().partition("\n")[0]
    return told.rstrip(".")


def _size(count: int) -> str:
    return f"{count // MIB} MiB" if count >= MIB else f"{count // 1024} KiB" if count >= 1024 else f"{count} bytes"


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return bool(level)


def _inside(value: Any) -> list[Any]:
    """The lists and objects in a list or object."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [entry for entry in inner if isinstance(entry, dict | list)]
