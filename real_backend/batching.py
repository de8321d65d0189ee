"""What the engine serves, for `helm-gym bench`: requests a second over the size of micro-batches, and single requests.

Rates are measured and modelled side by side: two seeds are served in turns with all sizes, the cost model is fitted to
one of them and judged on the other. So a shared machine that changes its speed changes it for all that is compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time

import numpy as np
import torch

from helm_gym.profile import CostModel, Profile
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import INDEX, WorkloadState
from real_backend.calibration import fit_cost
from real_backend.engine import Engine, MicroBatch
from real_backend.hstu.model import Jagged
from real_backend.measured import MeasuredBackend
from real_backend.memory.layout import TOKENS, make_plan
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


def batch_rates(profile: Profile, intervals: int = INTERVALS, warm: int = WARM, chunk_tokens: int = 0) -> BatchRates:
    """Serves steady requests at more than a core's rate. Takes half a minute."""
    sizes = {size: dataclasses.replace(profile, max_batch=size, chunk_tokens=chunk_tokens) for size in SIZES}
    paths = {seed: _loaded(profile, seed, warm + intervals) for seed in (FITTED, JUDGED)}
    samples: dict[tuple[int, int], list[Sample]] = {(seed, size): [] for seed in paths for size in SIZES}
    requests, waited_ms = dict.fromkeys(SIZES, 0), dict.fromkeys(SIZES, 0.0)
    split = np.full((1, 1), ALPHA)
    with contextlib.ExitStack() as stack:
        backends = {}
        for seed, size in samples:
            backend = stack.enter_context(contextlib.closing(MeasuredBackend(sizes[size])))
            backend.reset(paths[seed][0], np.array([seed]), split)
            backends[seed, size] = backend
        for t in range(warm + intervals):
            for (seed, size), backend in backends.items():
                node, speed = backend.nodes[0], backend.speed
                node.samples = [] if t >= warm else None
                telemetry = backend.step(split, paths[seed][t])
                samples[seed, size] += node.samples or []
                if seed == JUDGED and t >= warm:
                    requests[size] += profile.interval.requests
                    waited_ms[size] += telemetry["transfer_ms"].item() / speed  # as the link is in the profile
    cost = fit_cost([sample for size in SIZES for sample in samples[FITTED, size]], profile.cost)
    measured, modelled, padding = {}, {}, {}
    for size, whole in sizes.items():
        judged = samples[JUDGED, size]
        measured[size] = 1e3 * requests[size] / (sum(s.compute_ms for s in judged) + waited_ms[size])
        modelled[size] = _modelled(dataclasses.replace(whole, cost=cost), paths[JUDGED], warm)
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


def _modelled(profile: Profile, states: list[WorkloadState], warm: int) -> float:
    with contextlib.closing(ModelledBackend(profile)) as backend:
        split, busy_ms, requests = np.full((1, 1), ALPHA), 0.0, 0
        backend.reset(states[0], np.array([JUDGED]), split)
        for t, state in enumerate(states):
            telemetry = backend.step(split, state)
            if t >= warm:
                requests += profile.interval.requests
                busy_ms += telemetry["compute_ms"].item() + telemetry["transfer_ms"].item()
    return 1e3 * requests / busy_ms


def request_ms(profile: Profile, kind: str, runs: int, repeats: int = 200) -> tuple[list[float], list[float]]:
    """CPU time of a request of mean size: of the engine's, and of torch's HSTU without a cache, in turns.

    Args:
        kind: ``hit``, of which the engine computes the delta and the candidates, or ``miss``.
        runs: the median of ``repeats`` requests is taken so often.
    """
    population, engine, rng = profile.population, Engine(profile, "cpu"), np.random.default_rng(0)
    length, candidates = int(population.mean_history), population.candidates
    kv_pages = rng.permutation(np.arange(profile.pool.pages // 2, profile.pool.pages, dtype=np.int32))
    slots = profile.pool.pages // 2 * profile.rows_per_page
    engine.rows[:slots].normal_(generator=torch.Generator().manual_seed(0))
    batches = []
    for user in range(len(kv_pages) // profile.pages_per_user):  # many users, so that their pages are not at hand
        plan = make_plan(profile)
        plan.cached[0] = length - int(population.delta_tokens) if kind == "hit" else 0
        plan.stored[0] = length
        tokens = length - int(plan.cached[0]) + candidates
        plan.slots[:tokens], plan.counts[TOKENS] = rng.integers(0, slots, tokens), tokens
        pages = kv_pages[user * profile.pages_per_user : (user + 1) * profile.pages_per_user]
        sizes = np.array([length], np.int32), np.array([candidates], np.int32)
        batches.append((plan, MicroBatch(*sizes, pages[None].copy())))
    position = torch.arange(length)
    buffer = torch.zeros(1, length, *engine.tokens.shape[1:])

    def plain() -> None:
        x = engine.rows[: length + candidates].clone()
        engine.hstu(x, Jagged([0], [length], [candidates], position, position, x), buffer)

    ours, theirs = np.zeros((runs, repeats)), np.zeros((runs, repeats))
    for run in range(runs):
        for k in range(repeats):
            ours[run, k] = engine.timed_execute(*batches[k % len(batches)])[1]
            started = time.thread_time()
            plain()
            theirs[run, k] = 1e3 * (time.thread_time() - started)
    return np.median(ours, axis=1).tolist(), np.median(theirs, axis=1).tolist()
