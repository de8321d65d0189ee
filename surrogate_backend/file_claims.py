"""Claims on files that several processes may want to write: by a lock on the file's unfinished form."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from helm_gym.errors import InvalidInputError
from helm_gym.locks import lock


class Claim:
    """A file that this process alone may write, until it has or lets go of it."""

    def __init__(self, path: pathlib.Path, unfinished: pathlib.Path, file: BinaryIO):
        self._path, self._unfinished, self._file = path, unfinished, file

    def write(self, content: bytes) -> None:
        """Writes the file durably: after a kill or a power cut it is there whole or not at all.

        Raises:
            InvalidInputError: the disk is full, or fails.
        """
        with writing(self._path):
            self._file.truncate(0)
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._unfinished.replace(self._path)
            sync(self._path.parent)
        self._file.close()

    def release(self) -> None:
        """Lets go of what has not been written; does nothing after ``write``."""
        if not self._file.closed:
            self._unfinished.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a full disk again, on what was to be written
                self._file.close()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def take(path: pathlib.Path, wait: bool = False) -> Claim | None:
    """Claims a file; None where it is another's, unless it is waited for."""
    unfinished = path.with_suffix(".tmp")
    with writing(unfinished):
        file = lock(unfinished, wait)
    return None if file is None else Claim(path, unfinished, file)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Makes a sentence of what the system has against ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise InvalidInputError(f"{path} cannot be written ({reason}); make room, or give another folder.") from error


def sync(folder: pathlib.Path) -> None:
    """Makes the names in a folder durable; fsync of a file does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
