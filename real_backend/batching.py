"""Requests a second over the size of micro-batches, measured and modelled side by side, for `helm-gym bench`.

Two seeds are served in turns with all sizes: the cost model is fitted to one, and judged on the other. So a shared
machine that changes its speed changes it for all that is compared.
"""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np

from helm_gym.profile import CostModel, Profile
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import INDEX, WorkloadState
from real_backend.calibration import fit_cost
from real_backend.measured import MeasuredBackend
from real_backend.modelled import ModelledBackend
from real_backend.node import Sample

SIZES = (1, 2, 4, 8)
OFFERED = 5000.0  # requests/s: far more than one core serves
ALPHA = 0.6
WARM, INTERVALS = 16, 80
FITTED, JUDGED = 601, 602  # seeds


@dataclasses.dataclass(frozen=True)
class BatchRates:
    """Of each size of micro-batches, on a loaded node.

    Attributes:
        measured, modelled: requests/s, the transfers at the profile's own link on both.
        padding_ratio: tokens that attention computed, over those that there were.
        cost: the cost model that was fitted on the way.
    """

    measured: dict[int, float]
    modelled: dict[int, float]
    padding_ratio: dict[int, float]
    cost: CostModel


def batch_rates(profile: Profile, intervals: int = INTERVALS, chunk_tokens: int = 0) -> BatchRates:
    """Serves steady requests at more than a core's rate. Takes half a minute."""
    sizes = {size: dataclasses.replace(profile, max_batch=size, chunk_tokens=chunk_tokens) for size in SIZES}
    paths = {seed: _loaded(profile, seed, WARM + intervals) for seed in (FITTED, JUDGED)}
    samples: dict[tuple[int, int], list[Sample]] = {(seed, size): [] for seed in paths for size in SIZES}
    requests, waited_ms = dict.fromkeys(SIZES, 0), dict.fromkeys(SIZES, 0.0)
    split = np.full((1, 1), ALPHA)
    with contextlib.ExitStack() as stack:
        backends = {}
        for seed, size in samples:
            backend = stack.enter_context(contextlib.closing(MeasuredBackend(sizes[size])))
            backend.reset(paths[seed][0], np.array([seed]), split)
            backends[seed, size] = backend
        for t in range(WARM + intervals):
            for (seed, size), backend in backends.items():
                node, speed = backend.nodes[0], backend.speed
                node.samples = [] if t >= WARM else None
                telemetry = backend.step(split, paths[seed][t])
                samples[seed, size] += node.samples or []
                if seed == JUDGED and t >= WARM:
                    requests[size] += profile.interval.requests
                    waited_ms[size] += telemetry["transfer_ms"].item() / speed  # as the link is in the profile
    cost = fit_cost([sample for size in SIZES for sample in samples[FITTED, size]], profile.cost)
    measured, modelled, padding = {}, {}, {}
    for size, whole in sizes.items():
        judged = samples[JUDGED, size]
        measured[size] = 1e3 * requests[size] / (sum(s.compute_ms for s in judged) + waited_ms[size])
        modelled[size] = _modelled(dataclasses.replace(whole, cost=cost), paths[JUDGED])
        padding[size] = sum(s.attended for s in judged) / sum(s.new_tokens for s in judged)
    return BatchRates(measured, modelled, padding, cost)


def _loaded(profile: Profile, seed: int, intervals: int) -> list[WorkloadState]:
    path, states = make_path("steady", profile, [seed], intervals), []
    for t in range(intervals):
        state = path.at(t)
        values = state.values.copy()
        values[:, INDEX["arrival_rate_rps"]] = OFFERED
        states.append(WorkloadState(values, state.gaps_s))
    return states


def _modelled(profile: Profile, states: list[WorkloadState]) -> float:
    with contextlib.closing(ModelledBackend(profile)) as backend:
        split, busy_ms, requests = np.full((1, 1), ALPHA), 0.0, 0
        backend.reset(states[0], np.array([JUDGED]), split)
        for t, state in enumerate(states):
            telemetry = backend.step(split, state)
            if t >= WARM:
                requests += profile.interval.requests
                busy_ms += telemetry["compute_ms"].item() + telemetry["transfer_ms"].item()
    return 1e3 * requests / busy_ms
