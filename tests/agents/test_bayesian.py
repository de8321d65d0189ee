"""Bayesian."""

from __future__ import annotations

import numpy as np
import pytest

from agents.bayesian import ENTRIES, Bayesian, Settings
from helm_gym.errors import InvalidInputError
from tests.conformance.policy import PolicyConformance, make_layout, observe

LAYOUT = make_layout()
PRIOR = {"per_returning": 0.0, "per_history": 0.0, "per_load": 0.0}
CALM = {"returning_share": 0.5, "mean_history": 0.5, "load": 0.35}


class TestBayesian(PolicyConformance):
    name = "bayesian"


def serve(policy: Bayesian, best: float, decisions: int, start: float = 0.5, state=None, **context: float):
    """A node whose log cost is a parabola about ``best`` and whose split follows the target; (target, state)."""
    state = policy.initial_state(1) if state is None else state
    target = start
    for _ in range(decisions):
        cost = 0.25 * np.exp(2.0 * (target - best) ** 2)
        action, state = policy.act(
            observe(LAYOUT, alpha=target, target_alpha=target, service_mean=cost, **CALM | context), state
        )
        target = float(np.clip(target + LAYOUT.profile.max_step * action[0, 0], 0.05, 0.95))
    return target, state


def test_before_it_has_seen_anything_it_goes_where_its_prior_says() -> None:
    settings = Settings(prior_alpha=0.7, per_returning=-1.0, per_history=0.0, per_load=0.0, inertia=0.01)
    assert serve(Bayesian(LAYOUT, settings), 0.7, 5)[0] == pytest.approx(0.7, abs=0.02)
    assert serve(Bayesian(LAYOUT, settings), 0.4, 5, returning_share=0.8)[0] == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("best", [0.35, 0.8])
def test_what_it_serves_corrects_a_wrong_prior(best: float) -> None:
    settings = Settings(
        prior_alpha=0.57, prior_depth=0.3, alpha_std=0.4, noise=0.02, confidence=1.0, inertia=0.01, block=3, **PRIOR
    )
    learned, _ = serve(Bayesian(LAYOUT, settings), best, 150)
    assert abs(learned - best) < 0.08 < abs(0.57 - best)


def test_what_it_learned_in_one_context_is_of_that_context() -> None:
    """In a context that is unlike it, the prior decides; back in the first, what was learned there."""
    settings = Settings(
        prior_depth=0.3, alpha_std=0.4, noise=0.02, confidence=1.0, inertia=0.01, block=3, context_length=0.15, **PRIOR
    )
    policy = Bayesian(LAYOUT, settings)
    learned, state = serve(policy, 0.8, 150)
    elsewhere = observe(LAYOUT, alpha=learned, target_alpha=learned, service_mean=0.25, **CALM | {"mean_history": 0.0})
    assert policy.act(elsewhere, state)[0][0, 0] < -0.5  # towards the prior's .57
    again, _ = serve(policy, 0.8, 1, start=learned, state=state)
    assert again == pytest.approx(learned, abs=0.05)


def test_it_keeps_its_last_blocks_and_forgets_older_ones() -> None:
    """Two pasts that differ only before the ring's reach leave it the same."""
    kernel = {"alpha_std": 0.2, "alpha_length": 0.25, "context_length": 0.15, "noise": 0.1, "restless_noise": 0.3}
    settings = Settings(block=1, confidence=0.1, inertia=0.15, prior_depth=1.5, **kernel)
    policy = Bayesian(LAYOUT, settings)
    states = [serve(policy, best, 7)[1] for best in (0.3, 0.8)]
    seen = observe(LAYOUT, alpha=0.6, target_alpha=0.6, service_mean=0.3, **CALM)
    actions = []
    for state in states:
        for _ in range(ENTRIES):
            action, state = policy.act(seen, state)
        actions.append(action)
    assert not np.array_equal(*(policy.act(seen, state)[0] for state in states))
    np.testing.assert_array_equal(*actions)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="block of at least 1"):
        Settings(block=0)
    with pytest.raises(InvalidInputError, match="above 0"):
        Settings(noise=0.0)
