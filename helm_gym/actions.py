"""From an action to an allocation: a change of the target split, or the target itself."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.kernels import control_interval
from helm_gym.profile import Profile
from helm_gym.text import shown

Mode = Literal["delta", "absolute"]
# What kernels are compiled for. Compared by identity, which costs least in a step; an equal one is converted.
_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)
_REAL = "iuf"  # kinds of numbers; a boolean is none


def as_floats(values: Any, shape: tuple[int, ...], what: str, axes: str = "") -> NDArray[np.floating]:
    """Numbers as an array that kernels are compiled for; float32 and float64 stay as they are.

    Args:
        shape: that they must have.
        what: they are, at the start of a sentence.
        axes: what the axes of the shape are, where that is not plain.

    Raises:
        InvalidInputError: another shape, or no real numbers: complex, masked, booleans, texts.
    """
    if type(values) is np.ndarray and values.shape == shape and (values.dtype is _F32 or values.dtype is _F64):
        return values
    try:
        array = np.asarray(values)
    except Exception as error:  # whatever an object's own conversion raises: a torch tensor with a gradient, say
        raise InvalidInputError(f"{what} is {shown(values)}; {shape} numbers are needed.") from error
    if array.shape != shape:
        raise InvalidInputError(f"{what} has shape {array.shape}; {shape}{axes} is needed.")
    masked = isinstance(values, np.ma.MaskedArray)
    if masked or array.dtype.kind not in _REAL:
        given = "a masked array" if masked else shown(array.tolist())
        raise InvalidInputError(f"{what} is {given}; {shape} numbers are needed.")
    return array.astype(np.float32 if array.dtype.char == "f" else np.float64)  # of this machine's byte order


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
    a = as_floats(action, (*target.shape, 1), "Action", " (lanes, nodes, 1)")
    out, pool = np.empty(target.shape), profile.pool
    absolute, step = mode == "absolute", profile.max_step
    if not control_interval.next_target(target, a, absolute, pool.min_alpha, pool.max_alpha, step, out):
        lane, node = np.argwhere(~np.isfinite(a[:, :, 0]))[0]
        raise InvalidInputError(f"Action of lane {lane}, node {node} is {a[lane, node, 0]}; it must be finite.")
    return out


def absolute_action(profile: Profile, alpha: NDArray[np.float64]) -> NDArray[np.float64]:
    """The action, (lanes, nodes, 1), that mode ``absolute`` takes to target ``alpha`` (lanes, nodes)."""
    low, high = profile.pool.min_alpha, profile.pool.max_alpha
    return np.asarray(2.0 * (alpha - low) / (high - low) - 1.0)[..., None]
