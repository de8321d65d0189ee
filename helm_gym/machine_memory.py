"""How much memory this process may still take, and the refusal of what would take more."""

from __future__ import annotations

import math
import pathlib
import resource
from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError

_MEMINFO, _STATM = pathlib.Path("/proc/meminfo"), pathlib.Path("/proc/self/statm")
_CGROUP = pathlib.Path("/sys/fs/cgroup")  # a container sees its own limit here
_LIMITS = (  # of version 2 and of version 1: limit, use, and the part of it that the kernel gives back
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
_GIB = 2**30
_FREE = 1.0 / 16.0  # of what there is, for what no estimate counts


def available_bytes() -> float:
    """What can be allocated before the system runs out, this container's limit is met, or this process's (ulimit).

    Infinity where none of them is known.
    """
    return min(_of_machine(), _of_container(), _of_process())


def require(need: float, what: str, instead: str, free: float | None = None) -> None:
    """Refuses what this machine cannot hold, before anything of it is allocated.

    Args:
        need: bytes.
        what: needs them, at the start of the sentence.
        instead: what to do.
        free: bytes that there are, of another memory than this process's own.

    Raises:
        InvalidInputError: there are fewer.
    """
    there = (available_bytes() if free is None else free) * (1.0 - _FREE)
    if need > there:
        raise InvalidInputError(f"{what} needs about {_text(need)} of memory, and {_text(there)} are free; {instead}.")


def bytes_a_unit(arrays: Iterable[NDArray[Any]]) -> int:
    """Memory that one more entry of the first axis takes; the arrays may have none, and then they take nothing."""
    return sum(math.prod(array.shape[1:]) * array.itemsize for array in arrays)


def _text(count: float) -> str:
    return f"{count / _GIB:,.1f} GiB" if count < 1e6 * _GIB else f"{count / _GIB:.1e} GiB"


def _of_machine() -> float:
    for line in _read(_MEMINFO).splitlines():
        if line.startswith("MemAvailable:"):
            return 1024.0 * int(line.split()[1])
    return math.inf


def _of_container() -> float:
    for *names, given_back in _LIMITS:
        limit, used, stat = (_read(_CGROUP / name).strip() for name in names)
        if limit.isdigit() and used.isdigit():
            spare = next((float(line.split()[1]) for line in stat.splitlines() if line.split()[0] == given_back), 0.0)
            return float(limit) - float(used) + spare
    return math.inf


def _of_process() -> float:
    """Of address space, and of its writable part."""
    counts = [int(count) * resource.getpagesize() for count in _read(_STATM).split()]
    if len(counts) < 6:
        return math.inf
    used = {resource.RLIMIT_AS: counts[0], resource.RLIMIT_DATA: counts[5]}
    limits = {kind: resource.getrlimit(kind)[0] for kind in used}
    return min(math.inf if limit == resource.RLIM_INFINITY else limit - used[kind] for kind, limit in limits.items())


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
