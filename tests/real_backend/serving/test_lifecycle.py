"""Starts, ends, losses and restarts of the service."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import signal
import time
from collections.abc import AsyncIterator

import fastapi.testclient
import httpx2 as httpx
import pytest

from helm_gym.deploy import Controller
from helm_gym.errors import InvalidInputError
from real_backend.serving import control_plane
from real_backend.serving.service import Ranked, Service
from tests.real_backend.serving.running import Server, Users, mover, running, small

JSON = {"Content-Type": "application/json"}


def is_there(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_after_a_kill_the_last_good_policy_decides_and_a_drain_drops_nothing(tmp_path: pathlib.Path) -> None:
    up, down = (mover(tmp_path / f"{name}.onnx", small(), action) for name, action in (("up", 1.0), ("down", -1.0)))
    options = ("--nodes", "2", "--state", "state", "--mode", "shadow", "--pre-stop-s", "0.2", "--queue", "64")
    with running(tmp_path, str(up), *options) as server:
        content = down.read_bytes()
        headers = {"Content-Type": "application/octet-stream"}
        swap = httpx.post(f"{server.control}/control/swap", content=content, headers=headers, trust_env=False)
        assert swap.status_code == 200, swap.text
        mode = httpx.post(
            f"{server.control}/control/mode", content=b'{"mode": "active"}', headers=JSON, trust_env=False
        )
        assert mode.status_code == 200
        nodes = server.pids()
        server.process.kill()
        server.process.wait()
        until = time.monotonic() + 30.0
        while any(map(is_there, nodes)):
            assert time.monotonic() < until, "no node outlives its service"
            time.sleep(0.05)

    with running(tmp_path, str(up), *options) as server:
        controller = server.status()["controller"]
        assert controller["policy"]["sha256"] == hashlib.sha256(content).hexdigest()
        assert {node["mode"] for node in controller["nodes"]} == {"active"}
        asked_again = server.rank(user="from before", start=5, events=[1], candidates=[1])
        assert asked_again.status_code == 409, "users were not kept, and nobody is ranked for by half a history"

        for pid in server.pids():
            os.kill(pid, signal.SIGSTOP)
        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            jobs = [pool.submit(server.rank, user=k, events=[1, 2], candidates=[3]) for k in range(40)]
            until = time.monotonic() + 30.0
            while server.metric("helm_requests_under_way") < 40:
                assert time.monotonic() < until
                time.sleep(0.05)
            pids = server.pids()
            server.process.send_signal(signal.SIGTERM)
            while server.http.get("/readyz").status_code == 200:
                assert time.monotonic() < until
            assert server.http.get("/livez").status_code == 200
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            assert {job.result(30.0).status_code for job in jobs} == {200}
        assert server.process.wait(30.0) == 0
        assert '"drained"' in server.log


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_while_the_model_is_loaded_ends_it(tmp_path: pathlib.Path, number: int, status: int) -> None:
    server = Server(tmp_path, "static:0.5")
    try:
        assert server.http.get("/livez").status_code == 200
        assert server.http.get("/readyz").status_code == 503
        assert server.rank(user=1, events=[1], candidates=[1]).status_code == 503
        assert server.end(number, 30.0) == status
    finally:
        server.close()


@contextlib.asynccontextmanager
async def started(**settings: object) -> AsyncIterator[Service]:
    service = Service(small(), **settings)  # type: ignore[arg-type]  # of the test's own
    try:
        await service.start()
        yield service
    finally:
        service.close()


async def ask(service: Service, request: dict) -> Ranked:  # type: ignore[type-arg]  # as it comes over HTTP
    return await service.rank(request["user"], request["start"], request["events"], request["candidates"])


def test_shadow_changes_nothing_and_says_what_it_would_have_done(tmp_path: pathlib.Path) -> None:
    up = mover(tmp_path / "up.onnx", small(), 1.0)

    async def served(mode: str) -> tuple[list[tuple[list[float], int]], list[float]]:
        with contextlib.closing(Controller(small(), up, 1, mode)) as controller:
            async with started(controller=controller) as service:
                users, answers = Users(3), []
                for _ in range(2 * service.profile.interval.requests):
                    ranked = await ask(service, users.next())
                    answers.append((ranked.scores.tolist(), ranked.cached))
                until = time.monotonic() + 20.0
                while controller.status()["nodes"][0]["decisions"] < 2:
                    assert time.monotonic() < until
                    await asyncio.sleep(0.05)
                last = controller.status()["nodes"][0]["last"]
                return answers, [service.reports[0].alpha, service.fleet.alpha(0), last["shadow_alpha"]]

    async def both() -> list[tuple[list[tuple[list[float], int]], list[float]]]:
        return await asyncio.gather(served("off"), served("shadow"))

    (off, off_split), (shadow, shadow_split) = asyncio.run(both())
    assert shadow == off
    assert off_split == [0.5, 0.5, None]
    assert shadow_split[:2] == [0.5, 0.5] and shadow_split[2] > 0.5


@pytest.mark.long  # test_http kills a node under load
def test_a_node_that_answers_nothing_is_replaced_and_its_requests_are_answered_elsewhere() -> None:
    async def run() -> None:
        async with started(nodes=2, stall_s=1.0) as service:
            users = Users(4)
            for _ in range(20):
                await ask(service, users.next())
            stopped = service.fleet.pids()[0]
            assert stopped is not None
            os.kill(stopped, signal.SIGSTOP)
            waves = [await asyncio.gather(*(ask(service, _new(users, k)) for k in range(w, w + 8))) for w in (0, 8)]
            assert {ranked.node for wave in waves for ranked in wave} == {1}
            assert service.metrics.retried._value.get() > 0
            assert not is_there(stopped)
            until = time.monotonic() + 60.0
            while len(service.fleet.ready) < 2:
                assert time.monotonic() < until
                await asyncio.sleep(0.05)
            wave = await asyncio.gather(*(ask(service, _new(users, k)) for k in range(100, 140)))
            assert {ranked.node for ranked in wave} == {0, 1}

    asyncio.run(run())


def _new(users: Users, k: int) -> dict:  # type: ignore[type-arg]  # as it comes over HTTP
    return users.next() | {"user": f"new {k}", "start": 0, "events": [k, 1, 2]}


def test_the_control_plane_of_a_token_and_where_none_is_needed(tmp_path: pathlib.Path) -> None:
    token = control_plane.issue_token(tmp_path)
    assert token not in (tmp_path / control_plane.TOKEN_FILE).read_text()
    with contextlib.closing(Controller(small(), "pid", 1, "shadow")) as controller:
        with pytest.raises(InvalidInputError, match="control token"):
            control_plane.make_app(controller, dict, None, "0.0.0.0")
        app = control_plane.make_app(controller, dict, control_plane.kept_hash(tmp_path), "0.0.0.0")
        client = fastapi.testclient.TestClient(app)
        for wrong in ("", "Bearer", f"Bearer {token}x", f"Basic {token}"):
            assert client.post("/control/kill", headers={"Authorization": wrong}).status_code == 401
            assert client.get("/control/status", headers={"Authorization": wrong}).status_code == 401
        assert not controller.status()["killed"]
        for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
            page = client.get(path)
            assert page.status_code == 200 and page.headers["content-type"].startswith(kind)
            assert "default-src 'self'" in page.headers["content-security-policy"]
        assert client.post("/control/kill", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert controller.status()["killed"]
    assert control_plane.kept_hash(tmp_path / "none") is None
    (tmp_path / control_plane.TOKEN_FILE).write_text("x")
    with pytest.raises(InvalidInputError, match="issue another"):
        control_plane.kept_hash(tmp_path)
