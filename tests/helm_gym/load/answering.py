"""A service that answers as docs/serving.md says, with made-up scores, and as badly as a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import fastapi
import numpy as np
import uvicorn
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from helm_gym import profile as profiles
from real_backend.hstu.offline import Offline

PROFILE = profiles.load("cpu-small")


@functools.cache
def offline() -> Offline:
    return Offline(PROFILE)


@dataclasses.dataclass
class Service:
    """What it does and what it was told.

    Attributes:
        delay_s: before each answer.
        stall_at, stall_s: nobody is answered for so long, from that number of requests on.
        forget_every: at every so many requests it forgets all users; 0: never.
        statuses: number of a request -> what it is answered instead.
        exact: scores are those of HSTU, over the whole history.
        histories: of each user, as told.
    """

    delay_s: float = 0.0
    stall_at: int = -1
    stall_s: float = 0.0
    forget_every: int = 0
    statuses: dict[int, int] = dataclasses.field(default_factory=dict)
    exact: bool = False
    off_by: float = 0.0
    ready: bool = True
    histories: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    requests: int = 0
    stalled_until: float = 0.0
    url: str = ""

    def app(self) -> fastapi.FastAPI:
        app = fastapi.FastAPI()

        @app.get("/readyz")
        async def ready() -> Response:
            return PlainTextResponse("ok" if self.ready else "starting", 200 if self.ready else 503)

        @app.get("/metrics")
        async def metrics() -> Response:
            hits, misses = 3 * self.requests, self.requests
            return PlainTextResponse(
                f'helm_cache_hits_total{{cache="emb",node="0"}} {hits}.0\n'
                f'helm_cache_misses_total{{cache="emb",node="0"}} {misses}.0\n'
                'helm_cache_hits_total{cache="kv",node="0"} 77.0\n'
            )

        @app.post("/v1/rank")
        async def rank(request: fastapi.Request) -> Response:
            asked = await request.json()
            number, self.requests = self.requests, self.requests + 1
            if number == self.stall_at:
                self.stalled_until = time.monotonic() + self.stall_s
            await asyncio.sleep(max(self.delay_s, self.stalled_until - time.monotonic()))
            if number in self.statuses:
                return JSONResponse({"error": {"reason": "x", "sentence": "As the test wants."}}, self.statuses[number])
            return self.answer(asked, number)

        return app

    def answer(self, asked: dict[str, Any], number: int) -> Response:
        if self.forget_every and number % self.forget_every == self.forget_every - 1:
            self.histories.clear()
        user, start, events = asked["user"], asked["start"], asked["events"]
        known = self.histories.get(user, [])
        if start and start != len(known):
            sentence = {"reason": "history-required", "sentence": "Send it whole.", "have": len(known)}
            return JSONResponse({"error": sentence}, 409)
        self.histories[user] = [*known[:start], *events]
        items = asked["candidates"]
        scores = self.scores(self.histories[user], items)
        order = sorted(range(len(items)), key=lambda k: -scores[k])
        return JSONResponse(
            {
                "user": user,
                "items": [items[k] for k in order],
                "scores": [scores[k] + self.off_by for k in order],
                "history": {"events": len(self.histories[user]), "seen": len(self.histories[user]), "cached": start},
                "node": 0,
            }
        )

    def scores(self, history: list[int], items: list[int]) -> list[float]:
        if not self.exact:
            return [float(-item) for item in items]
        return [float(score) for score in offline().scores(np.array(history), np.array(items))]


@contextlib.contextmanager
def answering(service: Service | None = None) -> Iterator[Service]:
    """The service on loopback, in a thread."""
    service = service or Service()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = uvicorn.Server(uvicorn.Config(service.app(), log_level="error"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    service.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    until = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < until
        time.sleep(0.01)
    try:
        yield service
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
