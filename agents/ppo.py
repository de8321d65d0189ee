"""PPO alone: Stable-Baselines3's, with a small network, trained on the surrogate and frozen."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from agents.network import Mlp, Windows
from agents.on_policy import OnPolicySettings, on_policy
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats
from helm_gym.training.run_folder import Tensors
from helm_gym.training.trainable import Training

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class Settings(OnPolicySettings):
    """Those that all on-policy agents have."""


class PpoPolicy:
    """The mean of the trained Gaussian: windows of observations through an MLP to a change of target."""

    def __init__(self, layout: ObservationLayout, settings: OnPolicySettings, tensors: Tensors):
        self.name = "ppo"
        self.features = Windows(layout, settings.windows)
        self.network = Mlp(tensors, self.features.width, outputs=1)

    def initial_state(self, rows: int) -> Floats:
        return self.features.initial_state(rows)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        features, following = self.features(observation, state)
        return np.clip(self.network(features), -1.0, 1.0), following


def _graph(layout: ObservationLayout, settings: Settings, tensors: Tensors) -> onnx.ModelProto:
    from helm_gym.policies.onnx_graph import Graph

    policy = PpoPolicy(layout, settings, tensors)
    graph = Graph("ppo", layout, state=policy.initial_state(1).shape[1])
    features, following = policy.features.draw(graph)
    return graph.model(graph.clip(policy.network.draw(graph, features), -1.0, 1.0), following)


def _train(training: Training) -> Tensors:
    from agents.sb3 import make_ppo, mlp_actor, train_on_policy  # torch and SB3 take seconds; acting needs neither
    from agents.training_env import TrainingEnv

    layout, settings = training.layout, training.settings
    env = TrainingEnv(training, Windows(layout, settings.windows))
    return train_on_policy(training, env, make_ppo, mlp_actor, lambda tensors: PpoPolicy(layout, settings, tensors))


PPO = on_policy("ppo", Settings, _train, PpoPolicy, _graph)
