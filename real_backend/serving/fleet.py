"""The nodes' processes: started, written to, watched, and started again when they end or answer nothing.

Each node is a process of its own: one can be killed without the others, and each has a core. Histories lie in memory
that all of them see, so that a request can go to another node when its own is lost.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym import profile as profiles
from helm_gym.errors import HelmError
from helm_gym.profile import Profile
from helm_gym.telemetry import WIDTH
from real_backend.memory.ledger import SUMS
from real_backend.serving.errands import Answer, Errand, Owner, Report
from real_backend.serving.wire import (
    ANSWER,
    ASK,
    CACHED,
    FAILED,
    MAX_PACKET,
    READY,
    REPORT,
    TARGET,
    Packet,
    SharedMemory,
    packet,
    socket_pair,
)

log = logging.getLogger("helm_gym.serving")
_WATCH_S = 0.25
_LAST_WORDS_S = 0.1
_BACK_OFF_S = (0.1, 10.0)  # before a node is started again: at first, and at most
_STEADY_S = 30.0  # a node that lived so long is started again at once


class _Node:
    """One node's process, or the time between two of them."""

    def __init__(self, number: int, alpha: float):
        self.number, self.alpha = number, alpha
        self.process: subprocess.Popen[bytes] | None = None
        self.end: socket.socket | None = None
        self.ready = False
        self.started_s = 0.0
        self.restarts = -1
        self.under_way: dict[int, Errand] = {}
        self.ahead_ms = 0.0
        self.heard_s = 0.0  # when it last said something
        self.unsent: collections.deque[bytes] = collections.deque()
        self.cached: list[NDArray[np.int32]] = []
        self.failed = ""  # why it could not serve


class Fleet:
    """The nodes of a service, in an asyncio loop.

    Args:
        profile: with the service's users.
        histories, resident: memory that nodes see; without ``resident`` they publish nothing to a router.
        stall_s: a node that has a request for so long, and says nothing, is killed.
    """

    def __init__(
        self,
        profile: Profile,
        nodes: int,
        alpha: float,
        histories: SharedMemory,
        resident: SharedMemory | None,
        owner: Owner,
        device: str | None = None,
        stall_s: float = 10.0,
    ):
        self._profile, self._histories, self._resident = profile, histories, resident
        self._owner, self._device, self._stall_s = owner, device, stall_s
        self._nodes = [_Node(number, alpha) for number in range(nodes)]
        self._number = 0
        self._closing = False
        self._folder = tempfile.TemporaryDirectory(prefix="helm-gym-")
        self._path = pathlib.Path(self._folder.name) / "profile.yaml"
        profiles.save(profile, self._path)
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._nodes)

    async def start(self) -> None:
        """Starts all nodes and waits until they can serve.

        Raises:
            HelmError: one ends before it can serve.
        """
        for node in self._nodes:
            self._start(node)
        while not all(node.ready for node in self._nodes):
            await asyncio.sleep(0.02)
            for node in self._nodes:
                if node.process is not None and node.process.poll() is not None and not node.ready:
                    await asyncio.sleep(_LAST_WORDS_S)
                    status = f"it ended with status {node.process.returncode}; its last lines above say why."
                    raise HelmError(f"Node {node.number} cannot serve: {node.failed or status}")
        self._keep(self._watch())

    def close(self) -> None:
        """Ends all nodes."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        for node in self._nodes:
            self._disconnect(node)
            if node.process is not None:
                node.process.kill()
                node.process.wait()
        self._folder.cleanup()

    def is_ready(self, node: int) -> bool:
        return self._nodes[node].ready

    @property
    def ready(self) -> list[int]:
        """Numbers of the nodes that can serve."""
        return [node.number for node in self._nodes if node.ready]

    def under_way(self, node: int) -> int:
        """Requests that the node has been sent and has not answered."""
        return len(self._nodes[node].under_way)

    def errands(self, node: int) -> list[Errand]:
        return list(self._nodes[node].under_way.values())

    def ahead_ms(self) -> NDArray[np.float64]:
        """(nodes,), time that each node's requests under way are expected to take."""
        return np.array([node.ahead_ms for node in self._nodes])

    def pids(self) -> list[int | None]:
        return [None if node.process is None else node.process.pid for node in self._nodes]

    def memory_bytes(self, node: int) -> float | None:
        """What the node's process takes of the machine's memory; None where the system does not say."""
        process = self._nodes[node].process
        try:
            resident = pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1] if process else ""
            return float(resident) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return None

    def restarts(self, node: int) -> int:
        return max(0, self._nodes[node].restarts)

    def alpha(self, node: int) -> float:
        """The split that the node has been told to move towards."""
        return self._nodes[node].alpha

    def send(self, number: int, errand: Errand) -> None:
        """Sends a request to a node that is ready."""
        node = self._nodes[number]
        self._number = (self._number + 1) & 0xFFFFFFFF
        node.under_way[self._number] = errand
        node.ahead_ms += errand.expected_ms
        errand.sent_s, errand.tries, errand.node = time.perf_counter(), errand.tries + 1, number
        fields = errand.place, errand.version, errand.length, errand.delta
        self._write(node, packet(ASK, self._number, fields, errand.arrival_s, errand.candidates))

    def set_target(self, number: int, alpha: float) -> None:
        """Tells a node the split to move towards; one that is away hears it when it comes back."""
        node = self._nodes[number]
        node.alpha = alpha
        if node.ready:
            self._write(node, packet(TARGET, value=alpha))

    def _start(self, node: _Node) -> None:
        ours, theirs = socket_pair()
        shared = [self._histories.descriptor, *([] if self._resident is None else [self._resident.descriptor])]
        settings = {
            "number": node.number,
            "nodes": len(self._nodes),
            "alpha": node.alpha,
            "device": self._device,
            "profile": str(self._path),
            "socket": theirs.fileno(),
            "histories": shared[0],
            "resident": shared[1] if len(shared) > 1 else None,
        }
        command = [sys.executable, "-P", "-m", "real_backend.serving.node_process", json.dumps(settings)]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",
            "HELM_GYM_QUIET": "1",
        }
        # Nothing of it goes to stdout, which is the command's; and Ctrl-C in a terminal is the service's alone.
        node.process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=[theirs.fileno(), *shared],
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
        )
        theirs.close()
        ours.setblocking(False)
        node.end, node.ready, node.started_s = ours, False, time.monotonic()
        node.restarts += 1
        node.unsent.clear()
        asyncio.get_running_loop().add_reader(ours, self._read, node, ours)

    def _read(self, node: _Node, end: socket.socket) -> None:
        """Takes what a node says; some packets at a time, so that others have their turn."""
        for _ in range(16):
            try:
                content = end.recv(MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:
                content = b""
            if not content:
                self._lost(node)
                return
            node.heard_s = time.monotonic()
            self._take(node, Packet(content))

    def _take(self, node: _Node, came: Packet) -> None:
        if came.kind == ANSWER:
            errand = node.under_way.pop(came.number, None)
            if errand is not None:
                node.ahead_ms = node.ahead_ms - errand.expected_ms if node.under_way else 0.0
                if not errand.answer.done():
                    errand.answer.set_result(Answer(came.array(np.float32), came.fields[0], came.value))
                self._owner.answered(node.number, errand)
        elif came.kind == REPORT:
            values = came.array(np.float64)
            row, sums, extras = np.split(values, [WIDTH, WIDTH + SUMS])
            self._owner.reported(Report(node.number, came.value, row.copy(), sums, *extras[:3].tolist()))
        elif came.kind == CACHED:
            start, total, *_ = came.fields
            node.cached = (
                [*node.cached, came.array(np.int32).reshape(-1, 3)] if start else [came.array(np.int32).reshape(-1, 3)]
            )
            if sum(map(len, node.cached)) == total:
                self._owner.published(node.number, np.concatenate(node.cached))
        elif came.kind == FAILED:
            node.failed = came.array(np.uint8).tobytes().decode("utf-8", "replace")
            log.error("node cannot serve", extra={"node": node.number, "why": node.failed})
        elif came.kind == READY:
            node.ready = True
            self._write(node, packet(TARGET, value=node.alpha))  # which may be another by now
            log.info("node up", extra={"node": node.number, "pid": node.process.pid if node.process else None})
            self._owner.node_up(node.number)

    def _write(self, node: _Node, content: bytes) -> None:
        assert node.end is not None
        if not node.unsent:
            try:
                node.end.send(content)
                return
            except BlockingIOError:
                asyncio.get_running_loop().add_writer(node.end, self._flush, node, node.end)
            except OSError:
                return  # it is gone, which reading will tell
        node.unsent.append(content)

    def _flush(self, node: _Node, end: socket.socket) -> None:
        try:
            while node.unsent:
                end.send(node.unsent[0])
                node.unsent.popleft()
        except BlockingIOError:
            return
        except OSError:
            node.unsent.clear()
        asyncio.get_running_loop().remove_writer(end)

    def _disconnect(self, node: _Node) -> None:
        if node.end is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop = asyncio.get_running_loop()
                loop.remove_reader(node.end)
                loop.remove_writer(node.end)
            node.end.close()
            node.end = None

    def _lost(self, node: _Node) -> None:
        """A node is gone: what it had goes to others, and it is started again."""
        was_ready, lost = node.ready, list(node.under_way.values())
        self._disconnect(node)
        node.ready, node.ahead_ms = False, 0.0
        node.under_way = {}
        if self._closing:
            return
        log.warning("node down", extra={"node": node.number, "requests": len(lost)})
        if was_ready:
            self._owner.node_down(node.number, lost)
            self._keep(self._heal(node))

    async def _heal(self, node: _Node) -> None:
        delay_s = _BACK_OFF_S[0]
        while not node.ready and not self._closing:
            lived_s = time.monotonic() - node.started_s
            if node.process is not None:
                node.process.kill()
                await asyncio.to_thread(node.process.wait)
            await asyncio.sleep(0.0 if lived_s > _STEADY_S else delay_s)
            delay_s = min(2 * delay_s, _BACK_OFF_S[1])
            self._start(node)
            while node.end is not None and not node.ready:
                await asyncio.sleep(0.05)

    async def _watch(self) -> None:
        """Kills nodes that have requests and say nothing."""
        while True:
            await asyncio.sleep(_WATCH_S)
            now, clock = time.perf_counter(), time.monotonic()
            for node in self._nodes:
                oldest = min((errand.sent_s for errand in node.under_way.values()), default=now)
                silent = clock - node.heard_s > self._stall_s
                if node.ready and silent and now - oldest > self._stall_s and node.process is not None:
                    log.error("node answers nothing", extra={"node": node.number, "requests": len(node.under_way)})
                    node.process.kill()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
