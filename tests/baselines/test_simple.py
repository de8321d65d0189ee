"""Static and Random."""

from __future__ import annotations

import numpy as np
import pytest

from baselines.simple import Random, Static
from helm_gym.errors import InvalidInputError
from tests.conformance.policy import PolicyConformance, make_layout, observe, settle

LAYOUT = make_layout()


class TestStatic(PolicyConformance):
    name = "static:0.35"


class TestRandom(PolicyConformance):
    name = "random"


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.65, 0.95])
def test_static_reaches_its_alpha_as_fast_as_steps_allow_and_stays(alpha: float) -> None:
    targets = settle(Static(LAYOUT, alpha), LAYOUT, 0.5)
    needed = int(np.ceil(abs(alpha - 0.5) / LAYOUT.profile.max_step - 1e-6))
    np.testing.assert_allclose(targets[needed - 1 :], alpha, atol=1e-6)
    assert abs(targets[needed - 2] - alpha) > 1e-3


@pytest.mark.parametrize("alpha", [-0.1, 0.0, 0.049, 0.96, 1.0])
def test_static_out_of_bounds_is_refused_with_the_bounds(alpha: float) -> None:
    with pytest.raises(InvalidInputError, match=r"static:.*0\.05 to 0\.95"):
        Static(LAYOUT, alpha)


def test_random_walks_evenly_and_not_in_step() -> None:
    policy = Random(LAYOUT)
    state, seen = policy.initial_state(50), observe(LAYOUT, 50)
    actions = []
    for _ in range(200):
        action, state = policy.act(seen, state)
        actions.append(action[:, 0])
    drawn = np.array(actions)
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1 / np.sqrt(3)) < 0.01
    among_rows = np.corrcoef(drawn.T) - np.eye(50)
    along_time = np.corrcoef(drawn[1:].ravel(), drawn[:-1].ravel())[0, 1]
    assert np.abs(among_rows).max() < 0.4 and abs(along_time) < 0.03
