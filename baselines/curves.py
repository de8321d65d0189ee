"""The miss-ratio-curve controller: what a controller without learning has to be beaten by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats, towards
from helm_gym.telemetry import ALPHA_GRID


class MissRatioCurve:
    def __init__(
        self,
        layout: ObservationLayout,
        smoothing: float = 0.5,
        dead_band: float = 0.03,
        gain: float = 1.0,
    ):
        self.name = "miss-ratio-curve"
        self.layout = layout
        self.smoothing, self.dead_band, self.gain = smoothing, dead_band, gain
        self._predicted, self._target = layout.column("predicted"), layout.column("target_alpha")

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, len(ALPHA_GRID) + 1), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        curve, started = state[:, :-1], state[:, -1:]
        weight = np.where(started > 0, np.float32(self.smoothing), np.float32(1.0))
        curve = curve + weight * (observation[:, self._predicted] - curve)
        present = observation[:, self._target]
        best = lowest(curve)
        pool = self.layout.profile.pool
        moves = np.abs(best - present) > self.dead_band
        target = np.where(moves, present + self.gain * (best - present), present)
        target = np.clip(target, pool.min_alpha, pool.max_alpha)
        return towards(self.layout, observation, target), np.hstack([curve, np.ones_like(started)])


def lowest(curve: Floats) -> NDArray[np.float32]:
    """Alpha (rows,) where a curve (rows, grid) is least: the grid's argmin, refined by the parabola through its
    neighbours."""
    last = len(ALPHA_GRID) - 2
    middle = np.clip(curve.argmin(axis=1), 1, last)
    rows = np.arange(len(curve))
    left, here, right = (curve[rows, middle + d] for d in (-1, 0, 1))
    bend = np.maximum(left - 2.0 * here + right, 1e-6)
    offset = np.clip(0.5 * (left - right) / bend, -1.0, 1.0)
    step = ALPHA_GRID[1] - ALPHA_GRID[0]
    return (ALPHA_GRID[0] + step * (middle + offset)).astype(np.float32)
