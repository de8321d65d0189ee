"""The controller beside the nodes: telemetry goes in, targets come out, and no request waits for either.

A node sends its telemetry at an interval's end and goes on serving; a thread here has the controller decide, and the
node moves towards the new target when it comes. A decision that is late costs a move that is late, and nothing else.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("helm_gym.serving")
_MOST_WAITING = 256  # reports; of more the oldest are dropped, as they are stale


class _Told(NamedTuple):
    node: int
    row: NDArray[np.float64]
    requests: int
    errors: int
    memory_bytes: float | None
    measured_s: float


class Controller(Protocol):
    """What the thread needs of ``helm_gym.deploy.Controller``."""

    def decide(
        self,
        node: int,
        telemetry: NDArray[np.float64] | None,
        now_s: float,
        *,
        measured_s: float,
        requests: int,
        errors: int,
        memory_bytes: float | None,
    ) -> Any: ...

    def status(self) -> dict[str, Any]: ...


class ControlThread:
    """Decides for all nodes, one report after another.

    Args:
        decided: is told each decision, from this thread: (node, Decision, seconds that the whole of it took).
    """

    def __init__(self, controller: Controller, decided: Callable[[int, Any, float], None]):
        self._controller, self._decided = controller, decided
        self._reports: queue.Queue[_Told | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def report(
        self, node: int, row: NDArray[np.float64], requests: int, errors: int, memory_bytes: float | None
    ) -> None:
        """An interval's telemetry, (WIDTH,), and what trials are judged by; returns at once.

        Args:
            errors: requests that were lost with the node since it last reported.
            memory_bytes: that its process takes, where that is known.
        """
        told = _Told(node, row, requests, errors, memory_bytes, time.monotonic())
        while True:
            try:
                return self._reports.put_nowait(told)
            except queue.Full:
                self._reports.get_nowait()

    def close(self) -> None:
        self._reports.put(None)
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while (told := self._reports.get()) is not None:
            started = time.perf_counter()
            try:
                decision = self._controller.decide(
                    told.node,
                    told.row,
                    time.monotonic(),
                    measured_s=told.measured_s,
                    requests=told.requests,
                    errors=told.errors,
                    memory_bytes=told.memory_bytes,
                )
            except Exception:  # the split is held; the thread must go on for the other nodes
                log.exception("the controller failed", extra={"node": told.node})
                continue
            self._decided(told.node, decision, time.perf_counter() - started)
