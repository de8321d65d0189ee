"""The pool's invariants under random operations, and what moves, evictions and shadow lists promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from helm_gym.workload.state import INDEX
from real_backend.memory.layout import N_EMB
from real_backend.memory.pool import move_towards
from tests.real_backend.machine import Node, tiny_profile


class PoolMachine(RuleBasedStateMachine):
    """Requests, moves and changes of workload in any order; every plan is carried out on the device of names."""

    @initialize(
        pages=st.integers(20, 40),
        batch=st.integers(1, 4),
        host=st.sampled_from([0, 2, 8]),
        tokens=st.sampled_from([1, 4, 8]),
        budget=st.integers(1, 12),
        chunk=st.sampled_from([0, 0, 3, 8]),
        seed=st.integers(0, 2**31),
    )
    def start(self, pages, batch, host, tokens, budget, chunk, seed):
        pages = pages * 4 // tokens if tokens < 4 else pages
        self.node = Node(tiny_profile(pages, batch, host, tokens, budget, chunk), seed)
        self.batch = batch

    @rule(share=st.floats(0.0, 1.0), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3))
    def serve(self, share, sizes):
        pool = self.node.profile.pool
        target = round((pool.min_alpha + share * (pool.max_alpha - pool.min_alpha)) * pool.pages)
        self.node.interval(max(1, target), [min(size, self.batch) for size in sizes])

    @rule(hot=st.floats(0, 1), new=st.floats(0, 1), turnover=st.sampled_from([0.0, 0.1, 1.0]), zipf=st.floats(0.5, 1.3))
    def change_workload(self, hot, new, turnover, zipf):
        values = self.node.values
        values[INDEX["hot_share"]], values[INDEX["new_share"]] = hot, new
        values[INDEX["turnover"]], values[INDEX["item_zipf"]] = turnover, zipf
        values[INDEX["item_drift"]] = 3.0

    @invariant()
    def sound(self):
        if hasattr(self, "node"):
            self.node.check()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_rows_without_a_slot_are_staged_and_still_served():
    """EMB of one page, less than a request needs: the overflow is served from behind the pool."""
    node = Node(tiny_profile(pages=100, tokens_per_page=1), alpha=1 / 100)
    for _ in range(10):
        node.interval(1, [3])
    assert node.staged > 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), start=st.integers(2, 12), stop=st.integers(2, 12), budget=st.integers(1, 6))
def test_alpha_arrives_at_its_target_within_the_budget(seed, start, stop, budget):
    node = Node(tiny_profile(budget=budget), seed, alpha=start / 24)
    for _ in range(-(-abs(stop - start) // budget)):
        node.interval(stop, [1])
    assert node.memory.n[N_EMB] == stop


def test_shrinking_emb_keeps_the_rows_that_are_used():
    """Of twelve pages four go: what the last requests used stays more often than the rest, by moves inside the pool."""
    node = Node(tiny_profile(budget=4))
    for _ in range(30):
        node.interval(12, [1])
    used, resident = np.unique(node.requests.candidates[0, -3:, :5]), np.flatnonzero(node.memory.row_slot >= 0)
    move_towards(node.memory, node.plan, 8, 4, node.rules)
    node.device.move(node.plan)
    node.check()
    kept_of_used, kept = ((node.memory.row_slot[rows] >= 0).mean() for rows in (used, resident))
    assert kept_of_used > kept


@pytest.mark.parametrize("host_users", [0, 8])
def test_a_returning_user_is_computed_again_or_copied_up(host_users):
    """With a host tier that holds everyone, an evicted user's history is copied up and not computed again."""
    node = Node(tiny_profile(host_users=host_users, max_batch=1), seed=3)
    node.values[INDEX["new_share"]] = 0.0
    uploads = 0
    for _ in range(40):
        node.interval(12, [1])
        uploads += int((node.plan.upload_place >= 0).sum())
    assert (uploads > 0) == (host_users > 0)
