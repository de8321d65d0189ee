"""The adapter to Stable-Baselines3: all lanes of one control loop as its VecEnv, which autoresets in the same step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from helm_gym.envs.arguments import check_options, lane_seeds
from helm_gym.envs.cluster_vector import ClusterVectorEnv
from helm_gym.envs.partition_vector import PartitionVectorEnv
from helm_gym.envs.vector import Floats, LanesVectorEnv
from helm_gym.errors import InvalidInputError


class PartitionVecEnv(VecEnv):
    """``num_envs`` lanes for Stable-Baselines3, which refuses a Gymnasium VectorEnv: ``PPO("MlpPolicy", this)``.

    Lanes behave as those of ``PartitionVectorEnv`` do and are seeded as they are, but for the autoreset, which is
    same-step: where episodes end, the observation returned is the next episode's first, and ``infos[lane]`` holds
    ``terminal_observation`` (the last one), ``TimeLimit.truncated`` (always True) and ``episode``, the return ``r`` and
    the length ``l``, so that no ``VecMonitor`` is needed. Between ends infos are empty: filling a dict a lane would
    cost more than the step, and ``describe()`` has the same as arrays. ``reset_infos`` holds each episode's ``seed``.

    Args:
        num_envs: number of lanes; the real backend has one.
        arguments: see ``PartitionVectorEnv``.

    Attributes:
        lanes: the vector environment that all lanes are.

    Raises:
        UnknownNameError, InvalidInputError: as ``PartitionVectorEnv``.
    """

    vector: ClassVar[type[PartitionVectorEnv] | type[ClusterVectorEnv]] = PartitionVectorEnv

    def __init__(self, num_envs: int = 1, **arguments: Any):
        if "autoreset_mode" in arguments:
            raise InvalidInputError("Stable-Baselines3 resets in the same step alone; leave autoreset_mode out.")
        self.lanes: LanesVectorEnv = self._open(num_envs, **arguments)
        super().__init__(self.lanes.num_envs, self.lanes.single_observation_space, self.lanes.single_action_space)
        self._actions: NDArray[Any] = np.empty(0)

    def _open(self, num_envs: int, **arguments: Any) -> LanesVectorEnv:
        return self.vector(num_envs, **arguments)

    def reset(self) -> Floats:
        """Starts an episode in every lane: with what ``seed`` has set for this reset, else with the next seeds.

        Raises:
            InvalidInputError: options that ``set_options`` has set, for there are none, or lanes that are closed.
        """
        options = self._options
        self._reset_options()
        for of_lane in options:
            check_options(of_lane)
        self._start(self._seeds)
        self._reset_seeds()
        return self.lanes.observe(self._outcome)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Sets the seeds of the next reset: ``seed``, ``seed`` + 1, ...; drawn by numpy's global generator for None.

        Raises:
            InvalidInputError: a seed that is not from 0 to 2^63 - 1.
        """
        if seed is None:
            return super().seed(None)
        self._seeds = lane_seeds(seed, self.num_envs)
        return self._seeds

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Observation, reward (float32), done and infos of the interval served under the actions of ``step_async``."""
        self._outcome = served = self.lanes.serve(self._actions)
        self._returns += served.reward
        self._length += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = self.lanes.ended
        if ended:
            for info, last, total in zip(infos, self.lanes.observe(served), self._returns.tolist(), strict=True):
                info["terminal_observation"] = last
                info["TimeLimit.truncated"] = True
                info["episode"] = {"r": round(total, 6), "l": self._length}
            self._start(None)
        # SB3 adds the value of what was cut off to the rewards in place, so they are this step's own, as all is.
        return self.lanes.observe(self._outcome), served.reward.astype(np.float32), np.full(self.num_envs, ended), infos

    def describe(self) -> dict[str, Any]:
        """What ``PartitionVectorEnv`` would give as ``info`` with the observation last returned."""
        return self.lanes.describe(self._outcome)

    def close(self) -> None:
        self.lanes.close()

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        return self.lanes.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """A lane's space, or what all lanes share, once for each lane asked for."""
        single = f"single_{attr_name}"
        return self._for_each(getattr(self.lanes, single if hasattr(self.lanes, single) else attr_name), indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets what all lanes share.

        Raises:
            InvalidInputError: ``indices`` leaves lanes out.
        """
        self._refuse_a_part(indices, f"attribute '{attr_name}'")
        setattr(self.lanes, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method of ``lanes`` once, for all of them, and returns its result once for each.

        Raises:
            InvalidInputError: ``indices`` leaves lanes out.
        """
        self._refuse_a_part(indices, f"method '{method_name}'")
        return self._for_each(getattr(self.lanes, method_name)(*method_args, **method_kwargs), indices)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """False, but for ``Monitor``: SB3 asks for it to learn whether infos hold ``episode``, and they do."""
        return self._for_each(wrapper_class is Monitor, indices)

    def _start(self, seeds: Sequence[int | None] | None) -> None:
        self._outcome = self.lanes.start(seeds)
        self._returns, self._length = np.zeros(self.num_envs), 0
        self.reset_infos = [{"seed": seed} for seed in self.lanes.seeds.tolist()]

    def _for_each(self, value: Any, indices: VecEnvIndices) -> list[Any]:
        return [value for _ in self._get_indices(indices)]

    def _refuse_a_part(self, indices: VecEnvIndices, what: str) -> None:
        if len({*self._get_indices(indices)}) < self.num_envs:
            raise InvalidInputError(f"The lanes share {what}; it cannot be used for some of them.")


class ClusterVecEnv(PartitionVecEnv):
    """``num_envs`` clusters, each for a single agent, in the same way.

    Args:
        num_envs: number of lanes; the real backend has one.
        arguments: see ``ClusterVectorEnv``.
    """

    vector = ClusterVectorEnv
