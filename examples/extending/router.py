"""A router of one's own: KV and load at their cost in ms, embedding rows at half of it.

python examples/extending/router.py
cd examples/extending && helm-gym evaluate pid+router:HalfRows pid+joint --task burst-v0 --cluster 4
"""

from __future__ import annotations

import numpy as np

import helm_gym
from helm_gym.cluster.routing import WEIGHTS, Floats

ACTION = np.array([{"emb": np.sqrt(0.5) - 1.0}.get(term, 0.0) for term in WEIGHTS], np.float32)  # weight (1 + a)^2


class HalfRows:
    """Decides once an interval; requests are then routed one by one, by the weights."""

    name, rule = "half-rows", "score"

    def initial_state(self, lanes: int) -> Floats:
        return np.zeros((lanes, 0), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        return np.tile(ACTION, (len(observation), 1)), state


if __name__ == "__main__":
    pairs = ["static:0.5+router:HalfRows", "static:0.5+joint"]
    print(helm_gym.evaluate(pairs, task="burst-v0", cluster=2, seeds=1, horizon=20))
