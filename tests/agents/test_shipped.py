"""What is shipped for cpu-small opens by name and is a policy, and the file beside it is the same one."""

from __future__ import annotations

import numpy as np
import pytest

from helm_gym.observation import ObservationLayout
from helm_gym.policies import from_run
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Policy
from tests.conformance.policy import PolicyConformance, make_layout, observations

LAYOUT = make_layout()
SHIPPED = {"lstm": "baselines", "gbdt": "baselines", "maskable-ppo": "agents", "recurrent-ppo": "agents"}


@pytest.mark.parametrize("shipped", SHIPPED)
class TestShipped(PolicyConformance):
    @pytest.fixture
    def policy(self, layout: ObservationLayout, shipped: str) -> Policy:  # type: ignore[override]
        self.name = shipped
        return open_policy(shipped, layout)


@pytest.mark.parametrize("name", [*SHIPPED, "ppo", "three-layer-ppo"])
def test_the_file_beside_it_decides_the_same(name: str) -> None:
    file = from_run.shipped_folder(name, SHIPPED.get(name, "agents"), LAYOUT) / "policy.onnx"
    policies = open_policy(name, LAYOUT), open_policy(str(file), LAYOUT)
    states = [policy.initial_state(3) for policy in policies]
    for seen in observations(LAYOUT, 8, 3):
        decided = [policy.act(seen, state) for policy, state in zip(policies, states, strict=True)]
        states = [following for _, following in decided]
        np.testing.assert_allclose(decided[0][0], decided[1][0], atol=1e-4)
