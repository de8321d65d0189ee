"""A small LSTM that predicts alpha* from the workload's columns."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from baselines.predictors.examples import BLOCK, errors, gather
from baselines.predictors.features import Follower, WorkloadFeatures, check_following, following_space
from helm_gym.errors import InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policies.lstm_cell import LstmCell
from helm_gym.policy import Floats
from helm_gym.ranges import Within
from helm_gym.training.run_folder import Tensors
from helm_gym.training.search_space import Trial
from helm_gym.training.trainable import Trainable, Training

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class Settings:
    """Hyper-parameters.

    Attributes:
        hidden: units.
        epochs: passes over all episodes.
        batch: episodes an update.
        learning_rate: of Adam; it falls along half a cosine to nought.
        weight_decay: of AdamW.
        noise: standard deviation of what is added to the scaled features while it learns.
        smoothing: weight of the new prediction.
        dead_band: how near to the prediction the target may stay, of alpha.
        examples: another run's folder, whose examples are taken in place of new ones.
    """

    hidden: Annotated[int, Within(1, 1024)] = 32
    epochs: Annotated[int, Within(1, 100_000)] = 60
    batch: Annotated[int, Within(1, 1_000_000)] = 16
    learning_rate: Annotated[float, Within(0, 10, above=True)] = 5e-3
    weight_decay: Annotated[float, Within(0, 1e6)] = 1e-3
    noise: Annotated[float, Within(0, 1e6)] = 0.05
    smoothing: Annotated[float, Within(0, 1, above=True)] = 1.0
    dead_band: Annotated[float, Within(0, 1)] = 0.02
    examples: str = ""

    def __post_init__(self) -> None:
        for name in ("hidden", "epochs", "batch", "learning_rate"):
            if getattr(self, name) <= 0:
                raise InvalidInputError(f"Hyper-parameter {name} must be above 0, not {getattr(self, name)}.")
        if self.weight_decay < 0 or self.noise < 0:
            raise InvalidInputError("Hyper-parameters weight_decay and noise must not be negative.")
        check_following(self.smoothing, self.dead_band)

    @staticmethod
    def space(trial: Trial) -> dict[str, Any]:
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-3, 2e-2, log=True),
            "batch": trial.suggest_int("batch", 8, 32, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
            "noise": trial.suggest_float("noise", 0.0, 0.3),
            **following_space(trial),
        }


class LstmPolicy:
    """Follows what the network predicts.

    State: the network's memory; the smoothed prediction, and whether there is one.

    Raises:
        KeyError, ValueError: tensors that are no such network.
    """

    def __init__(self, layout: ObservationLayout, settings: Settings, tensors: Tensors):
        self.name = "lstm"
        self.features = WorkloadFeatures(layout)
        self.cell = LstmCell(tensors, self.features.width, settings.hidden)
        self.head, self.head_bias = (tensors[name].astype(np.float32) for name in ("head", "head_bias"))
        if self.head.shape != (settings.hidden,) or self.head_bias.shape != (1,):
            raise ValueError(f"tensor 'head' has shape {self.head.shape} in place of {(settings.hidden,)}")
        self.follow = Follower(layout, settings.smoothing, settings.dead_band)

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, self.cell.memory + Follower.state), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        prediction, memory = self.predict(self.features(observation), state[:, : self.cell.memory])
        action, following = self.follow(observation, prediction, state[:, self.cell.memory :])
        return action, np.concatenate([memory, following], axis=1)

    def predict(self, features: Floats, memory: Floats) -> tuple[Floats, Floats]:
        """features (rows, width), memory (rows, 2 hidden) -> alpha* (rows,), the next memory."""
        units, memory = self.cell(features, memory)
        return np.minimum(np.maximum(units @ self.head + self.head_bias, 0), 1), memory


def _graph(layout: ObservationLayout, settings: Settings, tensors: Tensors) -> onnx.ModelProto:
    from helm_gym.policies.onnx_graph import Graph

    policy = LstmPolicy(layout, settings, tensors)
    end = policy.cell.memory
    graph = Graph("lstm", layout, state=end + Follower.state)
    units, memory = policy.cell.draw(graph, policy.features.draw(graph), graph.columns("state", 0, end))
    predicted = graph.op("Gemm", units, graph.constant(policy.head[:, None]), graph.constant(policy.head_bias))
    before, started = graph.columns("state", end, end + 1), graph.columns("state", end + 1, end + 2)
    action, goal = policy.follow.draw(graph, graph.clip(predicted, 0.0, 1.0), before, started)
    return graph.model(action, graph.concatenate(memory, goal, graph.fill(1.0)))


def _train(training: Training) -> Tensors:
    from baselines.predictors.lstm_fit import fit  # torch takes seconds; acting does not need it

    settings: Settings = training.settings
    examples = gather(training, settings.examples)
    tensors = fit(training, examples)
    policy, judged = LstmPolicy(training.layout, settings, tensors), examples.part(held_out=True)
    memory, predicted = policy.initial_state(len(judged.observation))[:, : -Follower.state], []
    for t in range(judged.observation.shape[1]):
        prediction, memory = policy.predict(policy.features(judged.observation[:, t]), memory)
        predicted.append(prediction)
    training.facts |= errors(np.stack(predicted, axis=1), judged)
    return tensors


LSTM = Trainable(
    "lstm",
    Settings,
    steps=8 * BLOCK,
    train=_train,
    policy=LstmPolicy,
    graph=_graph,
    round=lambda settings, task: BLOCK,
)
