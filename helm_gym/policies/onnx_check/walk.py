"""Following a graph from its inputs to its outputs without running it: shapes, lanes, and what a decision costs."""

from __future__ import annotations

import dataclasses
from typing import NoReturn

import onnx
from onnx import TensorProto

from helm_gym.policies.onnx_check.allowed_operators import ARITHMETIC
from helm_gym.policies.onnx_check.folding import fold
from helm_gym.policies.onnx_check.layout_operators import LAYOUT
from helm_gym.policies.onnx_check.node import Node
from helm_gym.policies.onnx_check.rules import (
    MAX_FIXED_BYTES,
    MAX_FIXED_OPERATIONS,
    MAX_KNOWN,
    MAX_ROW_BYTES,
    MAX_ROW_OPERATIONS,
    MAX_STATE,
    first_line,
    quoted,
    refuse,
)
from helm_gym.policies.onnx_check.tensors import array_of
from helm_gym.policies.onnx_check.values import DTYPES, INTEGERS, Value

INPUTS, OUTPUTS = ("obs", "state"), ("action", "state_out")
OPERATORS = ARITHMETIC | LAYOUT
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
_OPERATIONS_AN_ELEMENT = 10


@dataclasses.dataclass(frozen=True)
class Walked:
    """What a graph is and costs, from its file alone.

    Attributes:
        observation, state, actions: D, S and A of its signature.
        nodes: functions expanded.
        row_operations: multiply-adds that a decision takes for each row.
        row_bytes: of all intermediate values of a row, none of them freed.
    """

    observation: int
    state: int
    actions: int
    nodes: int
    row_operations: int
    row_bytes: int


def walk(model: onnx.ModelProto) -> Walked:
    """Follows a model without functions.

    Raises:
        RefusedError: anything that breaks a rule on operators, shapes, lanes or costs.
    """
    graph = model.graph
    for proto in graph.node:
        if proto.op_type not in OPERATORS:
            _refuse_operator(proto.op_type)
    inputs = _inputs(graph)
    try:  # attributes are of their types from here on
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        refuse("schema", f"onnx refuses its graph ({first_line(error)}).")
    values, costs = follow_graph(graph, inputs)
    action, following = (_check_output(values, name) for name in OUTPUTS)
    obs, state = (inputs[name] for name in INPUTS)
    if following.shape != state.shape:
        refuse("signature", f"'state_out' is {following.text()} and 'state' {state.text()}; both must be the same.")
    operations, size = costs[True]
    return Walked(obs.shape[1], state.shape[1], action.shape[1], len(graph.node), operations, size)


def follow_graph(
    graph: onnx.GraphProto, inputs: dict[str, Value]
) -> tuple[dict[str, Value], dict[bool, tuple[int, int]]]:
    """What is known of every value of a checked graph, and its costs.

    Returns:
        Values by name; multiply-adds and bytes a row (True), and of what depends on no row (False).
    """
    values = dict(inputs)
    for tensor in graph.initializer:
        array = array_of(tensor, f"weight {quoted(tensor.name)}")
        _add(values, tensor.name, Value(tensor.data_type, array.shape, data=array if array.size <= MAX_KNOWN else None))
    costs = {True: (0, 0), False: (0, 0)}
    for number, proto in enumerate(graph.node):
        node = Node(proto, [_find(values, name, number) if name else None for name in proto.input])
        results = _follow(node)
        _check_filled(node, results)
        if len(proto.output) > len(results):
            refuse("schema", f"{proto.op_type} has {len(proto.output)} outputs; it can have {len(results)}.")
        if any(value.dtype not in DTYPES for value in results):
            refuse("types", f"{proto.op_type} makes a value of a type that no policy needs.")
        for name, value in zip(proto.output, results, strict=False):
            if name:
                _add(values, name, value)
        by_row = any(value.lane is not None for value in (*results, *filter(None, node.inputs)))
        work = _OPERATIONS_AN_ELEMENT * sum(value.size for value in results) if node.work is None else node.work
        size = node.scratch + sum(value.size * DTYPES[value.dtype].itemsize for value in results)
        costs[by_row] = costs[by_row][0] + work, costs[by_row][1] + size
        _check_costs(node.op, by_row, *costs[by_row])  # at once: nothing large is followed any further
    return values, costs


def _follow(node: Node) -> tuple[Value, ...]:
    """The results of a node; a single one with its data where it follows from the file."""
    found = OPERATORS[node.op](node)
    if isinstance(found, tuple):
        node.check_lane_count()
        return found
    if found.data is None:
        found = dataclasses.replace(found, data=fold(node, found))
        if found.data is None:
            node.check_lane_count()
    elif found.size > MAX_KNOWN:
        found = dataclasses.replace(found, data=None)
    return (found,)


def _inputs(graph: onnx.GraphProto) -> dict[str, Value]:
    """The values of obs and state, whose first axis is that of the lanes."""
    given, returned = ([value.name for value in side] for side in (graph.input, graph.output))
    for kind, found, wanted in (("inputs", given, INPUTS), ("outputs", returned, OUTPUTS)):
        if sorted(found) != sorted(wanted):
            named = ", ".join(quoted(name)[1:-1] for name in found[:4]) or "none"
            refuse("signature", f"its {kind} are {named}; {' and '.join(wanted)} are needed.")
    values = {}
    for value in graph.input:
        kind = value.type.tensor_type
        dims = kind.shape.dim
        if value.type.WhichOneof("value") != "tensor_type" or kind.elem_type != TensorProto.FLOAT or len(dims) != 2:
            refuse("signature", f"its input '{value.name}' must be float32 of shape [lanes, width].")
        if dims[0].HasField("dim_value"):
            refuse(
                "fixed-batch",
                f"its input '{value.name}' takes {dims[0].dim_value} lanes and no other number; name the first axis in "
                "dynamic_shapes (or dynamic_axes) when exporting.",
            )
        if not dims[1].HasField("dim_value"):
            refuse(
                "signature",
                f"the width of its input '{value.name}' is {quoted(dims[1].dim_param)}; a number is needed.",
            )
        if not 0 <= dims[1].dim_value <= MAX_STATE:
            refuse("signature", f"its input '{value.name}' is {dims[1].dim_value} wide; 0 to {MAX_STATE} can be.")
        values[value.name] = Value(TensorProto.FLOAT, (1, dims[1].dim_value), 0)
    return values


def _check_output(values: dict[str, Value], name: str) -> Value:
    value = values.get(name)
    if value is None:
        refuse("schema", f"nothing computes its output '{name}'.")
    if value.lane is None:
        refuse("fixed-batch", f"its output '{name}' is {value.text()}, whatever the number of lanes.")
    if value.dtype != TensorProto.FLOAT or value.rank != 2 or value.lane != 0 or value.shape[0] != 1:
        refuse("signature", f"its output '{name}' is {value.text()}; float32 of shape [lanes, width] is needed.")
    return value


def _find(values: dict[str, Value], name: str, number: int) -> Value:
    if name not in values:
        refuse("schema", f"node {number} reads {quoted(name)}, which nothing before it computes.")
    return values[name]


def _add(values: dict[str, Value], name: str, value: Value) -> None:
    if name in values:
        refuse("schema", f"{quoted(name)} is computed twice.")
    values[name] = value


def _refuse_operator(name: str) -> NoReturn:
    if name in RANDOM:
        refuse("random", f"{name} draws random numbers; a decision follows from observation and state alone.")
    if name in ("If", "Loop", "Scan", "SequenceMap"):
        refuse("control-flow", "it has branches or loops; a decision is one pass through its graph.")
    refuse("operator", f"operator {quoted(name)} is not in the list of those that a policy may use.")


def _check_filled(node: Node, results: tuple[Value, ...]) -> None:
    """Refuses tensors without elements, of which some end onnxruntime's process; not an empty shape or state."""
    if node.op in ("Constant", "Identity"):
        return
    for value in (*filter(None, node.inputs), *results):
        if not value.size and (value.rank != 1 or value.dtype not in INTEGERS):
            refuse("shape", f"{node.op} takes or makes a tensor of shape {value.text()}, which holds nothing.")


def _check_costs(op: str, by_row: bool, operations: int, size: int) -> None:
    whose = "a row" if by_row else "beside the rows"
    most, largest = (MAX_ROW_OPERATIONS, MAX_ROW_BYTES) if by_row else (MAX_FIXED_OPERATIONS, MAX_FIXED_BYTES)
    if size > largest:
        refuse("memory", f"its graph takes {size:.3g} bytes of values {whose} up to {op}; {largest} are allowed.")
    if operations > most:
        refuse("operations", f"its graph takes {operations:.3g} multiply-adds {whose} up to {op}; {most} are allowed.")
