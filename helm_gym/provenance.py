"""What a result was obtained on: the machine in words, and the versions that decide its numbers."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform

_PACKAGES = ("helm-gym", "numpy", "scipy", "numba", "torch", "fbgemm-gpu-cpu", "fbgemm-gpu", "onnxruntime")


def describe_machine(device: str = "cpu") -> str:
    """Processor, cores, memory, system and, for ``device`` cuda, the GPU that torch sees."""
    parts = [
        _processor(),
        f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores",
    ]
    memory = _memory_gib()
    if memory:
        parts.append(f"{memory} GiB")
    if device == "cuda":
        import torch  # takes seconds, and only a GPU's name needs it

        parts.append(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
    return ", ".join([*parts, f"{platform.system()} {platform.release()}"])


def versions() -> dict[str, str]:
    """Version of Python and of each library that is installed, by name."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    except (ValueError, OSError, AttributeError):  # a system that does not tell
        return None
