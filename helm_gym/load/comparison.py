"""Policies compared on a live service, in turns under the same requests, and their rank beside that of evaluation.

Each turn is another seed, in which every policy serves once, by itself, from cold caches: what this machine does
meanwhile hits all of them alike, and the order changes from turn to turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from helm_gym import evaluation, registry
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.evaluation.statistics import Figure, bootstrap
from helm_gym.load import loadgen as mlperf
from helm_gym.load import open_loop, together
from helm_gym.load.client import Client
from helm_gym.load.stream import Stream
from helm_gym.profile import Profile
from helm_gym.tasks import Task
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import INDEX, WorkloadPath
from helm_gym.workload.traces import Trace

_START_S = 180.0
_END_S = 60.0
_RESAMPLES = 1000
_LEAST_HORIZON = 20  # intervals that are evaluated


class Start(Protocol):
    """Starts a service for a policy; its URL, as long as the context lasts."""

    def __call__(self, policy: str) -> contextlib.AbstractContextManager[str]: ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        policies: names and files, or ``NAME=URL`` of services that run already.
        seconds, warm_s, rate, nodes: see ``Stream`` and ``open_loop.run``.
        turns: seeds 0, 1, ...
        loadgen_s: how long LoadGen's Server scenario lasts behind each load; 0: none is run.
        p99_ms: its limit.
        offline: whether policies are evaluated, too, on the modelled rung.
        together: whether all services run at once and each request goes to each of them; see ``together``.
    """

    policies: tuple[str, ...]
    task: Task
    profile: Profile
    seconds: float
    warm_s: float
    rate: float | None
    turns: int
    nodes: int = 1
    loadgen_s: float = 0.0
    p99_ms: float = 80.0
    offline: bool = True
    together: bool = False

    def __post_init__(self) -> None:
        if len(self.policies) < 2 or len(set(self.policies)) < len(self.policies):
            raise InvalidInputError("A comparison is of two or more policies or services, each named once.")
        if self.warm_s >= self.seconds:
            raise InvalidInputError(f"{self.warm_s:g} seconds of warm-up leave nothing of {self.seconds:g}.")
        if self.together and self.loadgen_s:
            raise InvalidInputError("LoadGen needs a service to itself; leave --together or --loadgen-s out.")


@contextlib.contextmanager
def serving(policy: str, profile: str, nodes: int) -> Iterator[str]:
    """``helm-gym serve`` in a process of its own, with the policy active.

    Raises:
        HelmError: it does not start; its own last line says why.
    """
    command = [sys.executable, "-m", "helm_gym.cli.main", "serve", policy, "--profile", profile, "--mode", "active"]
    command += ["--nodes", str(nodes), "--port", "0", "--control-port", "0", "--json"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        try:
            url = _address(process)
            if url is None or not _wait_ready(process, url):
                log.seek(0)
                lines = log.read().decode(errors="replace").strip().splitlines() or ["no word of why"]
                raise HelmError(f"`helm-gym serve {policy}` did not start: {lines[-1]}")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _address(process: subprocess.Popen[bytes]) -> str | None:
    """What the service says of itself at its start, a JSON object; None where it ends before."""
    assert process.stdout is not None
    told, late = b"", threading.Timer(_START_S, process.kill)
    late.start()
    try:
        while part := os.read(process.stdout.fileno(), 4096):
            told += part
            with contextlib.suppress(ValueError):
                return str(json.loads(told)["address"])
        return None
    finally:
        late.cancel()


def _wait_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    async def wait() -> bool:
        client, until = Client(url), time.monotonic() + _START_S
        while process.poll() is None and time.monotonic() < until:
            if (await client.send("GET", "/readyz")).status == 200:
                await client.close()
                return True
            await asyncio.sleep(0.1)
        return False

    return asyncio.run(wait())


Tick = Callable[[str, int, int], Any]
Measured = dict[str, list[dict[str, Any]]]  # policy -> figures, a turn or a block each


def compare(plan: Plan, start: Start, tick: Tick = lambda what, done, total: None) -> dict[str, Any]:
    """Serves, measures and ranks; what `helm-gym compare --json` prints.

    Raises:
        HelmError: a service that does not start or answer.
    """
    measured = (_side_by_side if plan.together else _in_turns)(plan, start, tick)
    rows = [_row(policy, measured[policy], measured[plan.policies[0]]) for policy in plan.policies]
    told: dict[str, Any] = {
        "task": plan.task.name,
        "profile": plan.profile.name,
        "turns": plan.turns,
        "seconds": plan.seconds,
        "together": plan.together,
        "policies": rows,
    }
    named = [policy for policy in plan.policies if "=http" not in policy]
    if plan.offline and plan.nodes == 1 and len(named) == len(plan.policies):
        told["rank"] = _ranks(plan, measured, rows)
    return told


def _in_turns(plan: Plan, start: Start, tick: Tick) -> Measured:
    """Each turn's figures of each policy."""
    count, total = len(plan.policies), plan.turns * len(plan.policies)
    measured: Measured = {policy: [] for policy in plan.policies}
    for turn in range(plan.turns):
        for place in range(count):
            policy = plan.policies[(place + turn) % count]
            tick(f"turn {turn + 1}, {policy}", turn * count + place, total)
            with _running(policy, start) as url:
                measured[policy].append(_measure(plan, url, turn) | {"name": _name(policy)})
    tick("", total, total)
    return measured


def _side_by_side(plan: Plan, start: Start, tick: Tick) -> Measured:
    """Each block's figures of each policy, of all turns."""
    total = round(plan.turns * plan.seconds)
    measured: Measured = {policy: [] for policy in plan.policies}
    for turn in range(plan.turns):
        stream = Stream(plan.task, plan.profile, turn, plan.seconds, plan.rate, nodes=plan.nodes)
        before = round(turn * plan.seconds)

        def told(now: float, before: int = before, turn: int = turn) -> None:
            tick(f"turn {turn + 1}", min(total, before + round(now)), total)

        with contextlib.ExitStack() as stack:
            urls = [stack.enter_context(_running(policy, start)) for policy in plan.policies]

            async def send(
                urls: Sequence[str] = urls, stream: Stream = stream, told: Callable[[float], None] = told
            ) -> list[list[open_loop.Outcome]]:
                return await together.run([Client(url) for url in urls], stream, plan.warm_s, told)

            blocks = asyncio.run(send())
        for policy, outcomes in zip(plan.policies, blocks, strict=True):
            measured[policy] += [of.figures(plan.profile.slo_ms) | {"name": _name(policy)} for of in outcomes]
    if not measured[plan.policies[0]]:
        raise InvalidInputError(f"Fewer than {together.BLOCK} requests were sent; raise --seconds or --rate.")
    tick("", total, total)
    return measured


def _name(policy: str) -> str:
    name, _, url = policy.partition("=")
    return name if url.startswith("http") else policy


def _running(policy: str, start: Start) -> contextlib.AbstractContextManager[str]:
    _, _, url = policy.partition("=")
    return contextlib.nullcontext(url) if url.startswith("http") else start(policy)


def _measure(plan: Plan, url: str, turn: int) -> dict[str, Any]:
    stream = Stream(plan.task, plan.profile, turn, plan.seconds, plan.rate, nodes=plan.nodes)

    async def send() -> open_loop.Outcome:
        return await open_loop.run(Client(url), stream, plan.warm_s)

    figures = asyncio.run(send()).figures(plan.profile.slo_ms)
    if plan.loadgen_s:
        scenario = mlperf.Scenario(stream.rate, plan.p99_ms, plan.loadgen_s, turn, accuracy=False)
        length = 4.0 * mlperf.LEAST_QUERIES / stream.rate
        samples = mlperf.library(Stream(plan.task, plan.profile, turn, length, stream.rate), mlperf.LEAST_QUERIES)
        figures["loadgen"] = mlperf.run(url, samples, scenario, plan.profile)
    return figures


def _row(policy: str, turns: Sequence[dict[str, Any]], first: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A policy's figures over turns, with bootstrap intervals, and paired with the first policy's."""

    def figure(key: str) -> Figure:
        return bootstrap([_column(turns, key)], _mean, np.random.default_rng(0))

    def over_first(key: str) -> Figure:
        return bootstrap([_column(turns, key), _column(first, key)], _ratio, np.random.default_rng(0))

    row: dict[str, Any] = {"name": turns[0]["name"], "policy": policy}
    for key in ("mean_ms", "p99_ms", "slo_satisfaction"):
        row[key] = figure(key).to_json()
    for key in ("mean_ms", "p99_ms"):
        row[f"{key}_over_first"] = over_first(key).to_json()
    for key in ("requests", "answered", "shed", "errors"):
        row[key] = int(sum(turn[key] for turn in turns))
    for key in ("kv_hit_rate", "emb_hit_rate"):
        told = [turn[key] for turn in turns if turn[key] is not None]
        row[key] = float(np.mean(told)) if told else None
    row["client_late_p99_ms"] = max(turn["client_late_p99_ms"] for turn in turns)
    if "loadgen" in turns[0]:
        verdicts = [turn["loadgen"]["verdict"] for turn in turns]
        row["loadgen"] = {
            "valid": verdicts.count("VALID"),
            "of": len(verdicts),
            "p99_ms": float(np.mean([turn["loadgen"].get("p99_ms", np.nan) for turn in turns])),
        }
    return row


def _column(turns: Sequence[dict[str, Any]], key: str) -> NDArray[np.float64]:
    return np.array([turn[key] for turn in turns], np.float64)


def _mean(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.asarray(values.mean(axis=axis))


def _ratio(ours: NDArray[np.float64], theirs: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.asarray(ours.mean(axis=axis) / theirs.mean(axis=axis))


@dataclasses.dataclass(frozen=True)
class _Slowed:
    """A regime whose arrivals are further apart."""

    regime: str
    by: float

    def draw(self, profile: Profile, seeds: Sequence[int], intervals: int, trace: Trace | None) -> WorkloadPath:
        path = make_path(self.regime, profile, seeds, intervals, trace)
        path.values[:, :, INDEX["arrival_rate_rps"]] /= self.by
        return path


def _ranks(plan: Plan, measured: Measured, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Kendall's tau between latencies live and as evaluated at the same rate, with its interval over turns."""
    stream = Stream(plan.task, plan.profile, 0, plan.seconds, plan.rate)
    horizon = max(_LEAST_HORIZON, round(len(stream) / plan.profile.interval.requests))
    slowed = f"{plan.task.regime}, slowed"
    registry.register("regime", slowed, _Slowed(plan.task.regime, stream.slowness))
    scores = evaluation.evaluate(
        list(plan.policies),
        dataclasses.replace(plan.task, regime=slowed),
        profile=plan.profile,
        seeds=plan.turns,
        horizon=horizon,
        references=False,
    )
    evaluated = {row["name"]: row for row in scores.figures["policies"]}
    told: dict[str, Any] = {"rung": "modelled", "horizon": horizon}
    for key, name in (("mean_ms", "mean_latency_ms"), ("p99_ms", "p99_ms")):
        offline = np.array([float(evaluated[policy][name]["value"]) for policy in plan.policies])
        for row, value in zip(rows, offline, strict=True):
            row[f"{key}_evaluated"] = value
            row[f"{key}_evaluated_over_first"] = value / offline[0]
        live = np.array([_column(measured[policy], key) for policy in plan.policies])  # (policies, turns)
        told[f"tau_{key}"] = _tau(live, offline).to_json()
    return told


def _tau(live: NDArray[np.float64], offline: NDArray[np.float64]) -> Figure:
    """Of mean figures over turns; the interval: turns drawn again and again, the same for all policies."""
    value, turns = float(stats.kendalltau(live.mean(axis=1), offline).statistic), live.shape[1]
    if turns < 2:
        return Figure(value)
    rng = np.random.default_rng(0)
    drawn = [live[:, rng.integers(0, turns, turns)].mean(axis=1) for _ in range(_RESAMPLES)]
    low, high = np.nanquantile([stats.kendalltau(means, offline).statistic for means in drawn], (0.025, 0.975))
    return Figure(value, float(low), float(high))
