"""From an action to an allocation: a change of the target split, or the target itself."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from helm_gym import passes
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile

Mode = Literal["delta", "absolute"]
_COMPILED_FOR = "fd"  # float32, which agents send, and float64


def apply_action(
    profile: Profile, target: NDArray[np.float64], action: ArrayLike, mode: Mode = "delta"
) -> NDArray[np.float64]:
    """The next target alpha, (lanes, nodes), within the profile's bounds.

    Args:
        target: the present target, (lanes, nodes).
        action: (lanes, nodes, 1) in [-1, 1], clipped to it; ``delta``: the change of target over the profile's
            largest step; ``absolute``: the target itself, -1 the least and 1 the largest alpha.

    Raises:
        InvalidInputError: a wrong shape or a value that is not finite.
    """
    a = np.asarray(action)
    if a.dtype.char not in _COMPILED_FOR:
        a = a.astype(np.float64)
    if a.shape != (*target.shape, 1):
        raise InvalidInputError(f"Action has shape {a.shape}; {(*target.shape, 1)} (lanes, nodes, 1) is needed.")
    out, pool = np.empty(target.shape), profile.pool
    absolute, step = mode == "absolute", profile.max_step
    if not passes.next_target(target, a, absolute, pool.min_alpha, pool.max_alpha, step, out):
        lane, node = np.argwhere(~np.isfinite(a[:, :, 0]))[0]
        raise InvalidInputError(f"Action of lane {lane}, node {node} is {a[lane, node, 0]}; it must be finite.")
    return out


def absolute_action(profile: Profile, alpha: NDArray[np.float64]) -> NDArray[np.float64]:
    """The action, (lanes, nodes, 1), that mode ``absolute`` takes to target ``alpha`` (lanes, nodes)."""
    low, high = profile.pool.min_alpha, profile.pool.max_alpha
    return np.asarray(2.0 * (alpha - low) / (high - low) - 1.0)[..., None]
