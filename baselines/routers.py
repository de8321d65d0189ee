"""The classic routers: a fixed rule, or a score with fixed weights. Stateless."""

from __future__ import annotations

import dataclasses

import numpy as np

from helm_gym.cluster.routing import Floats


@dataclasses.dataclass(frozen=True)
class Classic:
    """One rule and one action, held.

    Attributes:
        action: of ``kv``, ``emb`` and ``load``: 0 leaves a term at its cost in ms, -1 switches it off.
    """

    name: str
    rule: str
    action: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def initial_state(self, lanes: int) -> Floats:
        return np.zeros((lanes, 0), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        return np.tile(np.array(self.action, np.float32), (len(observation), 1)), state


RANDOM = Classic("random", "random")
ROUND_ROBIN = Classic("round-robin", "round-robin")
LEAST_LOADED = Classic("least-loaded", "least-loaded")
CONSISTENT_HASH = Classic("consistent-hash", "consistent-hash")
EMB_AWARE = Classic("emb-aware", "score", (-1.0, 0.0, -1.0))
KV_AWARE = Classic("kv-aware", "score", (0.0, -1.0, -1.0))
JOINT = Classic("joint", "score")  # every term at its cost in ms: their sum is the sojourn that is expected
