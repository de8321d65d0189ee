"""What is said of a graph before it runs is what onnxruntime then finds: shapes, constants, lanes that stay apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from helm_gym.errors import RefusedError
from helm_gym.policies.onnx_check.values import Lanes, Value
from helm_gym.policies.onnx_check.walk import OPERATORS, follow_graph

INPUTS = {"obs": Value(TensorProto.FLOAT, (1, 6), 0), "state": Value(TensorProto.FLOAT, (1, 2), 0)}
SMALL = st.integers(-3, 3)
NODE = helper.make_node


class Drawn:
    """A graph that grows by nodes which the walk lets pass."""

    def __init__(self, draw: Any):
        self.draw, self.nodes, self.weights = draw, [], []
        self.values: dict[str, Value] = dict(INPUTS)
        for name, array in (
            ("c0", np.linspace(-1, 1, 6, dtype=np.float32)),
            ("c1", np.linspace(-2, 1, 6, dtype=np.float32).reshape(3, 2)),
            ("c2", np.ones((1, 2, 1), np.float32)),
            ("two", np.array([0, 1], np.float32)),
            ("f1", np.linspace(-1, 1, 4, dtype=np.float32).reshape(2, 1, 2)),
            ("f2", np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 2, 2)),
        ):
            self.weights.append(numpy_helper.from_array(array, name))

    def numbers(self, *numbers: int) -> str:
        name = f"k{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        return name

    def pick(self, *dtypes: int) -> str:
        found = [n for n, value in self.values.items() if value.dtype in (dtypes or (TensorProto.FLOAT,))]
        return str(self.draw(st.sampled_from(found)))

    def new(self) -> str:
        return f"v{len(self.nodes)}"

    def graph(self) -> onnx.GraphProto:
        inputs = [helper.make_tensor_value_info(n, 1, ["lanes", v.shape[1]]) for n, v in INPUTS.items()]
        return helper.make_graph(self.nodes, "drawn", inputs, [], self.weights)

    def add(self) -> None:
        kind = self.draw(st.sampled_from(KINDS))
        weights = len(self.weights)
        nodes = KINDS_MADE[kind](self, kind) if kind in KINDS_MADE else self.plain(kind)
        self.nodes += nodes
        try:
            self.values, _ = follow_graph(self.graph(), INPUTS)
        except RefusedError:
            del self.nodes[-len(nodes) :], self.weights[weights:]

    def few(self, low: int = -3, high: int = 3) -> str:
        """None, one or two numbers."""
        return self.numbers(*self.draw(st.lists(st.integers(low, high), max_size=2)))

    def plain(self, kind: str) -> list[onnx.NodeProto]:
        return [NODE(kind, [self.pick()], [self.new()])]


def _axis(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    return [NODE(kind, [d.pick()], [d.new()], axis=d.draw(SMALL))]


def _two(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    return [NODE(kind, [d.pick(), d.pick()], [d.new()])]


def _gemm(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    flags = {name: d.draw(st.integers(0, 1)) for name in ("transA", "transB")}
    return [NODE(kind, [d.pick(), d.pick()], [d.new()], **flags)]


def _reduce(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    flags = {name: d.draw(st.integers(0, 1)) for name in ("keepdims", "noop_with_empty_axes")}
    return [NODE(kind, [d.pick(), d.few()], [d.new()], **flags)]


def _arg(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    return [NODE(kind, [d.pick()], [d.new()], axis=d.draw(SMALL), keepdims=d.draw(st.integers(0, 1)))]


def _transpose(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    name = d.pick(*OPEN)
    order = d.draw(st.permutations(range(d.values[name].rank)))
    return [NODE(kind, [name], [d.new()], **({"perm": order} if order else {}))]


def _reshape(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    name = d.pick(*OPEN)
    own = [n for n in d.values[name].shape if n > 1] or [1]
    lengths = d.draw(st.lists(st.sampled_from([-1, 0, 1, 2, 3, *own]), min_size=1, max_size=4))
    return [NODE(kind, [name, d.numbers(*lengths)], [d.new()])]


def _reshape_like(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    """As exporters do: lengths from shapes, put together again."""
    name, other = d.pick(*OPEN), d.pick(*OPEN)
    new = d.new()
    first, times = d.draw(st.integers(0, 2)), d.draw(st.sampled_from([1, 2, 3]))
    parts = [f"{new}n", d.numbers(d.draw(st.sampled_from([-1, 1, 2, 6])))]
    parts = parts if d.draw(st.booleans()) else parts[::-1]
    return [
        NODE("Shape", [other], [f"{new}s"]),
        NODE("Gather", [f"{new}s", d.numbers(first)], [f"{new}g"], axis=0),
        NODE(d.draw(st.sampled_from(["Mul", "Div"])), [f"{new}g", d.numbers(times)], [f"{new}n"]),
        NODE("Concat", parts, [f"{new}l"], axis=0),
        NODE(d.draw(st.sampled_from(["Reshape", "Expand"])), [name, f"{new}l"], [new]),
    ]


def _axes(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    return [NODE(kind, [d.pick(*OPEN), d.few()], [d.new()])]


def _concat(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    return [NODE(kind, [d.pick(), d.pick()], [d.new()], axis=d.draw(SMALL))]


def _slice(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    ends = st.one_of(SMALL, st.sampled_from([2**63 - 1, -(2**63) + 1]))
    bounds = [d.numbers(d.draw(SMALL)), d.numbers(d.draw(ends)), d.numbers(d.draw(SMALL))]
    return [NODE(kind, [d.pick(*OPEN), *bounds, d.numbers(d.draw(st.sampled_from([-2, -1, 1, 2])))], [d.new()])]


def _gather(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    where = d.numbers(*d.draw(st.lists(st.integers(-1, 1), min_size=1, max_size=3)))
    return [NODE(kind, [d.pick(*OPEN), where], [d.new()], axis=d.draw(SMALL))]


def _chosen(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    """The places of the largest, and what another tensor has there."""
    new, axis = d.new(), d.draw(SMALL)
    first = NODE("ArgMax", [d.pick()], [f"{new}i"], axis=axis, keepdims=1)
    return [first, NODE(kind, [d.pick(), f"{new}i"], [new], axis=d.draw(st.sampled_from([axis, 0])))]


def _split(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    new = d.new()
    return [NODE(kind, [d.pick()], [f"{new}a", f"{new}b"], axis=d.draw(SMALL), num_outputs=d.draw(st.integers(2, 3)))]


def _part_of_shape(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    return [NODE(kind, [d.pick(*OPEN)], [d.new()], start=d.draw(SMALL), end=d.draw(SMALL))]


def _filled(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    known = [name for name, value in d.values.items() if value.dtype == TensorProto.INT64]
    return [NODE(kind, [d.draw(st.sampled_from([d.few(0), *known]))], [d.new()])]


def _replaced(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    new, axis = d.new(), d.draw(SMALL)
    first = NODE("ArgMax", [d.pick()], [f"{new}i"], axis=axis, keepdims=1)
    second = NODE("GatherElements", [d.pick(), f"{new}i"], [f"{new}u"], axis=axis)
    return [first, second, NODE(kind, [d.pick(), f"{new}i", f"{new}u"], [new], axis=d.draw(st.sampled_from([axis, 0])))]


def _one_hot(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    new = d.new()
    first = NODE("ArgMax", [d.pick()], [f"{new}i"], axis=d.draw(SMALL), keepdims=d.draw(st.integers(0, 1)))
    return [first, NODE(kind, [f"{new}i", d.numbers(d.draw(st.integers(1, 3))), "two"], [new], axis=d.draw(SMALL))]


def _convolution(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    """Along the last axis, of what a Reshape has made three axes."""
    new = d.new()
    how = {name: [d.draw(st.integers(1, 2))] for name in ("strides", "dilations")}
    pads = [d.draw(st.integers(0, 2)) for _ in range(2)]
    first = NODE("Reshape", [d.pick(), d.numbers(-1, d.draw(st.integers(1, 2)), 3)], [f"{new}r"])
    return [first, NODE(kind, [f"{new}r", d.draw(st.sampled_from(["f1", "f2"]))], [new], pads=pads, **how)]


def _tile(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    name = d.pick()
    return [NODE(kind, [name, d.numbers(*[d.draw(st.integers(1, 2)) for _ in d.values[name].shape])], [d.new()])]


def _pad(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    pads = [d.draw(st.integers(-1, 2)) for _ in range(2)]
    mode = d.draw(st.sampled_from(["constant", "edge", "reflect"]))
    return [NODE(kind, [d.pick(), d.numbers(*pads), "", d.numbers(d.draw(SMALL))], [d.new()], mode=mode)]


def _cumsum(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    return [NODE(kind, [d.pick(), d.numbers(d.draw(SMALL))], [d.new()])]


def _top(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    new = d.new()
    return [NODE(kind, [d.pick(), d.numbers(d.draw(st.integers(0, 2)))], [f"{new}a", f"{new}b"], axis=d.draw(SMALL))]


def _where(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    a, b, new = d.pick(), d.pick(), d.new()
    return [NODE("Greater", [a, b], [f"{new}c"]), NODE(kind, [f"{new}c", a, b], [new])]


def _einsum(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    equations = ["ab,ab->ab", "ab,cb->ac", "ab,ac->abc", "abc,acd->abd", "ab->ba", "ab,ab->a", "ab,b->a", "ab,ac->bc"]
    equation = d.draw(st.sampled_from(equations))
    return [NODE(kind, [d.pick() for _ in equation.split("->")[0].split(",")], [d.new()], equation=equation)]


def _norm(d: Drawn, kind: str) -> list[onnx.NodeProto]:
    return [NODE(kind, [d.pick(), d.pick()], [d.new()], axis=d.draw(SMALL))]


OPEN = (TensorProto.FLOAT, TensorProto.INT64)
KINDS_MADE: dict[str, Any] = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "Flatten"), _axis),
    **dict.fromkeys(("Add", "Mul", "Sub", "Max", "MatMul", "PRelu"), _two),
    "Gemm": _gemm,
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceProd"), _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Reshape like": _reshape_like,
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _axes),
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
    **dict.fromkeys(("GatherElements", "GatherND"), _chosen),
    "Split": _split,
    "Tile": _tile,
    "Pad": _pad,
    "CumSum": _cumsum,
    "TopK": _top,
    "Where": _where,
    "Einsum": _einsum,
    "LayerNormalization": _norm,
    "Shape": _part_of_shape,
    "ConstantOfShape": _filled,
    "ScatterElements": _replaced,
    "OneHot": _one_hot,
    "Conv": _convolution,
}
KINDS = [*KINDS_MADE, "Size", "Trilu", "Tanh", "Identity"]


def _lane(array: Any, value: Value, lane: int, lanes: int) -> Any:
    """The part of an array that belongs to one lane."""
    if value.lane is None:
        return array
    own = value.shape[value.lane] // value.outer
    blocks = array.reshape(*array.shape[: value.lane], value.outer, lanes, own, *array.shape[value.lane + 1 :])
    return np.take(blocks, lane, axis=value.lane + 1)


def check_against_onnxruntime(model: onnx.ModelProto, values: dict[str, Value], inputs: dict[str, int]) -> None:
    """Shapes and known values for several numbers of lanes, and each lane's part as it is where it is alone."""
    names = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # of other types than onnxruntime has an operator for, say: it is refused on opening
        assume(False)
        raise
    rng = np.random.default_rng(3)
    fed = {name: rng.normal(size=(5, width)).astype(np.float32) for name, width in inputs.items()}
    runs = {}
    for lanes in (1, 2, 5):
        try:
            runs[lanes] = session.run(names, {name: array[:lanes] for name, array in fed.items()})
        except Exception:  # an index beyond its axis, the largest of nothing: refused by the probe
            assume(False)
    alone = [session.run(names, {name: array[k : k + 1] for name, array in fed.items()}) for k in range(5)]
    for number, name in enumerate(names):
        value = values[name]
        for lanes, found in runs.items():
            shape = [n * (lanes if axis == value.lane else 1) for axis, n in enumerate(value.shape)]
            assert list(found[number].shape) == shape, f"{name} {lanes} {onnx.printer.to_text(model)}"
            if value.data is not None:
                known = [n.times * lanes if isinstance(n, Lanes) else n for n in value.data.reshape(-1).tolist()]
                np.testing.assert_array_equal(found[number].reshape(-1), known, err_msg=name)
        if value.data is None:
            for k, run in enumerate(alone):
                mine, own = _lane(runs[5][number], value, k, 5), _lane(run[number], value, 0, 1)
                np.testing.assert_allclose(mine, own, rtol=1e-4, atol=1e-4, err_msg=name)


def _drawn(data: st.DataObject) -> None:
    drawn = Drawn(data.draw)
    for _ in range(data.draw(st.integers(4, 14))):
        drawn.add()
    model = helper.make_model(drawn.graph(), opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    check_against_onnxruntime(model, drawn.values, {name: value.shape[1] for name, value in INPUTS.items()})


CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@settings(max_examples=60, suppress_health_check=CHECKS)
@given(st.data())
def test_what_passes_keeps_lanes_apart_and_has_the_shapes_foretold(data: st.DataObject) -> None:
    _drawn(data)


@pytest.mark.long
@settings(max_examples=2000, suppress_health_check=CHECKS)
@given(st.data())
def test_the_same_of_many_more_graphs(data: st.DataObject) -> None:
    _drawn(data)


def test_every_operator_is_one_of_the_standard() -> None:
    for name in OPERATORS:
        assert onnx.defs.has(name), name
