"""The operators that a policy may use: those that move, repeat and choose values, and those that make shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from helm_gym.policies.onnx_check.node import Node
from helm_gym.policies.onnx_check.rules import MAX_AXIS, refuse
from helm_gym.policies.onnx_check.tensors import array_of
from helm_gym.policies.onnx_check.values import Lanes, Length, Value, broadcast, reshaped

Rule = Callable[[Node], Value | tuple[Value, ...]]
_TO_THE_END = 2**31 - 1  # what exporters write for the end of an axis, or more


def _identity(node: Node) -> Value:
    value = node.input(0)
    return value.like()


def _constant(node: Node) -> Value:
    tensor = node.tensor("value")
    if tensor is not None:
        array, dtype = array_of(tensor, "a constant"), tensor.data_type
    else:
        for name, dtype in (("value_float", TensorProto.FLOAT), ("value_int", TensorProto.INT64)):
            found = node.attribute(name, node.attribute(f"{name}s"))
            if found is not None:
                array = np.array(found, np.float32 if dtype == TensorProto.FLOAT else np.int64)
                break
        else:
            refuse("types", "A constant holds neither a tensor nor numbers.")
    return Value(dtype, array.shape, data=array)


def _shape(node: Node) -> Value:
    value = node.input(0)
    lengths = value.lengths()[slice(node.attribute("start", 0), node.attribute("end"))]
    return _numbers(lengths)


def _size(node: Node) -> Value:
    value = node.input(0)
    size: Length = value.size if value.lane is None else Lanes(value.size)
    return Value(TensorProto.INT64, (), data=_numbers([size]).data.reshape(()))  # type: ignore[union-attr]


def _numbers(lengths: Sequence[Length]) -> Value:
    kind = object if any(isinstance(length, Lanes) for length in lengths) else np.int64
    return Value(TensorProto.INT64, (len(lengths),), data=np.array(lengths, kind))


def _reshape(node: Node) -> Value:
    value, lengths = node.input(0), node.lengths(1)
    if not node.attribute("allowzero", 0):
        if any(length == 0 for length in lengths[value.rank :] if isinstance(length, int)):
            refuse("shape", f"Reshape of {value.text()} keeps an axis that it does not have.")
        own = value.lengths()
        lengths = [own[n] if isinstance(length, int) and not length else length for n, length in enumerate(lengths)]
    open_at = [n for n, length in enumerate(lengths) if isinstance(length, int) and length == -1]
    if len(open_at) > 1:
        refuse("shape", "Reshape leaves more than one axis open.")
    if open_at:
        known = math.prod(length.times if isinstance(length, Lanes) else length for length in lengths) * -1
        if known <= 0 or value.size % known:
            refuse("shape", f"Reshape of {value.text()} leaves an axis open that no length fits.")
        rest = value.size // known
        # What is left over is the lanes' axis, unless the lanes stand elsewhere already.
        free = value.lane is not None and not any(isinstance(length, Lanes) for length in lengths)
        lengths[open_at[0]] = Lanes(rest) if free else rest
    return reshaped(value, lengths)


def _flatten(node: Node) -> Value:
    value = node.input(0)
    axis = node.attribute("axis", 1)
    axis = value.rank if axis == value.rank else value.axis(axis)
    lengths: list[Length] = []
    for part in (slice(0, axis), slice(axis, value.rank)):
        size = math.prod(value.shape[part])
        inside = value.lane is not None and value.lane in range(*part.indices(value.rank))
        lengths.append(Lanes(size) if inside else size)
    return reshaped(value, lengths)


def _squeeze(node: Node) -> Value:
    value, axes = node.input(0), node.axes()
    if not axes:
        if value.lane is not None:
            refuse("fixed-batch", f"Squeeze of {value.text()} names no axes; with one lane it would drop theirs.")
        axes = [axis for axis, length in enumerate(value.shape) if length == 1]
    gone = {value.axis(axis) for axis in axes}
    if value.lane in gone:
        refuse("fixed-batch", f"Squeeze drops the axis of the lanes of {value.text()}.")
    if any(value.shape[axis] != 1 for axis in gone):
        refuse("shape", f"Squeeze drops an axis of {value.text()} that is longer than 1.")
    return value.with_axes([axis for number, axis in enumerate(value.axes()) if number not in gone])


def _unsqueeze(node: Node) -> Value:
    value, axes = node.input(0), node.axes()
    if axes is None:
        refuse("schema", "Unsqueeze names no axes.")
    new = {value.axis(axis, len(axes)) for axis in axes}
    if len(new) < len(axes):
        refuse("shape", "Unsqueeze names an axis twice.")
    own = iter(value.axes())
    return value.with_axes([(1, 0) if n in new else next(own) for n in range(value.rank + len(axes))])


def _transpose(node: Node) -> Value:
    value = node.input(0)
    order = list(node.attribute("perm", range(value.rank)[::-1]))
    if sorted(order) != list(range(value.rank)):
        refuse("shape", f"Transpose's order does not fit {value.text()}.")
    axes = value.axes()
    return value.with_axes([axes[n] for n in order])


def _concat(node: Node) -> Value:
    values = node.given()
    first = values[0]
    axis = first.axis(node.attribute("axis", 0))
    first.off_lanes(axis)
    for value in values:
        same = value.rank == first.rank and all(
            mine == theirs for n, (mine, theirs) in enumerate(zip(value.axes(), first.axes(), strict=True)) if n != axis
        )
        if not same:
            rule = "shape" if value.lane == first.lane else "fixed-batch"
            refuse(rule, f"Concat of {first.text()} and {value.text()} along axis {axis} cannot be.")
        value.off_lanes(axis)
    axes = first.axes()
    axes[axis] = sum(value.shape[axis] for value in values), 0
    return first.with_axes(axes)


def _split(node: Node) -> tuple[Value, ...]:
    value = node.input(0)
    axis = value.axis(node.attribute("axis", 0))
    value.off_lanes(axis)
    length, count = value.shape[axis], node.outputs
    if node.attribute("num_outputs", count) != count:
        refuse("schema", f"Split has {count} outputs and says another number of them.")
    if node.has(1):
        parts = node.integers(1)
    else:
        each = -(-length // max(1, count))
        parts = [max(0, min(each, length - n * each)) for n in range(count)]
    if sum(parts) != length or len(parts) != count or min(parts, default=0) < 0:
        refuse("shape", f"Split of {value.text()} along axis {axis} cannot be.")
    axes = value.axes()
    return tuple(value.with_axes([*axes[:axis], (part, 0), *axes[axis + 1 :]]) for part in parts)


def _slice(node: Node) -> Value:
    value, starts, ends = node.input(0), node.integers(1), node.lengths(2)
    axes = node.integers(3) if node.has(3) else list(range(len(starts)))
    steps = node.integers(4) if node.has(4) else [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        refuse("shape", "Slice's starts, ends, axes and steps do not fit each other.")
    found = value.axes()
    for start, end, number, step in zip(starts, ends, axes, steps, strict=True):
        axis = value.axis(number)
        length = value.shape[axis]
        if axis == value.lane:
            whole = end == Lanes(length) if isinstance(end, Lanes) else end >= _TO_THE_END
            if start or step != 1 or not whole:
                value.off_lanes(axis)
        elif isinstance(end, Lanes):
            refuse("lane-count", "Slice ends at the number of lanes along another axis.")
        else:
            found[axis] = len(sliced(length, start, end, step)), 0
    return value.with_axes(found)


def sliced(length: int, start: int, end: int, step: int) -> range:
    """What Slice takes of an axis; backwards as onnxruntime does, which Python does not."""
    if step > 0:
        return range(*slice(start, end, step).indices(length))
    if not length or end >= _TO_THE_END:  # onnxruntime goes to the front, and the standard nowhere
        refuse("shape", "Slice goes backwards from nothing, or to the largest number.")
    first = min(max(start + length if start < 0 else start, 0), length - 1)
    last = max(end + length if end < 0 else end, -1)
    return range(first, last, step)


def _gather(node: Node) -> Value:
    value, indices = node.input(0), node.input(1)
    axis = value.axis(node.attribute("axis", 0))
    value.off_lanes(axis)
    if value.lane is not None and indices.lane is not None:
        refuse("across-lanes", f"Gather from {value.text()} by {indices.text()} joins values of different lanes.")
    return value.with_axes([*value.axes()[:axis], *indices.axes(), *value.axes()[axis + 1 :]])


def _elements(node: Node) -> Value:
    """GatherElements takes, and ScatterElements replaces, one element for each of the indices."""
    value, indices = node.input(0), node.input(1)
    axis = value.axis(node.attribute("axis", 0))
    value.off_lanes(axis)
    if value.rank != indices.rank or value.lane != indices.lane:
        refuse("across-lanes", f"{node.op} from {value.text()} by {indices.text()} joins values of different lanes.")
    for number, (mine, theirs) in enumerate(zip(value.axes(), indices.axes(), strict=True)):
        if number != axis and (theirs[0] > mine[0] or (mine[1] and theirs != mine)):
            refuse("shape", f"{node.op} from {value.text()} by {indices.text()} cannot be.")
    if node.op == "GatherElements":
        return value.with_axes(indices.axes())
    if node.input(2).axes() != indices.axes():
        refuse("shape", f"ScatterElements of {node.input(2).text()} at {indices.text()} cannot be.")
    return _identity(node)


def _gather_nd(node: Node) -> Value:
    value, indices = node.fixed(0), node.input(1)
    depth = indices.shape[-1] if indices.rank else 0
    if node.attribute("batch_dims", 0) or not 1 <= depth <= value.rank:
        node.unsupported("with batch_dims, or indices that do not fit,")
    indices.off_lanes(indices.rank - 1)
    return value.with_axes([*indices.axes()[:-1], *value.axes()[depth:]])


def _target(lengths: Sequence[Length], dtype: int) -> Value:
    """A tensor of these lengths."""
    places = [n for n, length in enumerate(lengths) if isinstance(length, Lanes)]
    if len(places) > 1:
        refuse("lane-count", "The graph makes a tensor that grows with the square of the number of lanes.")
    shape = tuple(length.times if isinstance(length, Lanes) else length for length in lengths)
    return Value(dtype, shape, places[0] if places else None)


def _expand(node: Node) -> Value:
    value = node.input(0)
    return value.with_axes(broadcast(value, _target(node.lengths(1), value.dtype)))


def _tile(node: Node) -> Value:
    value, repeats = node.input(0), node.lengths(1)
    if len(repeats) != value.rank:
        refuse("shape", f"Tile's repeats do not fit {value.text()}.")
    if value.lane is not None and (isinstance(repeats[value.lane], Lanes) or repeats[value.lane] != 1):
        value.off_lanes(value.lane)
    lengths = [repeat * length for repeat, length in zip(repeats, value.shape, strict=True)]
    if value.lane is not None:
        lengths[value.lane] = Lanes(value.shape[value.lane])
    return _target(lengths, value.dtype)


def _constant_of_shape(node: Node) -> Value:
    tensor = node.tensor("value")
    return _target(node.lengths(0), TensorProto.FLOAT if tensor is None else tensor.data_type)


def _range(node: Node) -> Value:
    first, last, step = (node.integer(n) for n in range(3))
    if max(abs(first), abs(last), abs(step)) > MAX_AXIS or not step:
        refuse("shape", f"Range from {first} to {last} by {step} cannot be.")
    return Value(node.input(0).dtype, (len(range(first, last, step)),))


def _pad(node: Node) -> Value:
    value, pads = node.input(0), node.integers(1)
    axes = [value.axis(n) for n in node.integers(3)] if node.has(3) else list(range(value.rank))
    mode = node.text("mode", "constant")
    if len(pads) != 2 * len(axes) or len(set(axes)) < len(axes) or mode not in ("constant", "reflect", "edge"):
        refuse("shape", f"Pad of {value.text()} by {len(pads)} numbers cannot be.")
    found = value.axes()
    for n, axis in enumerate(axes):
        before, after = pads[n], pads[len(axes) + n]
        if before or after:
            value.off_lanes(axis)
        if mode != "constant" and not 0 <= min(before, after) <= max(before, after) < max(1, value.shape[axis]):
            refuse("shape", f"Pad by {mode} of {value.text()} goes beyond its axis {axis}.")
        found[axis] = found[axis][0] + before + after, found[axis][1]
    return value.with_axes(found)


def _trilu(node: Node) -> Value:
    value = node.input(0)
    value.off_lanes(value.axis(-1), value.axis(-2))
    if node.has(1) and abs(node.integer(1)) > MAX_AXIS:
        refuse("shape", "Trilu's diagonal lies outside of any tensor.")
    return _identity(node)


def _one_hot(node: Node) -> Value:
    value, depth = node.input(0), node.integer(1)
    axis = value.axis(node.attribute("axis", -1), 1)
    axes = value.axes()
    return value.with_axes([*axes[:axis], (depth, 0), *axes[axis:]], node.fixed(2).dtype)


LAYOUT: dict[str, Rule] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _elements,
    "GatherND": _gather_nd,
    "Identity": _identity,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterElements": _elements,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
