"""The service over HTTP: right scores whatever happens meanwhile, two protocols, and requests of all kinds."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pathlib
import signal
import socket
import struct
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from helm_gym.cli import main
from real_backend.hstu.offline import Offline
from tests.real_backend.serving.running import Server, Users, mover, running, small


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("service")
    policy = mover(folder / "up.onnx", small(), 1.0)
    options = ("--nodes", "2", "--mode", "active", "--queue", "32", "--alpha", "0.3", "--state", "state")
    with running(folder, str(policy), *options) as found:
        yield found


@pytest.fixture(scope="module")
def offline() -> Offline:
    return Offline(small())


def check(offline: Offline, asked: dict[str, Any], whole: list[int], answer: dict[str, Any]) -> None:
    seen = whole[len(whole) - answer["history"]["seen"] :]
    scores = offline.scores(np.array(seen, np.int32), np.array(asked["candidates"], np.int32))
    expected = dict(zip(asked["candidates"], scores.tolist(), strict=True))
    assert sorted(answer["items"]) == sorted(asked["candidates"])
    assert answer["scores"] == sorted(answer["scores"], reverse=True)
    found = np.array([expected[item] for item in answer["items"]])
    assert np.abs(found - answer["scores"]).max() < 1e-5


def test_scores_are_those_of_the_whole_history_under_load_moves_evictions_a_swap_and_a_lost_node(
    server: Server, offline: Offline, tmp_path: pathlib.Path
) -> None:
    users, sent, answers = Users(1, users=25), dict[str, int](), []
    down = mover(tmp_path / "down.onnx", small(), -1.0)
    before = server.status()["controller"]["policy"]["sha256"]

    async def one(client: httpx.AsyncClient, asked: dict[str, Any], whole: list[int]) -> None:
        answer = await client.post("/v1/rank", json=asked)
        assert answer.status_code == 200, answer.text
        answers.append((asked, whole, answer.json()))

    async def load() -> None:
        async with httpx.AsyncClient(base_url=server.address, timeout=60.0, trust_env=False) as client:
            for wave in range(60):
                # At most one request of a user at a time: of several the last, which brings the others' events.
                asked = {request["user"]: request for request in (users.next() for _ in range(14))}
                jobs = []
                for user, request in asked.items():
                    whole = list(users.events[user])
                    request["start"] = 0 if wave % 7 == 0 else sent.get(user, 0)
                    request["events"] = whole[request["start"] :]
                    sent[user] = len(whole)
                    jobs.append(one(client, request, whole))
                if wave == 25:
                    swapped = await asyncio.to_thread(
                        httpx.post,
                        f"{server.control}/control/swap",
                        params={"sha256": hashlib.sha256(down.read_bytes()).hexdigest()},
                        content=down.read_bytes(),
                        headers={"Content-Type": "application/octet-stream"},
                        trust_env=False,
                    )
                    assert swapped.status_code == 200, swapped.text
                if wave == 40:
                    os.kill(server.pids()[0], signal.SIGKILL)
                await asyncio.gather(*jobs)

    asyncio.run(load())
    for asked, whole, answer in answers:
        check(offline, asked, whole, answer)
    cached = [answer["history"]["cached"] for _, _, answer in answers]
    assert np.mean(np.array(cached) > 0) > 0.2, "many were hits"
    assert server.metric("helm_cache_misses_total") > 0
    status = server.status()
    assert status["controller"]["former"]["sha256"] == before
    assert {answer["node"] for _, _, answer in answers} == {0, 1}
    decided = [node["decisions"] for node in status["controller"]["nodes"]]
    assert sum(decided) > 10
    assert server.metric("helm_node_restarts_total") == 1
    until = time.monotonic() + 60.0
    while not all(node["ready"] for node in server.status()["service"]["nodes"]):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_histories_grow_and_what_is_not_known_is_asked_for(server: Server) -> None:
    first = server.rank(user="h", events=[1, 2, 3], candidates=[4, 5]).json()
    assert first["history"] == {"events": 3, "seen": 3, "cached": 0}
    more = server.rank(user="h", start=3, events=[9], candidates=[4, 5]).json()
    assert more["history"]["events"] == 4
    again = server.rank(user="h", start=3, events=[9], candidates=[4, 5]).json()
    assert (again["scores"], again["history"]["events"]) == (more["scores"], 4)
    whole = server.rank(user="h again", events=[1, 2, 3, 9], candidates=[4, 5]).json()
    assert whole["scores"] == pytest.approx(more["scores"], abs=1e-5)
    for wrong in ({"user": "h", "start": 9}, {"user": "h", "start": 3, "events": [8]}, {"user": 7, "start": 1}):
        answer = server.rank(**({"events": [1], "candidates": [4]} | wrong))
        assert answer.status_code == 409
        error = answer.json()["error"]
        assert error["reason"] == "history-required" and "whole history" in error["sentence"]
        assert error["have"] == (4 if wrong["user"] == "h" else 0)


def test_a_number_and_its_text_are_two_users(server: Server) -> None:
    one = server.rank(user=12, events=[1, 2], candidates=[4, 5]).json()
    two = server.rank(user="12", events=[3, 1], candidates=[4, 5]).json()
    assert one["scores"] != two["scores"]
    assert server.rank(user=12, start=2, events=[], candidates=[4, 5]).json()["scores"] == pytest.approx(
        one["scores"], abs=1e-5
    )


HOSTILE = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "no candidates": b'{"user": 1, "events": [1], "candidates": []}',
    "too many candidates": json.dumps({"user": 1, "events": [1], "candidates": list(range(65))}).encode(),
    "a user without events": b'{"user": "nobody", "candidates": [1]}',
    "a user that is true": b'{"user": true, "events": [1], "candidates": [1]}',
    "a user that is a fraction": b'{"user": 1.5, "events": [1], "candidates": [1]}',
    "a number of 65 bits": b'{"user": 18446744073709551616, "events": [1], "candidates": [1]}',
    "a number of 100,000 digits": b'{"user": ' + b"9" * 100_000 + b', "events": [1], "candidates": [1]}',
    "a name of 257 characters": json.dumps({"user": "x" * 257, "events": [1], "candidates": [1]}).encode(),
    "half a surrogate pair": b'{"user": "\\ud800", "events": [1], "candidates": [1]}',
    "no UTF-8": b'{"user": "\xff", "events": [1], "candidates": [1]}',
    "not a number": b'{"user": 1, "events": [NaN], "candidates": [1]}',
    "an item that is null": b'{"user": 1, "events": [null], "candidates": [1]}',
    "a key that is none": b'{"user": 1, "events": [1], "candidates": [1], "admin": 1}',
    "a negative start": b'{"user": 1, "start": -1, "events": [1], "candidates": [1]}',
    "deep lists": b'{"user": ' + b"[" * 100_000,
    "deep objects": b'{"user":' * 50_000,
    "too many events": json.dumps({"user": 1, "events": [1] * 70_000, "candidates": [1]}).encode(),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("path", ["/v1/rank", "/v2/models/little/infer"])
def test_what_is_no_request_is_told_in_a_sentence(server: Server, path: str, body: bytes) -> None:
    answer = server.http.post(path, content=body)
    assert answer.status_code in (400, 422)
    error = answer.json()["error"]
    text = error if path.startswith("/v2") else error["sentence"]
    assert 10 < len(text) <= 500 and text.endswith(".") and "Traceback" not in text


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("POST", "/v1/rank", {}, b"x" * (2 * 2**20 + 1), 413),
        ("POST", "/v1/rank", {"Content-Encoding": "gzip"}, b"x", 415),
        ("GET", "/v1/rank", {}, b"", 405),
        ("GET", "/v1/none", {}, b"", 404),
        ("GET", "/v2/models/other", {}, b"", 404),
        ("POST", "/v2/models/little/infer", {"Inference-Header-Content-Length": "99"}, b"{}", 400),
        ("POST", "/v2/models/little/infer", {"Inference-Header-Content-Length": "-1"}, b"{}", 400),
    ],
)
def test_limits_and_places(
    server: Server, method: str, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    answer = server.http.request(method, path, headers=headers, content=body)
    assert answer.status_code == status and answer.json()["error"]


def test_the_open_inference_protocol_with_binary_and_listed_tensors(server: Server) -> None:
    assert server.http.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    model = server.http.get("/v2/models/little").json()
    assert {tensor["name"] for tensor in model["inputs"]} == {"user", "events", "candidates", "start"}
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/little/ready"):
        assert server.http.get(path).status_code == 200
    plain = server.rank(user="oip", events=[5, 6, 7], candidates=[1, 2, 3]).json()
    scores = [plain["scores"][plain["items"].index(item)] for item in (1, 2, 3)]
    listed = {
        "inputs": [
            {"name": "user", "shape": [1], "datatype": "BYTES", "data": ["oip"]},
            {"name": "events", "shape": [1, 3], "datatype": "INT64", "data": [[5, 6, 7]]},
            {"name": "candidates", "shape": [3], "datatype": "INT64", "data": [1, 2, 3]},
        ]
    }
    answer = server.http.post("/v2/models/little/infer", json=listed).json()
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert outputs["scores"] == pytest.approx(scores, abs=1e-5)
    assert outputs["history"][:2] == [3, 3]

    user, candidates = struct.pack("<I", 3) + b"oip", np.array([1, 2, 3], "<i8").tobytes()
    start = np.array([3], "<i8").tobytes()
    head = json.dumps(
        {
            "id": "a",
            "inputs": [
                {"name": name, "shape": [count], "datatype": kind, "parameters": {"binary_data_size": len(content)}}
                for name, count, kind, content in (
                    ("user", 1, "BYTES", user),
                    ("candidates", 3, "INT64", candidates),
                    ("start", 1, "INT64", start),
                )
            ],
            "outputs": [{"name": "scores", "parameters": {"binary_data": True}}],
        }
    ).encode()
    answered = server.http.post(
        "/v2/models/little/versions/1/infer",
        content=head + user + candidates + start,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    length = int(answered.headers["Inference-Header-Content-Length"])
    assert json.loads(answered.content[:length])["id"] == "a"
    assert np.frombuffer(answered.content[length:], "<f4").tolist() == pytest.approx(scores, abs=1e-5)


def test_with_triton_s_own_client(server: Server) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed (extra dev)")
    client = triton.InferenceServerClient(server.address.removeprefix("http://"))
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("little")
    plain = server.rank(user="oip", events=[5, 6, 7], candidates=[1, 2, 3]).json()
    for binary in (True, False):
        inputs = []
        for name, kind, array in (
            ("user", "BYTES", np.array(["oip"], object)),
            ("events", "INT64", np.array([5, 6, 7])),
            ("candidates", "INT64", np.array([1, 2, 3])),
        ):
            inputs.append(triton.InferInput(name, list(array.shape), kind))
            inputs[-1].set_data_from_numpy(array, binary_data=binary)
        scores = client.infer("little", inputs).as_numpy("scores")
        assert sorted(scores.tolist(), reverse=True) == pytest.approx(plain["scores"], abs=1e-5)
    with pytest.raises(triton.InferenceServerException, match="There is no model"):
        client.infer("other", inputs)
    client.close()


def test_a_trace_goes_on_and_what_is_none_does_not(server: Server) -> None:
    trace, body = "4bf92f3577b34da6a3ce929d0e0e4736", {"user": 1, "events": [1], "candidates": [1]}
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "tracestate": "a=b"}
    answer = server.http.post("/v1/rank", json=body, headers=headers)
    version, passed, span, flags = answer.headers["traceparent"].split("-")
    assert (version, passed, flags) == ("00", trace, "01") and span != "00f067aa0ba902b7"
    assert answer.headers["tracestate"] == "a=b"
    for wrong in ("", "x", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"ff-{trace}-00f067aa0ba902b7-01"):
        assert "traceparent" not in server.http.post("/v1/rank", json=body, headers={"traceparent": wrong}).headers


def connect(server: Server) -> socket.socket:
    place = urllib.parse.urlsplit(server.address)
    return socket.create_connection((place.hostname, place.port), timeout=60.0)


def test_clients_that_leave_or_do_not_read_stand_in_nobodys_way(server: Server) -> None:
    body = json.dumps({"user": "slow", "events": list(range(200)), "candidates": list(range(60))}).encode()
    request = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    held = []
    for k in range(20):
        end = connect(server)
        if k % 3 == 0:  # half a body, and then nothing
            end.sendall(request[:-20])
            held.append(end)
        elif k % 3 == 1:  # many requests, and no answer is read
            end.sendall(20 * request)
            held.append(end)
        else:  # gone at once
            end.sendall(request)
            end.close()
    for k in range(10):
        assert server.rank(user=f"quick {k}", events=[1], candidates=[2]).status_code == 200
    for end in held:
        end.close()
    until = time.monotonic() + 30.0
    while server.metric("helm_requests_under_way"):
        assert time.monotonic() < until, "requests of clients that left are worked off"
        time.sleep(0.05)


def test_a_flood_is_shed_and_what_is_taken_is_answered(server: Server) -> None:
    async def flood() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=300)
        async with httpx.AsyncClient(base_url=server.address, timeout=60.0, limits=limits, trust_env=False) as client:
            bodies = [{"user": f"f{k}", "events": list(range(300)), "candidates": [1, 2]} for k in range(300)]
            return await asyncio.gather(*(client.post("/v1/rank", json=body) for body in bodies))

    answers = asyncio.run(flood())
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}
    shed = [answer for answer in answers if answer.status_code == 429]
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in shed)
    assert sum(answer.status_code == 200 for answer in answers) >= 64, "both queues were full, at least"
    assert server.metric("helm_shed_total") >= len(shed)
    assert server.rank(user="after", events=[1], candidates=[2]).status_code == 200


def test_the_commands(server: Server, tmp_path: pathlib.Path) -> None:
    def command(*words: str, status: int = 0) -> str:
        found = CliRunner().invoke(main.app, [*words, "--url", server.control])
        assert found.exit_code == status, found.output
        return found.output

    assert "ready" in command("status") and "req/s" in command("status")
    assert len(json.loads(command("status", "--json"))["service"]["nodes"]) == 2
    policy = mover(tmp_path / "mine.onnx", small(), 0.5)
    found = json.loads(command("swap", str(policy), "--json"))
    assert found["policy"]["sha256"] == hashlib.sha256(policy.read_bytes()).hexdigest()
    command("control", "rollback")
    command("control", "mode", "shadow", "--node", "1")
    assert [node["mode"] for node in server.status()["controller"]["nodes"]][1] == "shadow"
    command("control", "mode", "active")
    assert "kill switch is on" in command("control", "kill")
    command("control", "revive")
    assert "on trial" in command("control", "promote", status=2)
    policy.write_bytes(b"x")
    assert "no ONNX file" in command("swap", str(policy), status=2)
    nowhere = CliRunner().invoke(main.app, ["status", "--url", "http://127.0.0.1:9"])
    assert nowhere.exit_code == 2 and "No control plane answers" in nowhere.output


def test_the_control_plane(server: Server) -> None:
    def post(path: str, **more: Any) -> httpx.Response:
        headers = {"Content-Type": "application/json"} | more.pop("headers", {})
        return httpx.post(f"{server.control}/control/{path}", headers=headers, trust_env=False, **more)

    assert post("mode", content=b'{"mode": "shadow"}').status_code == 200
    assert {node["mode"] for node in server.status()["controller"]["nodes"]} == {"shadow"}
    assert post("mode", content=b'{"mode": "canary", "node": 1}').status_code == 200
    assert post("mode", content=b'{"mode": "active"}').status_code == 200
    assert post("kill").json()["killed"] is True
    assert post("revive").json()["killed"] is False
    for path, more in (
        ("mode", {"content": b'{"mode": "on"}'}),
        ("mode", {"content": b'{"mode": "active", "node": 7}'}),
        ("swap", {"content": b"no policy"}),
        ("swap?sha256=" + "0" * 64, {"content": b"no policy"}),
    ):
        answer = post(path, **more)
        assert answer.status_code == 422 and len(answer.json()["error"]["sentence"]) > 20
    assert post("kill", headers={"Content-Type": "text/plain"}).status_code == 415, "a page could send that"
    assert httpx.get(f"{server.control}/control/status", headers={"Host": "evil"}, trust_env=False).status_code == 400
    assert server.http.get("/control/status").status_code == 404, "it is not on the data plane"
