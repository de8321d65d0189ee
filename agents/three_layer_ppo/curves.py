"""The split that the simulated curves ask for, as a smooth function of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from helm_gym.kernels.jit import kernel
from helm_gym.telemetry import ALPHA_GRID

if TYPE_CHECKING:
    from helm_gym.policies.onnx_graph import Graph

GRID = np.array(ALPHA_GRID)
_POINTS = len(GRID)
_LEAST = 0.01  # keeps a curve of noughts, which no node reports, from dividing by one


@kernel
def curves_split(curve, sharpness):
    """Mean of the grid's splits, each weighed by ``exp(-(relative cost above the least) / sharpness)``.

    A soft argmin: it moves without jumps, and where the curve is flat it stays away from the ends.
    """
    least = curve[0]
    for k in range(1, _POINTS):
        least = min(least, curve[k])
    per = 1.0 / (sharpness * (least + _LEAST))
    total, weighed = 0.0, 0.0
    for k in range(_POINTS):
        weight = np.exp((least - curve[k]) * per)
        total += weight
        weighed += weight * GRID[k]
    return weighed / total


def draw_curves_split(graph: Graph, curve: str, sharpness: float) -> str:
    """The same in a graph: ``curve`` (lanes, grid) -> (lanes, 1)."""
    op, constant = graph.op, graph.constant
    least = op("ReduceMin", curve, axes=[1], keepdims=1)
    scale = op("Mul", op("Add", least, constant(_LEAST)), constant(sharpness))
    weights = op("Exp", op("Div", op("Sub", least, curve), scale))
    weighed = op("Gemm", weights, constant(GRID[:, None]))
    return op("Div", weighed, op("ReduceSum", weights, constant([1], np.int64), keepdims=1))
