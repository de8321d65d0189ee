"""Layer 1, the frozen base policy: what PPO has learned to add to a pull towards the split that the curves ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from helm_gym.kernels.jit import kernel

if TYPE_CHECKING:
    from helm_gym.policies.onnx_graph import Graph


@kernel
def base_action(features, network, hidden, lean):
    """The action in [-1, 1]: ``lean`` and the network's output.

    features: (width,) of one row.
    network: matrices and biases of the three layers, each matrix (inputs, outputs).
    hidden: (2, outputs) memory for what the layers give.
    lean: the action that pulls towards the curves' split.
    """
    w0, b0, w1, b1, w2, b2 = network
    first, second = hidden[0], hidden[1]
    _dense(features, w0, b0, first)
    _tanh(first)
    _dense(first, w1, b1, second)
    _tanh(second)
    out = b2[0]
    for i in range(second.shape[0]):
        out += second[i] * w2[i, 0]
    return min(max(out + lean, -1.0), 1.0)


@kernel
def _dense(x, weight, bias, out):
    # Along the outputs: those loops are vectors, and a sum along the inputs would not be one.
    for j in range(out.shape[0]):
        out[j] = bias[j]
    for i in range(x.shape[0]):
        xi = x[i]
        for j in range(out.shape[0]):
            out[j] += xi * weight[i, j]


@kernel
def _tanh(x):
    for j in range(x.shape[0]):
        x[j] = np.tanh(x[j])


def draw_base_action(graph: Graph, output: str, lean: str) -> str:
    """The same in a graph, of the network's ``output`` (lanes, 1)."""
    return graph.clip(graph.op("Add", output, lean), -1.0, 1.0)
