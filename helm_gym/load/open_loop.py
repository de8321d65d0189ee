"""An open loop: each request has its time, whatever became of those before it, and its latency counts from that time.

A closed loop waits for an answer before it asks again, so a service that stalls is asked less and looks well
(coordinated omission). Here it is charged with everyone who would have come.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import HelmError
from helm_gym.load.client import Answer, Client
from helm_gym.load.stream import Request

RANK = "/v1/rank"
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
_AHEAD = 4096  # requests that are drawn before their time
_FIRST = 512  # of them, before the first is sent
_SHED, _HISTORY_REQUIRED = 429, 409


@dataclasses.dataclass
class Outcome:
    """What became of a load.

    Attributes:
        due_s, latency_ms: of each request that counts, in the order of their answers; latency from ``due_s``.
        status: of HTTP; 0: no answer came.
        cached: history items that were not computed again; -1 where the answer does not say.
        late_ms: of each request, by how much the client itself sent it too late.
        asked_again: requests whose whole history the service asked for.
        seconds: from the first due time to the last answer.
        faults: what went wrong, by status or error, and how often.
        embedding: row look-ups of the service meanwhile that hit, and all; None where it does not say.
    """

    due_s: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    status: NDArray[np.int64]
    cached: NDArray[np.int64]
    late_ms: NDArray[np.float64]
    asked_again: int
    seconds: float
    faults: dict[str, int]
    embedding: tuple[float, float] | None = None

    @property
    def answered(self) -> NDArray[np.bool_]:
        return np.asarray(self.status == 200)

    def figures(self, slo_ms: float) -> dict[str, Any]:
        """As `helm-gym load --json` prints them; latencies are those of answers."""
        good = self.latency_ms[self.answered]
        count, told = len(self.status), self.cached[self.answered] >= 0
        ends = np.percentile(good, PERCENTILES) if len(good) else [float("nan")] * len(PERCENTILES)
        hits = self.cached[self.answered][told] > 0
        return {
            "requests": count,
            "answered": len(good),
            "shed": int((self.status == _SHED).sum()),
            "errors": int(count - len(good) - (self.status == _SHED).sum()),
            "faults": self.faults,
            "history_asked_again": self.asked_again,
            "seconds": self.seconds,
            "offered_rps": count / max(1e-9, float(self.due_s.max(initial=0.0) - self.due_s.min(initial=np.inf)))
            if count
            else 0.0,
            "throughput_rps": len(good) / max(1e-9, self.seconds),
            "mean_ms": float(good.mean()) if len(good) else float("nan"),
            **{f"p{end:g}_ms": float(ms) for end, ms in zip(PERCENTILES, ends, strict=True)},
            "max_ms": float(good.max(initial=0.0)),
            "slo_ms": slo_ms,
            "slo_satisfaction": float((good <= slo_ms).sum() / count) if count else float("nan"),
            "kv_hit_rate": float(hits.mean()) if len(hits) else None,
            "emb_hit_rate": None
            if not self.embedding or not self.embedding[1]
            else self.embedding[0] / self.embedding[1],
            "client_late_p99_ms": float(np.percentile(self.late_ms, 99)) if len(self.late_ms) else float("nan"),
        }


class _Ahead:
    """Draws requests in another thread, so that sending does not wait for drawing."""

    def __init__(self, requests: Iterable[Request]):
        self._queue: queue.Queue[tuple[Request, bytes] | Exception | None] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._draw, args=(requests,), name="requests", daemon=True)
        self._thread.start()

    def _draw(self, requests: Iterable[Request]) -> None:
        try:
            for request in requests:
                self._put((request, request.body()))
                if self._stopped.is_set():
                    return
            self._put(None)
        except Exception as error:
            self._put(error)

    def _put(self, entry: tuple[Request, bytes] | Exception | None) -> None:
        while not self._stopped.is_set():
            try:
                return self._queue.put(entry, timeout=0.2)
            except queue.Full:
                continue

    async def fill(self) -> None:
        while self._queue.qsize() < _FIRST and self._thread.is_alive():
            await asyncio.sleep(0.005)

    async def next(self) -> tuple[Request, bytes] | None:
        while True:
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                await asyncio.sleep(0.001)
                continue
            if isinstance(entry, Exception):
                raise entry
            return entry

    def stop(self) -> None:
        self._stopped.set()


async def run(
    client: Client,
    requests: Iterable[Request],
    warm_s: float = 0.0,
    tick: Callable[[float], None] = lambda seconds: None,
) -> Outcome:
    """Sends requests at their times and waits for all answers.

    Args:
        warm_s: requests due before do not count.
        tick: is told now and then how far it is, in seconds.

    Raises:
        HelmError: the service does not answer at the start.
    """
    before = await check(client)
    ahead, tasks = _Ahead(requests), set[asyncio.Task[None]]()
    rows: list[tuple[float, float, int, int]] = []
    late: list[float] = []
    faults: collections.Counter[str] = collections.Counter()
    again = 0
    last = 0.0

    async def one(request: Request, body: bytes, began: float) -> None:
        nonlocal again, last
        ranked, twice = await ask(client, request, body)
        now = time.perf_counter()
        if request.due_s < warm_s:
            return
        again += twice
        last = now - began
        rows.append((request.due_s, (now - began - request.due_s) * 1e3, ranked.status, ranked.cached))
        if ranked.fault:
            faults[ranked.fault] += 1

    try:
        await ahead.fill()
        began = time.perf_counter() + 0.05
        told = 0.0
        while (entry := await ahead.next()) is not None:
            request, body = entry
            while (wait := began + request.due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            if request.due_s >= warm_s:
                late.append(-wait * 1e3)
            task = asyncio.create_task(one(request, body, began))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if request.due_s - told >= 0.2:
                told = request.due_s
                tick(told)
        while tasks:
            await asyncio.gather(*tasks)
        after = await row_counts(client)
    finally:
        ahead.stop()
        for task in tasks:
            task.cancel()
        await client.close()
    due, latency, status, cached = (
        (np.array(column) for column in zip(*rows, strict=True)) if rows else [np.zeros(0)] * 4
    )
    embedding = None if before is None or after is None else (after[0] - before[0], after[1] - before[1])
    return Outcome(
        due,
        latency,
        status.astype(np.int64),
        cached.astype(np.int64),
        np.array(late),
        again,
        last - warm_s,
        dict(faults),
        embedding,
    )


async def check(client: Client) -> tuple[float, float] | None:
    """Row look-ups so far, as ``Outcome.embedding``.

    Raises:
        HelmError: nothing answers there, or it takes no requests.
    """
    answer = await client.send("GET", "/readyz")
    if answer.status == 0:
        raise HelmError(f"Nothing answers at {client.url} ({answer.body.decode()}); start `helm-gym serve`.")
    if answer.status != 200:
        told = answer.body.decode(errors="replace").strip()[:80]
        raise HelmError(f"{client.url} takes no requests ({answer.status}, {told}); wait until /readyz says 200.")
    return await row_counts(client)


def check_service(url: str) -> None:
    """``check``, before anything is drawn."""

    async def ask() -> None:
        client = Client(url, timeout_s=5.0)
        await check(client)
        await client.close()

    asyncio.run(ask())


async def row_counts(client: Client) -> tuple[float, float] | None:
    """Row look-ups that hit and all, by the service's metrics; None where it has none."""
    answer = await client.send("GET", "/metrics")
    if answer.status != 200:
        return None
    counts = {"hits": 0.0, "misses": 0.0}
    for line in answer.body.decode(errors="replace").splitlines():
        for kind in counts:
            if line.startswith(f"helm_cache_{kind}_total{{") and 'cache="emb"' in line:
                counts[kind] += float(line.rpartition(" ")[2])
    return counts["hits"], sum(counts.values())


class Ranked(NamedTuple):
    """What became of a request: HTTP's status, history items that were cached (-1: not told), and what went wrong."""

    status: int
    cached: int
    fault: str


async def ask(client: Client, request: Request, body: bytes) -> tuple[Ranked, bool]:
    """Sends a request; and whether its whole history was asked for, and sent at once."""
    answer = await client.send("POST", RANK, body)
    twice = answer.status == _HISTORY_REQUIRED
    if twice:
        answer = await client.send("POST", RANK, request.body(whole=True))
    fault = "" if answer.status == 200 else str(answer.status) if answer.status else answer.body.decode()
    return Ranked(answer.status, _cached(answer), fault), twice


def _cached(answer: Answer) -> int:
    if answer.status != 200:
        return -1
    try:
        return int(json.loads(answer.body)["history"]["cached"])
    except (ValueError, KeyError, TypeError):
        return -1
