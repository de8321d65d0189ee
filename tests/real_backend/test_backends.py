"""Both rungs pass the conformance suite, and agree with each other."""

from __future__ import annotations

import numpy as np

from helm_gym.backend import open_backend
from helm_gym.profile import load
from helm_gym.workload.regimes import make_path
from tests.conformance.backend import BackendConformance


class TestModelled(BackendConformance):
    name = "modelled"


class TestMeasured(BackendConformance):
    name = "real"
    lanes = 1


def test_both_rungs_serve_the_same_requests_from_the_same_caches():
    """Time differs between the rungs; what hits, what misses and what moves does not."""
    profile = load("cpu-small")
    path = make_path("burst", profile, [4], 12)
    reports = []
    for name in ("modelled", "real"):
        backend = open_backend(name, profile)
        backend.reset(path.at(0), np.array([4]), np.full((1, 1), 0.5))
        reports.append([backend.step(np.full((1, 1), 0.5 + 0.02 * t), path.at(t)) for t in range(12)])
    for modelled, real in zip(*reports, strict=True):
        for name in ("alpha", "emb_hit_rate", "kv_hit_rate", "kv_recomputed_tokens", "mean_history"):
            np.testing.assert_allclose(modelled[name], real[name], rtol=0.02, err_msg=name)


def test_predicted_cost_finds_the_best_of_the_grid():
    """The simulated curves rank alphas as replay does."""
    profile = load("cpu-small")
    grid = np.arange(1, 10) / 10
    backend = open_backend("modelled", profile, lanes=len(grid))
    state = make_path("steady", profile, [3] * len(grid), 1).at(0)
    backend.reset(state, np.full(len(grid), 3), grid[:, None])
    service, predicted = np.zeros(len(grid)), np.zeros(len(grid))
    for t in range(80):
        telemetry = backend.step(grid[:, None], state)
        if t >= 40:
            service += telemetry["interval_service_ms"][:, 0] / 40
            predicted += telemetry["predicted_ms"][4, 0] / 40
    np.testing.assert_allclose(predicted, service, rtol=0.05)
    assert service[predicted.argmin()] < 1.01 * service.min()
