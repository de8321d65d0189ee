"""The twin of clusters as its user meets it: what it reports hangs together, and routing does what it does for real."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from helm_gym.backend import open_backend
from helm_gym.cluster.routing import Routing
from helm_gym.cluster.topology import Cluster, Node, Outage, find_cluster, in_cluster
from helm_gym.errors import InvalidInputError
from helm_gym.profile import load
from helm_gym.telemetry import FIELDS, Telemetry
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import INDEX, WorkloadState
from surrogate_backend import checkpoint
from surrogate_backend.backend import SurrogateBackend
from surrogate_backend.clusters.backend import ClusterSurrogate
from surrogate_backend.clusters.fit import SETTINGS, fit_clusters
from surrogate_backend.clusters.kernels import step as steps
from surrogate_backend.clusters.kernels.inputs import NODES, OUTPUTS, SIZES, USERS, follow
from surrogate_backend.clusters.layout import KIND
from surrogate_backend.data import cluster_excitation
from surrogate_backend.data.cluster_collect import ClusterPlan
from surrogate_backend.data.cluster_log import read_clusters
from surrogate_backend.data.collect import collect
from surrogate_backend.fidelity import judge
from surrogate_backend.fit import fit
from surrogate_backend.kernels import networks
from surrogate_backend.kernels.functions import LANES, kernel
from surrogate_backend.layout import CACHE_OUTPUTS, RUNGS, USER_OUTPUTS
from surrogate_backend.network import Networks

INTERVALS = 12
PROFILE = load("cpu-small")


def routing(rule: str = "score", weights: tuple[float, float, float] = (1.0, 1.0, 1.0), lanes: int = 1) -> Routing:
    return Routing(rule, np.tile(np.array(weights), (lanes, 1)))


def run(
    cluster: Cluster,
    seeds: tuple[int, ...] = (0,),
    how: Routing | None = None,
    alpha: float = 0.5,
    intervals: int = INTERVALS,
) -> tuple[ClusterSurrogate, list[Telemetry]]:
    lanes = len(seeds)
    backend = ClusterSurrogate(PROFILE, lanes, cluster)
    path = in_cluster(make_path("burst", PROFILE, list(seeds), intervals), cluster, PROFILE, list(seeds))
    split = np.full((lanes, cluster.size), alpha)
    backend.reset(path.at(0), np.array(seeds), split)
    told = []
    for t in range(intervals):
        telemetry = backend.step(split, path.at(t), how)
        told.append(telemetry_of(telemetry))
    return backend, told


def telemetry_of(telemetry: Telemetry) -> Telemetry:
    """With its single requests, which must be read before the next step."""
    return Telemetry(
        telemetry.values, telemetry.sojourn_ms, telemetry.service_ms, telemetry.extrapolating, telemetry.traffic
    )


def equal(a: Telemetry, b: Telemetry) -> bool:
    return np.array_equal(a.values, b.values) and np.array_equal(a.sojourn_ms, b.sojourn_ms)


def test_every_request_is_served_by_one_node_and_every_field_lies_within_its_bounds() -> None:
    for telemetry in run(find_cluster("3"), (0, 1))[1]:
        assert telemetry.traffic.requests.sum(axis=1).tolist() == [3 * PROFILE.interval.requests] * 2
        for field in FIELDS:
            values = telemetry[field.name]
            assert ((values >= field.low) & (values <= field.high)).all(), field.name
        np.testing.assert_allclose(telemetry["compute_share"] + telemetry["transfer_share"], 1.0, atol=1e-6)


def test_single_requests_make_the_interval_that_is_reported() -> None:
    for telemetry in run(find_cluster("3"))[1]:
        for node in range(3):
            service, sojourn = (
                x[0, node][np.isfinite(x[0, node])] for x in (telemetry.service_ms, telemetry.sojourn_ms)
            )
            assert len(service) == telemetry.traffic.requests[0, node]
            assert telemetry["interval_service_ms"][0, node] == pytest.approx(service.mean(), rel=1e-4)
            assert telemetry["interval_sojourn_ms"][0, node] == pytest.approx(sojourn.mean(), rel=1e-4)
            assert telemetry["interval_p99_ms"][0, node] == pytest.approx(np.quantile(sojourn, 0.99), rel=1e-3)
            assert (sojourn >= service * 0.999).all()


def test_a_lane_alone_is_bit_identical_to_itself_among_many_in_any_block() -> None:
    """Nodes of a lane may lie in two blocks."""
    many = run(find_cluster("5"), tuple(range(20)))[1]
    for lane in (0, 12, 19):
        for one, all_ in zip(run(find_cluster("5"), (lane,))[1], many, strict=True):
            np.testing.assert_array_equal(one.values[0], all_.values[lane])


def test_a_restored_snapshot_goes_on_bit_identically() -> None:
    cluster = Cluster((Node(3),), outages=(Outage(1, 5, 3),))
    backend = ClusterSurrogate(PROFILE, 1, cluster)
    path = in_cluster(make_path("trend", PROFILE, [1], INTERVALS), cluster, PROFILE, [1])
    split = np.full((1, 3), 0.6)
    backend.reset(path.at(0), np.array([1]), split)
    for t in range(4):
        backend.step(split, path.at(t), routing(weights=(1, 0, 0.3)))
    saved = backend.snapshot()
    first = [telemetry_of(backend.step(split, path.at(t))) for t in range(4, INTERVALS)]
    backend.restore(saved)
    again = [telemetry_of(backend.step(split, path.at(t))) for t in range(4, INTERVALS)]
    assert all(map(equal, first, again))


def test_a_lost_node_loses_no_request_and_comes_back_cold() -> None:
    cluster = Cluster((Node(2),), load=1.1, outages=(Outage(node=0, start=20, intervals=3),))
    there, told = run(cluster, intervals=26)[1], run(dataclasses.replace(cluster, outages=()), intervals=26)[1]
    assert all(map(equal, there[:20], told[:20]))
    rerouted = int(there[20].traffic.rerouted[0])
    assert rerouted > 0
    for t, telemetry in enumerate(there):
        gone = 20 <= t < 23
        assert telemetry.traffic.requests.sum() == 2 * PROFILE.interval.requests + (rerouted if t == 20 else 0)
        assert (telemetry.traffic.requests[0, 0] == 0) == gone
    assert there[20]["sojourn_mean_ms"][0, 1] > told[20]["sojourn_mean_ms"][0, 1]
    assert there[23]["kv_hit_rate"][0, 0] < 0.8 * told[23]["kv_hit_rate"][0, 0]
    assert there[23]["emb_empty_share"][0, 0] > told[23]["emb_empty_share"][0, 0]


def test_nodes_that_are_lost_one_after_the_other_overfill_nothing() -> None:
    """What was routed again is lost again; what has no room is counted and not written past the end."""
    outages = tuple(Outage(node=t % 2, start=t, intervals=1) for t in range(1, 11))
    told = run(Cluster((Node(2),), load=4.0, outages=outages), (0, 1))[1]
    arrived = 2 * PROFILE.interval.requests
    for telemetry in told:
        traffic = telemetry.traffic
        assert (traffic.rerouted <= arrived).all() and (
            traffic.requests.sum(axis=1) == arrived + traffic.rerouted
        ).all()
    assert sum(int(t.traffic.given_up.sum()) for t in told) > 0


def test_routing_does_to_caches_and_queues_what_it_does_for_real() -> None:
    def mean(name: str, how: Routing, last: int = 20) -> float:
        return float(np.mean([t[name] for t in run(find_cluster("8"), (0, 1, 2, 3), how, intervals=60)[1][-last:]]))

    turns, kv, emb = (
        routing("round-robin", lanes=4),
        routing(weights=(1, 0, 0), lanes=4),
        routing(weights=(0, 1, 0), lanes=4),
    )
    joint, chance = routing(lanes=4), routing("random", lanes=4)
    assert mean("kv_hit_rate", kv) > 1.5 * mean("kv_hit_rate", turns)
    assert mean("emb_hit_rate", emb) > mean("emb_hit_rate", turns) + 0.05
    assert mean("interval_service_ms", joint) < mean("interval_service_ms", turns)
    assert mean("interval_sojourn_ms", joint) < mean("interval_sojourn_ms", kv)
    assert mean("interval_p99_ms", joint) < 0.5 * mean("interval_p99_ms", chance)


def test_a_slow_node_and_a_small_one_are_what_they_are() -> None:
    cluster = Cluster((Node(), Node(speed=0.6), Node(memory=0.5)))
    told = run(cluster, tuple(range(8)), routing("round-robin", lanes=8), intervals=60)[1][-20:]
    compute, hits = (np.mean([t[name].mean(axis=0) for t in told], axis=0) for name in ("compute_ms", "emb_hit_rate"))
    assert 1.3 < compute[1] / compute[0] < 2.1
    assert hits[2] < hits[0]


def test_it_says_where_it_extrapolates() -> None:
    backend, told = run(find_cluster("6"), intervals=20)
    assert np.mean([t.extrapolating for t in told]) < 0.1
    state = in_cluster(make_path("burst", PROFILE, [0], 2), find_cluster("6"), PROFILE, [0]).at(0)
    values = state.values.copy()
    values[:, INDEX["delta_tokens"]] = 60.0
    assert backend.step(np.full((1, 6), 0.5), WorkloadState(values, state.gaps_s)).extrapolating.all()
    assert run(find_cluster("200"), intervals=1)[1][0].extrapolating.all()


def test_a_thousand_nodes_run() -> None:
    telemetry = run(find_cluster("1024"), intervals=2)[1][-1]
    assert telemetry.traffic.requests.sum() == 1024 * PROFILE.interval.requests
    assert np.isfinite(telemetry.values).all()


def test_what_it_does_not_know_or_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="fitted to clusters of"):
        ClusterSurrogate(PROFILE, 1, Cluster((Node(2),), catalogue=2.0))
    with pytest.raises(InvalidInputError, match="single node's"):
        ClusterSurrogate(PROFILE, 1, find_cluster("2"), checkpoint.find(None, PROFILE))
    with pytest.raises(InvalidInputError, match="modelled rung, not 'measured'"):
        ClusterSurrogate(PROFILE, 1, find_cluster("2"), of="measured")
    long = dataclasses.replace(PROFILE.interval, requests=100, window=800)
    with pytest.raises(InvalidInputError, match="at most 501 requests a node"):
        ClusterSurrogate(dataclasses.replace(PROFILE, interval=long), 1, find_cluster("2"))
    with pytest.raises(InvalidInputError, match="not of single nodes"):
        SurrogateBackend(PROFILE, checkpoint=checkpoint.find(None, PROFILE, KIND))
    backend, _ = run(find_cluster("2"), intervals=1)
    state = in_cluster(make_path("burst", PROFILE, [0], 1), find_cluster("2"), PROFILE, [0]).at(0)
    with pytest.raises(InvalidInputError, match="no node alive"):
        backend.step(np.full((1, 2), 0.5), dataclasses.replace(state, alive=np.zeros((1, 2), bool)))
    with pytest.raises(InvalidInputError, match="at least 0"):
        backend.step(np.full((1, 2), 0.5), state, routing(weights=(1, -1, 1)))
    with pytest.raises(InvalidInputError, match="before the next"):
        first = backend.step(np.full((1, 2), 0.5), state)
        backend.step(np.full((1, 2), 0.5), state)
        _ = first.sojourn_ms


def test_environments_take_it_and_lanes_are_single_environments() -> None:
    arguments = {"cluster": 3, "regime": "burst", "backend": "surrogate", "intervals": 4}
    one, lanes = gym.make("helm/Cluster-v0", **arguments), gym.make_vec("helm/Cluster-v0", num_envs=2, **arguments)
    alone, together_ = one.reset(seed=5)[0], lanes.reset(seed=[4, 5])[0]
    np.testing.assert_array_equal(alone, together_[1])
    action = np.full(one.action_space.shape, 0.5, np.float32)
    np.testing.assert_array_equal(one.step(action)[0], lanes.step(np.tile(action, (2, 1)))[0][1])
    assert open_backend("surrogate", PROFILE, cluster=find_cluster("2")).spec.nodes == 2


@kernel
def _run(weights, x, hidden, t, v, y, n):
    for k in range(x.shape[0]):
        networks.run_networks(weights, x[k], hidden, t, v, y[k], steps.WIDTHS, n, LANES)


def test_compiled_networks_are_those_of_torch() -> None:
    shipped, nodes, intervals = checkpoint.load(checkpoint.find(None, PROFILE, KIND), PROFILE), 3, 16
    net = Networks(SIZES, USERS, NODES, OUTPUTS)
    net.load_state_dict({k[4:]: torch.tensor(v) for k, v in shipped.tensors.items() if k.startswith("net.")})
    path = make_path("mixed", PROFILE, [0], intervals)
    alpha = np.linspace(0.2, 0.8, intervals)[:, None] * np.ones((1, nodes))
    x, _ = follow(
        PROFILE, find_cluster("3"), path.values[0], alpha, np.zeros_like(alpha), np.ones_like(alpha, bool),
        np.zeros(intervals, np.int64), np.ones((intervals, 3)),
    )  # fmt: skip
    with torch.no_grad():
        said = net(torch.tensor(x), torch.full((nodes,), RUNGS.index("modelled")))
    width = steps.WIDTHS
    fed = np.zeros((intervals, width.inputs, LANES), np.float32)
    fed[:, :NODES, :nodes] = x.transpose(0, 2, 1)
    scratch = [np.zeros(width.scratch * LANES, np.float32) for _ in range(2)]
    y = np.zeros((intervals, width.outputs * LANES), np.float32)
    weights = networks.pack(shipped.tensors, "modelled", USERS, NODES, OUTPUTS, SIZES)
    _run(weights, fed.reshape(intervals, -1), np.zeros(width.state * LANES, np.float32), *scratch, y, nodes)
    rows = y.reshape(intervals, -1, LANES)[:, :, :nodes].transpose(0, 2, 1)
    np.testing.assert_allclose(rows[..., :USER_OUTPUTS], said.users.numpy(), atol=1e-4)
    np.testing.assert_allclose(rows[..., USER_OUTPUTS : USER_OUTPUTS + OUTPUTS], said.caches.numpy(), atol=1e-4)
    assert OUTPUTS == CACHE_OUTPUTS + 4


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Logs of few and small clusters: ``train`` of seventeen settings, ``test`` of three repeats."""
    folder = tmp_path_factory.mktemp("clusters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_excitation, "TRAIN_SIZES", (2, 1, 3))
        patch.setattr(cluster_excitation, "TEST_SIZES", (2,))
        collect(ClusterPlan(PROFILE, "modelled", "train", 20, 5), folder / "train", 34)
        collect(ClusterPlan(PROFILE, "modelled", "test", 20, 5), folder / "test", 3)
    return folder


def test_a_log_holds_every_node_and_request(small: pathlib.Path) -> None:
    episodes = list(read_clusters(small / "train", PROFILE))
    assert len(episodes) == 34 and {e.nodes for e in episodes} == {1, 2, 3}
    for e in episodes:
        served = e.routed["requests"]
        assert np.array_equal(np.isfinite(e.service_ms).sum(axis=2), served)
        arrived = e.nodes * PROFILE.interval.requests + e.routed["rerouted"][:, 0]
        np.testing.assert_array_equal(served.sum(axis=1), arrived)
        assert (e.routed["preferred"].sum(axis=1) <= arrived).all()


def test_a_log_whose_nodes_disagree_on_what_is_the_clusters_is_refused(
    small: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "log"
    shutil.copytree(small / "test", folder)
    path = folder / "episode-000000.parquet"
    table = pq.read_table(path)
    assert table["nodes"][0].as_py() == 2
    for name in ("rule", "weight_load", "w_item_zipf", "slo_ms"):
        values = table[name].to_pylist()
        values[1] = values[1] + 0.5
        at = table.column_names.index(name)
        pq.write_table(table.set_column(at, table.schema.field(name), [values]), path)
        with pytest.raises(InvalidInputError, match=f"column '{name}', which is of the cluster, that differs"):
            list(read_clusters(folder, PROFILE))


@pytest.mark.long
def test_a_fit_writes_what_a_backend_steps_and_the_report_judges(small: pathlib.Path, tmp_path: pathlib.Path) -> None:
    short = dataclasses.replace(SETTINGS, steps=4, batch=3, evaluate_every=2, threads=1)
    card = fit_clusters(PROFILE, [small / "train"], tmp_path / "fit", short)
    assert card["nodes"] == [1, 2, 3] and card["logs"][0]["rung"] == "modelled"
    judgement = judge(tmp_path / "fit", small / "test", PROFILE).to_json()
    assert judgement["surrogate"]["service_mean_mape"] < 60.0
    assert judgement["floor"]["service_mean_mape"] > 0.0
    assert "sweep" in judgement["missing"]["stationary_bias"]
    assert judgement["settings"][0]["regime"] == "burst, 2 nodes"
    with pytest.raises(InvalidInputError, match="log of clusters"):
        fit(PROFILE, [small / "train"], tmp_path / "other")
