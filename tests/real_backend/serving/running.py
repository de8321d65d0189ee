"""A service as a command line, and what it is asked."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import numpy as np

from helm_gym import profile as profiles
from helm_gym.observation import ObservationLayout
from helm_gym.policies import onnx_export
from helm_gym.policies.onnx_graph import Graph
from helm_gym.profile import Profile, load

ROOT = pathlib.Path(__file__).resolve().parents[3]
START_S = 120.0  # imports take seconds, on a busy machine many


def small(**changes: Any) -> Profile:
    """cpu-small with a pool that holds few of its users."""
    profile = load("cpu-small")
    population = dataclasses.replace(profile.population, users=300, items=4000, hot_users=20)
    pool = dataclasses.replace(profile.pool, pages=256, max_alpha=0.8, page_moves_per_interval=12, shadow_pages=16)
    cost = dataclasses.replace(profile.cost, probe_ms=0.0)
    return dataclasses.replace(profile, name="little", population=population, pool=pool, cost=cost, **changes)


def mover(path: pathlib.Path, profile: Profile, action: float) -> pathlib.Path:
    """A policy's file that does always the same."""
    layout = ObservationLayout(profile)
    graph = Graph("mover", layout, state=1)
    counted = graph.clip(graph.op("Add", graph.columns("state", 0, 1), graph.constant(1e-3)), 0.0, 1e3)
    facts = onnx_export.origin_facts(layout, routes=False)
    path.write_bytes(onnx_export.stamp(graph.model(graph.fill(action), counted), facts))
    return path


class Server:
    """``helm-gym serve`` in a process of its own."""

    def __init__(self, folder: pathlib.Path, policy: str, *options: str, profile: Profile | None = None):
        path = folder / "profile.yaml"
        profiles.save(profile or small(), path)
        self._log = (folder / "log").open("ab")
        command = [sys.executable, "-m", "helm_gym.cli.main", "serve", policy, "--profile", str(path), "--json"]
        command += ["--port", "0", "--control-port", "0", *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, env=environment, cwd=folder, start_new_session=True
        )
        told, until = b"", time.monotonic() + START_S
        assert self.process.stdout is not None
        while b"}" not in told:
            assert select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))[0], self.log
            part = os.read(self.process.stdout.fileno(), 4096)
            assert part, self.log
            told += part
        self.told: dict[str, Any] = json.loads(told)
        self.address, self.control = self.told["address"], self.told["control"]
        self.http = httpx.Client(base_url=self.address, timeout=60.0, trust_env=False)

    @property
    def log(self) -> str:
        return pathlib.Path(self._log.name).read_text()

    def wait_ready(self) -> None:
        until = time.monotonic() + START_S
        while self.http.get("/readyz").status_code != 200:
            assert self.process.poll() is None and time.monotonic() < until, self.log
            time.sleep(0.05)

    def rank(self, **body: Any) -> httpx.Response:
        return self.http.post("/v1/rank", json=body)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.control}/control/status", trust_env=False).json()
        return found

    def pids(self) -> list[int]:
        return [node["pid"] for node in self.status()["service"]["nodes"]]

    def metric(self, name: str) -> float:
        """The sum over all labels."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].split(" ")[0] == name)

    def end(self, number: int = signal.SIGTERM, seconds: float = 60.0) -> int:
        """Sends a signal and returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def close(self) -> None:
        """Ends it at once, if it has not ended."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()
        self.http.close()


@contextlib.contextmanager
def running(folder: pathlib.Path, policy: str, *options: str, profile: Profile | None = None) -> Iterator[Server]:
    server = Server(folder, policy, *options, profile=profile)
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


class Users:
    """What users did, and requests that say so."""

    def __init__(self, seed: int, items: int = 4000, users: int = 60):
        self._rng, self._items, self._users = np.random.default_rng(seed), items, users
        self.events: dict[str, list[int]] = {}

    def next(self) -> dict[str, Any]:
        """A request: of a new user with a history, or of one who comes back with a few new events."""
        user = f"user {self._rng.integers(self._users)}"
        mine = self.events.setdefault(user, [])
        start = len(mine)
        new = self._rng.integers(0, self._items, self._rng.integers(1, 12) if mine else self._rng.integers(60, 300))
        mine += new.tolist()
        candidates = self._rng.choice(self._items, self._rng.integers(1, 32), replace=False).tolist()
        return {"user": user, "start": start, "events": mine[start:], "candidates": candidates}
