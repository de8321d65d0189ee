"""Pid."""

from __future__ import annotations

import numpy as np
import pytest

from agents.pid import Pid
from tests.conformance.policy import PolicyConformance, make_layout, observe, settle

LAYOUT = make_layout()
EMB_WINS = {"emb_gain": 0.4, "emb_loss": 0.4}
KV_WINS = {"kv_gain": 0.4, "kv_loss": 0.4}


class TestPid(PolicyConformance):
    name = "pid"


def test_it_starts_without_a_bump() -> None:
    policy = Pid(LAYOUT)
    balanced = observe(LAYOUT, target_alpha=0.37, emb_gain=0.2, kv_gain=0.2)
    action, _ = policy.act(balanced, policy.initial_state(1))
    assert action[0, 0] == pytest.approx(0.0, abs=1e-5)


def test_it_moves_towards_the_larger_marginal_until_the_bound() -> None:
    assert settle(Pid(LAYOUT), LAYOUT, 0.5, 300, **EMB_WINS)[-1] == pytest.approx(0.95, abs=1e-5)
    assert settle(Pid(LAYOUT), LAYOUT, 0.5, 300, **KV_WINS)[-1] == pytest.approx(0.05, abs=1e-5)


def test_it_rests_where_the_marginals_meet() -> None:
    """Marginals of a curve with its least cost at .7: EMB's fall as it grows, KV's rise."""
    policy, target = Pid(LAYOUT), 0.3
    state = policy.initial_state(1)
    targets = []
    for _ in range(300):
        worth = 0.3 - (target - 0.7), 0.3 + (target - 0.7)
        action, state = policy.act(observe(LAYOUT, target_alpha=target, emb_gain=worth[0], kv_gain=worth[1]), state)
        target = float(np.clip(target + 0.1 * action[0, 0], 0.05, 0.95))
        targets.append(target)
    np.testing.assert_allclose(targets[-50:], 0.7, atol=0.01)


def test_its_integral_does_not_wind_up() -> None:
    """After hours at the bound it comes back as fast as after a minute."""

    def decisions_to_return(held: int) -> int:
        policy = Pid(LAYOUT)
        state = policy.initial_state(1)
        for _ in range(held):
            _, state = policy.act(observe(LAYOUT, target_alpha=0.95, **EMB_WINS), state)
        target = 0.95
        for count in range(1000):
            action, state = policy.act(observe(LAYOUT, target_alpha=target, **KV_WINS), state)
            target = float(np.clip(target + 0.1 * action[0, 0], 0.05, 0.95))
            if target < 0.9:
                return count
        return 1000

    assert decisions_to_return(5000) == decisions_to_return(60) < 20
