"""What a micro-batch is made of: the oldest first, nobody passed for long, nothing together that is slower together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helm_gym.profile import CostModel, Profile
from real_backend.memory.ledger import FREE_AT_S, SUMS
from real_backend.memory.pricing import batch_load, batch_ms
from real_backend.memory.scheduler import choose
from real_backend.memory.serve import account, open_interval, plan_batch
from tests.real_backend.machine import Node, ends, tiny_profile

WORK = CostModel(base_ms=0.1, per_token_ms=0.05, per_pair_ms=0.01, per_context_ms=0.0, per_request_ms=0.02)


def profile_of(batch: int, chunk: int = 0, cost: CostModel = WORK, **changes: object) -> Profile:
    base = tiny_profile(100, batch, chunk_tokens=chunk)
    clock = dataclasses.replace(base.interval, requests=12, window=12)
    return dataclasses.replace(base, cost=cost, interval=clock, **changes)


def begin(node: Node, asked: list[tuple[int, int, int, int]], gap_s: float = 0.0) -> None:
    node.ask(asked, np.random.default_rng(0))
    node.requests.gap_s[:] = gap_s
    open_interval(node.memory, 0, 10, 5, node.requests, node.plan, node.ledger, node.rules)


def steps(node: Node) -> list[list[tuple[int, int, int]]]:
    """Serves all; of each micro-batch (request, history tokens before and afterwards)."""
    made, plan = [], node.plan
    arguments = node.requests, 0, node.ledger
    while size := choose(node.memory, *arguments, node.profile.max_batch, plan, node.rules):
        sums = np.zeros(SUMS)
        plan_batch(node.memory, node.traffic.items[0], node.requests, 0, size, plan, node.ledger, sums, node.rules)
        load = batch_load(node.rules, size, plan.cached, plan.stop, plan.asked)
        account(node.requests, 0, size, plan, batch_ms(node.rules, size, *load), 0.0, node.ledger, sums)
        made.append([(int(plan.request[b]), int(plan.cached[b]), int(plan.stop[b])) for b in range(size)])
    node.ledger.interval[0, 0] += 1
    return made


def sojourns(node: Node) -> np.ndarray:
    place = int(node.ledger.interval[0, 0] - 1) % node.ledger.sums.shape[1]
    return node.ledger.sojourn_ms[0, place, : node.requests.number[0, 0]]


def after_one_visit(profile: Profile, users: int) -> Node:
    node = Node(profile)
    begin(node, [(user, 0, 8, 2) for user in range(1, users + 1)])
    steps(node)
    return node


LONG_AND_TEN = [(0, 0, 32, 2), *((user, 0, 9, 2) for user in range(1, 11))]


def test_one_miss_does_not_hold_up_ten_hits():
    mean_ms = {}
    for chunk in (0, 8):
        node = after_one_visit(profile_of(11, chunk), 10)
        begin(node, LONG_AND_TEN)
        made = steps(node)
        mean_ms[chunk] = sojourns(node)[1:].mean()
        if chunk:
            assert made[0] == [(0, 0, 8), *((r, 8, 9) for r in range(1, 9))], "hits ride along, a chunk of new tokens"
            assert [step[0] for step in made] == [(0, 0, 8), (0, 8, 16), (0, 16, 32)]
            assert sojourns(node)[0] > sojourns(node)[1:].max(), "the miss itself is answered last"
        else:
            assert len(made) == 1
    assert mean_ms[8] < 0.7 * mean_ms[0]


def test_a_service_in_chunks_is_the_sum_of_its_micro_batches():
    node = after_one_visit(profile_of(3, 8), 10)
    waited_ms = 1e3 * node.ledger.clock[0, FREE_AT_S]  # for those of the first visit
    begin(node, LONG_AND_TEN)
    assert [len(step) for step in steps(node)] == [3, 3, 3, 3, 2]
    place = int(node.ledger.interval[0, 0] - 1) % node.ledger.sums.shape[1]
    assert node.ledger.service_ms[0, place, 0] == pytest.approx(sojourns(node)[0] - waited_ms)


def test_nothing_is_cut_where_nobody_rides_along():
    node = Node(profile_of(4, 8))
    begin(node, [(0, 0, 32, 2), (1, 0, 32, 2)])
    assert steps(node) == [[(0, 0, 32)], [(1, 0, 32)]], "the other is longer than a chunk and waits for its turn"


def test_what_is_padded_is_not_served_together_where_that_is_slower():
    """An engine that pads has hits and misses in micro-batches of their own; a jagged one takes them as they come."""
    sizes = {}
    for device in ("cpu", "cuda"):
        node = after_one_visit(profile_of(11, device=device), 10)
        begin(node, LONG_AND_TEN)
        sizes[device] = [len(step) for step in steps(node)]
    assert sizes == {"cpu": [11], "cuda": [1, 10]}


def test_a_requests_user_is_served_in_order_and_those_who_come_later_wait():
    node = Node(profile_of(4))
    begin(node, [(0, 0, 5, 1), (0, 0, 7, 1), (1, 0, 5, 1), (0, 0, 9, 1)])
    assert [[r for r, _, _ in step] for step in steps(node)] == [[0, 2], [1], [3]]
    begin(node, [(2, 0, 5, 1), (3, 0, 5, 1)], gap_s=10.0)
    assert [len(step) for step in steps(node)] == [1, 1]


costs = st.builds(CostModel, *[st.floats(0, 2) | st.just(0.01)] * 4, per_request_ms=st.floats(0, 2)).filter(
    lambda c: c.base_ms + c.per_request_ms + c.per_token_ms + c.per_pair_ms + c.per_context_ms > 0
)
one = st.tuples(st.integers(0, 9), st.just(0), st.integers(0, 32), st.integers(0, 6))


@settings(max_examples=60, deadline=None)
@given(
    cost=costs,
    asked=st.lists(one, min_size=1, max_size=12),
    device=st.sampled_from(["cpu", "cuda"]),
    batch=st.integers(1, 8),
)
def test_a_batch_is_never_slower_than_its_requests_one_by_one(cost, asked, device, batch):
    node = Node(profile_of(batch, cost=cost, device=device))
    begin(node, asked)
    rules = node.rules
    with ends():
        for step in steps(node):
            start, stop = (np.array([part[k] for part in step], np.int32) for k in (1, 2))
            asked_of = np.array([node.requests.candidate_count[0, r] for r, _, _ in step], np.int32)
            together = batch_ms(rules, len(step), *batch_load(rules, len(step), start, stop, asked_of))
            alone = sum(
                batch_ms(rules, 1, *batch_load(rules, 1, start[b:], stop[b:], asked_of[b:])) for b in range(len(step))
            )
            assert together <= alone * (1 + 1e-9)
