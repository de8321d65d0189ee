"""The ids of the Gymnasium environments.

Entry points are strings, so that importing ``helm_gym`` loads no environment, no backend and no compiler.
"""

from __future__ import annotations

import gymnasium as gym

# Name -> arguments; each name is there once modelled and once, with Live behind it, on the real backend.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "Partition": {},
    "Steady": {"task": "steady-v0"},
    "Trend": {"task": "trend-v0"},
    "Burst": {"task": "burst-v0"},
    "Mixed": {"task": "mixed-v0"},
    "Trace": {"task": "trace-v0"},
}


def register_envs() -> None:
    """Registers every environment; ids that are registered already stay as they are."""
    for name, arguments in ENVIRONMENTS.items():
        for suffix, backend in (("", {}), ("Live", {"backend": "real"})):
            env_id = f"helm/{name}{suffix}-v0"
            if env_id in gym.registry:
                continue
            # No max_episode_steps: the environment truncates itself at its task's horizon.
            gym.register(
                id=env_id,
                entry_point="helm_gym.envs.partition:PartitionEnv",
                vector_entry_point="helm_gym.envs.partition_vector:PartitionVectorEnv",
                nondeterministic=bool(suffix),
                kwargs={**arguments, **backend},
            )
