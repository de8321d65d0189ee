"""Load, LoadGen and comparisons on `helm-gym serve` itself, HSTU and all."""

from __future__ import annotations

import json
import pathlib

import pytest
from typer.testing import CliRunner

from helm_gym.cli.main import app

running = pytest.importorskip("tests.real_backend.serving.running", reason="there is no service in this tree")


def told(*arguments: str) -> dict[str, object]:
    outcome = CliRunner().invoke(app, [*arguments, "-q", "--json"])
    assert outcome.exit_code == 0, outcome.stderr
    found: dict[str, object] = json.loads(outcome.stdout)
    return found


def test_a_task_is_served_without_an_error(tmp_path: pathlib.Path) -> None:
    with running.running(tmp_path, "pid", "--mode", "active") as server:
        profile = ("--profile", str(tmp_path / "profile.yaml"))
        figures = told("load", server.address, *profile, "--rate", "30", "--seconds", "4", "--warm-s", "1")
        assert figures["errors"] == figures["shed"] == 0
        assert figures["answered"] == figures["requests"] > 50  # type: ignore[operator]  # a number
        assert 0 < figures["kv_hit_rate"] < 1  # type: ignore[operator]
        assert 0 < figures["emb_hit_rate"] <= 1  # type: ignore[operator]
        pytest.importorskip("mlperf_loadgen", reason="the extra `loadgen` is not installed")
        exact = told("load", server.address, *profile, "--loadgen", "--accuracy", "--samples", "40", "--rate", "30")
        assert (exact["verdict"], exact["equal"]) == ("VALID", 40)


@pytest.mark.long
def test_policies_are_compared_on_services_of_their_own(tmp_path: pathlib.Path) -> None:
    from helm_gym import profile as profiles

    profiles.save(running.small(), tmp_path / "profile.yaml")
    profile = ("--profile", str(tmp_path / "profile.yaml"))
    how = ("--rate", "30", "--seconds", "3", "--warm-s", "1", "--turns", "1")
    figures = told("compare", "static:0.2", "static:0.7", *profile, *how)
    assert [row["errors"] for row in figures["policies"]] == [0, 0]  # type: ignore[attr-defined]  # a list of rows
    assert figures["rank"]["tau_mean_ms"]["value"] in (-1.0, 1.0)  # type: ignore[index]
