"""A cluster as its user meets it: requests go where they should, none is lost, and runs can be repeated."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from helm_gym import profile as profiles
from helm_gym.backend import Backend, open_backend
from helm_gym.cluster.routing import Routing
from helm_gym.cluster.topology import Cluster, Node, Outage, find_cluster, in_cluster
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.telemetry import FIELDS, Telemetry
from helm_gym.workload.regimes import make_path

INTERVALS = 12
SMALL = profiles.load("cpu-small")
SMALL = dataclasses.replace(
    SMALL, name="few-users", population=dataclasses.replace(SMALL.population, users=400, items=20_000)
)
KV_AND_LOAD = Routing("score", np.array([[1.0, 0.0, 0.3]]))


def run(
    cluster: Cluster, seed: int = 0, routing: Routing | None = None, alpha: float = 0.5, name: str = "modelled"
) -> tuple[Backend, list[Telemetry]]:
    backend = open_backend(name, SMALL, cluster=cluster)
    path = in_cluster(make_path("burst", SMALL, [seed], INTERVALS), cluster, SMALL, [seed])
    split = np.full((1, cluster.size), alpha)
    backend.reset(path.at(0), np.array([seed]), split)
    return backend, [backend.step(split, path.at(t), routing) for t in range(INTERVALS)]


def equal(a: Telemetry, b: Telemetry) -> bool:
    return np.array_equal(a.values, b.values) and np.array_equal(a.sojourn_ms, b.sojourn_ms)


def test_every_request_is_served_by_one_node():
    for telemetry in run(find_cluster("3"))[1]:
        assert telemetry.traffic.requests.sum() == 3 * SMALL.interval.requests
        assert np.isfinite(telemetry.sojourn_ms).sum() == 3 * SMALL.interval.requests
        for field in FIELDS:
            values = telemetry[field.name]
            assert ((values >= field.low) & (values <= field.high)).all(), field.name


def test_a_seed_fixes_the_run_and_another_seed_is_another():
    first, again, other = (run(find_cluster("2"), seed)[1] for seed in (4, 4, 5))
    assert all(map(equal, first, again)) and not any(map(equal, first, other))


def test_users_come_back_to_the_node_that_has_their_kv():
    by_kv, by_turns = (
        np.mean([t["kv_hit_rate"] for t in run(find_cluster("4"), routing=routing)[1][4:]])
        for routing in (KV_AND_LOAD, Routing("round-robin", KV_AND_LOAD.weights))
    )
    assert by_kv > 2 * by_turns


def test_a_restored_snapshot_goes_on_bit_identically():
    cluster = Cluster((Node(2),), outages=(Outage(1, 5, 3),))
    backend = open_backend("modelled", SMALL, cluster=cluster)
    path = in_cluster(make_path("trend", SMALL, [1], INTERVALS), cluster, SMALL, [1])
    split = np.full((1, 2), 0.6)
    backend.reset(path.at(0), np.array([1]), split)
    for t in range(4):
        backend.step(split, path.at(t), KV_AND_LOAD)
    saved = backend.snapshot()
    first = [backend.step(split, path.at(t)) for t in range(4, INTERVALS)]
    backend.restore(saved)
    assert all(map(equal, first, [backend.step(split, path.at(t)) for t in range(4, INTERVALS)]))


def test_lanes_are_as_if_alone():
    cluster = find_cluster("2")
    backend, seeds = open_backend("modelled", SMALL, lanes=2, cluster=cluster), np.array([3, 8])
    path = in_cluster(make_path("burst", SMALL, [3, 8], INTERVALS), cluster, SMALL, [3, 8])
    split = np.full((2, 2), 0.5)
    backend.reset(path.at(0), seeds, split)
    both = [backend.step(split, path.at(t)) for t in range(INTERVALS)]
    alone = run(cluster, 8)[1]
    for lanes, lane in zip(both, alone, strict=True):
        np.testing.assert_array_equal(lanes.values[1], lane.values[0])


def test_a_lost_node_loses_no_request_and_comes_back_cold():
    """What it had not answered is served elsewhere at once, what it had cached is gone, and the transient shows."""
    lost = Outage(node=0, start=5, intervals=3)
    telemetry = run(Cluster((Node(2),), load=1.3, outages=(lost,)), routing=KV_AND_LOAD)[1]
    told = run(Cluster((Node(2),), load=1.3), routing=KV_AND_LOAD)[1]
    assert all(map(equal, telemetry[:5], told[:5]))
    arrived, rerouted = 2 * SMALL.interval.requests, int(telemetry[5].traffic.rerouted[0])
    assert rerouted > 0 and telemetry[5].traffic.given_up[0] == 0
    for t, there in enumerate(telemetry):
        gone = 5 <= t < 8
        assert there.traffic.requests.sum() == arrived + (rerouted if t == 5 else 0)
        assert there.traffic.alive[0].tolist() == [not gone, True]
        assert (there.traffic.requests[0, 0] == 0) == gone
    assert telemetry[5]["sojourn_mean_ms"][0, 1] > told[5]["sojourn_mean_ms"][0, 1]
    back, before = telemetry[8], telemetry[4]
    assert back["kv_hit_rate"][0, 0] < 0.8 * told[8]["kv_hit_rate"][0, 0]
    assert back["emb_empty_share"][0, 0] > before["emb_empty_share"][0, 0]


def test_a_slow_node_and_a_small_one_are_what_they_are():
    cluster = Cluster((Node(), Node(speed=0.5), Node(memory=0.5)))
    telemetry = run(cluster, routing=Routing("round-robin", KV_AND_LOAD.weights))[1][-1]
    whole, slow, small = (telemetry.values[0, node] for node in range(3))
    assert slow.tolist() != whole.tolist()
    compute = telemetry["compute_ms"][0]
    assert 1.6 < compute[1] / compute[0] < 2.4
    assert telemetry["emb_hit_rate"][0, 2] < telemetry["emb_hit_rate"][0, 0]
    assert small[0] == pytest.approx(0.5)


def test_no_node_alive_or_a_wrong_routing_is_refused():
    cluster = find_cluster("2")
    backend, _ = run(cluster)
    state = in_cluster(make_path("steady", SMALL, [0], 2), cluster, SMALL, [0]).at(0)
    split = np.full((1, 2), 0.5)
    with pytest.raises(InvalidInputError, match="no node alive"):
        backend.step(split, dataclasses.replace(state, alive=np.zeros((1, 2), bool)))
    with pytest.raises(InvalidInputError, match="at least 0"):
        backend.step(split, state, Routing("score", np.array([[1.0, -1.0, 1.0]])))
    with pytest.raises(UnknownNameError, match="did you mean"):
        backend.step(split, state, Routing("scores", np.ones((1, 3))))
    with pytest.raises(InvalidInputError, match="no node alive in some interval"):
        in_cluster(
            make_path("steady", SMALL, [0], 9),
            Cluster((Node(2),), outages=(Outage(0, 2, 3), Outage(1, 4, 2))),
            SMALL,
            [0],
        )
    alone = open_backend("modelled", SMALL)
    alone.reset(make_path("steady", SMALL, [0], 2).at(0), np.array([0]), split[:, :1])
    with pytest.raises(InvalidInputError, match="open the backend with a cluster"):
        alone.step(split[:, :1], make_path("steady", SMALL, [0], 2).at(0), KV_AND_LOAD)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nodes: [{count: 0}]", "count must be 1 to 1,024, not 0"),
        ("nodes: [{count: 1000}, {count: 25}]", "add up to 1,025"),
        ("nodes: [{count: 2}]\nlosses: 1000000000", "losses must be 0 to 1,000"),
        ("nodes: [{count: 2}]\nload: many", "load must be float"),
        ("nodes: [{cuont: 2}]", "did you mean 'nodes\\[0\\].count'"),
        ("nodes: 3", "must be a list"),
        ("nodes: [{count: 2, memory: 0.05}]", "cannot hold a user"),
        ("nodes: [{count: 2}]\noutages: [{node: 2, start: 1, intervals: 3}]", "not of one of the 2 nodes"),
        ("interests: 3", "nodes is missing"),
    ],
)
def test_a_cluster_file_is_checked(tmp_path, text: str, told: str):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises((InvalidInputError, UnknownNameError), match=told):
        find_cluster(str(path)).pages(SMALL)


def test_a_cluster_file_is_read(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("nodes: [{count: 2}, {count: 1, memory: 0.5, speed: 2}]\ninterests: 4\nlosses: 1\n")
    cluster = find_cluster(str(path))
    assert cluster.size == 3 and cluster.speed.tolist() == [1.0, 1.0, 2.0]
    assert cluster.pages(SMALL).tolist() == [2048, 2048, 1024]


def test_the_measured_rung_serves_the_same_requests():
    """Both rungs hit the same in the same places; only time differs."""
    cluster = find_cluster("2")
    real, modelled = (
        run(cluster, routing=Routing("consistent-hash", KV_AND_LOAD.weights, bound=1e9), name=name)[1]
        for name in ("real", "modelled")
    )
    for a, b in zip(real, modelled, strict=True):
        np.testing.assert_array_equal(a.traffic.requests, b.traffic.requests)
        np.testing.assert_array_equal(a["kv_hit_rate"], b["kv_hit_rate"])
    ratio = real[-1]["service_mean_ms"] / modelled[-1]["service_mean_ms"] / real[-1]["speed"]
    assert ((ratio > 0.5) & (ratio < 2.0)).all()
