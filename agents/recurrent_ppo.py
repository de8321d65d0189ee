"""Recurrent PPO (sb3-contrib): an LSTM in place of stacked windows; its memory is the policy's state."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import numpy as np

from agents.on_policy import OnPolicySettings, on_policy
from helm_gym.errors import InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policies.lstm_cell import LstmCell
from helm_gym.policy import Floats
from helm_gym.ranges import Within
from helm_gym.training.run_folder import Tensors
from helm_gym.training.trainable import Training

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class Settings(OnPolicySettings):
    """Those that all on-policy agents have; ``hidden`` are the LSTM's units, and one window is all that it needs."""

    n_epochs: Annotated[int, Within(1, 1000)] = 3
    hidden: Annotated[int, Within(1, 4096)] = 32
    windows: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.windows != 1:
            raise InvalidInputError(f"recurrent-ppo remembers by itself: windows must be 1, not {self.windows}.")


class Present:
    """The observation as it is."""

    def __init__(self, layout: ObservationLayout):
        self.width = layout.width

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, 0), np.float32)

    def __call__(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        return observation, state


class RecurrentPpoPolicy:
    """The mean of the trained Gaussian: the observation through an LSTM to a change of target.

    State: the LSTM's memory.
    """

    def __init__(self, layout: ObservationLayout, settings: Settings, tensors: Tensors):
        self.name = "recurrent-ppo"
        self.cell = LstmCell(tensors, layout.width, settings.hidden)
        self.head, self.head_bias = (tensors[name].astype(np.float32) for name in ("head", "head_bias"))
        if self.head.shape != (1, settings.hidden) or self.head_bias.shape != (1,):
            raise ValueError(f"tensor 'head' has shape {self.head.shape} in place of {(1, settings.hidden)}")

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, self.cell.memory), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        units, memory = self.cell(observation, state)
        return np.clip(units @ self.head.T + self.head_bias, -1.0, 1.0), memory


def _graph(layout: ObservationLayout, settings: Settings, tensors: Tensors) -> onnx.ModelProto:
    from helm_gym.policies.onnx_graph import Graph

    policy = RecurrentPpoPolicy(layout, settings, tensors)
    graph = Graph("recurrent-ppo", layout, state=policy.cell.memory)
    units, memory = policy.cell.draw(graph, "obs", "state")
    action = graph.op("Gemm", units, graph.constant(policy.head.T), graph.constant(policy.head_bias))
    return graph.model(graph.clip(action, -1.0, 1.0), memory)


def _train(training: Training) -> Tensors:
    from agents.recurrent_sb3 import lstm_actor, make_recurrent_ppo  # torch and SB3 take seconds
    from agents.sb3 import train_on_policy
    from agents.training_env import TrainingEnv

    layout, settings = training.layout, training.settings
    env = TrainingEnv(training, Present(layout))
    return train_on_policy(
        training, env, make_recurrent_ppo, lstm_actor, lambda tensors: RecurrentPpoPolicy(layout, settings, tensors)
    )


RECURRENT_PPO = on_policy("recurrent-ppo", Settings, _train, RecurrentPpoPolicy, _graph)
