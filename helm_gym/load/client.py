"""Requests over kept HTTP connections, as many as are under way at a time; HTTP itself is h11's."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ssl
import time
import urllib.parse
from typing import NamedTuple

import h11

from helm_gym.errors import InvalidInputError

_IDLE_S = 4.0  # after which a connection is not used again: servers close them after 5 and more
_MAX_ANSWER = 16 * 2**20
_CHUNK = 1 << 16


class Answer(NamedTuple):
    """``status``: of HTTP; 0 where there was none, and ``body`` is the error's name."""

    status: int
    body: bytes


class _Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h11.Connection
    used_s: float


class Client:
    """One service.

    Args:
        url: ``http://HOST:PORT`` or ``https://...``; a path before the services' own may follow.
        connections: that are open at a time; more requests wait for one.
        timeout_s: for an answer.

    Raises:
        InvalidInputError: no such URL.
    """

    def __init__(self, url: str, connections: int = 512, timeout_s: float = 30.0):
        try:
            parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:  # a port that is no number, or brackets that do not close
            parts, port = urllib.parse.urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInputError(f"'{url[:100]}' is no address of a service; write http://HOST:PORT.")
        self.url = urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        self._host, self._prefix = parts.hostname, parts.path.rstrip("/")
        self._port = port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._free: collections.deque[_Connection] = collections.deque()
        self._room, self._timeout_s = asyncio.Semaphore(connections), timeout_s

    async def send(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Sends a request and waits for the whole answer; never raises for what the service does."""
        async with self._room:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._send(method, path, body)
            except (OSError, TimeoutError, EOFError, h11.ProtocolError, ValueError) as error:
                return Answer(0, type(error).__name__.encode())

    async def _send(self, method: str, path: str, body: bytes) -> Answer:
        while self._free and time.monotonic() - self._free[-1].used_s < _IDLE_S:
            kept = self._free.pop()
            try:
                return await self._exchange(kept, method, path, body)
            except (EOFError, ConnectionError):
                kept.writer.close()  # it was closed while it was idle: the request was never read
        while self._free:
            self._free.pop().writer.close()
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        return await self._exchange(_Connection(reader, writer, h11.Connection(h11.CLIENT), 0.0), method, path, body)

    async def _exchange(self, connection: _Connection, method: str, path: str, body: bytes) -> Answer:
        reader, writer, http, _ = connection
        good = False
        try:
            headers = [("Host", self._host), ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
            head = http.send(h11.Request(method=method, target=f"{self._prefix}{path}", headers=headers))
            rest = http.send(h11.Data(data=body)) if body else b""
            writer.write(b"".join((head or b"", rest or b"", http.send(h11.EndOfMessage()) or b"")))
            status, content = 0, bytearray()
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    data = await reader.read(_CHUNK)
                    if not data and not status:
                        raise EOFError
                    http.receive_data(data)
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    content += event.data
                    if len(content) > _MAX_ANSWER:
                        raise ValueError("the answer is too long")
                elif isinstance(event, h11.EndOfMessage):
                    break
                elif isinstance(event, h11.ConnectionClosed):
                    raise EOFError
            good = http.our_state is h11.DONE and http.their_state is h11.DONE
            if good:
                http.start_next_cycle()
                self._free.append(connection._replace(used_s=time.monotonic()))
            return Answer(status, bytes(content))
        finally:
            if not good:
                writer.close()

    async def close(self) -> None:
        """Closes what is open and not in use."""
        while self._free:
            writer = self._free.pop().writer
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
