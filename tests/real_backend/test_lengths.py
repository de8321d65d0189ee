"""Histories, deltas and candidate lists of 0, 1 and the most there may be, on every path of both rungs: all of it ends.

Compiled loops do not hear an exception, so what would run for ever ends the process (``machine.ends``).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helm_gym.backend import open_backend
from helm_gym.cluster.routing import Routing
from helm_gym.cluster.topology import Cluster, Node, in_cluster
from helm_gym.profile import KvMiss, Profile
from helm_gym.telemetry import FIELDS
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import INDEX, WorkloadState
from real_backend.memory.layout import OFFLOADS, UPLOAD_TOKENS, Memory
from tests.real_backend import machine
from tests.real_backend.machine import check, ends, tiny_profile

EDGES = (0, 1, 2, 5, 31, 32)  # of a history; 32 is the most
POLICIES = ("recompute", "copy", "cheapest")


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """An interval's: few users, who come back with more history, with less (an older request, late), or as others."""
    one = st.tuples(
        st.integers(0, 5), st.sampled_from([0, 0, 0, 1]), st.sampled_from(EDGES), st.sampled_from([0, 1, 3, 6])
    )
    return draw(st.lists(one, min_size=1, max_size=10))


@settings(max_examples=80, deadline=None)
@given(
    pages=st.sampled_from([20, 24, 40]),
    batch=st.integers(1, 4),
    host=st.sampled_from([0, 1, 4]),
    policy=st.sampled_from(POLICIES),
    budget=st.sampled_from([1, 7, 40]),
    chunk=st.sampled_from([0, 1, 5, 31]),
    stream=st.lists(st.tuples(requests(), st.sampled_from([0.0, 0.0, 0.1, 0.3, 0.6])), min_size=1, max_size=8),
    seed=st.integers(0, 2**31),
)
def test_the_manager_serves_any_lengths_and_stays_sound(pages, batch, host, policy, budget, chunk, stream, seed):
    profile = dataclasses.replace(
        tiny_profile(pages, batch, host, budget=budget, chunk_tokens=chunk), kv_miss=KvMiss(policy, host)
    )
    node, rng, versions = machine.Node(profile, seed), np.random.default_rng(seed), np.zeros(6, int)
    with ends():
        for asked, share in stream:
            following = []
            for user, another, length, candidates in asked:
                versions[user] += another
                following.append((user, int(versions[user]), length, candidates))
            node.ask(following, rng)
            node.serve(round(share * pages), [batch])


class Counting(machine.Node):
    """Counts the paths that its batches take."""

    def __init__(self, profile: Profile):
        super().__init__(profile)
        self.paths = dict.fromkeys(("hit", "late", "upload", "offload"), 0)

    def _batch(self, size: int) -> list[int]:
        answered = super()._batch(size)
        plan = self.plan
        held = self.memory.cached_length[self.requests.user[0, plan.request[:size]]]
        self.paths["hit"] += int((plan.cached[:size] > 0).sum())
        self.paths["late"] += int(((held > plan.stored[:size]) & (plan.asked[:size] > 0)).sum())
        self.paths["upload"] += int(plan.counts[UPLOAD_TOKENS])
        self.paths["offload"] += int(plan.counts[OFFLOADS])
        return answered


def test_the_property_takes_the_paths_that_it_is_about():
    node, rng = Counting(tiny_profile(24, 2, host_users=4, budget=7, chunk_tokens=5)), np.random.default_rng(0)
    with ends():
        for t in range(40):
            node.ask(
                [(int(rng.integers(6)), 0, int(rng.choice(EDGES)), int(rng.choice([0, 1, 6]))) for _ in range(10)], rng
            )
            node.serve(14 if t % 8 < 4 else 0, [2])
    assert all(node.paths.values()) and node.staged and node.rows_moved and node.chunks and node.passed, node.paths


def edge_profile(longest: int, most: int, host_users: int = 4) -> Profile:
    base = tiny_profile(40, 3, host_users)
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, max_history=longest, max_candidates=most),
        population=dataclasses.replace(base.population, mean_history=min(14.0, longest), candidates=min(5, most)),
        kv_miss=KvMiss("cheapest", host_users),
    )


def edge_state(profile: Profile, longest: int, most: int, lanes: int = 1) -> WorkloadState:
    """Histories, deltas and candidates as asked for, many users hot, and all at once."""
    state = make_path("steady", profile, range(lanes), 1).at(0)
    values = state.values.copy()
    for name, value in (("mean_history", longest), ("delta_tokens", longest), ("candidates", most), ("new_share", 0.5)):
        values[:, INDEX[name]] = value
    values[:, INDEX["arrival_rate_rps"]] = 1e5
    return WorkloadState(values, state.gaps_s)


@pytest.mark.parametrize("name", ["modelled", "real"])
@pytest.mark.parametrize("longest", [1, 3, 32])
@pytest.mark.parametrize("most", [1, 6])
def test_backends_serve_workloads_at_the_edges(name, longest, most):
    """A model of one history token or one candidate too; what is asked for goes from none to the most."""
    profile = edge_profile(longest, most)
    with ends():
        backend = open_backend(name, profile)
        for history in sorted({0, 1, longest}):
            for candidates in sorted({0, 1, most}):
                state = edge_state(profile, history, candidates)
                backend.reset(state, np.array([history]), np.full((1, 1), 0.5))
                for alpha in (0.5, 0.05, 0.6, 0.3):
                    telemetry = backend.step(np.full((1, 1), alpha), state)
                    check(Memory._make(part[0] for part in backend._memory), profile)
                for field in FIELDS:
                    values = telemetry[field.name]
                    assert ((values >= field.low) & (values <= field.high)).all(), field.name
        backend.close()


@pytest.mark.parametrize("name", ["modelled", "real"])
def test_a_lost_nodes_requests_come_late_and_take_nothing_away(name):
    """They have less history than the node that gets them may hold by now: pages leaked, or the engine refused them."""
    base = tiny_profile(40, 2)
    profile = dataclasses.replace(base, population=dataclasses.replace(base.population, hot_share=1.0, hot_users=3))
    late = 0
    with ends():
        for rule, seed in (("random", 3), ("least-loaded", 3), ("consistent-hash", 2)):
            cluster = Cluster((Node(3),), losses=3, load=3.0)
            path = in_cluster(make_path("burst", profile, [seed], 20), cluster, profile, [seed])
            backend, split = open_backend(name, profile, cluster=cluster), np.full((1, 3), 0.4)
            backend.reset(path.at(0), np.array([seed]), split)
            for t in range(20):
                telemetry = backend.step(split, path.at(t), Routing(rule, np.ones((1, 3))))
                late += int(telemetry.traffic.rerouted.sum())
                for unit in range(3):
                    check(Memory._make(part[unit] for part in backend._memory), backend.profile)
            backend.close()
    assert late > 20
