"""The one decorator for compiled code, and a compilation cache that can never be stale.

numba's on-disk cache looks at the file of the function it stores and not at the functions that this one calls, so
an edit in another module would go unnoticed, and so would one to a constant that a kernel froze. Here the cache folder
is named after the text of every module that kernels live in or take constants from: an edit compiles all again.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_SOURCES = (
    "baselines/predictors/trees.py",
    "agents/three_layer_ppo/adapter.py",
    "agents/three_layer_ppo/base.py",
    "agents/three_layer_ppo/curves.py",
    "agents/three_layer_ppo/policy.py",
    "agents/three_layer_ppo/recovery.py",
    "helm_gym/observation.py",
    "helm_gym/passes.py",
    "helm_gym/reward.py",
    "helm_gym/routing.py",
    "helm_gym/telemetry.py",
    "helm_gym/workload/*.py",
    "real_backend/*.py",
    "real_backend/memory/*.py",
    "surrogate_backend/clusters/kernels/*.py",
    "surrogate_backend/layout.py",
    "surrogate_backend/noise.py",
    "surrogate_backend/kernels/*.py",
)


def _cache_folder() -> pathlib.Path:
    digest = hashlib.sha256(numba.__version__.encode())
    for pattern in _SOURCES:
        for path in sorted(_ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    base = os.environ.get("HELM_GYM_CACHE") or pathlib.Path.home() / ".cache" / "helm-gym"
    return pathlib.Path(base) / "kernels" / digest.hexdigest()[:16]


if not numba.config.CACHE_DIR:
    numba.config.CACHE_DIR = str(_cache_folder())


def kernel(function: F) -> F:
    """Compiles ``function`` to machine code on first use, without the interpreter lock, and keeps it on disk.

    Kernels work in the arrays they are given and allocate none, so they are compiled without numba's reference
    counts: with them, each call that passes a tuple of forty arrays makes eighty atomic increments, and a request
    took 200 us instead of 5. Kernels are inlined into those that call them for the same reason: handing such a tuple on
    costs more than what most of them do. What needs an allocation (a sort, say) is done by numpy before the call.
    """
    compiled: F = numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True)(function)
    return compiled
