"""A policy of one's own, with settings to tune: it goes to the split whose simulated cost is lowest.

python examples/extending/policy.py
cd examples/extending && helm-gym evaluate policy:Greedy pid --task burst-v0
cd examples/extending && helm-gym tune policy:GREEDY --trials 20 --out runs/greedy
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import numpy as np

import helm_gym
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats, towards
from helm_gym.ranges import Within
from helm_gym.telemetry import ALPHA_GRID
from helm_gym.training.search_space import Trial, settings_only_agent

GRID = np.array(ALPHA_GRID)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How it decides.

    Attributes:
        patience: the new split must cost less by this share.
    """

    patience: Annotated[float, Within(0, 1)] = 0.02

    @staticmethod
    def space(trial: Trial) -> dict[str, Any]:
        return {"patience": trial.suggest_float("patience", 0.0, 0.2)}


class Greedy:
    """Stateless; its rows are lanes and nodes alike."""

    name = "greedy"

    def __init__(self, layout: ObservationLayout, settings: Settings | None = None):
        self.layout, self.settings = layout, settings or Settings()
        self._curve, self._now = layout.column("predicted"), layout.column("target_alpha")

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, 0), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        curve, now = observation[:, self._curve], observation[:, self._now]
        best = curve.argmin(axis=1)
        here = curve[np.arange(len(curve)), np.abs(GRID - now[:, None]).argmin(axis=1)]
        worth = curve.min(axis=1) < (1.0 - self.settings.patience) * here
        return towards(self.layout, observation, np.where(worth, GRID[best], now)), state


GREEDY = settings_only_agent("greedy", Settings, Greedy)  # what `train` and `tune` take

if __name__ == "__main__":
    print(helm_gym.evaluate(["policy:Greedy", "static:0.5"], task="burst-v0", seeds=1, horizon=20))
