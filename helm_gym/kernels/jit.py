"""The one decorator for compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.core.dispatcher import Dispatcher

from helm_gym.kernels.kernel_cache import KernelCache

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F, fastmath: bool | set[str] = False) -> F:
    """Compiles ``function`` to machine code on first use, without the interpreter lock, and keeps it on disk.

    What is kept follows from all that the kernel calls and reads (``kernel_key``), so it is never stale.

    Kernels work in the arrays they are given and allocate none, so they are compiled without numba's reference
    counts: with them, each call that passes a tuple of forty arrays makes eighty atomic increments, and a request
    took 200 us instead of 5. Kernels are inlined into those that call them for the same reason: handing such a tuple on
    costs more than what most of them do. What needs an allocation (a sort, say) is done by numpy before the call.

    Args:
        function: in the part of Python that numba compiles.
        fastmath: liberties with floating-point numbers, as numba's option of the same name.
    """
    compiled: Any = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath, _nrt=False, forceinline=True)(
        function
    )
    if isinstance(compiled, Dispatcher):  # NUMBA_DISABLE_JIT leaves it a function
        compiled._cache = KernelCache(compiled)  # type: ignore[attr-defined]  # numba's types leave it out
    return compiled
