"""MissRatioCurve."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from baselines.curves import MissRatioCurve, Settings
from helm_gym.telemetry import ALPHA_GRID
from tests.conformance.policy import PolicyConformance, make_layout, observe, settle

LAYOUT = make_layout()


class TestMissRatioCurve(PolicyConformance):
    name = "miss-ratio-curve"


def valley(alpha: float, depth: float = 2.0) -> NDArray[np.float64]:
    """A parabola with its least cost at ``alpha``."""
    return 0.3 + depth * (np.array(ALPHA_GRID) - alpha) ** 2 * 0.3


@pytest.mark.parametrize("alpha", [0.1, 0.237, 0.5, 0.66, 0.9])
def test_it_goes_to_the_least_cost_between_grid_points_too(alpha: float) -> None:
    policy = MissRatioCurve(LAYOUT, Settings(tolerance=0.0))
    assert settle(policy, LAYOUT, 0.45, predicted=valley(alpha))[-1] == pytest.approx(alpha, abs=0.0126)


@pytest.mark.parametrize("start", [0.1, 0.9])
def test_it_stops_as_soon_as_the_cost_is_within_its_tolerance(start: float) -> None:
    policy = MissRatioCurve(LAYOUT, Settings(tolerance=0.02))
    reached = settle(policy, LAYOUT, start, predicted=valley(0.5))[-1]
    assert abs(reached - 0.5) == pytest.approx(0.1, abs=0.0126)  # where the parabola is 2% above its least
    assert (reached < 0.5) == (start < 0.5)


def test_a_flat_curve_moves_nothing() -> None:
    assert set(settle(MissRatioCurve(LAYOUT), LAYOUT, 0.503, predicted=0.3)) == {np.float32(0.503)}


def test_noise_on_the_curve_does_not_make_it_chatter() -> None:
    policy, rng = MissRatioCurve(LAYOUT), np.random.default_rng(3)
    state, moved = policy.initial_state(200), []
    for _ in range(50):
        noisy = valley(0.5) * (1 + 0.003 * rng.standard_normal((200, 9)))
        action, state = policy.act(observe(LAYOUT, 200, target_alpha=0.5, predicted=noisy), state)
        moved.append(np.abs(action))
    assert np.mean(np.array(moved) > 0) < 0.01


def test_a_new_curve_is_believed_within_a_few_decisions() -> None:
    policy = MissRatioCurve(LAYOUT)
    state = policy.initial_state(1)
    for _ in range(10):
        _, state = policy.act(observe(LAYOUT, target_alpha=0.8, predicted=valley(0.8)), state)
    actions = []
    for _ in range(4):
        action, state = policy.act(observe(LAYOUT, target_alpha=0.8, predicted=valley(0.2)), state)
        actions.append(action[0, 0])
    assert actions[0] <= 0 and actions[-1] == -1.0
