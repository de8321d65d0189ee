"""One step of an LSTM in numpy (Hochreiter and Schmidhuber, 1997), for policies that were trained elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from helm_gym.policy import Floats
from helm_gym.training.run_folder import Tensors

if TYPE_CHECKING:
    from helm_gym.policies.onnx_graph import Graph


class LstmCell:
    """A layer of ``hidden`` units; its memory is the units and then the cells, zeros at first.

    Args:
        tensors: as torch has them, gates in the order in, forget, new, out: ``inputs`` (4 hidden, width), ``recurrent``
            (4 hidden, hidden), ``bias`` (4 hidden,), the sum of torch's two; and what scales the features, ``mean`` and
            ``scale`` (width,).
        width: of the features.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor of another shape.
    """

    def __init__(self, tensors: Tensors, width: int, hidden: int):
        self.hidden, self.memory = hidden, 2 * hidden
        shapes = {
            "inputs": (4 * hidden, width),
            "recurrent": (4 * hidden, hidden),
            "bias": (4 * hidden,),
            "mean": (width,),
            "scale": (width,),
        }
        for name, shape in shapes.items():
            if tensors[name].shape != shape:
                raise ValueError(f"tensor '{name}' has shape {tensors[name].shape} in place of {shape}")
        inputs, recurrent, bias, mean, scale = (tensors[name].astype(np.float64) for name in shapes)
        # Scaling is linear, so it is part of the weights. sigmoid(z) is (1 + tanh(z / 2)) / 2, so one tanh does for all
        # four gates.
        halved = np.repeat([0.5, 0.5, 1.0, 0.5], hidden)
        self.weights = np.concatenate([inputs / scale, recurrent], axis=1).T * halved
        self.bias = (bias - inputs @ (mean / scale)) * halved

    def __call__(self, features: Floats, memory: Floats) -> tuple[Floats, Floats]:
        """features (rows, width), memory (rows, 2 hidden) -> units (rows, hidden), the next memory."""
        h = self.hidden
        # In float64, or a row's rounding would depend on how many rows there are, and an LSTM remembers it.
        seen = np.concatenate([features, memory[:, :h]], axis=1, dtype=np.float64)
        gates = np.tanh(seen @ self.weights + self.bias).astype(np.float32)
        into, kept, new, out = gates[:, :h], gates[:, h : 2 * h], gates[:, 2 * h : 3 * h], gates[:, 3 * h :]
        cells = np.float32(0.5) * ((1 + kept) * memory[:, h:] + (1 + into) * new)
        units = np.float32(0.5) * (1 + out) * np.tanh(cells)
        return units, np.concatenate([units, cells], axis=1)

    def draw(self, graph: Graph, features: str, memory: str) -> tuple[str, str]:
        """The same in a policy's graph: the names of the units and of the next memory."""
        h, op, constant = self.hidden, graph.op, graph.constant
        seen = graph.concatenate(features, graph.columns(memory, 0, h))
        gates = op("Tanh", op("Gemm", seen, constant(self.weights), constant(self.bias)))
        into, kept, new, out = (graph.columns(gates, k * h, (k + 1) * h) for k in range(4))

        def gated(gate: str, value: str) -> str:
            return op("Mul", op("Mul", op("Add", gate, constant(1.0)), constant(0.5)), value)

        cells = op("Add", gated(kept, graph.columns(memory, h, 2 * h)), gated(into, new))
        units = gated(out, op("Tanh", cells))
        return units, graph.concatenate(units, cells)
