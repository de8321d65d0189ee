"""Small constants as the graph would compute them: the lengths, axes and indices that shapes follow from.

Integers and booleans only: a float that onnxruntime rounds otherwise could become a length that was not foretold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.policies.onnx_check.layout_operators import sliced
from helm_gym.policies.onnx_check.node import Node
from helm_gym.policies.onnx_check.rules import MAX_KNOWN, refuse
from helm_gym.policies.onnx_check.tensors import array_of
from helm_gym.policies.onnx_check.values import DTYPES, FLOATS, INTEGERS, Lanes, Value

Array = NDArray[Any]
_INT64 = 2**63


def fold(node: Node, result: Value) -> Array | None:
    """The data of the node's one result, of which all but ``data`` is known; None where it does not follow.

    Raises:
        RefusedError: the number of lanes enters a value, or a number that no integer can hold.
    """
    given = [value for value in node.inputs if value is not None]
    if node.op not in FOLDS or result.lane is not None or result.size > MAX_KNOWN:
        return None
    if any(value.dtype in FLOATS for value in (*given, result)):
        return None
    arrays = [value.data for value in given]
    known = [array for array in arrays if array is not None]
    if len(known) < len(arrays) or any(array.size > MAX_KNOWN for array in known):
        return None
    with np.errstate(all="ignore"):
        try:
            return _as_type(np.asarray(FOLDS[node.op](node, known, result)), result).reshape(result.shape)
        except (TypeError, ValueError, IndexError, OverflowError):
            refuse("shape", f"{node.op} computes a shape from numbers that do not fit.")


def _as_type(found: Array, result: Value) -> Array:
    """Of the result's type, unless numbers of lanes are in it."""
    if found.dtype == object:
        numbers = [n.times if isinstance(n, Lanes) else n for n in found.reshape(-1)]
        if any(not -_INT64 <= n < _INT64 for n in numbers):
            refuse("shape", "The graph computes a shape beyond what an integer holds.")
        if any(isinstance(n, Lanes) for n in found.reshape(-1)):
            if result.dtype not in INTEGERS:
                refuse("lane-count", "The graph computes with the number of lanes; it may shape tensors only.")
            return found
    return found.astype(DTYPES[result.dtype])


def _quotient(a: Any, b: Any) -> Any:
    """Towards zero, as integers are divided in a graph."""
    if isinstance(a, Lanes) or isinstance(b, Lanes):
        return a // b
    return abs(int(a)) // abs(int(b)) * (1 if (a >= 0) == (b >= 0) else -1)


def _division(node: Node, arrays: list[Array], result: Value) -> Any:
    return np.frompyfunc(_quotient, 2, 1)(*arrays)


def _remainder(node: Node, arrays: list[Array], result: Value) -> Any:
    return (np.fmod if node.attribute("fmod", 0) else np.mod)(*arrays)


def _slices(node: Node, arrays: list[Array], result: Value) -> Any:
    value, starts, ends = arrays[:3]
    axes = arrays[3].tolist() if node.has(3) else range(len(starts))
    steps = arrays[-1].tolist() if node.has(4) else [1] * len(starts)
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes, steps, strict=True):
        value = np.take(value, sliced(value.shape[axis], start, end, step), axis=axis)
    return value


def _filled(node: Node, arrays: list[Array], result: Value) -> Any:
    tensor = node.tensor("value")
    return np.full(result.shape, 0 if tensor is None else array_of(tensor, "a constant").reshape(-1)[0])


def _range(node: Node, arrays: list[Array], result: Value) -> Any:
    start, _, delta = (array.reshape(-1)[0] for array in arrays)
    return start + delta * np.arange(result.size)


def _reduced(function: Callable[..., Any]) -> Callable[[Node, list[Array], Value], Any]:
    def rule(node: Node, arrays: list[Array], result: Value) -> Any:
        axes = tuple(node.axes() or ())
        if not axes and node.attribute("noop_with_empty_axes", 0):
            return arrays[0]
        return function(arrays[0], axis=axes or None)

    return rule


def _plain(function: Callable[..., Any]) -> Callable[[Node, list[Array], Value], Any]:
    return lambda node, arrays, result: function(*arrays)


def _same(node: Node, arrays: list[Array], result: Value) -> Any:
    return arrays[0]


FOLDS: dict[str, Callable[[Node, list[Array], Value], Any]] = {
    "Abs": _plain(np.abs),
    "Add": _plain(np.add),
    "And": _plain(np.logical_and),
    "Cast": _same,
    "Concat": lambda node, arrays, result: np.concatenate(arrays, axis=node.attribute("axis", 0)),
    "ConstantOfShape": _filled,
    "Div": _division,
    "Equal": _plain(np.equal),
    "Expand": lambda node, arrays, result: np.broadcast_to(arrays[0], result.shape),
    "Flatten": _same,
    "Gather": lambda node, arrays, result: np.take(arrays[0], arrays[1], axis=node.attribute("axis", 0)),
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "Identity": _same,
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "Mod": _remainder,
    "Mul": _plain(np.multiply),
    "Neg": _plain(np.negative),
    "Not": _plain(np.logical_not),
    "Or": _plain(np.logical_or),
    "Range": _range,
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "Reshape": _same,
    "Slice": _slices,
    "Squeeze": _same,
    "Sub": _plain(np.subtract),
    "Tile": lambda node, arrays, result: np.tile(arrays[0], arrays[1]),
    "Transpose": lambda node, arrays, result: np.transpose(arrays[0], node.attribute("perm")),
    "Unsqueeze": _same,
    "Where": _plain(np.where),
}
