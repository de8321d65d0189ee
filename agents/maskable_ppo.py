"""Maskable PPO (sb3-contrib): a choice of changes of target, of which those that leave the bounds are masked."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import numpy as np

from agents.network import Mlp, Windows
from agents.on_policy import OnPolicySettings, on_policy
from helm_gym.envs.discrete import action_values, allowed
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats
from helm_gym.ranges import Within
from helm_gym.training.run_folder import Tensors
from helm_gym.training.trainable import Training

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class Settings(OnPolicySettings):
    """Those that all on-policy agents have; ``log_std`` has no meaning here.

    Attributes:
        bins: evenly spaced changes of target, from the largest step down to the largest step up.
    """

    ent_coef: Annotated[float, Within(0, 1e6)] = 0.002
    bins: Annotated[int, Within(3, 1001)] = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        action_values(self.bins)


class MaskablePpoPolicy:
    """The likeliest change of target that keeps within the bounds."""

    def __init__(self, layout: ObservationLayout, settings: Settings, tensors: Tensors):
        self.name = "maskable-ppo"
        self.layout = layout
        self.features = Windows(layout, settings.windows)
        self.network = Mlp(tensors, self.features.width, outputs=settings.bins)
        self.values = action_values(settings.bins)
        self._target = layout.column("target_alpha")

    def initial_state(self, rows: int) -> Floats:
        return self.features.initial_state(rows)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        features, following = self.features(observation, state)
        masks = allowed(self.layout.profile, observation[:, self._target], self.values)
        chosen = np.where(masks, self.network(features), -np.inf).argmax(axis=1)
        return self.values[chosen][:, None], following


def _graph(layout: ObservationLayout, settings: Settings, tensors: Tensors) -> onnx.ModelProto:
    from helm_gym.policies.onnx_graph import Graph

    policy, profile = MaskablePpoPolicy(layout, settings, tensors), layout.profile
    graph = Graph("maskable-ppo", layout, state=policy.initial_state(1).shape[1])
    op, constant, pool = graph.op, graph.constant, profile.pool
    features, following = policy.features.draw(graph)
    after = op("Add", graph.column("target_alpha"), constant(policy.values * profile.max_step))
    slack = 0.5 / pool.pages
    above = op("GreaterOrEqual", after, constant(pool.min_alpha - slack))
    below = op("LessOrEqual", after, constant(pool.max_alpha + slack))
    scores = op("Where", op("And", above, below), policy.network.draw(graph, features), constant(-1e30))
    chosen = op("ArgMax", scores, axis=1, keepdims=1)
    return graph.model(op("Gather", constant(policy.values), chosen), following)


def _train(training: Training) -> Tensors:
    from agents.maskable_env import MaskableTrainingEnv, make_maskable_ppo  # torch and SB3 take seconds
    from agents.sb3 import mlp_actor, train_on_policy

    layout, settings = training.layout, training.settings
    env = MaskableTrainingEnv(training, Windows(layout, settings.windows))
    return train_on_policy(
        training, env, make_maskable_ppo, mlp_actor, lambda tensors: MaskablePpoPolicy(layout, settings, tensors)
    )


MASKABLE_PPO = on_policy("maskable-ppo", Settings, _train, MaskablePpoPolicy, _graph)
