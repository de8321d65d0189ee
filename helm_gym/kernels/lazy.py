"""Modules that are imported with their first use: a command that opens no loop need not wait for a compiler."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType


@functools.cache
def passes() -> ModuleType:
    """``helm_gym.kernels.control_interval``, the control loop's compiled passes; with it comes numba."""
    return importlib.import_module("helm_gym.kernels.control_interval")
