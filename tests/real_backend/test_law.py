"""The first law: caching, eviction, paging and a moving alpha never change a score."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from helm_gym.profile import Profile
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import INDEX, WorkloadState
from real_backend.measured import MeasuredBackend
from real_backend.memory.layout import Plan
from tests.real_backend.machine import tiny_profile
from tests.real_backend.test_hstu import naive_scores


class Watched:
    """A measured backend of which every micro-batch's scores are held against HSTU without any cache."""

    def __init__(self, profile: Profile):
        self.backend = MeasuredBackend(profile)
        self.execute = self.backend.nodes[0].engine.timed_execute
        self.backend.nodes[0].engine.timed_execute = self._checked  # type: ignore[method-assign]
        self.served = self.hits = 0
        self.worst = 0.0

    def _checked(self, plan: Plan, batch):
        result = self.execute(plan, batch)
        if plan is self.backend.nodes[0].probe_plan:
            return result
        scores, backend = result[0].numpy(), self.backend
        read = 0
        for b, length in enumerate(batch.length):
            r = self.served % backend.profile.interval.requests
            q, count = backend._requests, int(batch.candidates[b])
            history = backend._traffic.items[0, q.user[0, r], :length]
            rows = backend.nodes[0].engine.table[np.concatenate([history, q.candidates[0, r, :count]])].numpy()
            expected = naive_scores(backend.nodes[0].engine.hstu, rows, int(length))
            off = np.abs(scores[read : read + count] - expected).max()
            self.worst = float(np.maximum(self.worst, off))  # unlike max(), lets a NaN through
            read += count
            self.served += 1
            self.hits += int(plan.cached[b] > 0)
        return result


def small_model(profile: Profile) -> Profile:
    model = dataclasses.replace(profile.model, max_history=16, max_candidates=3)
    population = dataclasses.replace(profile.population, mean_history=9.0, candidates=3, delta_tokens=2.0)
    return dataclasses.replace(profile, model=model, population=population)


@settings(max_examples=15, deadline=None)
@given(
    alphas=st.lists(st.floats(0.05, 0.6), min_size=2, max_size=3),
    spare_pages=st.integers(0, 20),
    tokens_per_page=st.sampled_from([2, 4, 8]),
    batch=st.integers(1, 4),
    host_users=st.sampled_from([0, 4]),
    hot_share=st.floats(0.3, 1.0),
    seed=st.integers(0, 2**31),
)
def test_scores_with_caches_equal_scores_without(
    alphas, spare_pages, tokens_per_page, batch, host_users, hot_share, seed
):
    profile = small_model(tiny_profile(spare_pages + 88 // tokens_per_page, batch, host_users, tokens_per_page))
    path = make_path("steady", profile, [seed], 1)
    state = WorkloadState(path.values[:, 0].copy(), path.gaps_s[:, 0])
    state.values[:, INDEX["hot_share"]] = hot_share
    # Everyone at once, so that micro-batches fill up.
    state.values[:, INDEX["arrival_rate_rps"]] = 1e5
    watched = Watched(profile)
    watched.backend.reset(state, np.array([seed]), np.full((1, 1), alphas[0]))
    for alpha in alphas:
        watched.backend.step(np.full((1, 1), alpha), state)
    assert watched.served > 0
    assert watched.worst < 1e-5


def test_the_law_is_tried_on_hits():
    """The property above would be empty if nothing were ever served from the cache."""
    profile = small_model(tiny_profile(48, 2))
    state = make_path("steady", profile, [5], 1).at(0)
    watched = Watched(profile)
    watched.backend.reset(state, np.array([5]), np.full((1, 1), 0.3))
    for _ in range(4):
        watched.backend.step(np.full((1, 1), 0.3), state)
    assert watched.hits > 0.2 * watched.served
