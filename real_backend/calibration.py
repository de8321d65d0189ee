"""Fits the cost model to measurements: ``T = base + per_request + per_token n + per_pair n L + per_context L``.

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
from helm_gym.workload.state import INDEX, WorkloadState
from real_backend.measured import MeasuredBackend
from real_backend.node import Sample

Progress = Callable[[int, int], None]
INTERVALS = 24  # per seed and split
HELD_OUT_EVERY = 4
ALPHAS = (0.8, 0.2, 0.5)  # downwards too: EMB gives pages up, and hot rows move


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
    backend.nodes[0].moves = []
    fitted: list[Sample] = []
    held_out: list[Sample] = []
    probes: list[float] = []
    for seed in range(seeds):
        for t, (samples, probe_ms) in enumerate(_serve(backend, profile, 9000 + seed)):
            probes.append(probe_ms)
            (held_out if t % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else fitted).extend(samples)
        if progress is not None:
            progress(seed + 1, seeds)
    rows, moved_ms = np.array(backend.nodes[0].moves).sum(0)
    cost = dataclasses.replace(fit_cost(fitted, profile.cost), per_moved_row_ms=float(moved_ms / max(1.0, rows)))
    predicted, measured = _features(held_out) @ _coefficients(cost), _times(held_out)
    error = float(predicted.mean() / measured.mean() - 1.0)
    cost = dataclasses.replace(
        cost,
        probe_ms=float(np.mean(probes)),
        machine=describe_machine(backend.nodes[0].engine.device.type),
        date=datetime.date.today().isoformat(),
        mean_error=error,
    )
    return Calibration(cost, len(fitted), error, measured, predicted)


def fit_cost(samples: list[Sample], like: CostModel) -> CostModel:
    """``like`` with the coefficients of these micro-batches."""
    base, request, token, pair, context = _fit(samples).tolist()
    return dataclasses.replace(
        like,
        base_ms=base,
        per_request_ms=request,
        per_token_ms=token,
        per_pair_ms=pair,
        per_context_ms=context,
    )


def _coefficients(cost: CostModel) -> NDArray[np.float64]:
    """In the order of ``_features``."""
    return np.array([cost.base_ms, cost.per_request_ms, cost.per_token_ms, cost.per_pair_ms, cost.per_context_ms])


def _serve(backend: MeasuredBackend, profile: Profile, seed: int) -> list[tuple[list[Sample], float]]:
    """Each interval of one mixed path, a third of it at each of three splits: its micro-batches, and its probe (ms)."""
    path = make_path("mixed", profile, [seed], INTERVALS * len(ALPHAS))
    alpha = np.full((1, 1), ALPHAS[0])
    backend.reset(path.at(0), np.array([seed]), alpha)
    intervals = []
    for t in range(path.intervals):
        backend.nodes[0].samples, state = [], path.at(t)
        if profile.max_batch > 1 and t % 3:  # micro-batches of all sizes, up to the largest
            values = state.values.copy()
            values[:, INDEX["arrival_rate_rps"]] *= 3.0 ** (t % 3)
            state = WorkloadState(values, state.gaps_s)
        backend.step(np.full((1, 1), ALPHAS[t // INTERVALS]), state)
        intervals.append((backend.nodes[0].samples, backend.probed_ms))
    backend.nodes[0].samples = None
    return intervals


def _features(samples: list[Sample]) -> NDArray[np.float64]:
    return np.array([(1.0, s.requests, s.new_tokens, s.pairs, s.context) for s in samples], float)


def _times(samples: list[Sample]) -> NDArray[np.float64]:
    return np.array([s.compute_ms for s in samples])


def _fit(samples: list[Sample], rounds: int = 5) -> NDArray[np.float64]:
    """Coefficients >= 0 of least relative squares, with what lies far off left out: a shared machine interrupts."""
    x, y = _features(samples), _times(samples)
    used = np.array([True, x[:, 1].max() > 1, True, True, True])  # one at a time, a request is a micro-batch
    keep, solution = np.ones(len(y), bool), np.zeros(x.shape[1])
    for _ in range(rounds):
        scale = x[keep].max(0)[used]
        matrix = x[np.ix_(keep, used)] / y[keep, None] / scale
        solution[used] = lsq_linear(matrix, np.ones(keep.sum()), bounds=(0, np.inf)).x / scale
        off = np.abs(x @ solution / y - 1.0)
        keep = off < max(0.1, 4.0 * float(np.median(off)))
    # What was left out takes time too, and relative squares favour the fast requests: one factor restores the mean.
    return np.asarray(solution * (y.sum() / (x @ solution).sum()))
