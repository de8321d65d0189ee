"""The router on small views made by hand: whom each rule chooses, what bounds and losses do, what news and age do."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helm_gym.cluster.routing import RULES
from helm_gym.workload.sampling import make_requests
from real_backend.benchmarks import rehearse
from real_backend.memory.layout import Rules, make_memory, make_rules
from real_backend.memory.ledger import FREE_AT_S, make_ledger
from real_backend.memory.pricing import batch_ms
from real_backend.router import CONSISTENT_HASH, LEAST_LOADED, RANDOM, ROUND_ROBIN, SCORE
from real_backend.router import route as route_kernel
from real_backend.router_beliefs import PARTS, make_view
from real_backend.router_beliefs import refresh as refresh_kernel
from tests.real_backend.machine import tiny_profile

_TINY = tiny_profile()
PROFILE = dataclasses.replace(
    _TINY,
    interval=dataclasses.replace(_TINY.interval, requests=100, window=100),
    population=dataclasses.replace(_TINY.population, users=1000),
)
USERS, ITEMS = PROFILE.population.users, PROFILE.population.items
WORK = make_rules(PROFILE)
JOINT, KV_ONLY, EMB_ONLY, LOAD_ONLY = (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
UNBOUNDED = 1e9


class Lane:
    """One lane's router. Unless told otherwise its nodes are idle, empty and alive, and a second passes per request."""

    def __init__(self, nodes=4, seed=0, speed=None):
        self.nodes = nodes
        self.view = make_view(PROFILE, np.array([seed]), np.ones(nodes) if speed is None else np.array(speed))
        self.requests = make_requests(PROFILE, 1)
        self.items = np.full((USERS, PROFILE.model.max_history), ITEMS - 1, np.int32)

    def route(
        self,
        users,
        rule=SCORE,
        weights=JOINT,
        bound=UNBOUNDED,
        gap_s=1.0,
        version=0,
        length=20,
        candidates=(),
        work=WORK,
    ):
        """Nodes of one request a user, the first at ``gap_s``."""
        count, rows = len(users), np.array(candidates, np.int32)
        self.requests.user[0, :count] = users
        self.requests.version[0, :count] = version
        self.requests.length[0, :count] = length
        self.requests.delta[0, :count] = 2
        self.requests.candidates[0, :count, : len(rows)] = rows
        self.requests.candidate_count[0, :count] = len(rows)
        self.requests.gap_s[0, :count] = gap_s
        out = np.full(count, -1, np.int32)
        route_kernel(self.view, 0, self.requests, self.items, 0.0, work, rule, np.array(weights), bound, out)
        return out.tolist()

    def cached(self, user, node, tokens, version=0):
        self.view.kv_version[0, user] = version
        self.view.kv_tokens[0, user, node] = tokens

    def work_ahead(self, node, ms, at_s=1.0):
        self.view.free_at_s[0, node] = at_s + ms * 1e-3


class Published:
    """What nodes publish: users in the ring of recency, rows with a slot, and when they are free."""

    def __init__(self, nodes):
        self.memory = make_memory(PROFILE, np.full(nodes, 4))
        self.ledger = make_ledger(PROFILE, nodes)
        self.alive = np.ones(nodes, bool)

    def caches(self, node, tokens_of, version=0):
        ring = [USERS, *tokens_of, USERS]
        for older, newer in itertools.pairwise(ring):
            self.memory.newer[node, older] = newer
        for user, tokens in tokens_of.items():
            self.memory.cached_length[node, user], self.memory.cached_version[node, user] = tokens, version

    def to(self, lane):
        refresh_kernel(lane.view, 0, self.memory, 0, self.ledger, self.alive)


@pytest.mark.parametrize("weights", [KV_ONLY, JOINT])
def test_a_user_goes_where_his_kv_is(weights):
    lane = Lane()
    lane.cached(user=7, node=2, tokens=18)
    assert lane.route([7], weights=weights) == [2]


def test_of_two_nodes_with_a_users_kv_the_one_with_more_of_it():
    lane = Lane()
    lane.cached(user=7, node=1, tokens=8)
    lane.cached(user=7, node=3, tokens=18)
    assert lane.route([7], weights=KV_ONLY) == [3]


@pytest.mark.parametrize("version", [4, 6])
def test_kv_of_another_version_of_the_user_is_no_reason(version):
    """5 is cached; 4 asks late, 6 is a new user in the same entry. Both go where least work waits."""
    lane = Lane()
    lane.cached(user=7, node=2, tokens=18, version=5)
    for node in (0, 1, 2):
        lane.work_ahead(node, ms=5.0)
    assert lane.route([7], weights=KV_ONLY, version=version) == [3]


@pytest.mark.parametrize("weights", [EMB_ONLY, JOINT])
def test_a_request_goes_where_its_candidates_rows_are(weights):
    lane = Lane()
    lane.view.resident[0, [5, 6, 7], 1] = 1
    lane.view.resident[0, [5], 3] = 1
    assert lane.route([9], weights=weights, candidates=[5, 6, 7]) == [1]


@pytest.mark.parametrize("weights", [EMB_ONLY, JOINT])
def test_a_user_without_kv_goes_where_his_historys_rows_are(weights):
    lane = Lane()
    lane.items[9, :] = 7
    lane.view.resident[0, 7, 2] = 1
    assert lane.route([9], weights=weights, candidates=[5]) == [2]


@pytest.mark.parametrize(("rule", "weights"), [(SCORE, LOAD_ONLY), (SCORE, JOINT), (LEAST_LOADED, KV_ONLY)])
def test_a_request_goes_where_least_work_waits(rule, weights):
    lane = Lane()
    for node, ms in enumerate([9.0, 6.0, 3.0, 6.0]):
        lane.work_ahead(node, ms)
    assert lane.route([9], rule, weights) == [2]


def test_load_balances_when_all_come_at_once():
    lane = Lane(nodes=5)
    sent = lane.route(list(range(100)), rule=LEAST_LOADED, gap_s=0.0)
    assert np.bincount(sent).tolist() == [20] * 5


@pytest.mark.parametrize(("rule", "weights"), [(SCORE, LOAD_ONLY), (LEAST_LOADED, JOINT)])
def test_a_faster_node_gets_more(rule, weights):
    lane = Lane(nodes=2, speed=[3.0, 1.0])
    fast, slow = np.bincount(lane.route(list(range(100)), rule, weights, gap_s=0.0))
    assert fast > 1.5 * slow  # only computing is faster, and not the link


def test_equals_are_taken_by_turns():
    """Nothing is cached and nobody works: node 0 has no more of the requests than the others."""
    assert np.bincount(Lane().route(list(range(100)))).tolist() == [25] * 4


def test_a_weight_of_zero_ignores_its_term():
    """Node 0 has the KV, node 1 the rows, node 2 is the only idle one."""
    lane = Lane(nodes=3)
    lane.cached(user=7, node=0, tokens=18)
    lane.view.resident[0, [5, 6], 1] = 1
    lane.work_ahead(0, ms=5.0)
    lane.work_ahead(1, ms=5.0)
    for weights, node in ((KV_ONLY, 0), (EMB_ONLY, 1), (LOAD_ONLY, 2)):
        other = Lane(nodes=3)
        for array, value in zip(other.view, lane.view, strict=True):
            np.copyto(array, value)
        assert other.route([7], weights=weights, candidates=[5, 6]) == [node]


def test_terms_are_the_cost_models_time():
    """At the node with the KV, two of three rows and 4 ms of work ahead: what serving will be charged."""
    lane = Lane(nodes=2)
    lane.cached(user=7, node=0, tokens=18)
    lane.view.resident[0, [5, 6], 0] = 1
    lane.work_ahead(0, ms=4.0)
    lane.work_ahead(1, ms=400.0)
    assert lane.route([7], candidates=[5, 6, 8]) == [0]
    new = 2 + 3  # delta and candidates; a third of their rows is missing
    served_ms = batch_ms(WORK, 1, new, new * 20, 20) + WORK.latency_ms + new / 3 * WORK.row_ms
    assert lane.view.chosen_ms.sum() == pytest.approx(4.0 + served_ms)
    assert lane.view.free_at_s[0, 0] == pytest.approx(1.0 + (4.0 + served_ms) * 1e-3)


def test_where_a_user_was_sent_his_kv_is_believed_to_be():
    lane = Lane()
    first, *others = lane.route([7] * 6, weights=KV_ONLY)
    assert set(others) == {first}


@pytest.mark.parametrize(("rule", "weights"), [(SCORE, KV_ONLY), (CONSISTENT_HASH, JOINT)])
def test_a_hot_user_spills_over_where_load_is_bounded(rule, weights):
    """All at once, of one user: his node alone would be drowned."""
    free, bounded = Lane(), Lane()
    assert len(set(free.route([7] * 100, rule, weights, gap_s=0.0))) == 1
    sent = bounded.route([7] * 100, rule, weights, bound=1.25, gap_s=0.0)
    assert np.bincount(sent, minlength=4).max() <= 1.25 * 25 + 2  # ahead of the last one, and itself
    assert free.view.spilled[0, 0] == 0 < bounded.view.spilled[0, 0]


@pytest.mark.parametrize("rule", range(len(RULES)), ids=RULES)
def test_a_lost_node_gets_nothing(rule):
    lane = Lane()
    lane.cached(user=7, node=2, tokens=18)
    lane.view.alive[0, 2] = False
    sent = lane.route([7] * 50 + list(range(50)), rule, bound=1.25)
    assert 2 not in sent and set(sent) <= {0, 1, 3}


def test_consistent_hash_moves_only_the_users_of_the_node_that_is_lost():
    """And they spread over all that are left."""
    users = list(range(100))
    whole, less = Lane(nodes=8), Lane(nodes=8)
    less.view.alive[0, 3] = False
    before, after = (np.array(lane.route(users, CONSISTENT_HASH)) for lane in (whole, less))
    np.testing.assert_array_equal(before != after, before == 3)
    assert (before == 3).any() and len(set(after[before == 3])) > 1


def test_consistent_hash_gives_each_node_its_share():
    lane = Lane(nodes=4)
    sent = [
        node for first in range(0, USERS, 100) for node in lane.route(list(range(first, first + 100)), CONSISTENT_HASH)
    ]
    assert np.bincount(sent).min() > USERS / 4 / 2


def test_round_robin_takes_the_living_by_turns():
    lane = Lane(nodes=4)
    lane.view.alive[0, 1] = False
    assert lane.route([5] * 6, ROUND_ROBIN) == [0, 2, 3, 0, 2, 3]
    assert lane.route([5] * 3, ROUND_ROBIN) == [0, 2, 3]


def test_random_spreads_and_is_fixed_by_its_seed():
    first, again, other = (Lane(seed=seed).route([5] * 100, RANDOM) for seed in (1, 1, 2))
    assert first == again != other
    assert np.bincount(first).min() > 10


def test_a_refresh_replaces_what_was_believed():
    """User 7 has left node 1, user 8 is at node 2 now, and node 0 has work."""
    lane, nodes = Lane(), Published(4)
    nodes.caches(1, {7: 18})
    nodes.to(lane)
    assert lane.route([7], weights=KV_ONLY) == [1]
    nodes.caches(1, {})
    nodes.caches(2, {8: 18, 9: 12})
    nodes.ledger.clock[0, FREE_AT_S] = 5.0
    nodes.to(lane)
    assert lane.view.kv_tokens[0].sum(axis=0).tolist() == [0, 0, 30, 0]
    assert lane.route([8, 9], weights=KV_ONLY) == [2, 2]
    assert lane.view.backlog_ms[0, 0] == pytest.approx(3000.0)


def test_the_newest_version_is_what_counts_whoever_publishes_first():
    for old, new in ((0, 3), (3, 0)):
        lane, nodes = Lane(), Published(4)
        nodes.caches(old, {7: 18}, version=1)
        nodes.caches(new, {7: 10}, version=2)
        nodes.to(lane)
        assert lane.route([7], weights=KV_ONLY, version=2) == [new]


def test_rows_become_known_a_part_at_a_time():
    """As over a network: after so many refreshes all are known."""
    lane, nodes = Lane(), Published(4)
    nodes.memory.row_slot[2, :] = 1
    known = []
    for _ in range(PARTS):
        nodes.to(lane)
        known.append(int(lane.view.resident[0, :, 2].sum()))
    assert known[0] <= ITEMS / PARTS + 1 and known == sorted(set(known)) and known[-1] == ITEMS
    assert not lane.view.resident[0, :, [0, 1, 3]].any()


def test_a_node_that_comes_back_is_empty():
    lane, nodes = Lane(), Published(4)
    nodes.memory.row_slot[2, :] = 1
    nodes.caches(2, {7: 18})
    for _ in range(PARTS):
        nodes.to(lane)
    nodes.alive[2] = False
    nodes.to(lane)
    nodes.alive[2] = True
    nodes.caches(2, {})
    nodes.memory.row_slot[2, :] = -1
    nodes.to(lane)
    assert not lane.view.resident[0, :, 2].any() and not lane.view.kv_tokens[0, :, 2].any()
    assert 2 in lane.route(list(range(4)))


@pytest.mark.parametrize("rule", RULES)
def test_what_the_benchmark_times_runs(rule):
    interval = rehearse(PROFILE, 3, rule)
    for _ in range(3):
        interval()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_request_gets_a_node_that_is_alive(data):
    """Whatever is believed, at any bound, weights and work ahead."""
    nodes = data.draw(st.integers(1, 9))
    lane = Lane(nodes, seed=data.draw(st.integers(0, 99)))
    random = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    lane.view.alive[0] = data.draw(st.lists(st.booleans(), min_size=nodes, max_size=nodes).filter(any))
    lane.view.resident[:] = random.integers(0, 2, lane.view.resident.shape)
    lane.view.kv_tokens[:] = random.integers(0, 20, lane.view.kv_tokens.shape)
    lane.view.kv_version[:] = random.integers(0, 2, lane.view.kv_version.shape)
    lane.view.free_at_s[:] = random.choice([0.0, 1e-3, 1.0, 1e9], lane.view.free_at_s.shape)
    weights = data.draw(st.lists(st.sampled_from([0.0, 1e-9, 1.0, 4.0, 1e12]), min_size=3, max_size=3))
    sent = lane.route(
        random.integers(0, USERS, 100),
        data.draw(st.integers(0, len(RULES) - 1)),
        weights,
        bound=data.draw(st.sampled_from([1.0, 1.25, UNBOUNDED])),
        gap_s=data.draw(st.sampled_from([0.0, 1e-4, 1.0])),
        candidates=random.integers(0, ITEMS, data.draw(st.integers(0, 6))),
    )
    assert all(0 <= node < nodes and lane.view.alive[0, node] for node in sent)


def test_empty_histories_take_no_place_in_what_is_known():
    """Each was listed as if a node held it, until there was no room for the next user who has a history."""
    lane, room = Lane(2), 2 * PROFILE.pool.pages + 4 * PROFILE.interval.requests
    for _ in range(-(-room // 100)):
        lane.route([3] * 100, length=0)
    assert lane.view.kv_count.sum() == 0
    [node] = lane.route([7], length=20)
    assert lane.view.kv_tokens[0, 7, node] == 20


def test_a_late_request_with_less_history_takes_no_belief_away():
    lane = Lane(1)
    lane.route([7], length=20)
    lane.route([7], length=5)
    assert lane.view.kv_tokens[0, 7, 0] == 20 and lane.view.kv_count[0, 0] == 1


@pytest.mark.parametrize("rule", [SCORE, CONSISTENT_HASH])
@pytest.mark.parametrize("seed", range(3))
def test_rounding_leaves_no_request_without_a_node(rule, seed):
    """Where a request costs nothing, the mean of equal work may come out below each, and all are over the bound."""
    nodes, free = 8, Rules(*[0.0 if isinstance(x, float) else x for x in WORK])
    for ms in np.random.default_rng(seed).uniform(0, 1, 200):
        lane = Lane(nodes)
        lane.view.alive[0, 1] = False
        for node in range(nodes):
            lane.work_ahead(node, ms, at_s=0.0)
        sent = lane.route([0], rule=rule, bound=1.0, gap_s=0.0, length=0, work=free)
        assert sent[0] in (0, *range(2, nodes))
