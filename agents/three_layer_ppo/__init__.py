"""The paper's controller: a frozen base policy, an online residual adapter, and burst-aware recovery."""

from agents.three_layer_ppo.trainable import THREE_LAYER_PPO

__all__ = ["THREE_LAYER_PPO"]
