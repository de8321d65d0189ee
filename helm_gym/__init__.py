"""HELM-Gym: train, compare and deploy controllers that split GPU memory between an embedding cache and a KV cache.

Importing this package registers its Gymnasium environments (``helm/Partition-v0`` and its kin); torch and the compiled
kernels are loaded only when a backend is opened.

    import gymnasium as gym
    import helm_gym

    env = gym.make("helm/Burst-v0")
    print(helm_gym.evaluate(["pid", lambda observation: 0.0], task="burst-v0", seeds=2))
"""

from __future__ import annotations

import os

from helm_gym.envs.registration import register_envs
from helm_gym.evaluation import evaluate

__all__ = ["evaluate"]
__version__ = "0.1.0"

# onnxruntime starts a thread at its import that reports its use to its makers; nothing of ours does so unasked.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
register_envs()
