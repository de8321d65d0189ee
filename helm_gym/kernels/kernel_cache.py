"""Where kernels' machine code is kept between processes: a file for each key, in a folder of this user's own.

Files are unpickled, so they are read only where nobody but this user and root can have written them. A damaged one is
as good as none. Where no folder will do, kernels are compiled for the process at hand.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import pickle
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from helm_gym.errors import InvalidInputError
from helm_gym.kernels.kernel_key import NotKeyedError, key_of

LIMIT = 512 << 20  # bytes in a folder; what was used longest ago goes first. All kernels together take some 50 MiB
QUIET = "HELM_GYM_QUIET"  # set in the environment: it is not said that kernels are compiled
_DIGEST = hashlib.sha256().digest_size

compiled: list[str] = []  # which kernels this process has compiled, not found in the cache
silent = False  # in a process whose caller says everything


class KernelCache(NullCache):
    """What numba asks for a kernel's machine code before it compiles it, and hands it to afterwards.

    Args:
        kernel: numba's dispatcher.
    """

    def __init__(self, kernel: Any):
        self._kernel = kernel
        self._name = f"{kernel.py_func.__module__}.{kernel.py_func.__qualname__}"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The machine code for these types of arguments; None where numba must compile it."""
        target_context.refresh()
        if file := self._file(sig, target_context.codegen()):
            for folder in _folders()[0]:
                with contextlib.suppress(Exception):  # whatever is wrong with a file, its kernel can be compiled
                    return CompileResult._rebuild(target_context, *pickle.loads(_read(folder / file)))
        compiled.append(self._name)
        if not os.environ.get(QUIET):
            say("Compiling kernels for this machine, which takes about a minute; `helm-gym warm` does so beforehand.")
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps what numba compiled, in the first folder that takes it."""
        file = self._file(sig, data.codegen)
        if file is None or data.library.has_dynamic_globals:
            return
        payload = dumps(data._reduce())
        folders, problems = _folders()
        kept = None
        for folder in folders:
            try:
                _write(folder / file, hashlib.sha256(payload).digest() + payload)
            except OSError as error:
                problems[folder] = error.strerror or type(error).__name__
            else:
                kept = folder
                _prune(kept)
                break
        if problems:
            say(_complaint(problems, f"they are in {kept}" if kept else "each process compiles them anew"))

    def _file(self, sig: Any, codegen: Any) -> str | None:
        try:
            key = key_of(self._kernel, sig, codegen.magic_tuple())
        except NotKeyedError as error:
            say(f"Each process compiles {self._name} anew: {error}, from which no key of a cache can be made.")
            return None
        return f"{re.sub(r'[^A-Za-z0-9_.]', '', self._name)[-120:]}-{key}"


@functools.cache
def say(text: str) -> None:
    """Says a sentence on stderr, once a process."""
    if sys.stderr is not None and not silent:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it
            print(f"helm-gym: {text}", file=sys.stderr, flush=True)


def folder() -> pathlib.Path:
    """Where machine code is kept from now on.

    Raises:
        InvalidInputError: nowhere.
    """
    found, problems = _folders()
    if not found or not os.access(found[-1], os.W_OK):
        raise InvalidInputError(_complaint(problems, "each process would compile them anew"))
    if problems:
        say(_complaint(problems, f"they are in {found[-1]}"))
    return found[-1]


def _complaint(problems: dict[pathlib.Path, str], instead: str) -> str:
    where = " nor ".join(f"in {folder} ({reason})" for folder, reason in problems.items())
    return f"Compiled kernels cannot be kept {where}: {instead}. Set HELM_GYM_CACHE to a folder of your own."


def _candidates() -> Iterator[pathlib.Path]:
    own, shared = os.environ.get("HELM_GYM_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    base = own or os.path.join(shared if os.path.isabs(shared) else "~/.cache", "helm-gym")
    yield pathlib.Path(os.path.expanduser(base), "kernels")
    with contextlib.suppress(FileNotFoundError):  # a system where nothing can be written
        yield pathlib.Path(tempfile.gettempdir(), f"helm-gym-kernels-{os.geteuid()}")


@functools.cache
def _folders() -> tuple[list[pathlib.Path], dict[pathlib.Path, str]]:
    """The folders to be read, up to the first that can be written too, and what is wrong with those passed over."""
    found: list[pathlib.Path] = []
    problems: dict[pathlib.Path, str] = {}
    for folder in _candidates():
        problem = _problem(folder)
        if problem:
            problems[folder] = problem
            continue
        found.append(folder.absolute())
        if os.access(folder, os.W_OK):
            break
        problems[folder] = "it can only be read"
    return found, problems


def _problem(folder: pathlib.Path) -> str | None:
    """Makes the folder, for this user alone to write, and says what keeps it from being used."""
    if folder.parts[0].startswith("~"):
        return "this user has no home"
    try:
        folder.mkdir(0o755, parents=True, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not _is_ours(status):
            folder.chmod(0o755)
            status = folder.lstat()
    except OSError as error:
        return error.strerror or type(error).__name__
    return None if stat.S_ISDIR(status.st_mode) and _is_ours(status) else "others can write there"


def _is_ours(status: os.stat_result) -> bool:
    """Whether only this user, or root, can write there."""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(path: pathlib.Path) -> bytes:
    with path.open("rb") as file:
        if not _is_ours(os.fstat(file.fileno())):
            raise PermissionError(f"{path} is another user's")
        data = file.read()
    digest, payload = data[:_DIGEST], data[_DIGEST:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError(f"{path} is damaged")
    with contextlib.suppress(OSError):  # a folder that can only be read
        os.utime(path)  # used just now
    return payload


def _write(path: pathlib.Path, data: bytes) -> None:
    """Puts the whole file in place at once: another process may do the same, or be killed in the middle."""
    handle, unfinished = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o644)  # what root has compiled may be read by all
            file.write(data)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise


@functools.cache
def _prune(folder: pathlib.Path) -> None:
    """Once a process, removes what was used longest ago and lies above the limit."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process was quicker
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    kept = 0
    for _, size, path in sorted(found, reverse=True):
        kept += size
        if kept > LIMIT:
            with contextlib.suppress(OSError):
                path.unlink()
