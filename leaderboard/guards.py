"""What stands before the application: bodies of bounded size and time, and headers that keep browsers careful."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES = 48 * 2**20  # files in base64; a policy's are 11 MiB at most
BODY_S = 30.0  # in which a body must have come
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; form-action 'self'; "
        b"base-uri 'none'; frame-ancestors 'none'",
    ),
)


class _TooMuch(Exception):
    """A body that is too large (413), or too slow (408)."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Guards:
    """ASGI middleware.

    Args:
        application: behind it.
    """

    def __init__(self, application: Callable[[Scope, Receive, Send], Awaitable[None]]):
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._application(scope, receive, send)
        seen, until, started = 0, time.monotonic() + BODY_S, False
        over: list[_TooMuch] = []
        done = False

        async def bounded() -> Message:
            nonlocal seen, done
            if done:  # then only whether the client leaves is waited for
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                over.append(_TooMuch(408, f"The body did not come within {BODY_S:g} seconds."))
                raise over[0] from None
            seen += len(message.get("body", b""))
            done = not message.get("more_body", False)
            if seen > MAX_BODY_BYTES:
                over.append(_TooMuch(413, f"The body is larger than {MAX_BODY_BYTES >> 20} MiB."))
                raise over[0]
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                if over:  # a framework may have made something else of it
                    return
                started = True
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            if over and not started:
                return
            await send(message)

        with contextlib.suppress(_TooMuch):
            await self._application(scope, bounded, guarded)
        if over and not started:
            body = json.dumps({"error": {"reason": "body", "sentence": str(over[0])}}).encode()
            headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *_HEADERS]
            await send({"type": "http.response.start", "status": over[0].status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
