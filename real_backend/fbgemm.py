"""The one door to fbgemm: imports it on first use and says plainly when it does not go with the installed torch."""

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

from helm_gym.errors import IncompatibleError, InvalidInputError

_DISTRIBUTIONS = ("fbgemm-gpu-cpu", "fbgemm-gpu")  # the same module, built for one device or the other


@functools.cache
def operators() -> Any:
    """``torch.ops.fbgemm`` with the operators in it.

    Raises:
        IncompatibleError: fbgemm is absent, or built for another torch.
    """
    cause: Exception | None = None
    # A build that lacks training libraries reports each one on import; none of them is needed here.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("fbgemm_gpu")
        except Exception as error:  # a foreign binary interface shows as ImportError, OSError or RuntimeError
            cause = error
    if cause is not None or not hasattr(torch.ops.fbgemm, "asynchronous_complete_cumsum"):
        raise IncompatibleError(
            f"torch {torch.__version__} and fbgemm {_version()} do not go together; "
            "install torch==2.13.0 with fbgemm-gpu-cpu==1.8.0 (on CUDA: fbgemm-gpu==1.8.0)."
        ) from cause
    return torch.ops.fbgemm


def offsets(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """Where each of ``lengths`` (batch,) starts when all lie end to end, and the total: int64 (batch + 1,)."""
    result: torch.Tensor = operators().asynchronous_complete_cumsum(
        torch.tensor(lengths, dtype=torch.int64, device=device)
    )
    return result


def pad(x: torch.Tensor, lengths: Sequence[int], starts: torch.Tensor, width: int) -> torch.Tensor:
    """Jagged (tokens, d) -> (batch, width, d), with zeros behind each sequence.

    Raises:
        InvalidInputError: a sequence is longer than ``width``; fbgemm itself would cut it off silently.
    """
    if max(lengths) > width:
        raise InvalidInputError(f"A sequence of {max(lengths)} tokens does not fit in {width}; raise the width.")
    result: torch.Tensor = operators().jagged_to_padded_dense(x, [starts], [width], 0.0)
    return result


def unpad(x: torch.Tensor, starts: torch.Tensor, total: int) -> torch.Tensor:
    """(batch, width, d) -> jagged (tokens, d); ``total`` tokens, so that the device need not be asked."""
    result: torch.Tensor = operators().dense_to_jagged(x, [starts], total)[0]
    return result


def _version() -> str:
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "(not installed)"
