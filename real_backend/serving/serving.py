"""`helm-gym serve --engine local`: a service on this machine, from its start to its drained end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import pathlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from helm_gym.deploy import Controller, ControlSettings
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.files import reason
from helm_gym.profile import Profile
from real_backend.serving import control_plane, data_plane
from real_backend.serving.data_plane import Readiness
from real_backend.serving.logs import log_to_stderr
from real_backend.serving.service import Service

log = logging.getLogger("helm_gym.serving")
_BACKLOG = 2048
_CONNECTIONS = 4096
_KEEP_ALIVE_S = 30
_LINGER_S = 0.5
# How long one thread may keep the interpreter from the others: a swap computes beside requests.
_SWITCH_S = 0.0005


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a service is run; see ``helm-gym serve --help``.

    Attributes:
        port, control_port: 0: any that is free.
        state: folder where policies and modes survive a restart, and the control token's hash lies.
        queue: requests that wait at a node; places: users that are remembered.
        pre_stop_s: from SIGTERM until no new connection is taken, so that balancers see ``/readyz``.
        drain_s: in which what was accepted is answered, after that.
    """

    nodes: int = 1
    mode: str = "shadow"
    alpha: float | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    control_host: str = "127.0.0.1"
    control_port: int = 8081
    state: pathlib.Path | None = None
    places: int | None = None
    queue: int = 64
    rate: float = 0.0
    pre_stop_s: float = 1.0
    drain_s: float = 30.0
    stall_s: float = 10.0
    log_requests: bool = False
    device: str | None = None


class _Stop:
    """SIGTERM and Ctrl-C, from the first line on: the first one ends the service in order, a second one at once."""

    def __init__(self) -> None:
        self.asked, self.interrupted, self._wake = False, False, lambda: None
        self._former = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked, self.interrupted = True, number == signal.SIGINT
        self._wake()

    async def wait(self) -> None:
        event, loop = asyncio.Event(), asyncio.get_running_loop()
        self._wake = lambda: loop.call_soon_threadsafe(event.set)  # type: ignore[assignment]  # a handle, or nothing
        if self.asked:
            return
        await event.wait()

    def restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """One of two in a loop: signals are not its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more connections; those that there are have a moment for a request that is on its way."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(_LINGER_S)
        await super().shutdown(sockets)


def serve(profile: Profile, policy: str, settings: Settings, started: Callable[[str, str], None]) -> None:
    """Serves until it is told to end (SIGTERM, Ctrl-C), and then answers what it has accepted.

    Args:
        policy: a name, or the path of an ``.onnx`` file.
        started: is told the addresses of both planes, once they are listened on.

    Raises:
        HelmError: it cannot be started so.
        KeyboardInterrupt: it was ended by Ctrl-C, in order.
    """
    stop = _Stop()
    try:
        log_to_stderr()
        sys.setswitchinterval(_SWITCH_S)
        start_alpha = settings.alpha
        if start_alpha is None:
            start_alpha = min(max(0.5, profile.pool.min_alpha), profile.pool.max_alpha)
        token_hash = control_plane.kept_hash(settings.state)
        control = ControlSettings(static_alpha=start_alpha)
        with contextlib.closing(
            Controller(profile, policy, settings.nodes, settings.mode, control, settings.state)
        ) as controller:
            service = Service(
                profile,
                settings.nodes,
                settings.places,
                settings.queue,
                start_alpha,
                controller=controller,
                device=settings.device,
                stall_s=settings.stall_s,
            )
            try:
                asyncio.run(_run(profile, settings, controller, service, token_hash, stop, started))
            finally:
                service.close()
    finally:
        stop.restore()
    if stop.interrupted:  # as any other command that Ctrl-C ends
        raise KeyboardInterrupt


async def _run(
    profile: Profile,
    settings: Settings,
    controller: Controller,
    service: Service,
    token_hash: str | None,
    stop: _Stop,
    started: Callable[[str, str], None],
) -> None:
    readiness = Readiness()
    apps = (
        data_plane.make_app(readiness, profile.name, settings.rate, settings.log_requests),
        control_plane.make_app(controller, service.status, token_hash, settings.control_host),
    )
    places = (
        (settings.host, settings.port, "--port"),
        (settings.control_host, settings.control_port, "--control-port"),
    )
    sockets = [_listen(*place) for place in places]
    addresses = [_address(end) for end in sockets]
    servers = [_Server(_config(app, settings.drain_s)) for app in apps]
    running = [asyncio.create_task(server.serve([end])) for server, end in zip(servers, sockets, strict=True)]
    started(*addresses)
    stopping = asyncio.create_task(stop.wait())
    try:
        starting = asyncio.create_task(service.start())
        await asyncio.wait({starting, stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            readiness.service = service
            log.info("ready", extra={"address": addresses[0], "control": addresses[1], "nodes": settings.nodes})
            await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
        else:
            starting.cancel()
        readiness.draining = True
        log.info("draining", extra={"requests": service.under_way})
        if readiness.service is not None and not stop.interrupted:
            await asyncio.sleep(settings.pre_stop_s)
        servers[0].should_exit = True
        await running[0]
        log.info("drained", extra={"requests": service.under_way})
    finally:
        for server in servers:
            server.should_exit = True
        stopping.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _config(app: Any, drain_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(drain_s)),
        h11_max_incomplete_event_size=64 * 2**10,
    )


def _listen(host: str, port: int, option: str) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        # Connections inherit it; asyncio sets it only on sockets that it has made itself. Without it an answer's body
        # waits 40 ms for the client to have acknowledged its head.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError, ValueError) as error:
        raise InvalidInputError(
            f"{option} {port} of {host} cannot be listened on: {reason(error)}; take another."
        ) from error


def _address(end: socket.socket) -> str:
    host, port = end.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


__all__ = ["HelmError", "Settings", "serve"]
