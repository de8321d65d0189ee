"""The contract of routing: what is refused, what an action's weights are, and the classic routers by name."""

from __future__ import annotations

import numpy as np
import pytest

from helm_gym import registry
from helm_gym.cluster.router_observation import RouterLayout
from helm_gym.cluster.routing import RULES, Router, Routing, check_alive, check_routing, weights_of
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.policies.router_opening import open_router
from tests.conformance.policy import make_layout

LANES, LAYOUT = 3, make_layout()


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_accepted(rule: str) -> None:
    check_routing(Routing(rule, np.ones((LANES, 3))), LANES)


@pytest.mark.parametrize(
    ("routing", "error", "message"),
    [
        (Routing("scores", np.ones((3, 3))), UnknownNameError, "did you mean 'score'"),
        (Routing("score", np.ones((2, 3))), InvalidInputError, "shape \\(2, 3\\)"),
        (Routing("score", np.ones(3)), InvalidInputError, "shape \\(3,\\)"),
        (Routing("score", np.array([[1, 1, 1], [1, -2, 1], [1, 1, 1]])), InvalidInputError, "'emb' of lane 1 is -2"),
        (Routing("score", np.full((3, 3), np.inf)), InvalidInputError, "'kv' of lane 0 is inf"),
        (Routing("random", np.full((3, 3), np.nan)), InvalidInputError, "'kv' of lane 0 is nan"),
        (Routing("score", np.ones((3, 3)), bound=0.9), InvalidInputError, "0.9; it must be at least 1"),
        (Routing("score", np.ones((3, 3)), bound=np.nan), InvalidInputError, "nan; it must be at least 1"),
    ],
)
def test_what_cannot_be_routed_is_said(routing: Routing, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_routing(routing, LANES)


def test_a_lane_without_a_node_is_said() -> None:
    alive = np.ones((LANES, 4), bool)
    check_alive(alive, LANES, 4)
    alive[1, :] = False
    with pytest.raises(InvalidInputError, match="Lane 1 has no node alive"):
        check_alive(alive, LANES, 4)
    with pytest.raises(InvalidInputError, match="shape"):
        check_alive(alive[:, :3], LANES, 4)


def test_an_action_switches_a_term_off_leaves_it_or_makes_it_dear() -> None:
    np.testing.assert_allclose(weights_of([[-1, 0, 1], [-7, 0.5, 7]]), [[0, 1, 4], [0, 2.25, 4]])


@pytest.mark.parametrize(("action", "message"), [([[0, np.nan, 0]], "'emb' of lane 0"), ([0, 0, 0], "shape \\(3,\\)")])
def test_an_action_that_is_none_is_said(action: list[object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        weights_of(action)


@pytest.mark.parametrize("name", registry.listed("router"))
def test_a_router_of_each_name_has_a_rule_and_weights(name: str) -> None:
    router = open_router(name, LAYOUT)
    assert isinstance(router, Router) and router.name == name
    action, state = router.act(np.zeros((LANES, RouterLayout().width), np.float32), router.initial_state(LANES))
    assert action.shape == (LANES, 3) and action.dtype == np.float32 and len(state) == LANES
    check_routing(Routing(router.rule, weights_of(action)), LANES)


def test_aware_routers_look_at_their_term_alone_and_joint_at_all() -> None:
    for name, terms in (("kv-aware", [1, 0, 0]), ("emb-aware", [0, 1, 0]), ("joint", [1, 1, 1])):
        router = open_router(name, LAYOUT)
        action, _ = router.act(np.zeros((1, 5), np.float32), router.initial_state(1))
        assert router.rule == "score" and (weights_of(action)[0] > 0).tolist() == [term > 0 for term in terms]


def test_a_misspelt_router_is_told_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'least-loaded'"):
        open_router("least-load", LAYOUT)
