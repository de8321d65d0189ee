"""Policies compared on services: in turns under the same requests, and ranked beside evaluation."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import numpy as np
import pytest
from typer.testing import CliRunner

from helm_gym.cli.main import app
from helm_gym.errors import InvalidInputError
from helm_gym.load import comparison, together
from helm_gym.load.comparison import Plan
from helm_gym.tasks import find_task
from tests.helm_gym.load.answering import PROFILE, Service, answering

DELAYS = {"static:0.1": 0.15, "static:0.5": 0.05, "pid": 0.0}


def plan(**changes: object) -> Plan:
    how = {"policies": tuple(DELAYS), "seconds": 0.9, "warm_s": 0.1, "rate": 40.0, "turns": 2} | changes
    return Plan(task=find_task("burst-v0"), profile=PROFILE, **how)  # type: ignore[arg-type]  # by name


def test_every_policy_meets_the_same_requests_and_the_better_one_is_told() -> None:
    started: list[str] = []
    told_to: dict[str, list[dict[str, list[int]]]] = {policy: [] for policy in DELAYS}

    @contextlib.contextmanager
    def start(policy: str) -> Iterator[str]:
        started.append(policy)
        with answering(Service(delay_s=DELAYS[policy])) as service:
            yield service.url
            told_to[policy].append(service.histories)

    told = comparison.compare(plan(offline=False), start)
    names = list(DELAYS)
    assert started == [*names, *names[1:], names[0]], "the order changes from turn to turn"
    assert told_to["pid"] == told_to["static:0.1"] == told_to["static:0.5"], "the same requests"
    assert told_to["pid"][0] != told_to["pid"][1]
    rows = {row["name"]: row for row in told["policies"]}
    assert rows["static:0.1"]["mean_ms_over_first"]["value"] == 1.0
    assert rows["pid"]["mean_ms_over_first"]["value"] < rows["static:0.5"]["mean_ms_over_first"]["value"] < 1.0
    assert all(row["errors"] == row["shed"] == 0 for row in rows.values())


def test_the_rank_live_is_put_beside_that_of_evaluation() -> None:
    live = {"static:0.1": 30.0, "static:0.5": 10.0}
    measured = {policy: [{"mean_ms": ms + k, "p99_ms": ms} for k in range(3)] for policy, ms in live.items()}
    rows: list[dict[str, object]] = [{"name": policy} for policy in live]
    rank = comparison._ranks(plan(policies=tuple(live), seconds=8.0, rate=150.0, turns=1), measured, rows)
    assert rows[1]["mean_ms_evaluated_over_first"] < 1.0  # type: ignore[operator]  # EMB of a tenth is too small
    assert rank["tau_mean_ms"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert rank["horizon"] == 24


def test_side_by_side_every_service_gets_every_request_in_a_rotating_order() -> None:
    order: list[str] = []
    services: dict[str, Service] = {}

    @contextlib.contextmanager
    def start(policy: str) -> Iterator[str]:
        service = Service(delay_s=DELAYS[policy] / 10)
        original = service.answer
        service.answer = lambda asked, number: (order.append(policy), original(asked, number))[1]  # type: ignore[method-assign]
        services[policy] = service
        with answering(service):
            yield service.url

    told = comparison.compare(plan(seconds=3.0, rate=50.0, turns=1, offline=False, together=True), start)
    names = list(DELAYS)
    assert order[:9] == [*names, *names[1:], *names[:1], *names[2:], *names[:2]]
    assert len({json.dumps(service.histories) for service in services.values()}) == 1
    rows = {row["name"]: row for row in told["policies"]}
    assert rows["pid"]["requests"] == 100, "a whole block"
    assert (
        rows["pid"]["mean_ms"]["value"]
        < rows["static:0.5"]["mean_ms"]["value"]
        < rows["static:0.1"]["mean_ms"]["value"]
    )
    assert rows["static:0.1"]["mean_ms"]["value"] >= 15.0
    with pytest.raises(InvalidInputError, match="Fewer than 100 requests"):
        comparison.compare(plan(seconds=0.5, turns=1, offline=False, together=True), start)


def test_a_pause_of_the_machine_counts_as_no_more_than_four_medians() -> None:
    rows = [[(k * 0.1, 5000.0 if k == 7 else 10.0, 200, 0, False) for k in range(150)] for _ in range(2)]
    blocks = together._blocks(rows, [[""] * 150] * 2, [None, (1.0, 2.0)])
    assert [len(of) for of in blocks] == [1, 1]
    assert blocks[0][0].latency_ms.max() == 40.0
    assert blocks[1][0].figures(1e6)["emb_hit_rate"] == 0.5


def test_tau_is_one_for_the_same_order_and_its_interval_tells_noise() -> None:
    offline = np.arange(6.0)
    clear = comparison._tau(offline[:, None] + np.zeros((6, 5)), offline)
    assert (clear.value, clear.low, clear.high) == pytest.approx((1.0, 1.0, 1.0))
    noise = comparison._tau(np.random.default_rng(0).random((6, 5)), offline)
    assert noise.high - noise.low > 0.3


def test_services_that_run_already_are_compared_by_their_address() -> None:
    with answering(Service(delay_s=0.1)) as old, answering() as new:
        arguments = ["compare", f"old={old.url}", f"new={new.url}", "--turns", "1", "--seconds", "1.2", "--warm-s", "0"]
        outcome = CliRunner().invoke(app, [*arguments, "--rate", "40", "-q", "--json"])
        assert outcome.exit_code == 0, outcome.stderr
        told = json.loads(outcome.stdout)
        shown = CliRunner().invoke(app, [*arguments, "--rate", "40", "-q"]).stdout
    assert [row["name"] for row in told["policies"]] == ["old", "new"]
    assert told["policies"][1]["mean_ms_over_first"]["value"] < 0.8
    assert "rank" not in told, "what an address serves is not known"
    assert "over first" in shown and "old" in shown


def test_mistakes_end_in_a_sentence() -> None:
    for policies in (("pid",), ("pid", "pid")):
        with pytest.raises(InvalidInputError, match="two or more"):
            plan(policies=policies)
    with pytest.raises(InvalidInputError, match="leave nothing"):
        plan(warm_s=5.0)
    with pytest.raises(InvalidInputError, match="LoadGen needs a service to itself"):
        plan(together=True, loadgen_s=5.0)
    outcome = CliRunner().invoke(app, ["compare", "pidd", "pid", "--turns", "1", "-q"])
    assert outcome.exit_code == 2
    assert "Traceback" not in outcome.stderr
