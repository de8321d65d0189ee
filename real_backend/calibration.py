"""Fits the cost model to measurements: ``T = base + per_token n + per_pair n L + per_context L``.

Real requests are served on the measured rung, over settings and splits that spread new tokens and history lengths.
The fit minimises relative error, and is judged on every fourth interval, which it has not seen: a shared machine
changes its speed from minute to minute, and what is compared must have run side by side.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from helm_gym.profile import CostModel, Profile
from helm_gym.provenance import describe_machine
from helm_gym.workload.regimes import make_path
from real_backend.measured import MeasuredBackend
from real_backend.node import Sample

Progress = Callable[[int, int], None]
INTERVALS = 24  # per seed and split
HELD_OUT_EVERY = 4
ALPHAS = (0.2, 0.5, 0.8)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A fitted cost model and how true it is.

    Attributes:
        cost: the fit, with machine, date and ``mean_error``.
        samples: micro-batches fitted.
        held_out_error: relative error of the mean compute time on intervals that were not fitted.
        measured_ms, predicted_ms: each held-out micro-batch.
    """

    cost: CostModel
    samples: int
    held_out_error: float
    measured_ms: NDArray[np.float64]
    predicted_ms: NDArray[np.float64]


def calibrate(
    profile: Profile, seeds: int = 4, device: str | None = None, progress: Progress | None = None
) -> Calibration:
    """Measures ``seeds`` mixed paths and fits. Takes some seconds a seed."""
    backend = MeasuredBackend(profile, device=device)
    fitted: list[Sample] = []
    held_out: list[Sample] = []
    probes: list[float] = []
    for seed in range(seeds):
        for t, (samples, probe_ms) in enumerate(_serve(backend, profile, 9000 + seed)):
            probes.append(probe_ms)
            (held_out if t % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else fitted).extend(samples)
        if progress is not None:
            progress(seed + 1, seeds)
    coefficients = _fit(fitted)
    predicted, measured = _features(held_out) @ coefficients, _times(held_out)
    error = float(predicted.mean() / measured.mean() - 1.0)
    base, token, pair, context = coefficients.tolist()
    cost = CostModel(
        base,
        token,
        pair,
        context,
        probe_ms=float(np.mean(probes)),
        machine=describe_machine(backend.nodes[0].engine.device.type),
        date=datetime.date.today().isoformat(),
        mean_error=error,
    )
    return Calibration(cost, len(fitted), error, measured, predicted)


def _serve(backend: MeasuredBackend, profile: Profile, seed: int) -> list[tuple[list[Sample], float]]:
    """Each interval of one mixed path, a third of it at each of three splits: its micro-batches, and its probe (ms)."""
    path = make_path("mixed", profile, [seed], INTERVALS * len(ALPHAS))
    alpha = np.full((1, 1), ALPHAS[0])
    backend.reset(path.at(0), np.array([seed]), alpha)
    intervals = []
    for t in range(path.intervals):
        backend.nodes[0].samples = []
        backend.step(np.full((1, 1), ALPHAS[t // INTERVALS]), path.at(t))
        intervals.append((backend.nodes[0].samples, backend.probed_ms))
    backend.nodes[0].samples = None
    return intervals


def _features(samples: list[Sample]) -> NDArray[np.float64]:
    return np.array([(1.0, s.new_tokens, s.pairs, s.context) for s in samples])


def _times(samples: list[Sample]) -> NDArray[np.float64]:
    return np.array([s.compute_ms for s in samples])


def _fit(samples: list[Sample], rounds: int = 5) -> NDArray[np.float64]:
    """Coefficients >= 0 of least relative squares, with what lies far off left out: a shared machine interrupts."""
    x, y = _features(samples), _times(samples)
    keep, solution = np.ones(len(y), bool), np.zeros(x.shape[1])
    for _ in range(rounds):
        scale = x[keep].max(0)
        solution = lsq_linear(x[keep] / y[keep, None] / scale, np.ones(keep.sum()), bounds=(0, np.inf)).x / scale
        off = np.abs(x @ solution / y - 1.0)
        keep = off < max(0.1, 4.0 * float(np.median(off)))
    # What was left out takes time too, and relative squares favour the fast requests: one factor restores the mean.
    return np.asarray(solution * (y.sum() / (x @ solution).sum()))
