"""From an action to an allocation: a change of the target split, or the target itself."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile

Mode = Literal["delta", "absolute"]


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
    a = np.asarray(action, np.float64)
    if a.shape != (*target.shape, 1):
        raise InvalidInputError(f"Action has shape {a.shape}; {(*target.shape, 1)} (lanes, nodes, 1) is needed.")
    if not np.isfinite(a).all():
        lane, node = np.argwhere(~np.isfinite(a[:, :, 0]))[0]
        raise InvalidInputError(f"Action of lane {lane}, node {node} is {a[lane, node, 0]}; it must be finite.")
    a = np.clip(a[:, :, 0], -1.0, 1.0)
    low, high = profile.pool.min_alpha, profile.pool.max_alpha
    if mode == "absolute":
        return np.asarray(low + 0.5 * (a + 1.0) * (high - low))
    return np.clip(target + a * profile.max_step, low, high)
