"""Pairs of a controller and a router, evaluated on a cluster; and the figures of the paper that are about clusters."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from typer.testing import CliRunner

from helm_gym import paper
from helm_gym import profile as profiles
from helm_gym.cli.common import Progress
from helm_gym.cli.common import to_json as to_text
from helm_gym.cli.main import app
from helm_gym.cluster.topology import Cluster, Node, Outage, find_cluster
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.evaluation import protocol
from helm_gym.evaluation.results import Evaluation
from helm_gym.evaluation.summary import by_seed, to_json
from helm_gym.observation import ObservationLayout
from helm_gym.paper import cached_cluster_evaluation, fig6, fig10, fig11, fig13, fig16
from helm_gym.play import open_entrant
from helm_gym.tasks import find_task

PROFILE = profiles.load("cpu-small")
TASK = dataclasses.replace(find_task("burst-v0"), warmup=2, settle=1, horizon=8)


def evaluate(*pairs: str, cluster: Cluster | None = None, seeds: tuple[int, ...] = (0, 1)) -> Evaluation:
    opened = [open_entrant(pair, ObservationLayout(PROFILE), in_cluster=True) for pair in pairs]
    return protocol.evaluate(TASK, opened, seeds=seeds, cluster=cluster or find_cluster("2"))


def test_pairs_meet_the_same_workloads_and_are_compared_with_the_first():
    run = evaluate("static:0.5+kv-aware", "pid+joint")
    first, second = to_json(run)["policies"]
    assert first["p99_ms_over_first"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert first["requests"]["value"] == second["requests"]["value"] == TASK.horizon * 2 * 50
    assert second["mean_alpha"]["value"] != 0.5 == first["mean_alpha"]["value"]
    again = evaluate("pid+joint")
    alone = by_seed(again, again.policies[0])
    for name, values in by_seed(run, run.policies[1]).items():
        np.testing.assert_array_equal(values, alone[name], err_msg=name)


def test_what_a_lost_node_owed_is_counted():
    outage = Cluster((Node(2),), load=1.2, outages=(Outage(0, 4, 3),))
    run = evaluate("static:0.5+joint", cluster=outage, seeds=(0,))
    (shown,), figures = to_json(run)["policies"], by_seed(run, run.policies[0])
    p99 = shown["series"]["p99_ms"]
    assert shown["series"]["alive"] == [1, 1, 1, 0.5, 0.5, 0.5, 1, 1] and max(p99[3:6]) > 1.5 * max(p99[:3])
    assert "series" not in to_json(evaluate("static:0.5+joint", seeds=(0,)))["policies"][0]
    assert figures["rerouted"][0] > 0 and figures["given_up"][0] == 0
    assert figures["requests"][0] == TASK.horizon * 100 + figures["rerouted"][0]


def test_lost_nodes_answers_are_averaged_as_they_were_given():
    """Places in the telemetry that hold no answer are left out of every figure."""
    run = evaluate("static:0.5+joint", cluster=Cluster((Node(2),), load=1.2, outages=(Outage(1, 4, 3),)), seeds=(0,))
    (episodes,) = run.policies
    counts = np.isfinite(episodes.sojourn_ms[0]).sum(axis=1)
    assert counts.tolist() == episodes.requests[0].sum(axis=1).tolist() and len(set(counts.tolist())) > 1
    figures = by_seed(run, episodes)
    assert figures["mean_latency_ms"][0] == np.float64(episodes.answers_ms(0).mean(dtype=np.float64))
    assert 0 < figures["emb_hit_rate"][0] <= 1 and np.isfinite(list(figures.values())).all()


@pytest.mark.parametrize(
    ("pair", "error", "told"),
    [
        ("pid", InvalidInputError, "names no router"),
        ("pid+jiont", UnknownNameError, "did you mean 'joint'"),
        ("oracle+joint", InvalidInputError, "cannot control a cluster"),
    ],
)
def test_pairs_that_cannot_be_are_refused(pair: str, error: type[Exception], told: str):
    with pytest.raises(error, match=told):
        open_entrant(pair, ObservationLayout(PROFILE), in_cluster=True)


def test_the_command_prints_a_table_and_json():
    asked = ["evaluate", "static:0.5+joint", "--task", "steady-v0", "--cluster", "2", "--seeds", "1", "--horizon", "2"]
    shown = CliRunner().invoke(app, [*asked, "-q"])
    assert shown.exit_code == 0 and "static:0.5+joint" in shown.stdout and "modelled rung" in shown.stdout
    found = json.loads(CliRunner().invoke(app, [*asked, "-q", "--json"]).stdout)
    assert found["nodes"] == 2 and found["policies"][0]["p99_ms"]["value"] > 0


def test_the_command_takes_a_recording(tmp_path: pathlib.Path):
    lines = [f"2023-11-16 18:{k // 60:02d}:{k % 60:02d},{300 + k},44" for k in range(200)]
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n", encoding="utf-8")
    asked = [
        "evaluate",
        "static:0.5+joint",
        "--task",
        "trace-v0",
        "--cluster",
        "2",
        "--seeds",
        "1",
        "--horizon",
        "2",
        "-q",
    ]
    assert "Error: Task 'trace-v0' needs recorded arrivals" in CliRunner().invoke(app, asked).stderr
    shown = CliRunner().invoke(app, [*asked, "--trace", str(trace)])
    assert shown.exit_code == 0 and "static:0.5+joint" in shown.stdout and "trace-v0" in shown.stdout
    assert "Trace trace: Azure LLM inference CSV, 200 requests over" in " ".join(shown.stdout.split())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_cluster_evaluation, "HORIZON", 3)
    two = Cluster((Node(2),))
    for module in (fig10, fig11, fig13):
        monkeypatch.setattr(module, "NODES", 2)
    monkeypatch.setattr(fig6, "SIZES", {2: 1.0})
    monkeypatch.setattr(fig6, "ROUTERS", dict.fromkeys(("joint", "kv-aware", "emb-aware"), "black"))
    for module in (fig11, fig13):
        monkeypatch.setattr(module, "REGIMES", ("burst",))
    monkeypatch.setattr(fig13, "SPLITS", ("static:0.6",))
    monkeypatch.setattr(fig11, "POPULATIONS", {"two nodes": two})
    monkeypatch.setattr(fig16, "SIZES", (1, 2))
    monkeypatch.setattr(fig16, "HOT_SHARES", (0.2, 0.9))
    monkeypatch.setattr(fig16, "SEEDS", 1)


@pytest.mark.parametrize(("name", "rows"), [("fig6", 3), ("fig10", 3), ("fig11", 3), ("fig13", 4), ("fig16", 4)])
def test_cluster_figures_are_made(small: None, tmp_path: pathlib.Path, name: str, rows: int):
    made = paper.reproduce(name, PROFILE, 2, Progress(quiet=True).stage, tmp_path)
    assert len(made.figures["rows"]) == rows and made.figures["rung"] == "modelled"
    paths = paper.save(made, name, tmp_path, to_text)
    assert all(path.stat().st_size > 500 for path in paths) and not (tmp_path / "parts").exists()
