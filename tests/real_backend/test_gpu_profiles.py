"""Profiles of GPUs that nobody has measured: they say so, and their costs are the stated arithmetic."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from helm_gym import profile as profiles
from helm_gym.backend import open_backend
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Model
from helm_gym.workload.demand import ALPHAS, service_ms
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import at_rest
from real_backend.cost_estimate import CARDS, OPERATIONS, counts, estimate, link
from real_backend.engine import memory_bytes

GPU = [name for name in profiles.names() if profiles.load(name).device == "cuda"]
DLRMV3 = Model(5, 4, 512, 128, 128, 4096, 256, "bfloat16", norm="group")


def card_of(name: str) -> str:
    return name.removesuffix("-kuairand")


@pytest.mark.parametrize("name", GPU)
def test_a_gpu_profile_is_its_arithmetic_and_says_that_nobody_measured_it(name):
    profile, card = profiles.load(name), CARDS[card_of(name)]
    made = estimate(profile.model, card)
    assert dataclasses.replace(profile.cost, mean_error=0.0) == dataclasses.replace(made, mean_error=0.0)
    assert dataclasses.replace(profile.link, gather_gb_per_s=0.0) == link(card)
    assert "not measured" in profile.cost.machine and "NOT MEASURED" in profile.description
    assert profile.cost.mean_error != profile.cost.mean_error and not profile.cost.date and not profile.cost.probe_ms


@pytest.mark.parametrize("name", GPU)
def test_a_gpu_profile_is_of_real_size_and_a_problem(name):
    """The pool takes tens of GB and fits beside the weights; the table does not; the best split is neither end."""
    profile, card = profiles.load(name), CARDS[card_of(name)]
    pool = profile.pool.pages * profile.pool.page_bytes
    table = profile.population.items * profile.row_bytes
    device = memory_bytes(profile)[1]
    assert 10e9 < pool < device < 0.9 * card.memory_gb * 1e9 < table and profile.population.items >= 10**8
    assert profile.pool.page_bytes % profile.row_bytes == profile.pool.page_bytes % profile.kv_bytes_per_token == 0
    curve = service_ms(profile, at_rest(profile)[None])[0]
    assert 0.2 < ALPHAS[curve.argmin()] < 0.8 and curve[[0, -1]].min() > 1.05 * curve.min()


def test_the_counts_are_those_worked_out_in_the_documentation():
    """docs/gpu_profiles.md: 2 x 512 x 2,048 + 2 x 1,536 x 512 operations a token and layer, 2 x 1,024 a pair."""
    of = counts(DLRMV3)
    assert of.token_flops == 5 * (2 * 512 * 2048 + 2 * 1536 * 512) == 18_350_080
    assert (of.pair_flops, of.context_bytes) == (10_240, 10_240)
    assert of.token_bytes == 5 * 53_248


def test_the_estimate_agrees_with_what_nvidia_published_of_one_block():
    """recsys-examples v26.06: on an L20, 3,968 of 4,096 cached and 256 candidates, a block is 3 to 8 times faster."""
    block = dataclasses.replace(DLRMV3, layers=1)
    cost = estimate(block, CARDS["l20"])

    def block_ms(new: int) -> float:
        n = new + 256
        launches = OPERATIONS * 0.005
        return launches + n * cost.per_token_ms + n * 4096 * cost.per_pair_ms + 4096 * cost.per_context_ms

    assert 3.0 < block_ms(4096) / block_ms(128) < 8.0


def test_a_table_of_a_hundred_million_rows_is_stepped_in_the_memory_of_its_pool():
    profile = profiles.load("a100-40g-kuairand")
    backend = open_backend("modelled", profile)
    assert profile.population.items == 10**8 and backend.spec.memory_bytes < 400 * 2**20
    path = make_path("steady", profile, [1], 6)
    backend.reset(path.at(0), np.array([1]), np.full((1, 1), 0.5))
    entries = sum(array.size for array in backend._memory) + sum(array.size for array in backend._traffic)
    assert entries < 10**8
    first = backend.step(np.full((1, 1), 0.5), path.at(0))
    assert first["emb_hit_rate"] > 0.3 and first["emb_empty_share"] == 0.0
    for t in range(1, 6):
        moved = backend.step(np.full((1, 1), 0.6), path.at(t))
    assert moved["alpha"] > 0.55


def test_this_machine_is_told_what_a_gpu_profile_needs(monkeypatch):
    from helm_gym import machine_memory

    monkeypatch.setattr(machine_memory, "available_bytes", lambda: 64 * 2.0**30)
    profile = dataclasses.replace(profiles.load("a100-40g"), device="cpu")
    with pytest.raises(InvalidInputError, match=r"HSTU on profile 'a100-40g' needs about \d+\.\d GiB of memory"):
        open_backend("real", profile)
