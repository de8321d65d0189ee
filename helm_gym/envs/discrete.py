"""Discrete actions with masks, for DQN and MaskablePPO."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from helm_gym.envs.partition import PartitionEnv
from helm_gym.envs.vector import Floats
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile


def action_values(bins: int) -> Floats:
    """(bins,) evenly spaced values of an action; the middle one of a delta is to stay.

    Raises:
        InvalidInputError: a number of bins that has no middle.
    """
    if bins < 3 or bins % 2 == 0:
        raise InvalidInputError(f"bins must be odd and at least 3, so that one of them is to stay; not {bins}.")
    return np.linspace(-1.0, 1.0, bins, dtype=np.float32)


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
        InvalidInputError: another environment, or a number of bins that has no middle.
    """

    def __init__(self, env: gym.Env[Floats, Floats], bins: int = 5):
        RecordConstructorArgs.__init__(self, bins=bins)
        super().__init__(env)
        if not isinstance(env.unwrapped, PartitionEnv):
            raise InvalidInputError(f"DiscreteActions wraps a partition environment, not {env.unwrapped}.")
        self.values = action_values(bins)
        self.action_space = spaces.Discrete(bins)
        self._loop = env.unwrapped.loop

    def action(self, action: np.int64) -> Floats:
        return self.values[action : action + 1]

    def action_masks(self) -> NDArray[np.bool_]:
        """(bins,), False where a move would leave the profile's bounds; the name is the one that MaskablePPO calls."""
        if self._loop.mode == "absolute":
            return np.ones(len(self.values), np.bool_)
        return allowed(self._loop.profile, self._loop.target[0], self.values)[0]
