"""A node's process: it serves what comes over its socket, one thread for all that touches the pool.

Run by ``real_backend.serving.fleet``; it ends when the service does.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import json
import pathlib
import select
import signal
import socket
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import HelmError
from helm_gym.profile import load
from real_backend.memory.ledger import SUMS
from real_backend.router_beliefs import PARTS
from real_backend.serving.live_node import Ask, LiveNode
from real_backend.serving.wire import (
    ANSWER,
    ASK,
    CACHED,
    CACHED_A_PACKET,
    FAILED,
    MAX_PACKET,
    READY,
    REPORT,
    TARGET,
    Packet,
    SharedMemory,
    packet,
)

_MAX_TOLD = 4096  # bytes


class NodeProcess:
    """Serves until the other end of its socket is closed.

    Args:
        resident: uint8 (items, nodes), where the router looks up which rows this node holds; None: it does not.
    """

    def __init__(self, node: LiveNode, number: int, end: socket.socket, resident: NDArray[np.uint8] | None):
        self._node, self._number, self._end, self._resident = node, number, end, resident
        self._queue: collections.deque[Packet] = collections.deque()
        self._published = 0
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)

    def run(self) -> None:
        node, queue = self._node, self._queue
        self._send(packet(READY))
        while self._receive():
            while queue and not node.full:
                self._admit(queue.popleft())
            if node.waiting:
                for answer in node.step():
                    took_s = time.perf_counter() - answer.arrival_s
                    self._send(packet(ANSWER, answer.number, (answer.cached, 0, 0, 0), took_s, answer.scores))
            elif not node.ended:
                node.idle()
            if node.ended:
                self._report()

    def _receive(self) -> bool:
        """Takes what has come, and waits where there is nothing to do; False: the service is gone."""
        node = self._node
        timeout_s: float = 0.0
        if not (node.waiting or self._queue or node.moves_due):
            timeout_s = node.ends_in_s
        while self._poll.poll(1e3 * timeout_s):
            try:
                content = self._end.recv(MAX_PACKET)
            except ConnectionResetError:
                return False
            if not content:
                return False
            came = Packet(content)
            if came.kind == ASK:
                self._queue.append(came)
            elif came.kind == TARGET:
                node.set_target(came.value)
            timeout_s = 0.0
        return True

    def _admit(self, came: Packet) -> None:
        user, version, length, delta = came.fields
        self._node.admit(came.number, Ask(user, version, length, delta, came.array(np.int32)), came.value)

    def _report(self) -> None:
        """Telemetry goes to the controller; what lies in the caches to the router."""
        node = self._node
        row = node.end_interval()
        extras = [*node.move_s, node.node.managed_s, float(len(self._queue))]
        values = np.concatenate([row, node.last_sums, extras])
        self._send(packet(REPORT, number=int(node.ledger.interval[0, 0]) & 0xFFFFFFFF, value=node.alpha, array=values))
        if self._resident is None:
            return
        cached = node.cached()
        for start in range(0, max(1, len(cached)), CACHED_A_PACKET):
            part = cached[start : start + CACHED_A_PACKET]
            self._send(packet(CACHED, fields=(start, len(cached), 0, 0), array=part.ravel()))
        items = len(self._resident)
        turn = self._published % PARTS
        first, end = turn * items // PARTS, (turn + 1) * items // PARTS
        self._resident[first:end, self._number] = node.memory.row_slot[0, first:end] >= 0
        self._published += 1

    def _send(self, content: bytes) -> None:
        self._end.sendall(content)


def main(text: str) -> None:
    """Serves as the settings say (JSON); see ``fleet.Fleet``. Why it cannot is told to the service."""
    settings: dict[str, Any] = json.loads(text)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C, and a stop of all, are the service's to handle
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = socket.socket(fileno=settings["socket"])
    try:
        served = _open(settings, end)
    except (HelmError, MemoryError, OSError) as error:
        told = str(error) or "There is too little memory."
        with contextlib.suppress(OSError):
            end.sendall(packet(FAILED, array=np.frombuffer(told.encode()[:_MAX_TOLD], np.uint8)))
        sys.exit(1)
    with contextlib.suppress(BrokenPipeError):  # the service is gone
        served.run()


def _open(settings: dict[str, Any], end: socket.socket) -> NodeProcess:
    profile = load(pathlib.Path(settings["profile"]))
    users, most = profile.population.users, profile.model.max_history
    histories = SharedMemory(4 * users * most, settings["histories"]).array((users, most), np.int32)
    resident = None
    if settings["resident"] is not None:
        items, nodes = profile.population.items, settings["nodes"]
        resident = SharedMemory(items * nodes, settings["resident"]).array((items, nodes), np.uint8)
        resident[:, settings["number"]] = 0
    node = LiveNode(profile, histories, settings["alpha"], time.perf_counter, device=settings["device"])
    gc.collect()
    gc.freeze()
    assert len(node.last_sums) == SUMS
    return NodeProcess(node, settings["number"], end, resident)


if __name__ == "__main__":
    main(sys.argv[1])
