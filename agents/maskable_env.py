"""What sb3-contrib's MaskablePPO trains in: the training lanes with discrete actions, and all lanes' masks at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices
from torch import nn

from agents.network import Features
from agents.sb3 import FrozenScale
from agents.training_env import TrainingEnv
from helm_gym.envs.discrete import action_values, allowed
from helm_gym.policy import Floats
from helm_gym.training.trainable import Training

_MASKS = "action_masks"  # the method that MaskablePPO asks for


class MaskableTrainingEnv(TrainingEnv):
    """Training lanes whose actions are numbers of ``action_values``."""

    def __init__(self, training: Training, features: Features):
        super().__init__(training, features)
        self.values = action_values(training.settings.bins)
        self.action_space = spaces.Discrete(len(self.values))

    def to_action(self, chosen: NDArray[Any]) -> Floats:
        return self.values[chosen][:, None]

    def action_masks(self) -> NDArray[np.bool_]:
        """(lanes, bins), False where a move would leave the profile's bounds."""
        loop = self.lanes.loop
        return allowed(loop.profile, loop.target[:, 0], self.values)

    def has_attr(self, attr_name: str) -> bool:
        return attr_name == _MASKS or super().has_attr(attr_name)

    def env_method(
        self, method_name: str, *arguments: Any, indices: VecEnvIndices = None, **keywords: Any
    ) -> list[Any]:
        if method_name == _MASKS:
            return list(self.action_masks()[list(self._get_indices(indices))])
        return super().env_method(method_name, *arguments, indices=indices, **keywords)


def make_maskable_ppo(env: TrainingEnv, seed: int) -> MaskablePPO:
    """sb3-contrib's MaskablePPO with the environment's settings."""
    s = env.settings
    return MaskablePPO(
        "MlpPolicy",
        env,
        learning_rate=lambda left: s.learning_rate * left,
        n_steps=s.n_steps,
        batch_size=min(s.batch_size, s.lanes * s.n_steps),
        n_epochs=s.n_epochs,
        gamma=s.gamma,
        gae_lambda=s.gae_lambda,
        clip_range=s.clip_range,
        ent_coef=s.ent_coef,
        vf_coef=s.vf_coef,
        max_grad_norm=s.max_grad_norm,
        policy_kwargs={
            "features_extractor_class": FrozenScale,
            "net_arch": [s.hidden, s.hidden],
            "activation_fn": nn.Tanh,
        },
        seed=seed,
        device="cpu",
    )
