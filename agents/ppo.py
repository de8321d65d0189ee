"""PPO alone: Stable-Baselines3's, with a small network, trained on the surrogate and frozen."""

from __future__ import annotations

import dataclasses

import numpy as np
from stable_baselines3 import PPO as Sb3Ppo
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from agents.network import Mlp, Windows
from agents.sb3 import FrozenScale, train_on_policy
from agents.training_env import OnPolicySettings, TrainingEnv
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats
from helm_gym.runs import Tensors
from helm_gym.training import Trainable, Training


@dataclasses.dataclass(frozen=True)
class Settings(OnPolicySettings):
    """Those that all on-policy agents have."""


class PpoPolicy:
    """The mean of the trained Gaussian: windows of observations through an MLP to a change of target."""

    def __init__(self, layout: ObservationLayout, settings: Settings, tensors: Tensors):
        self.name = "ppo"
        self.features = Windows(layout, settings.windows)
        self._network = Mlp(tensors, self.features.width, outputs=1)

    def initial_state(self, rows: int) -> Floats:
        return self.features.initial_state(rows)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        features, following = self.features(observation, state)
        return np.clip(self._network(features), -1.0, 1.0), following


def make_ppo(env: TrainingEnv, seed: int) -> Sb3Ppo:
    """SB3's PPO with the environment's settings."""
    s = env.settings
    return Sb3Ppo(
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
            "log_std_init": s.log_std,
        },
        seed=seed,
        device="cpu",
    )


def actor(model: OnPolicyAlgorithm) -> Tensors:
    """The tensors of the deterministic policy, as ``network.Mlp`` names them."""
    policy = model.policy
    layers = [layer for layer in [*policy.mlp_extractor.policy_net, policy.action_net] if isinstance(layer, nn.Linear)]
    tensors = {name: getattr(policy.features_extractor, name).numpy().copy() for name in ("mean", "scale")}
    for k, layer in enumerate(layers):
        tensors[f"{k}.weight"] = layer.weight.detach().numpy().copy()
        tensors[f"{k}.bias"] = layer.bias.detach().numpy().copy()
    return tensors


def _train(training: Training) -> Tensors:
    settings: Settings = training.settings
    env = TrainingEnv(training, Windows(training.layout, settings.windows))
    return train_on_policy(
        training, env, make_ppo, actor, lambda tensors: PpoPolicy(training.layout, settings, tensors)
    )


PPO = Trainable("ppo", Settings, steps=2_000_000, train=_train, policy=PpoPolicy)
