"""Jagged operators: fbgemm's where it goes with the installed torch, torch's own elsewhere, with the same results.

fbgemm is built for one release of torch. A machine with another one needs nothing but torch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import io
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from helm_gym.errors import InvalidInputError

_DISTRIBUTIONS = ("fbgemm-gpu-cpu", "fbgemm-gpu")  # the same module, built for one device or the other


@functools.cache
def operators() -> Any | None:
    """``torch.ops.fbgemm`` with the operators in it; None where fbgemm is absent, or built for another torch."""
    # A build that lacks training libraries reports each one on import; none of them is needed here.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("fbgemm_gpu")
        except Exception:  # a foreign binary interface shows as ImportError, OSError or RuntimeError
            return None
    return torch.ops.fbgemm if hasattr(torch.ops.fbgemm, "asynchronous_complete_cumsum") else None


def described() -> str:
    """Which operators are used, for reports."""
    if operators() is not None:
        return f"fbgemm {_version()}"
    return f"torch's own: torch {torch.__version__} and fbgemm {_version()} do not go together"


def offsets(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """Where each of ``lengths`` (batch,) starts when all lie end to end, and the total: int64 (batch + 1,)."""
    fbgemm = operators()
    if fbgemm is None:
        starts = torch.zeros(len(lengths) + 1, dtype=torch.int64)
        torch.cumsum(torch.tensor(lengths, dtype=torch.int64), 0, out=starts[1:])
        return starts.to(device)
    result: torch.Tensor = fbgemm.asynchronous_complete_cumsum(torch.tensor(lengths, dtype=torch.int64, device=device))
    return result


def pad(x: torch.Tensor, lengths: Sequence[int], starts: torch.Tensor, width: int) -> torch.Tensor:
    """Jagged (tokens, d) -> (batch, width, d), with zeros behind each sequence.

    Raises:
        InvalidInputError: a sequence is longer than ``width``; fbgemm itself would cut it off silently.
    """
    if max(lengths) > width:
        raise InvalidInputError(f"A sequence of {max(lengths)} tokens does not fit in {width}; raise the width.")
    fbgemm = operators()
    if fbgemm is None:
        padded = x.new_zeros((len(lengths) * width, x.shape[1]))
        return padded.index_copy_(0, _places(starts, x.shape[0], width), x).view(len(lengths), width, x.shape[1])
    result: torch.Tensor = fbgemm.jagged_to_padded_dense(x, [starts], [width], 0.0)
    return result


def unpad(x: torch.Tensor, starts: torch.Tensor, total: int) -> torch.Tensor:
    """(batch, width, d) -> jagged (tokens, d); ``total`` tokens, so that the device need not be asked."""
    fbgemm = operators()
    if fbgemm is None:
        return x.flatten(0, 1).index_select(0, _places(starts, total, x.shape[1]))
    result: torch.Tensor = fbgemm.dense_to_jagged(x, [starts], total)[0]
    return result


def rows(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``table[index]``: (slots, d) at int64 (tokens,) -> (tokens, d)."""
    fbgemm = operators()
    if fbgemm is None:
        return table.index_select(0, index)
    result: torch.Tensor = fbgemm.index_select_dim0(table, index)
    return result


def _places(starts: torch.Tensor, total: int, width: int) -> torch.Tensor:
    """Of each token among the ``width`` places of every sequence, int64 (total,); the device is not waited for."""
    token = torch.arange(total, device=starts.device)
    sequence = torch.searchsorted(starts, token, right=True) - 1
    return sequence * width + token - starts[sequence]


def _version() -> str:
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "(not installed)"
