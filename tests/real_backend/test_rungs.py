"""The modelled rung agrees with the measured one on requests that its cost model was not fitted to. Takes minutes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from helm_gym.profile import load
from helm_gym.workload.regimes import make_path
from real_backend.calibration import calibrate
from real_backend.measured import MeasuredBackend
from real_backend.modelled import ModelledBackend

GRID = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
WARM, INTERVALS = 30, 60


@pytest.mark.long
@pytest.mark.parametrize("seed", [501, 502])
def test_modelled_service_is_the_measured_one(seed):
    """Mean service within 5% over the grid, and the same best alpha.

    The splits take turns interval by interval: a shared machine that changes its speed changes it for all of them.
    """
    shipped = load("cpu-small")
    profile = dataclasses.replace(shipped, cost=calibrate(shipped, seeds=3).cost)
    path = make_path("mixed", profile, [seed], INTERVALS)
    pairs = [(MeasuredBackend(profile), ModelledBackend(profile)) for _ in GRID]
    for alpha, pair in zip(GRID, pairs, strict=True):
        for backend in pair:
            backend.reset(path.at(0), np.array([seed]), np.full((1, 1), alpha))
    service = np.zeros((2, len(GRID)))
    for t in range(WARM + INTERVALS):
        state = path.at(max(0, t - WARM))
        for k, (alpha, pair) in enumerate(zip(GRID, pairs, strict=True)):
            for rung, backend in enumerate(pair):
                telemetry = backend.step(np.full((1, 1), alpha), state)
                if t >= WARM:
                    service[rung, k] += telemetry["interval_service_ms"].item() / INTERVALS
    measured, modelled = service
    print(f"seed {seed}: measured {measured.round(3)} ms, modelled {modelled.round(3)} ms")
    assert abs(modelled.mean() / measured.mean() - 1) < 0.05
    assert modelled.argmin() == measured.argmin()
