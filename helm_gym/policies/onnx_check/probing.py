"""Trying a policy before it decides anything: are its answers finite, repeatable, of each row's own, and in time."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.policies.onnx_check.rules import MAX_PROBE_BYTES, MAX_ROW_MS, PROBE_SECONDS, first_line, refuse
from helm_gym.policies.onnx_check.walk import OUTPUTS, Walked

Floats = NDArray[np.float32]

_ROWS, _DECISIONS, _MANY = 32, 16, 256
_TOLERANCE = 1e-4  # a matrix product of one row adds up in another order than that of many
_STRAYS = 1  # rows that may differ: where two choices are worth the same, rounding decides


@dataclasses.dataclass(frozen=True)
class Probed:
    """What was measured while decisions were tried.

    Attributes:
        row_ms: of a decision of one row.
        grown_bytes: by which the process grew.
    """

    row_ms: float
    grown_bytes: int


def probe(session: Any, walked: Walked, low: Floats, high: Floats) -> Probed:
    """Tries a policy on observations within ``low`` and ``high`` (D,), among them the bounds themselves.

    Raises:
        RefusedError: it fails, takes too long, is not finite, or answers a row in more than one way.
    """
    before = resident_bytes()
    observation = _observations(low, high)
    with _deadline() as options:

        def decide(seen: Floats, state: Floats) -> tuple[Floats, Floats]:
            try:
                action, following = session.run(OUTPUTS, {"obs": seen, "state": state}, options)
            except Exception as error:  # onnxruntime's have no base of their own
                if options.terminate:
                    refuse("time", f"the decisions that were tried took more than {PROBE_SECONDS:g} seconds.")
                refuse("runtime", f"its graph fails ({first_line(error)}).")
            for name, found, width in (("action", action, walked.actions), ("state_out", following, walked.state)):
                if found.shape != (len(seen), width) or found.dtype != np.float32:
                    refuse("signature", f"its output '{name}' has shape {found.shape} for {len(seen)} rows.")
                if not np.isfinite(found).all():
                    refuse("finite", f"its output '{name}' is {found[~np.isfinite(found)][0]} on an observation.")
            return action, following

        state = np.zeros((_ROWS, walked.state), np.float32)
        for number in range(_DECISIONS):
            state = decide(np.roll(observation, number, axis=0), state)[1]
        first, again = decide(observation, state), decide(observation, state)
        if any((one != other).any() for one, other in zip(first, again, strict=True)):
            refuse("deterministic", "it answers the same observation and state in two ways.")
        _check_rows(decide, observation, state, first)
        row_ms = min(_timed_ms(decide, observation[:1], state[:1]) for _ in range(3))
        if row_ms > MAX_ROW_MS:
            refuse("time", f"a decision of one row takes {row_ms:.0f} ms here; {MAX_ROW_MS:g} are allowed.")
        many = np.resize(np.arange(_ROWS), _MANY)
        decide(observation[many], state[many])
    grown = max(0, resident_bytes() - before)
    if grown > MAX_PROBE_BYTES:
        refuse(
            "memory", f"decisions for {_MANY} rows took {grown / 2**20:.0f} MiB; {MAX_PROBE_BYTES >> 20} are allowed."
        )
    return Probed(row_ms, grown)


def _check_rows(decide: Any, observation: Floats, state: Floats, whole: tuple[Floats, Floats]) -> None:
    """Rows alone, in twos and threes and in the opposite order get what they got all together."""
    orders: list[list[int]] = [[n] for n in range(8)]
    orders += [[n, n + 1] for n in range(8, 14, 2)] + [[14, 15, 16], list(range(_ROWS))[::-1], list(range(17, 32))]
    strays = set()
    for order in orders:
        for found, wanted in zip(decide(observation[order], state[order]), whole, strict=True):
            far = np.abs(found - wanted[order]) > _TOLERANCE * (1 + np.abs(wanted[order]))
            strays |= set(itertools.compress(order, far.any(axis=1)))
    if len(strays) > _STRAYS:
        refuse(
            "batch", f"{len(strays)} of {_ROWS} rows are answered differently alone, among others or in another order."
        )


def _observations(low: Floats, high: Floats) -> Floats:
    """(rows, D): the bounds, nought, figures too small to be normal, corners, and anything between."""
    rng = np.random.default_rng(12)
    corners = np.where(rng.integers(0, 2, (_ROWS // 2, len(low))) > 0, high, low)
    between = low + rng.random((_ROWS - 4 - len(corners), len(low))) * (high - low)
    tiny = np.clip(np.full_like(low, 1e-40), low, high)
    return np.vstack([low, high, np.clip(0, low, high), tiny, corners, between]).astype(np.float32)


@contextmanager
def _deadline() -> Iterator[Any]:
    """Options of runs that are cut off, between two operators, once time is up; the walk has bounded each operator."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    timer = threading.Timer(PROBE_SECONDS, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield options
    finally:
        timer.cancel()


def _timed_ms(decide: Any, observation: Floats, state: Floats) -> float:
    start = time.perf_counter()
    decide(observation, state)
    return 1000 * (time.perf_counter() - start)


def resident_bytes() -> int:
    """Memory that this process has in use."""
    return int(os.pread(_memory_file(os.getpid()), 128, 0).split()[1]) * resource.getpagesize()


@functools.lru_cache(maxsize=1)
def _memory_file(process: int) -> int:
    """Opened once a process: where a sandbox is to open nothing, it has it from before."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
