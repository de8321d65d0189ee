"""The operators that a policy may use: those that compute. Those that move values are in ``layout_operators``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from onnx import TensorProto

from helm_gym.policies.onnx_check.node import Node
from helm_gym.policies.onnx_check.rules import refuse
from helm_gym.policies.onnx_check.values import INTEGERS, Value, broadcast

Rule = Callable[[Node], Value | tuple[Value, ...]]


def _unary(node: Node) -> Value:
    value = node.input(0)
    for bound in range(1, len(node.inputs)):  # of Clip
        if node.has(bound) and (node.fixed(bound).size != 1):
            refuse("schema", f"Input {bound} of {node.op} must be one number.")
    return value.like()


def _boolean(node: Node) -> Value:
    return node.input(0).like(TensorProto.BOOL)


def _elementwise(node: Node) -> Value:
    values = node.given()
    return values[0].with_axes(broadcast(*values))


def _comparison(node: Node) -> Value:
    return node.input(0).with_axes(broadcast(*node.given()), TensorProto.BOOL)


def _where(node: Node) -> Value:
    return node.input(1).with_axes(broadcast(node.input(0), node.input(1), node.input(2)))


def _division(node: Node) -> Value:
    """onnxruntime ends the process where it divides the least integer by -1."""
    if node.input(0).dtype in INTEGERS:
        by = node.input(1).data
        numbers = [] if by is None else [n for n in by.reshape(-1).tolist() if isinstance(n, int)]
        if by is None or 0 in numbers or -1 in numbers:
            refuse("integer-division", f"{node.op} of integers needs a constant divisor that is neither 0 nor -1.")
    return _elementwise(node)


def _cast(node: Node) -> Value:
    value = node.input(0)
    dtype = node.input(1).dtype if node.op == "CastLike" else node.attribute("to")
    return value.like(dtype)


def _dropout(node: Node) -> tuple[Value, ...]:
    value = node.input(0)
    if node.has(2):
        data = node.fixed(2).data
        if data is None or data.any():
            refuse("training", "Dropout in training mode draws random numbers; export the model in evaluation mode.")
    return value.like(), value.like(TensorProto.BOOL)


def _matmul(node: Node) -> Value:
    a, b = node.input(0), node.input(1)
    if not a.rank or not b.rank:
        refuse("shape", "MatMul of a number without axes cannot be.")
    left = a if a.rank > 1 else a.with_axes([(1, 0), *a.axes()])
    right = b if b.rank > 1 else b.with_axes([*b.axes(), (1, 0)])
    left.off_lanes(left.rank - 1)
    right.off_lanes(right.rank - 2)
    if left.shape[-1] != right.shape[-2]:
        refuse("shape", f"MatMul of {a.text()} and {b.text()} cannot be.")
    *batch, rows = left.axes()[:-1]
    *others, _, columns = right.axes()
    axes = broadcast(left.with_axes(batch), right.with_axes(others)) if batch or others else []
    if sum(outer > 0 for _, outer in (*axes, rows, columns)) > 1:
        refuse("across-lanes", f"MatMul of {a.text()} and {b.text()} joins values of different lanes.")
    axes += [rows] if a.rank > 1 else []
    axes += [columns] if b.rank > 1 else []
    found = a.with_axes(axes)
    node.work = found.size * left.shape[-1]
    return found


def _gemm(node: Node) -> Value:
    a, b = node.input(0), node.input(1)
    if a.rank != 2 or b.rank != 2:
        refuse("shape", f"Gemm of {a.text()} and {b.text()} cannot be; both must have two axes.")
    rows, inner = (a.axes()[::-1] if node.attribute("transA", 0) else a.axes())  # fmt: skip
    inner_, columns = (b.axes()[::-1] if node.attribute("transB", 0) else b.axes())  # fmt: skip
    if inner[1] or inner_[1] or (rows[1] and columns[1]):
        refuse("across-lanes", f"Gemm of {a.text()} and {b.text()} joins values of different lanes.")
    if inner[0] != inner_[0]:
        refuse("shape", f"Gemm of {a.text()} and {b.text()} cannot be.")
    found = a.with_axes([rows, columns])
    if node.has(2) and broadcast(found, node.input(2)) != found.axes():
        refuse("shape", f"Gemm's third input of shape {node.input(2).text()} does not go with {found.text()}.")
    node.work = found.size * (inner[0] + 1)
    return found


def _einsum(node: Node) -> Value:
    equation = node.text("equation", "").replace(" ", "")
    if not re.fullmatch(r"[A-Za-z]+(,[A-Za-z]+)*->[A-Za-z]*", equation):
        node.unsupported("without an arrow, or with dots,")
    terms, _, result = equation.partition("->")
    lengths: dict[str, int] = {}
    lanes: dict[str, int] = {}
    values = node.given()
    if [len(term) for term in terms.split(",")] != [value.rank for value in values]:
        refuse("shape", "Einsum's equation does not fit its inputs.")
    for term, value in zip(terms.split(","), values, strict=True):
        for letter, (length, outer) in zip(term, value.axes(), strict=True):
            if lanes.setdefault(letter, outer) != outer or lengths.setdefault(letter, length) != length:
                refuse("across-lanes", "Einsum has one letter for lanes and for another length.")
    if not set(result) <= set(lengths) or len(set(result)) < len(result):
        refuse("shape", "Einsum's result has letters that no input has, or one twice.")
    moved = [letter for letter, outer in lanes.items() if outer]
    if len(moved) > 1 or (moved and moved[0] not in result):
        refuse("across-lanes", "Einsum joins values of different lanes.")
    node.work = math.prod(lengths.values()) * len(values)
    node.scratch = 8 * node.work
    return values[0].with_axes([(lengths[letter], lanes[letter]) for letter in result])


def _along_axis(default: int) -> Rule:
    def rule(node: Node) -> Value:
        value = node.input(0)
        value.off_lanes(value.axis(node.attribute("axis", default)))
        node.scratch = 8 * value.size
        return value.like()

    return rule


def _layer_norm(node: Node) -> tuple[Value, ...]:
    value = node.input(0)
    first = value.axis(node.attribute("axis", -1))
    value.off_lanes(*range(first, value.rank))
    for number in range(1, len(node.inputs)):
        if node.has(number) and broadcast(value, node.fixed(number)) != value.axes():
            refuse("shape", f"Input {number} of {node.op} does not go with {value.text()}.")
    mean = value.with_axes([*value.axes()[:first], *[(1, 0)] * (value.rank - first)], TensorProto.FLOAT)
    node.scratch = 8 * value.size
    return value.like(), mean, mean


def _batch_norm(node: Node) -> Value:
    value = node.input(0)
    if node.attribute("training_mode", 0):
        refuse("training", "BatchNormalization in training mode joins lanes; export the model in evaluation mode.")
    value.off_lanes(value.axis(1))
    if any(node.fixed(number).shape != (value.shape[1],) for number in range(1, 5)):
        refuse("shape", f"BatchNormalization's figures do not go with {value.text()}.")
    return value.like()


def _reduction(node: Node) -> Value:
    value = node.input(0)
    axes = node.axes()
    if not axes and node.attribute("noop_with_empty_axes", 0):
        return value.like()
    gone = {value.axis(axis) for axis in axes} if axes else set(range(value.rank))
    return _without(node, gone, value.dtype)


def _arg(node: Node) -> Value:
    value = node.input(0)
    return _without(node, {value.axis(node.attribute("axis", 0))}, TensorProto.INT64)


def _without(node: Node, gone: set[int], dtype: int) -> Value:
    value = node.input(0)
    value.off_lanes(*gone)
    kept = node.attribute("keepdims", 1)
    axes = [(1, 0) if a in gone else axis for a, axis in enumerate(value.axes()) if kept or a not in gone]
    found = value.with_axes(axes, dtype)
    node.work, node.scratch = 10 * (value.size + found.size), 8 * value.size
    return found


def _cumsum(node: Node) -> Value:
    value = node.input(0)
    value.off_lanes(value.axis(node.integer(1)))
    return value.like()


def _top_k(node: Node) -> tuple[Value, ...]:
    value = node.input(0)
    axis, count = value.axis(node.attribute("axis", -1)), node.integer(1)
    value.off_lanes(axis)
    if not 0 <= count <= value.shape[axis]:
        refuse("shape", f"TopK of {count} along axis {axis} of {value.text()} cannot be.")
    axes = value.axes()
    axes[axis] = count, False
    node.work, node.scratch = 100 * value.size, 32 * value.size
    return value.with_axes(axes), value.with_axes(axes, TensorProto.INT64)


def _recurrent(gates: int) -> Rule:
    """RNN, GRU and LSTM: [steps, lanes, inputs] to all states [steps, directions, lanes, units] and the last ones."""

    def rule(node: Node) -> tuple[Value, ...]:
        value, weights, recurrent = node.input(0), node.fixed(1), node.fixed(2)
        if node.attribute("layout", 0) or node.has(4):
            node.unsupported("with layout 1 or sequence_lens")
        if value.rank != 3 or value.lane not in (1, None) or weights.rank != 3 or recurrent.rank != 3:
            refuse("across-lanes", f"{node.op} takes [steps, lanes, inputs] and has {value.text()}.")
        directions, units = recurrent.shape[0], recurrent.shape[2]
        if weights.shape != (directions, gates * units, value.shape[2]):
            refuse("shape", f"{node.op}'s weights {weights.text()} do not go with {value.text()}.")
        rows = value.axes()[1]
        last = value.with_axes([(directions, 0), rows, (units, 0)])
        sizes = {3: (directions, 2 * gates * units), 7: (directions, 3 * units)}
        if any(node.has(number) and node.fixed(number).shape != size for number, size in sizes.items()):
            refuse("shape", f"{node.op}'s biases or peepholes do not go with its weights {weights.text()}.")
        if node.attribute("hidden_size", units) != units or recurrent.shape != (directions, gates * units, units):
            refuse("shape", f"{node.op}'s hidden_size does not go with its weights {weights.text()}.")
        for number in (5, 6):
            if node.has(number) and node.input(number).axes() != last.axes():
                refuse("shape", f"{node.op} starts with {node.input(number).text()}; {last.text()} is needed.")
        steps = value.shape[0]
        node.work = steps * rows[0] * directions * gates * units * (value.shape[2] + units + 10)
        node.scratch = 8 * steps * rows[0] * directions * (gates + 2) * units
        return value.with_axes([(steps, 0), (directions, 0), rows, (units, 0)]), last, last

    return rule


def _convolution(node: Node) -> Value:
    """[lanes, channels, length, ...] with weights [results, channels / groups, ...]."""
    value, weights = node.input(0), node.fixed(1)
    spatial = value.rank - 2
    groups = node.attribute("group", 1)
    if spatial < 1 or weights.rank != value.rank or groups < 1 or value.shape[1] != weights.shape[1] * groups:
        refuse("shape", f"Conv of {value.text()} with weights {weights.text()} cannot be.")
    value.off_lanes(*range(1, value.rank))
    if node.text("auto_pad", "NOTSET") != "NOTSET":
        node.unsupported("with auto_pad")
    strides, dilations = (list(node.attribute(name, [1] * spatial)) for name in ("strides", "dilations"))
    pads = list(node.attribute("pads", [0] * 2 * spatial))
    kernel = weights.shape[2:]
    sizes = (strides, dilations, pads[:spatial], pads[spatial:])
    if any(len(numbers) != spatial for numbers in sizes) or min(*strides, *dilations) < 1 or min(pads) < 0:
        refuse("shape", "Conv's strides, dilations or pads do not fit its input.")
    lengths = [
        (value.shape[2 + k] + pads[k] + pads[spatial + k] - dilations[k] * (kernel[k] - 1) - 1) // strides[k] + 1
        for k in range(spatial)
    ]
    if node.has(2) and node.fixed(2).shape != (weights.shape[0],):
        refuse("shape", f"Conv's biases do not go with its weights {weights.text()}.")
    found = value.with_axes([value.axes()[0], (weights.shape[0], 0), *((n, 0) for n in lengths)])
    node.work = found.size * math.prod(weights.shape[1:])
    node.scratch = 8 * value.shape[0] * math.prod(lengths) * value.shape[1] * math.prod(kernel)
    return found


def _names(text: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(text.split(), rule)


ARITHMETIC: dict[str, Rule] = {
    **_names("Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid", _unary),
    **_names("HardSwish LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softplus", _unary),
    **_names("Softsign Sqrt Swish Tan Tanh ThresholdedRelu", _unary),
    **_names("IsInf IsNaN", _boolean),
    **_names("Add Max Mean Min Mul PRelu Pow Sub Sum", _elementwise),
    **_names("Div Mod", _division),
    **_names("And Equal Greater GreaterOrEqual Less LessOrEqual Or Xor", _comparison),
    **_names("Where", _where),
    **_names("Cast CastLike", _cast),
    **_names("Dropout", _dropout),
    **_names("MatMul", _matmul),
    **_names("Gemm", _gemm),
    **_names("Einsum", _einsum),
    **_names("LogSoftmax Softmax", _along_axis(-1)),
    **_names("LayerNormalization RMSNormalization", _layer_norm),
    **_names("BatchNormalization", _batch_norm),
    **_names("ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd", _reduction),
    **_names("ReduceSum ReduceSumSquare", _reduction),
    **_names("ArgMax ArgMin", _arg),
    **_names("CumSum", _cumsum),
    **_names("TopK", _top_k),
    **_names("RNN", _recurrent(1)),
    **_names("GRU", _recurrent(3)),
    **_names("LSTM", _recurrent(4)),
    **_names("Conv", _convolution),
}
