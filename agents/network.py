"""What learning agents are made of: features of the observation, and a small network, both as pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats
from helm_gym.training.run_folder import Tensors

if TYPE_CHECKING:
    from helm_gym.policies.onnx_graph import Graph


class Features(Protocol):
    """What a network sees: a function of the observation and of a state that it keeps itself."""

    width: int

    def initial_state(self, rows: int) -> Floats:
        """State before the first observation, (rows, S), of zeros."""
        ...

    def __call__(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        """observation (rows, D), state (rows, S) -> features (rows, width), the next state (rows, S)."""
        ...


class Windows:
    """The last ``count`` observations side by side, the newest first; before there are so many, the first again.

    State: the ``count - 1`` before, and whether there are any.
    """

    def __init__(self, layout: ObservationLayout, count: int):
        self.count, self.width = count, count * layout.width
        self._older = (count - 1) * layout.width

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, self._older + 1), np.float32)

    def __call__(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        features = np.empty((len(observation), self.width), np.float32)
        features[:, : self.width - self._older] = observation
        features[:, self.width - self._older :] = np.where(
            state[:, -1:] > 0, state[:, :-1], np.tile(observation, (1, self.count - 1))
        )
        following = np.ones_like(state)
        following[:, :-1] = features[:, : self._older]
        return features, following

    def draw(self, graph: Graph) -> tuple[str, str]:
        """The same in a policy's graph whose state this is: the names of features and next state."""
        started = graph.op("Greater", graph.columns("state", self._older, self._older + 1), graph.constant(0.0))
        kept = graph.columns("state", 0, self._older)
        first = graph.op("Tile", "obs", graph.constant([1, self.count - 1], np.int64))
        older = graph.op("Where", started, kept, first)
        features = graph.concatenate("obs", older)
        return features, graph.concatenate(graph.columns(features, 0, self._older), graph.fill(1.0))


class Mlp:
    """A network of tanh layers and a linear one: ``x -> W2 tanh(W1 tanh(W0 (x - mean) / scale + b0) + b1) + b2``.

    Args:
        tensors: ``mean`` and ``scale`` (width,), ``0.weight`` (out, in), ``0.bias`` (out,), ``1.weight``, ...

    Raises:
        KeyError: a tensor is missing.
        ValueError: shapes that do not follow on one another.
    """

    def __init__(self, tensors: Tensors, width: int, outputs: int):
        depth = sum(name.endswith(".weight") for name in tensors)
        weights = [tensors[f"{k}.weight"].astype(np.float64).T for k in range(depth)]
        biases = [tensors[f"{k}.bias"].astype(np.float64) for k in range(depth)]
        # Normalisation is linear, so it is part of the first layer.
        scale = tensors["scale"].astype(np.float64)
        weights[0] = weights[0] / scale[:, None]
        biases[0] = biases[0] - tensors["mean"] @ weights[0]
        shapes = [(w.shape[0], w.shape[1], len(b)) for w, b in zip(weights, biases, strict=True)]
        ends = [width, *(out for _, out, _ in shapes)]
        if any(s != (ends[k], ends[k + 1], ends[k + 1]) for k, s in enumerate(shapes)) or ends[-1] != outputs:
            raise ValueError(f"layers of {ends} in place of {width} inputs and {outputs} outputs")
        self.layers = [(w.astype(np.float32), b.astype(np.float32)) for w, b in zip(weights, biases, strict=True)]

    def __call__(self, features: Floats) -> Floats:
        """features (rows, width) -> (rows, outputs)."""
        x = features
        for weight, bias in self.layers[:-1]:
            x = np.tanh(x @ weight + bias)
        weight, bias = self.layers[-1]
        return x @ weight + bias

    def draw(self, graph: Graph, features: str) -> str:
        """The same in a policy's graph: the name of its output."""
        x = features
        for weight, bias in self.layers[:-1]:
            x = graph.op("Tanh", graph.op("Gemm", x, graph.constant(weight), graph.constant(bias)))
        weight, bias = self.layers[-1]
        return graph.op("Gemm", x, graph.constant(weight), graph.constant(bias))
