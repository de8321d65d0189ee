"""The two ends of doing nothing clever: one split held, and a random walk."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats, towards

_NEXT = np.array([0.0, 1.0], np.float32)  # same row, one step on


class Static:
    """One split, held. Stateless.

    Args:
        layout: of the observations to come.
        alpha: EMB's share of the pool.

    Raises:
        InvalidInputError: ``alpha`` outside the profile's bounds.
    """

    def __init__(self, layout: ObservationLayout, alpha: float):
        pool = layout.profile.pool
        if not pool.min_alpha <= alpha <= pool.max_alpha:
            raise InvalidInputError(
                f"static:{alpha:g} is out of bounds; profile '{layout.profile.name}' allows alpha from "
                f"{pool.min_alpha:g} to {pool.max_alpha:g}, so choose one between them."
            )
        self.name = f"static:{alpha:g}"
        self.layout = layout
        self.alpha = alpha

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, 0), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        return towards(self.layout, observation, np.full(len(observation), self.alpha)), state


class Random:
    """A random walk of the target: each step uniform in [-1, 1].

    State: the row's number and its step, of which the action is a hash. So a run is reproducible, rows differ, and a
    row does the same whichever rows it shares a batch with.
    """

    def __init__(self, layout: ObservationLayout):
        self.name = "random"

    def initial_state(self, rows: int) -> Floats:
        return np.stack([np.arange(rows), np.zeros(rows)], axis=1).astype(np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        row, step = state.astype(np.uint64).T
        action = _uniform((row << np.uint64(32)) | step) * 2.0 - 1.0
        return action.astype(np.float32)[:, None], state + _NEXT


def _uniform(key: NDArray[np.uint64]) -> NDArray[np.float64]:
    """In [0, 1): splitmix64's output function (Steele et al., OOPSLA 2014), modulo 2**64 as it is meant."""
    z = (key + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) / 2.0**64
