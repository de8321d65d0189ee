"""The router in real time: it goes where KV is, and does not send all to one node."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from helm_gym.cluster.routing import Routing
from helm_gym.errors import InvalidInputError
from real_backend.serving.live_router import LiveRouter
from tests.real_backend.serving.running import small

CANDIDATES = np.arange(8, dtype=np.int32)
NODES = 3


@pytest.fixture
def router() -> LiveRouter:
    profile = small()
    found = LiveRouter(profile, NODES, np.zeros((profile.population.users, profile.model.max_history), np.int32))
    for node in range(NODES):
        found.up(node)
    return found


def choose(router: LiveRouter, user: int, ahead_ms: np.ndarray, now_s: float = 1.0) -> tuple[int, float]:
    return router.choose(user, 0, 400, 4, CANDIDATES, now_s, ahead_ms)


def test_a_request_goes_where_its_users_kv_is(router: LiveRouter) -> None:
    idle = np.zeros(NODES)
    for node in range(NODES):
        router.learn(node, np.array([[10 + node, 0, 396]], np.int32), 1.0)
    for node in range(NODES):
        chosen, expected_ms = choose(router, 10 + node, idle)
        assert chosen == node
        assert expected_ms < choose(router, 50 + node, idle)[1], "a user whom no node knows takes longer"


def test_a_cache_that_everybody_is_drawn_to_does_not_get_everybody(router: LiveRouter) -> None:
    """All users lie at node 0, and the load never stops: no death spiral."""
    users = 60
    router.learn(0, np.array([[user, 0, 396] for user in range(users)], np.int32), 1.0)
    ahead_ms, sent = np.zeros(NODES), np.zeros(NODES, int)
    for k in range(300):
        node, expected_ms = choose(router, k % users, ahead_ms, 1e-3 * k)
        sent[node] += 1
        ahead_ms[node] += expected_ms
        ahead_ms = np.maximum(0.0, ahead_ms - 0.1)  # less than what a request brings, by all nodes together
    assert sent.min() > 30
    assert router.spilled > 0


def test_of_a_lost_node_nothing_is_believed_and_nothing_is_sent_there(router: LiveRouter) -> None:
    idle = np.zeros(NODES)
    router.learn(1, np.array([[7, 0, 396]], np.int32), 1.0)
    assert choose(router, 7, idle)[0] == 1
    router.down(1)
    assert {choose(router, user, idle)[0] for user in range(40)} == {0, 2}
    router.up(1)
    asked = [choose(router, 7, idle)[1], choose(router, 8, idle)[1]]
    assert asked[0] == pytest.approx(asked[1], rel=0.5), "it comes back cold"


def test_what_a_node_answered_is_no_load_any_longer(router: LiveRouter) -> None:
    """A long request is not forgotten, and one that is done is not held against the node."""
    router.set_routing(Routing("least-loaded", np.ones((1, 3))))
    assert choose(router, 1, np.array([50.0, 0.0, 60.0]))[0] == 1
    assert choose(router, 2, np.array([50.0, 90.0, 60.0]))[0] == 0
    assert choose(router, 3, np.array([50.0, 90.0, 0.0]))[0] == 2


def test_users_of_a_consistent_hash_stay_where_they_were_when_a_node_comes_back(router: LiveRouter) -> None:
    router.set_routing(Routing("consistent-hash", np.ones((1, 3)), bound=1e9))
    idle = np.zeros(NODES)
    before = [choose(router, user, idle)[0] for user in range(200)]
    router.down(2)
    without = [choose(router, user, idle)[0] for user in range(200)]
    assert all(a == b for a, b in zip(before, without, strict=True) if a != 2)
    router.up(2)
    assert [choose(router, user, idle)[0] for user in range(200)] == before


def test_a_table_too_large_to_list_takes_one_node() -> None:
    profile = small()
    large = dataclasses.replace(profile, population=dataclasses.replace(profile.population, items=1 << 25))
    with pytest.raises(InvalidInputError, match="take one node"):
        LiveRouter(large, 2, np.zeros((300, 640), np.int32))
