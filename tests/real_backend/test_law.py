"""The first law: caching, eviction, paging and a moving alpha never change a score."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
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
        self.served = self.hits = self.chunks = self.beside = 0
        self.worst = 0.0

    def _checked(self, plan: Plan, batch):
        result = self.execute(plan, batch)
        if plan is self.backend.nodes[0].probe_plan:
            return result
        scores, backend = result[0].numpy(), self.backend
        read = 0
        for b, length in enumerate(batch.length):
            r = plan.request[b]
            q, count = backend._requests, int(batch.candidates[b])
            self.chunks += int(length < q.length[0, r])
            self.beside += int(b > 0)
            history = backend._traffic.items[0, q.user[0, r], :length]
            rows = backend.nodes[0].engine.table[np.concatenate([history, q.candidates[0, r, :count]])]
            expected = naive_scores(backend.nodes[0].engine.hstu, rows.double().numpy(), int(length))
            off = np.abs(scores[read : read + count] - expected).max(initial=0.0)
            self.worst = float(np.maximum(self.worst, off))  # unlike max(), lets a NaN through
            read += count
            self.served += 1
            self.hits += int(plan.cached[b] > 0)
        return result


def small_model(profile: Profile, dtype: str = "float32") -> Profile:
    model = dataclasses.replace(profile.model, max_history=16, max_candidates=3, dtype=dtype)
    population = dataclasses.replace(profile.population, mean_history=9.0, candidates=3, delta_tokens=2.0)
    return dataclasses.replace(profile, model=model, population=population)


@settings(max_examples=15, deadline=None)
@given(
    alphas=st.lists(st.floats(0.05, 0.6), min_size=2, max_size=3),
    spare_pages=st.integers(0, 20),
    tokens_per_page=st.sampled_from([2, 4, 8]),
    batch=st.integers(1, 4),
    host_users=st.sampled_from([0, 4]),
    chunk=st.sampled_from([0, 1, 3, 7]),
    hot_share=st.floats(0.3, 1.0),
    seed=st.integers(0, 2**31),
)
def test_scores_with_caches_equal_scores_without(
    alphas, spare_pages, tokens_per_page, batch, host_users, chunk, hot_share, seed
):
    pages = spare_pages + 88 // tokens_per_page
    profile = small_model(tiny_profile(pages, batch, host_users, tokens_per_page, chunk_tokens=chunk))
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


def busy(profile: Profile, seed: int) -> WorkloadState:
    state = make_path("steady", profile, [seed], 1).at(0)
    state.values[:, INDEX["arrival_rate_rps"]] = 1e5
    return state


def test_the_law_is_tried_on_hits_batches_and_chunks():
    """The property above would be empty if nothing were ever served from the cache, together, or in parts."""
    profile = small_model(tiny_profile(48, 3, chunk_tokens=6))
    state, watched = busy(profile, 5), Watched(profile)
    watched.backend.reset(state, np.array([5]), np.full((1, 1), 0.3))
    for _ in range(4):
        watched.backend.step(np.full((1, 1), 0.3), state)
    assert watched.hits > 0.2 * watched.served
    assert watched.chunks > 0.1 * watched.served
    assert watched.beside > 0.1 * watched.served


def test_bfloat16_keeps_the_law_within_its_rounding_and_ranks_in_float32():
    profile = small_model(tiny_profile(48, 3, chunk_tokens=4, host_users=4), "bfloat16")
    state, watched, scores = busy(profile, 6), Watched(profile), []
    checked = watched._checked

    def kept(plan, batch):
        result = checked(plan, batch)
        scores.extend(result[0].tolist())
        return result

    watched.backend.nodes[0].engine.timed_execute = kept  # type: ignore[method-assign]
    watched.backend.reset(state, np.array([6]), np.full((1, 1), 0.3))
    for _ in range(4):
        watched.backend.step(np.full((1, 1), 0.3), state)
    assert watched.hits and watched.chunks and watched.beside
    assert watched.worst < 2e-2  # 2 ** -8 of values about 1, through two layers
    found = torch.tensor(scores)
    assert (found == found.bfloat16()).float().mean() < 0.1, "scores are rounded to bfloat16 before they are ranked"
