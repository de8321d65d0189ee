"""The ids of the environments, in Gymnasium's registry and in both of PettingZoo's.

Entry points are strings, so that importing ``helm_gym`` loads no environment, no backend and no compiler.
"""

from __future__ import annotations

import gymnasium as gym
import pettingzoo

_PARTITION = ("helm_gym.envs.partition:PartitionEnv", "helm_gym.envs.partition_vector:PartitionVectorEnv")
_CLUSTER = ("helm_gym.envs.cluster_gymnasium:ClusterEnv", "helm_gym.envs.cluster_vector:ClusterVectorEnv")
# Name -> one environment, its native vector form, arguments; with Live behind the name, the same on the real backend.
ENVIRONMENTS: dict[str, tuple[str, str, dict[str, str]]] = {
    "Partition": (*_PARTITION, {}),
    "Steady": (*_PARTITION, {"task": "steady-v0"}),
    "Trend": (*_PARTITION, {"task": "trend-v0"}),
    "Burst": (*_PARTITION, {"task": "burst-v0"}),
    "Mixed": (*_PARTITION, {"task": "mixed-v0"}),
    "Trace": (*_PARTITION, {"task": "trace-v0"}),
    "Cluster": (*_CLUSTER, {}),
}
AGENTS_ID = "helm/cluster-v0"


def register_envs() -> None:
    """Registers every environment; ids that are registered already stay as they are."""
    for name, (single, vector, arguments) in ENVIRONMENTS.items():
        for suffix, backend in (("", {}), ("Live", {"backend": "real"})):
            env_id = f"helm/{name}{suffix}-v0"
            if env_id in gym.registry:
                continue
            # No max_episode_steps: the environment truncates itself at its task's horizon.
            gym.register(
                id=env_id,
                entry_point=single,
                vector_entry_point=vector,
                nondeterministic=bool(suffix),
                kwargs={**arguments, **backend},
            )
    if AGENTS_ID not in pettingzoo.parallel_registry:
        pettingzoo.register("parallel", AGENTS_ID, "helm_gym.envs.cluster_pettingzoo:ClusterParallelEnv")
        pettingzoo.register("aec", AGENTS_ID, "helm_gym.envs.cluster_pettingzoo:env")
