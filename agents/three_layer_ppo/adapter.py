"""Layer 2, the online residual adapter: learns, while it serves, which split the workload at hand asks for.

What the split does not change (returning share, history length, load) tells at once where alpha* lies, but not quite:
each node's workload has an offset and slopes of its own. The adapter corrects a fixed linear prior by a linear residual
whose weights are policy state, learned from the split that the curves ask for by normalised least mean squares:

    split    = (prior + w) . context
    error    = curves' split - split
    w       <- (1 - leak) w + rate error context / (1 + |context|^2),  each within +-bound

It then moves the target a share of the way to its split, and never by more than ``reach`` in a decision. What a
workload is like in the long run is not learned from its bursts, nor of use in them: as far as the recovery grips, the
adapter learns nothing and corrects nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from helm_gym.kernels.jit import kernel

if TYPE_CHECKING:
    from agents.three_layer_ppo.settings import Settings
    from helm_gym.policies.onnx_graph import Graph

CONTEXT = ("returning_share", "mean_history", "load")
TYPICAL = np.array([0.5, 0.5, 0.35])
SCALE = 4.0  # a context ranges over about a quarter on either side
WIDTH = 1 + len(CONTEXT)
_INPUTS = len(CONTEXT)
_RATE, _LEAK, _BOUND, _TRUST, _REACH = range(5)
_PRIOR = 5


def adapter_parameters(settings: Settings) -> np.ndarray:
    """What ``adapted_split`` and ``adapt`` take, (parameters,)."""
    s = settings
    slopes = np.array([s.per_returning, s.per_history, s.per_load]) / SCALE
    return np.array([s.rate, s.leak, s.bound, s.trust, s.reach, s.prior_alpha, *slopes])


@kernel
def learn(observed, columns, curves, calm, weights, following, parameters):
    """The split (before bounds) that the workload asks for, after ``following`` (WIDTH,) has learned from ``curves``.

    observed: (D,) one row; columns: places of the context. calm: share of the error that is learned from.
    weights: (WIDTH,) as they were.
    """
    split, norm = parameters[_PRIOR] + weights[0], 1.0
    for k in range(_INPUTS):
        x = SCALE * (observed[columns[k]] - TYPICAL[k])
        split += (parameters[_PRIOR + 1 + k] + weights[1 + k]) * x
        norm += x * x
    gain = calm * parameters[_RATE] * (curves - split) / (1.0 + norm)
    keep, bound = 1.0 - parameters[_LEAK], parameters[_BOUND]
    following[0] = min(max(keep * weights[0] + gain, -bound), bound)
    split = parameters[_PRIOR] + following[0]
    for k in range(_INPUTS):
        x = SCALE * (observed[columns[k]] - TYPICAL[k])
        following[1 + k] = min(max(keep * weights[1 + k] + gain * x, -bound), bound)
        split += (parameters[_PRIOR + 1 + k] + following[1 + k]) * x
    return split


@kernel
def correct(target, split, calm, parameters):
    """The target after ``calm`` of the adapter's bounded correction."""
    reach = parameters[_REACH]
    return target + calm * min(max(parameters[_TRUST] * (split - target), -reach), reach)


def row_sum(graph: Graph, value: str) -> str:
    """Sums of rows, (lanes, 1)."""
    return graph.op("ReduceSum", value, graph.constant([1], np.int64), keepdims=1)


def draw_learn(graph: Graph, curves: str, calm: str, weights: str, settings: Settings) -> tuple[str, str]:
    """``learn`` in a graph: the split (lanes, 1) and the weights to come (lanes, WIDTH)."""
    op, constant, s = graph.op, graph.constant, settings
    context = op("Sub", graph.concatenate(*(graph.column(name) for name in CONTEXT)), constant(TYPICAL))
    context = graph.concatenate(graph.fill(1.0), op("Mul", context, constant(SCALE)))
    prior = constant(adapter_parameters(s)[_PRIOR:])
    split = row_sum(graph, op("Mul", op("Add", weights, prior), context))
    norm = op("Add", row_sum(graph, op("Mul", context, context)), constant(1.0))
    gain = op("Mul", calm, op("Div", op("Mul", op("Sub", curves, split), constant(s.rate)), norm))
    kept = op("Mul", weights, constant(1.0 - s.leak))
    following = graph.clip(op("Add", kept, op("Mul", gain, context)), -s.bound, s.bound)
    return row_sum(graph, op("Mul", op("Add", following, prior), context)), following


def draw_correct(graph: Graph, target: str, split: str, calm: str, settings: Settings) -> str:
    """``correct`` in a graph."""
    share = graph.op("Mul", graph.op("Sub", split, target), graph.constant(settings.trust))
    return graph.op("Add", target, graph.op("Mul", calm, graph.clip(share, -settings.reach, settings.reach)))
