"""Discrete actions with masks, for DQN and MaskablePPO: of one environment, and of a vector's lanes."""

from __future__ import annotations

import contextlib
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorActionWrapper, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from helm_gym.control_loop import ControlLoop
from helm_gym.envs.arguments import index
from helm_gym.envs.partition import PartitionEnv
from helm_gym.envs.partition_vector import PartitionVectorEnv
from helm_gym.envs.vector import Floats
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.text import shown

MAX_BINS = 9999  # a step is less than a page long before


def action_values(bins: int) -> Floats:
    """(bins,) evenly spaced values of an action; the middle one of a delta is to stay.

    Raises:
        InvalidInputError: a number of bins that has no middle.
    """
    number = index(bins)
    if number is None or number % 2 == 0 or not 3 <= number <= MAX_BINS:
        raise InvalidInputError(f"bins must be odd and 3 to {MAX_BINS}, so that one is to stay; not {shown(bins)}.")
    return np.linspace(-1.0, 1.0, number, dtype=np.float32)


def allowed(profile: Profile, target: NDArray[np.floating], values: Floats) -> NDArray[np.bool_]:
    """Which changes of target (bins,) keep each present target (rows,) within the profile's bounds, (rows, bins)."""
    pool = profile.pool
    slack = 0.5 / pool.pages  # rounding: a target is a whole number of pages
    after = target[:, None] + values * profile.max_step
    return np.asarray((after >= pool.min_alpha - slack) & (after <= pool.max_alpha + slack))


class DiscreteActions(gym.ActionWrapper[Floats, np.int64, Floats], RecordConstructorArgs):
    """Offers ``bins`` evenly spaced values of a ``PartitionEnv``'s action; the middle one of a delta is to stay.

    Args:
        env: a partition environment, wrapped or not.
        bins: how many; odd and at least 3.

    Example:
        >>> import gymnasium as gym, helm_gym
        >>> from helm_gym.envs.discrete import DiscreteActions
        >>> env = DiscreteActions(gym.make("helm/Steady-v0"), bins=5)
        >>> env.action_space, env.values
        (Discrete(5), array([-1. , -0.5,  0. ,  0.5,  1. ], dtype=float32))
        >>> env.reset(seed=0)[0].shape, env.action_masks()
        ((46,), array([ True,  True,  True,  True,  True]))

    Raises:
        InvalidInputError: another environment, or a number of bins that has no middle; of ``step``, an action that is
            no whole number from 0 to ``bins`` - 1.
    """

    def __init__(self, env: gym.Env[Floats, Floats], bins: int = 5):
        if not isinstance(env, gym.Env) or not isinstance(env.unwrapped, PartitionEnv):
            raise InvalidInputError(f"DiscreteActions wraps a single partition environment, not {shown(env)}.")
        RecordConstructorArgs.__init__(self, bins=bins)
        super().__init__(env)
        self.values = action_values(bins)
        self.action_space = spaces.Discrete(len(self.values))
        self._loop = env.unwrapped.loop

    def action(self, action: np.int64) -> Floats:
        number = action if type(action) in (np.int64, int) else index(action)  # a look at the type costs least
        if number is None or not 0 <= number < len(self.values):
            raise InvalidInputError(
                f"Action {shown(action)} is none; give a whole number from 0 to {len(self.values) - 1}."
            )
        return self.values[number : number + 1]

    def action_masks(self) -> NDArray[np.bool_]:
        """(bins,), False where a move would leave the profile's bounds; the name is the one that MaskablePPO calls.

        Raises:
            InvalidInputError: no episode was started.
        """
        return _masks(self._loop, self.values)[0]


class DiscreteVectorActions(VectorActionWrapper[Floats, NDArray[np.int64], Floats, NDArray[Any]]):
    """The same of every lane of a ``PartitionVectorEnv``: actions are whole numbers (lanes,).

    Args:
        env: a native vector of partition environments, wrapped or not.
        bins: how many; odd and at least 3.

    Example:
        >>> import gymnasium as gym, helm_gym
        >>> from helm_gym.envs.discrete import DiscreteVectorActions
        >>> envs = DiscreteVectorActions(gym.make_vec("helm/Steady-v0", num_envs=2), bins=3)
        >>> envs.action_space
        MultiDiscrete([3 3])
        >>> envs.reset(seed=0)[0].shape, envs.action_masks().shape
        ((2, 46), (2, 3))

    Raises:
        InvalidInputError: as ``DiscreteActions``.
    """

    def __init__(self, env: VectorEnv[Floats, Floats, NDArray[Any]], bins: int = 5):
        if not isinstance(env, VectorEnv) or not isinstance(env.unwrapped, PartitionVectorEnv):
            raise InvalidInputError(f"DiscreteVectorActions wraps a native vector of partitions, not {shown(env)}.")
        super().__init__(env)
        self.values = action_values(bins)
        self.single_action_space = spaces.Discrete(len(self.values))
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self._loop = env.unwrapped.loop

    def actions(self, actions: NDArray[np.int64]) -> Floats:
        numbers: NDArray[Any] = np.empty(0)
        with contextlib.suppress(ValueError):  # lists of unequal lengths
            numbers = np.asarray(actions)
        if numbers.shape != (self.num_envs,) or numbers.dtype.kind not in "iu" or np.ma.isMaskedArray(actions):
            raise InvalidInputError(
                f"Actions {shown(actions)} are none; give {self.num_envs} whole numbers, one a lane."
            )
        bins = len(self.values)
        outside = (numbers < 0) | (numbers >= bins)
        if outside.any():
            lane = int(outside.argmax())
            raise InvalidInputError(
                f"Action {numbers[lane]} of lane {lane} is none; give a whole number from 0 to {bins - 1}."
            )
        return self.values[numbers][:, None]

    def action_masks(self) -> NDArray[np.bool_]:
        """(lanes, bins), False where a move would leave the profile's bounds.

        Raises:
            InvalidInputError: no episode was started.
        """
        return _masks(self._loop, self.values)


def _masks(loop: ControlLoop, values: Floats) -> NDArray[np.bool_]:
    """(lanes, bins) of what each lane may do now; as targets, all are within the bounds."""
    if loop.path is None:
        raise InvalidInputError("The environment must be reset before it has masks.")
    if loop.mode == "absolute":
        return np.ones((loop.shape[0], len(values)), np.bool_)
    return allowed(loop.profile, loop.target[:, 0], values)
