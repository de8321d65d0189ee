"""Nodes as Ray actors do to requests and caches what nodes in turn do. With the extra `ray`; see docs/cluster.md."""

from __future__ import annotations

import socket
import sys

import numpy as np
import pytest
import torch

from helm_gym.backend import open_backend
from helm_gym.cluster.routing import Routing
from helm_gym.cluster.topology import find_cluster, in_cluster
from helm_gym.errors import HelmError, IncompatibleError
from helm_gym.workload.regimes import make_path
from real_backend import ray_nodes
from tests.real_backend.test_cluster import SMALL

ROUND_ROBIN = Routing("round-robin", np.ones((1, 3)))


def test_without_ray_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        IncompatibleError, match=r"Ray is not installed; install helm-gym\[ray\], or take backend 'real'"
    ):
        open_backend("real-ray", SMALL, cluster=find_cluster("2"))


def test_an_address_where_nothing_listens_is_an_error_and_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(HelmError, match=f"No Ray cluster answers at RAY_ADDRESS {address}"):
            open_backend("real-ray", SMALL, cluster=find_cluster("2"))


@pytest.mark.long
def test_actors_serve_what_nodes_in_turn_serve_and_one_that_dies_is_named() -> None:
    ray = pytest.importorskip("ray")
    cluster, split = find_cluster("2"), np.full((1, 2), 0.5)
    path = in_cluster(make_path("burst", SMALL, [0], 4), cluster, SMALL, [0])
    told = {}
    for name in ("real", "real-ray"):
        backend = open_backend(name, SMALL, cluster=cluster)
        backend.reset(path.at(0), np.array([0]), split)
        told[name] = [backend.step(split, path.at(t), ROUND_ROBIN) for t in range(4)]
        assert backend.spec.rung == "measured" and backend.bookkeeping_ms > 0.0
    for mine, theirs in zip(*told.values(), strict=True):
        np.testing.assert_array_equal(mine.traffic.requests, theirs.traffic.requests)
        for name in ("kv_hit_rate", "kv_recomputed_tokens", "returning_share", "mean_history", "kv_empty_share"):
            np.testing.assert_array_equal(mine[name], theirs[name])
        # How many rows are refilled in the background goes by the time that passes, which is measured.
        np.testing.assert_allclose(mine["emb_hit_rate"], theirs["emb_hit_rate"], atol=0.02)
        assert np.isfinite(theirs.service_ms).sum() == 2 * SMALL.interval.requests
        assert (theirs["service_mean_ms"] > 0).all()
    ray.kill(backend._actors[1])
    with pytest.raises(HelmError, match="Node 1 of backend 'real-ray' is gone"):
        backend.step(split, path.at(0), ROUND_ROBIN)
    backend.close()
    assert not ray.is_initialized()


@pytest.mark.long
def test_what_keeps_nodes_from_opening_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, cluster = pytest.importorskip("ray"), find_cluster("2")
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, logging_level="ERROR")
    try:
        with pytest.raises(IncompatibleError, match="asks for 2 GPUs, and the Ray cluster has 1"):
            ray_nodes.RayBackend(SMALL, cluster=cluster, device="cuda")
        if not torch.cuda.is_available():
            with pytest.raises(HelmError, match="asks for cuda, which this machine lacks"):
                ray_nodes.RayBackend(SMALL, device="cuda")
        monkeypatch.setattr(ray_nodes, "OPENING_S", 3.0)
        ray.get(ray.util.placement_group([{"CPU": 1}]).ready())  # holds one of two processors
        with pytest.raises(HelmError, match=r"Ray opened [01] of 2 nodes in 3 s; see what else holds its processors"):
            ray_nodes.RayBackend(SMALL, cluster=cluster)
        assert ray.is_initialized()  # it was not the backend that started it
    finally:
        ray.shutdown()
