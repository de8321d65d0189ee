"""A backend of one's own: the modelled rung behind a host link of half the bandwidth.

python examples/extending/backend.py
cd examples/extending && helm-gym evaluate pid --task burst-v0 --backend backend:SlowLink
"""

from __future__ import annotations

import gymnasium

import helm_gym
from helm_gym.cluster.topology import Cluster
from helm_gym.profile import Profile
from real_backend.modelled import ModelledBackend


class SlowLink(ModelledBackend):
    """Keeps the memory manager and changes what a row costs that comes over the link."""

    name = "slow-link"

    def __init__(self, profile: Profile, lanes: int = 1, cluster: Cluster | None = None):
        super().__init__(profile, lanes, cluster)
        self.rules = self.rules._replace(row_ms=2 * self.rules.row_ms)


if __name__ == "__main__":
    env = gymnasium.make("helm/Burst-v0", backend="backend:SlowLink", intervals=10)
    env.reset(seed=0)
    print("reward of the first step:", env.step(env.action_space.sample())[1])
    print(helm_gym.evaluate(["static:0.5"], task="burst-v0", backend="backend:SlowLink", seeds=1, horizon=20))
