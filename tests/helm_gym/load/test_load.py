"""Load on a service: the requests are a task's, the loop is open, and nothing that goes wrong is left out."""

from __future__ import annotations

import asyncio
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from helm_gym.cli.main import app
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.load import open_loop
from helm_gym.load.client import Client
from helm_gym.load.stream import Request, Stream
from helm_gym.tasks import find_task
from helm_gym.workload.traces import read_trace
from tests.helm_gym.load.answering import PROFILE, Service, answering

BURST = find_task("burst-v0")


def drawn(seconds: float = 3.0, seed: int = 0, **how: Any) -> list[Request]:
    return list(Stream(BURST, PROFILE, seed, seconds, **how))


def send(service: Service, requests: list[Request], warm_s: float = 0.0) -> open_loop.Outcome:
    async def run() -> open_loop.Outcome:
        return await open_loop.run(Client(service.url, timeout_s=20.0), requests, warm_s)

    return asyncio.run(run())


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_seed_fixes_all_requests_and_histories_grow_by_what_is_sent(nodes: int) -> None:
    first, again, other = drawn(nodes=nodes), drawn(nodes=nodes), drawn(nodes=nodes, seed=1)
    assert [(r.due_s, r.body()) for r in first] == [(r.due_s, r.body()) for r in again]
    assert [r.body() for r in first] != [r.body() for r in other]
    known: dict[str, list[int]] = {}
    for request in first:
        asked = json.loads(request.body())
        before = known.get(asked["user"], [])
        assert asked["start"] == len(before), "a user's first request is whole, and each later one goes on from there"
        known[asked["user"]] = [*before, *asked["events"]]
        assert known[asked["user"]] == request.history.tolist()
        whole = json.loads(request.body(whole=True))
        assert (whole["start"], whole["events"]) == (0, request.history.tolist())
    assert max(map(len, known.values())) > min(map(len, known.values()))
    assert all(np.diff([r.due_s for r in first]) >= 0)


def test_the_rate_is_that_which_is_asked_for() -> None:
    for rate in (40.0, 400.0):
        stream = Stream(BURST, PROFILE, 0, 4000 / rate, rate)
        times = [request.due_s for request in stream]
        assert len(stream) == 4000
        assert len(times) == pytest.approx(4000, rel=0.1)
        assert times[-1] <= 4000 / rate
    own = Stream(BURST, PROFILE, 0, 5.0)
    assert own.rate == pytest.approx(len(list(own)) / 5.0, rel=0.2)
    for seconds, asked in ((0.0, 5.0), (float("inf"), 5.0), (1.0, -1.0), (1.0, float("nan")), (1e6, 1e6)):
        with pytest.raises(InvalidInputError):
            Stream(BURST, PROFILE, 0, seconds, asked)


def test_recorded_arrivals_keep_their_gaps(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.csv"
    times = np.cumsum(np.tile([0.01] * 9 + [0.91], 30))
    path.write_text("arrival_s\n" + "\n".join(f"{t:.6f}" for t in times))
    stream = Stream(find_task("trace-v0"), PROFILE, 0, 20.0, 10.0, read_trace(path))
    gaps = np.diff([request.due_s for request in stream])
    assert gaps.max() > 20 * np.median(gaps), "bursts and lulls are the recording's"


def test_what_was_sent_is_told() -> None:
    requests = drawn(rate=100.0, seconds=2.0)
    with answering() as service:
        outcome = send(service, requests)
    figures = outcome.figures(slo_ms=1e6)
    assert figures["requests"] == figures["answered"] == len(requests)
    assert figures["errors"] == figures["shed"] == 0
    assert figures["slo_satisfaction"] == 1.0
    assert figures["emb_hit_rate"] == pytest.approx(0.75)
    returning = sum(request.new < len(request.history) for request in requests)
    # Two requests of one user may overtake each other, and then the second's history is asked for.
    assert figures["kv_hit_rate"] * len(requests) == pytest.approx(returning - figures["history_asked_again"])
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]
    for request in requests:
        assert service.histories[request.user][: len(request.history)] == request.history.tolist()


def test_a_service_that_forgets_is_told_again() -> None:
    requests = drawn(rate=100.0, seconds=3.0)
    with answering(Service(forget_every=25)) as service:
        figures = send(service, requests).figures(1e6)
    assert figures["answered"] == len(requests)
    assert figures["history_asked_again"] > 0
    last = {request.user: request.history.tolist() for request in requests}
    assert all(last[user] == history for user, history in service.histories.items())


def test_a_stall_is_charged_to_everyone_who_would_have_come() -> None:
    """Coordinated omission: a closed loop would see one slow answer, and a P90 of a millisecond."""
    requests = drawn(rate=100.0, seconds=3.0)
    with answering(Service(stall_at=100, stall_s=1.5)) as service:
        outcome = send(service, requests)
    slow = outcome.latency_ms > 500.0
    due = np.sort(outcome.due_s)
    began = due[100]
    meant = ((due >= began) & (due < began + 0.8)).sum()
    assert slow.sum() >= 0.7 * meant > 30
    assert outcome.latency_ms.max() > 1300.0


def test_errors_and_shed_requests_are_counted_and_no_latency_of_answers() -> None:
    requests = drawn(rate=100.0, seconds=2.0)
    statuses = {5: 429, 6: 429, 7: 503, 8: 500, 9: 422}
    with answering(Service(statuses=statuses)) as service:
        outcome = send(service, requests)
    figures = outcome.figures(1e6)
    assert (figures["shed"], figures["errors"]) == (2, 3)
    assert figures["faults"] == {"429": 2, "503": 1, "500": 1, "422": 1}
    assert figures["answered"] == len(requests) - 5
    assert figures["slo_satisfaction"] == pytest.approx(figures["answered"] / len(requests))


def test_the_warm_up_does_not_count() -> None:
    requests = drawn(rate=100.0, seconds=2.0)
    with answering() as service:
        figures = send(service, requests, warm_s=1.0).figures(1e6)
        assert service.requests >= len(requests)
    assert figures["requests"] == sum(request.due_s >= 1.0 for request in requests)


def test_a_service_that_dies_in_the_middle_leaves_errors_and_no_traceback() -> None:
    requests = drawn(rate=100.0, seconds=2.0)

    async def run(service: Service) -> open_loop.Outcome:
        client = Client(service.url, timeout_s=5.0)
        sending = asyncio.create_task(open_loop.run(client, requests))
        await asyncio.sleep(0.8)
        client._port = 9  # nobody is there
        while client._free:
            client._free.pop().writer.close()
        return await sending

    with answering() as service:
        figures = asyncio.run(run(service)).figures(1e6)
    assert figures["answered"] > 0
    assert figures["errors"] == figures["faults"]["ConnectionRefusedError"] > 0


def test_kept_connections_that_the_server_closed_are_no_errors() -> None:
    async def ask(service: Service) -> list[int]:
        client = Client(service.url, timeout_s=10.0)
        statuses = [(await client.send("GET", "/readyz")).status]
        client._free[0].writer.close()  # as a server does that has waited long enough
        statuses += [(await client.send("GET", "/readyz")).status]
        await client.close()
        return statuses

    with answering() as service:
        assert asyncio.run(ask(service)) == [200, 200]


def test_the_command_prints_what_happened() -> None:
    with answering(Service(statuses={3: 500})) as service:
        arguments = ["load", service.url, "--rate", "50", "--seconds", "1.5", "--seed", "4", "-q"]
        told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
        assert told["requests"] == told["answered"] + 1 == len(drawn(rate=50.0, seconds=1.5, seed=4))
        assert told["task"] == "burst-v0"
        shown = CliRunner().invoke(app, arguments).stdout
    assert "p99 ms" in shown and "open loop" in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["http://127.0.0.1:9"], "Nothing answers at http://127.0.0.1:9"),
        (["ftp://x"], "is no address of a service"),
        (["http://127.0.0.1:port"], "is no address of a service"),
        (["http://[::1"], "is no address of a service"),
        (["http://127.0.0.1:9", "--task", "brust-v0"], "did you mean 'burst-v0'"),
        (["http://127.0.0.1:9", "--task", "trace-v0"], "--trace goes with trace-v0"),
        (["http://127.0.0.1:9", "--seconds", "5", "--warm-s", "5"], "leaves nothing of 5 seconds"),
        (["http://127.0.0.1:9", "--accuracy"], "add --loadgen"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments: list[str], sentence: str) -> None:
    outcome = CliRunner().invoke(app, ["load", *arguments])
    assert outcome.exit_code == 2
    assert sentence in " ".join(outcome.stderr.split())


def test_a_service_that_is_not_ready_is_not_loaded() -> None:
    with answering(Service(ready=False)) as service, pytest.raises(HelmError, match="takes no requests"):
        send(service, drawn(seconds=0.5, rate=10.0))
    assert service.requests == 0
