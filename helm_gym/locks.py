"""Locks that end with the process that holds them, however it ends: the kernel's, on files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from helm_gym import files
from helm_gym.errors import HelmError, InvalidInputError

FOLDER_LOCK = ".lock"  # in a folder that one process at a time may fill
_LOOK_EVERY_S = 0.2


def lock(path: pathlib.Path, wait: bool = False) -> BinaryIO | None:
    """Opens ``path``, which is made if it is not there, and locks it until the file is closed or this process ends.

    Who is done with it may remove it before closing it.

    Returns:
        The file; None where another process holds it, unless it is waited for.

    Raises:
        OSError: it cannot be opened, or its file system has no locks.
    """
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass  # its holder removed it between its opening and its lock
        except BaseException:
            file.close()
            raise
        file.close()


@contextlib.contextmanager
def alone(folder: pathlib.Path, busy: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Has a folder to itself, among the processes that ask.

    Args:
        folder: made if it is not there.
        busy: the sentence if another process has it.
        waiting: called now and then while another process has it, which is waited for; it is not where None.

    Raises:
        HelmError: another process has it.
        InvalidInputError: the folder cannot be written, or its file system has no locks.
    """
    path = folder / FOLDER_LOCK
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = lock(path)
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"{path} cannot be locked: {files.reason(error)}; give another folder.") from error
        if held is not None:
            break
        if waiting is None:
            raise HelmError(busy)
        waiting()
        time.sleep(_LOOK_EVERY_S)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        held.close()
