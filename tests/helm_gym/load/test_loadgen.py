"""MLCommons LoadGen against a service: its verdict is ours, and accuracy is of every score."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from helm_gym.cli.main import app
from tests.helm_gym.load.answering import Service, answering

pytest.importorskip("mlperf_loadgen", reason="the extra `loadgen` is not installed")


def run(service: Service, *options: str) -> dict[str, object]:
    arguments = ["load", service.url, "--loadgen", "-q", "--json", "--samples", "40", "--rate", "350", "--seconds", "1"]
    outcome = CliRunner().invoke(app, [*arguments, *options])
    assert outcome.exit_code == 0, outcome.stderr
    told: dict[str, object] = json.loads(outcome.stdout)
    return told


def test_a_service_in_time_is_valid_and_a_late_one_is_not() -> None:
    with answering() as service:
        told = run(service, "--p99-ms", "60000")
        assert told["verdict"] == "VALID"
        assert told["queries"] >= 700  # type: ignore[operator]  # a number
        assert service.requests == told["queries"]
    with answering(Service(delay_s=0.05)) as service:
        told = run(service, "--p99-ms", "10")
        assert told["verdict"] == "INVALID"
        assert told["p99_ms"] >= 50  # type: ignore[operator]  # a number


def test_queries_that_fail_make_a_run_invalid() -> None:
    with answering(Service(statuses={7: 503, 9: 429})) as service:
        told = run(service, "--p99-ms", "60000")
    assert told["verdict"] == "INVALID"
    assert told["faults"] == {"503": 1, "429": 1}


def test_accuracy_compares_every_sample_with_offline_scores() -> None:
    with answering(Service(exact=True)) as service:
        told = run(service, "--accuracy", "--rate", "100", "--samples", "12")
        assert told["verdict"] == "VALID"
        assert told["compared"] == told["equal"] == 12
        assert told["largest_difference"] <= 1e-5  # type: ignore[operator]  # a number
    with answering(Service(exact=True, off_by=1e-3)) as service:
        told = run(service, "--accuracy", "--rate", "100", "--samples", "12")
        assert told["verdict"] == "INVALID"
        assert told["equal"] == 0
