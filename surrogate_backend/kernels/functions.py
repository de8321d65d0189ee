"""The surrogate's kernel decorator, the blocks that lanes are served in, and stand-ins for exp and log.

Lanes are served in blocks of ``LANES``: arrays of a block are flat, rows of ``m`` = LANES columns, and a lane is a
column. Loops run over a block's ``n`` lanes innermost, and become vector instructions. One lane alone has a block of
one column: there the loops over lanes vanish in compilation, and those over rows become the vectors. A lane goes
through the same operations in the same order whatever block it is in and however full that is, so that one lane alone
and lane k of thousands stay bit-identical: sums may not be reordered, and a test holds it.

What keeps a loop over lanes from becoming vectors, each seen once in the machine code: an index whose sign is not plain
(``y[(first + j) * m + k]``; slice first, then count from 0), more than eight pairs of an array written and another one
(split the loop by what it writes), and a loop over rows inside of it that carries a value on (turn them round).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from helm_gym.kernels import jit

T = TypeVar("T", bound=Callable[..., Any])
F = np.float32
LANES = 128


def kernel(function: T) -> T:
    """Compiles ``function`` like a kernel of the memory manager; multiplications and additions may be fused."""
    return jit.kernel(function, fastmath={"contract", "nsz"})


@kernel
def inverse_exp(x):
    """About exp(-x), for x >= 0: (1 - y + y^2/2 - y^3/6)^64 with y = x / 64, x clipped at 20; a division costs more."""
    y = min(x, F(20.0)) * F(1.0 / 64.0)
    p = F(1.0) - y * (F(1.0) - y * (F(0.5) - y * F(1.0 / 6.0)))
    p *= p
    p *= p
    p *= p
    p *= p
    p *= p
    return p * p


@kernel
def growth(x):
    """About exp(x), for x in [-8, 8], clipped to it: (1 + y + y^2/2 + y^3/6)^8 with y = x / 8. Positive."""
    y = min(max(x, F(-8.0)), F(8.0)) * F(0.125)
    p = F(1.0) + y * (F(1.0) + y * (F(0.5) + y * F(1.0 / 6.0)))
    p *= p
    p *= p
    return p * p


@kernel
def log_ratio(a, b):
    """About half the logarithm of a / b, bounded: (a - b) / (a + b)."""
    return (a - b) / (a + b)


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that begins with a cache line, so that vectors of its rows lie across no two."""
    line = 64  # bytes; numpy's own arrays begin with any 16
    memory = np.empty(array.nbytes + line, np.uint8)
    start = -memory.ctypes.data % line
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def to_blocks(x: NDArray[np.float32], m: int) -> NDArray[np.float32]:
    """(lanes, rows) -> (blocks, rows * m), the last block filled up with its last lane."""
    lanes, rows = x.shape
    padded = np.pad(x, ((0, -lanes % m), (0, 0)), mode="edge")
    return np.ascontiguousarray(padded.reshape(-1, m, rows).swapaxes(1, 2)).reshape(-1, rows * m)
