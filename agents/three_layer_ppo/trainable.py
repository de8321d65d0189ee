"""Training of the three layers: the base policy by PPO on the surrogate; the others learn only while they serve."""

from __future__ import annotations

import dataclasses

from agents.on_policy import on_policy
from agents.three_layer_ppo.graph import draw
from agents.three_layer_ppo.policy import Seen, ThreeLayerPolicy
from agents.three_layer_ppo.settings import Settings
from helm_gym.training.run_folder import Tensors
from helm_gym.training.trainable import Training


def _train(training: Training) -> Tensors:
    from agents.sb3 import make_ppo, mlp_actor, train_on_policy  # torch and SB3 take seconds; acting needs neither
    from agents.three_layer_ppo.lanes import BaseEnv

    layout, alone = training.layout, dataclasses.replace(training.settings, layers="base")
    env = BaseEnv(training, Seen(layout, alone))
    return train_on_policy(training, env, make_ppo, mlp_actor, lambda tensors: ThreeLayerPolicy(layout, alone, tensors))


THREE_LAYER_PPO = on_policy("three-layer-ppo", Settings, _train, ThreeLayerPolicy, draw)
