"""What a predictor sees, and how it acts on what it predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats, towards
from helm_gym.telemetry import ALPHA_GRID
from helm_gym.training.search_space import Trial

if TYPE_CHECKING:
    from helm_gym.policies.onnx_graph import Graph

_COLUMNS = ("returning_share", "unique_users", "mean_history", "load")
_LEAST = 1e-3  # of a curve's mean


class WorkloadFeatures:
    """The workload's columns: nothing of them depends on the split, so no controller changes what it sees by acting.

    They are the simulated cost at each alpha over their mean, less 1; the mean; and returning share, unique users,
    mean history and load.
    """

    width = len(ALPHA_GRID) + 1 + len(_COLUMNS)

    def __init__(self, layout: ObservationLayout):
        self._predicted = layout.column("predicted")
        self._others = np.array([layout.column(name) for name in _COLUMNS])

    def __call__(self, observation: Floats) -> Floats:
        """observation (..., D) -> features (..., width)."""
        predicted = observation[..., self._predicted]
        mean = np.maximum(predicted.mean(axis=-1, keepdims=True), np.float32(_LEAST))
        return np.concatenate([predicted / mean - 1, mean, observation[..., self._others]], axis=-1)

    def draw(self, graph: Graph) -> str:
        """The same in a policy's graph."""
        predicted = graph.column("predicted")
        mean = graph.op("ReduceMean", predicted, axes=[1], keepdims=1)
        mean = graph.op("Max", mean, graph.constant(_LEAST))
        shape = graph.op("Sub", graph.op("Div", predicted, mean), graph.constant(1.0))
        return graph.concatenate(shape, mean, *(graph.column(name) for name in _COLUMNS))


class Traces:
    """Features, and how they differ from exponential means of what was before: what changes, and how fast.

    State: a mean for each of ``rates``, side by side; before the first observation they are that observation.
    """

    rates = (0.5, 0.125)

    def __init__(self, features: WorkloadFeatures):
        self.features = features
        self.width = features.width * (1 + len(self.rates))
        self.state = features.width * len(self.rates)
        self._rates = np.repeat(np.array(self.rates, np.float32), features.width)

    def __call__(self, observation: Floats, means: Floats, started: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """observation (rows, D), means (rows, state), started (rows, 1) -> features (rows, width), the next means."""
        now = self.features(observation)
        repeated = np.tile(now, len(self.rates))
        apart = np.where(started, repeated - means, np.float32(0.0))
        return np.concatenate([now, apart], axis=1), repeated - (1 - self._rates) * apart

    def draw(self, graph: Graph, means: str, started: str) -> tuple[str, str]:
        """The same in a policy's graph; ``started`` is 1 or 0."""
        now = self.features.draw(graph)
        repeated = graph.concatenate(*[now] * len(self.rates))
        apart = graph.op("Mul", graph.op("Sub", repeated, means), started)
        kept = graph.op("Mul", apart, graph.constant(1 - self._rates))
        return graph.concatenate(now, apart), graph.op("Sub", repeated, kept)


class Follower:
    """Moves the target towards a smoothed prediction, and not for less than a dead band.

    State: the smoothed prediction, and whether there is one.

    Args:
        smoothing: weight of the new prediction; 1 takes it as it is.
        dead_band: of alpha.
    """

    state = 2

    def __init__(self, layout: ObservationLayout, smoothing: float, dead_band: float):
        self.layout = layout
        self.smoothing, self.dead_band = np.float32(smoothing), np.float32(dead_band)

    def __call__(self, observation: Floats, prediction: Floats, state: Floats) -> tuple[Floats, Floats]:
        """prediction (rows,), state (rows, 2) -> action (rows, 1), the next state."""
        before, started = state.T
        goal = before + np.where(started > 0, self.smoothing, np.float32(1.0)) * (prediction - before)
        present = observation[:, self.layout.column("target_alpha")]
        target = np.where(np.abs(goal - present) <= self.dead_band, present, goal)
        following = np.stack([goal, np.ones_like(goal)], axis=1)
        return towards(self.layout, observation, target), following

    def draw(self, graph: Graph, prediction: str, before: str, started: str) -> tuple[str, str]:
        """The same in a policy's graph: the names of the action and of the smoothed prediction.

        Args:
            prediction, before, started: (lanes, 1) each; ``started`` is 1 or 0.
        """
        op, constant, profile = graph.op, graph.constant, self.layout.profile
        weight = op("Sub", constant(1.0), op("Mul", started, constant(1 - self.smoothing)))
        goal = op("Add", before, op("Mul", weight, op("Sub", prediction, before)))
        change = op("Sub", goal, graph.column("target_alpha"))
        dead_band = max(float(self.dead_band), 0.5 / profile.pool.pages)
        moves = op("Greater", op("Abs", change), constant(dead_band))
        step = op("Where", moves, op("Div", change, constant(profile.max_step)), constant(0.0))
        return graph.clip(step, -1.0, 1.0), goal


def check_following(smoothing: float, dead_band: float) -> None:
    """Raises InvalidInputError for values that ``Follower`` cannot have."""
    if not 0 < smoothing <= 1 or dead_band < 0:
        raise InvalidInputError(
            f"smoothing must lie above 0 and up to 1, and dead_band not below 0; not {smoothing:g} and {dead_band:g}."
        )


def following_space(trial: Trial) -> dict[str, Any]:
    """Where better values of the two may lie."""
    return {
        "smoothing": trial.suggest_float("smoothing", 0.1, 1.0),
        "dead_band": trial.suggest_float("dead_band", 0.0, 0.06),
    }
