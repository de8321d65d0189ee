"""What the service costs around inference: HTTP beside a bare FastAPI echo, throughput with a controller beside none.

    python benchmarks/serving_load.py --pairs 10

Both servers are up at the same time and asked in turns, so that other work on the machine meets all of them. Overhead:
one connection, one request at a time; what the node took (Server-Timing: from the request's arrival at the service to
its scores) is taken off. Throughput: a closed loop over many connections that keeps the node busy, because what is
compared is work done; for latency under load use an open loop (`helm-gym load`). Users and candidates are drawn;
histories grow. Where other work shares the machine, read the ratio by CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.parse
from typing import Any

import fastapi
import numpy as np

HISTORY, DELTA, CANDIDATES = 200, 8, 48
_READY_S = 120.0


def make_echo() -> fastapi.FastAPI:
    """The least that answers a request of this form with an answer of that size."""
    app = fastapi.FastAPI()

    @app.post("/v1/rank")
    async def rank(request: fastapi.Request) -> fastapi.Response:
        asked = json.loads(await request.body())
        answer = {"user": asked["user"], "items": asked["candidates"], "scores": [0.5] * len(asked["candidates"])}
        return fastapi.Response(json.dumps(answer), media_type="application/json")

    return app


class Users:
    """Bodies of requests, made beforehand: users who come back with a few new events."""

    def __init__(self, seed: int, users: int, items: int = 100_000):
        self._rng, self._users, self._items = np.random.default_rng(seed), users, items
        self._total: dict[int, int] = {}

    def next(self) -> bytes:
        rng = self._rng
        user = int(rng.integers(self._users))
        start = self._total.get(user, 0)
        count = DELTA if start else HISTORY
        self._total[user] = start + count
        events, candidates = rng.integers(0, self._items, count), rng.choice(self._items, CANDIDATES, replace=False)
        body = {"user": user, "start": start, "events": events.tolist(), "candidates": candidates.tolist()}
        return json.dumps(body).encode()


class Connection:
    """One kept connection that asks and reads."""

    def __init__(self, address: str):
        self._place = urllib.parse.urlsplit(address)

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._place.hostname, self._place.port)

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        fields = ("Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}")
        self._writer.write("\r\n".join((f"{method} {path} HTTP/1.1", *fields, "", "")).encode() + body)
        told = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        self.node_ms = float(told.partition("node;dur=")[2].partition("\r\n")[0] or 0.0)
        length = int(told.partition("content-length: ")[2].partition("\r\n")[0])
        return int(told.split(" ", 2)[1]), await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


async def overhead(service: str, echo: str, rounds: int, each: int) -> dict[str, Any]:
    users = Users(1, users=40)
    took_ms: dict[str, list[float]] = {"service": [], "echo": []}
    around_ms: list[float] = []
    connections = {"service": Connection(service), "echo": Connection(echo)}
    for connection in connections.values():
        await connection.open()
    for turn in range(rounds + 1):
        bodies = [users.next() for _ in range(each)]
        for name, connection in connections.items():
            for body in bodies:
                started = time.perf_counter()
                status, answer = await connection.ask("POST", "/v1/rank", body)
                spent_ms = 1e3 * (time.perf_counter() - started)
                assert status == 200, answer
                if turn:
                    took_ms[name].append(spent_ms)
                    if name == "service":
                        around_ms.append(spent_ms - connection.node_ms)
    for connection in connections.values():
        connection.close()
    told = {f"{name}_ms": took_ms[name] for name in took_ms} | {"service_without_node_ms": around_ms}
    return {name: {"median": float(np.median(ms)), "p90": float(np.quantile(ms, 0.9))} for name, ms in told.items()}


async def status_of(control: str) -> dict[str, Any]:
    return dict(json.loads((await _once(control, "GET", "/control/status"))[1]))


async def _once(address: str, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    connection = Connection(address)
    await connection.open()
    try:
        return await connection.ask(method, path, body)
    finally:
        connection.close()


def cpu_s(pid: int) -> float:
    """CPU time of a process, all its threads; to the nanosecond, where /proc/PID/stat counts hundredths of a second."""
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return 1e-9 * sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


async def throughput(
    service: str, control: str, mode: str, pairs: int, seconds: float, clients: int, pid: int
) -> dict[str, Any]:
    users = Users(2, users=200)
    done = 0

    async def client() -> None:
        nonlocal done
        connection = Connection(service)
        await connection.open()
        while True:
            status, answer = await connection.ask("POST", "/v1/rank", users.next())
            # A user's requests can overtake each other: the service asks for the history, which is an answer, too.
            assert status in (200, 409), answer
            done += status == 200

    pids = [pid, *(node["pid"] for node in (await status_of(control))["service"]["nodes"])]
    working = [asyncio.create_task(client()) for _ in range(clients)]
    await asyncio.sleep(2 * seconds)
    rates: dict[str, list[float]] = {"off": [], mode: []}
    cpu_ms: dict[str, list[float]] = {"off": [], mode: []}  # a request, of both processes
    for pair in range(pairs):
        for chosen in ("off", mode) if pair % 2 == 0 else (mode, "off"):
            await _once(control, "POST", "/control/mode", json.dumps({"mode": chosen}).encode())
            before, started, spent_s = done, time.perf_counter(), sum(map(cpu_s, pids))
            await asyncio.sleep(seconds)
            rates[chosen].append((done - before) / (time.perf_counter() - started))
            cpu_ms[chosen].append(1e3 * (sum(map(cpu_s, pids)) - spent_s) / (done - before))
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    return {
        "mode": mode,
        "off_per_s": float(np.mean(rates["off"])),
        "controlled_per_s": float(np.mean(rates[mode])),
        "rate_ratio": _ratio(rates[mode], rates["off"]),
        "off_cpu_ms": float(np.mean(cpu_ms["off"])),
        "controlled_cpu_ms": float(np.mean(cpu_ms[mode])),
        "rate_ratio_by_cpu_time": _ratio(cpu_ms["off"], cpu_ms[mode]),
    }


def _ratio(above: list[float], below: list[float]) -> list[float]:
    """Mean over pairs, and its 95% bootstrap interval."""
    ratio = np.array(above) / np.array(below)
    draws = np.random.default_rng(0).choice(ratio, (10_000, len(ratio))).mean(axis=1)
    return [round(float(value), 4) for value in (ratio.mean(), *np.quantile(draws, [0.025, 0.975]))]


def control_us(metrics: str, name: str) -> dict[str, float]:
    """Share of decisions within each bound (us) of a histogram."""
    counts = {
        line.partition('le="')[2].partition('"')[0]: float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith(f"{name}_bucket")
    }
    total = max(1.0, counts.get("+Inf", 0.0))
    return {f"{1e6 * float(bound):g}": round(count / total, 3) for bound, count in counts.items() if bound != "+Inf"}


async def _measure(told: dict[str, Any], echo: str, pid: int, given: argparse.Namespace) -> dict[str, Any]:
    service, control = told["address"], told["control"]
    until = time.monotonic() + _READY_S
    for address in (service, echo):
        while True:
            try:
                if (await _once(address, "GET", "/readyz"))[0] in (200, 404):
                    break
            except OSError:
                pass
            assert time.monotonic() < until, "a server does not come up"
            await asyncio.sleep(0.1)
    await _once(control, "POST", "/control/mode", b'{"mode": "off"}')
    found: dict[str, Any] = {"overhead": await overhead(service, echo, given.pairs, 200)}
    found["throughput"] = await throughput(service, control, given.mode, given.pairs, given.seconds, given.clients, pid)
    metrics = (await _once(service, "GET", "/metrics"))[1].decode()
    found["decisions within us"] = control_us(metrics, "helm_control_seconds")
    found["policy steps within us"] = control_us(metrics, "helm_policy_step_seconds")
    found["moves while requests wait (s)"] = [
        line.rpartition(" ")[2] for line in metrics.splitlines() if line.startswith("helm_move_seconds")
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="three-layer-ppo")
    parser.add_argument("--mode", default="active", choices=("shadow", "active"))
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=24)
    given = parser.parse_args()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    echo_port = 18_999
    here = pathlib.Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "helm_gym.cli.main", "serve", given.policy, "--json", "--port", "0"]
        command += ["--control-port", "0", "--nodes", str(given.nodes), "--mode", "off"]
        echo_command = [
            sys.executable,
            "-m",
            "uvicorn",
            "--factory",
            "serving_load:make_echo",
            "--log-level",
            "warning",
        ]
        echo_command += [
            "--port",
            str(echo_port),
            "--app-dir",
            str(here),
            "--no-access-log",
            "--timeout-keep-alive",
            "100",
        ]
        with open(pathlib.Path(folder) / "log", "w") as log:
            service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
            echo = subprocess.Popen(echo_command, env=environment)
            try:
                told, text = {}, ""
                assert service.stdout is not None
                for line in service.stdout:
                    text += line.decode()
                    if line.startswith(b"}"):
                        told = json.loads(text)
                        break
                found = asyncio.run(_measure(told, f"http://127.0.0.1:{echo_port}", service.pid, given))
            finally:
                service.terminate()
                echo.terminate()
                service.wait()
                echo.wait()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
