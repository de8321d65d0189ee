"""Files that a stranger could hand over as a policy, each with the rule that refuses it."""

from __future__ import annotations

import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from helm_gym.policies.onnx_export import origin_facts, stamp
from tests.conformance.policy import make_layout

LAYOUT = make_layout()
FACTS = origin_facts(LAYOUT, routes=False)
Write = Callable[[pathlib.Path], None]
HOSTILE: dict[str, tuple[str, Write]] = {}  # name -> rule, what writes the file

Nodes = Iterable[onnx.NodeProto]
node = helper.make_node


def weight(name: str, value: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


ENDS = (
    weight("mean_of", np.full((LAYOUT.width, 1), 1 / LAYOUT.width)),
    weight("one", [1], np.int64),
    weight("zero", [0], np.int64),
)


def model(
    nodes: Nodes = (),
    weights: Iterable[onnx.TensorProto] = (),
    action: str = "mean",
    following: str = "state",
    state: Any = 2,
    lanes: Any = "lanes",
    opset: int = 17,
) -> onnx.ModelProto:
    """A policy that acts by the mean of what it sees, and ``nodes`` behind it that make ``action`` or ``following``."""
    kinds = [("obs", LAYOUT.width), ("state", state), ("action", 1), ("state_out", state)]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [lanes, width]) for name, width in kinds]
    graph = helper.make_graph(
        [
            node("MatMul", ["obs", "mean_of"], ["mean"]),
            *nodes,
            node("Identity", [action], ["action"]),
            node("Identity", [following], ["state_out"]),
        ],
        "hostile",
        inputs[:2],
        inputs[2:],
        [*ENDS, *weights],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made


def stamped(made: onnx.ModelProto, **facts: Any) -> bytes:
    return stamp(made, FACTS | facts)


def hostile(name: str, rule: str, content: bytes | onnx.ModelProto | Write) -> None:
    def write(path: pathlib.Path) -> None:
        if callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else stamped(content))

    assert name not in HOSTILE
    HOSTILE[name] = rule, write


def with_(*nodes: onnx.NodeProto, weights: Iterable[onnx.TensorProto] = (), **kinds: Any) -> onnx.ModelProto:
    """A model whose action is ``x``, made by ``nodes``."""
    return model(nodes, weights, action="x", **kinds)


def summed(value: str) -> list[onnx.NodeProto]:
    """``x`` (lanes, 1): the mean, and nothing of the sum over ``value``, which is computed all the same."""
    total = node("ReduceSum", [value], ["total"], keepdims=0)
    return [total, node("Mul", ["total", "nought"], ["nothing"]), node("Add", ["mean", "nothing"], ["x"])]


NOUGHT = weight("nought", 0.0)


def _edited(edit: Callable[[onnx.ModelProto], Any], made: onnx.ModelProto | None = None) -> onnx.ModelProto:
    made = made or model()
    edit(made)
    return made


# What is not to be read


def _to_zero(path: pathlib.Path) -> None:
    path.symlink_to("/dev/zero")


def _large(path: pathlib.Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 * 2**30)  # a hole: no disk is needed


def _zip(path: pathlib.Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "{}")


hostile("missing", "file", lambda path: None)
hostile("folder", "file", lambda path: path.mkdir())
hostile("link_to_zero", "file", _to_zero)
hostile("pipe", "file", lambda path: os.mkfifo(path))
hostile("dangling_link", "file", lambda path: path.symlink_to("nowhere.onnx"))
hostile("large", "size", _large)
hostile("empty", "format", b"")
hostile("pickle", "format", pickle.dumps({"a": np.arange(5)}))
hostile("zip", "format", _zip)
hostile("truncated", "format", stamped(model())[:-40])


# What is large


def _nested(depth: int, calls: int) -> onnx.ModelProto:
    """Functions that each call the next one so often: calls^depth nodes."""
    made = model([node("f0", ["mean"], ["x"], domain="own")], action="x")
    for level in range(depth):
        inner = "Neg" if level == depth - 1 else f"f{level + 1}"
        domain = "own" if "f" in inner else ""
        body = [node(inner, [f"v{k}"], [f"v{k + 1}"], domain=domain) for k in range(calls)]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        made.functions.append(helper.make_function("own", f"f{level}", ["v0"], [f"v{calls}"], body, opsets))
    made.opset_import.append(helper.make_opsetid("own", 1))
    return made


def _claimed(*dims: int) -> onnx.ModelProto:
    made = model()
    made.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"1234"))
    return made


def _many_messages() -> bytes:
    """Four million nodes of two bytes each."""
    nodes = b"\x0a\x00" * (4 * 2**20 - 16)
    length, size = b"", len(nodes)
    while size:
        length += bytes([size & 127 | (128 if size > 127 else 0)])
        size >>= 7
    return b"\x3a" + length + nodes


SIDE = weight("side", [4096, 4096], np.int64)
FILL = node("ConstantOfShape", ["side"], ["big"], value=weight("", [0.001]))
hostile(
    "matmuls",
    "memory",
    model(
        [
            FILL,
            *(node("MatMul", [f"p{k}" if k else "big", "big"], [f"p{k + 1}"]) for k in range(300)),
            *summed("p300"),
        ],
        [SIDE, NOUGHT],
        action="x",
    ),
)
# 300 products of 1,000 x 1,000: within what memory allows, were it not for the time
hostile(
    "row_matmuls",
    "operations",
    model(
        [
            node("ConstantOfShape", ["square"], ["big"], value=weight("", [0.0])),
            node("Expand", ["mean", "wide"], ["p0"]),
            *(node("MatMul", [f"p{k}", "big"], [f"p{k + 1}"]) for k in range(300)),
            *(node("ReduceMean", ["p300"], ["x"], axes=[1]),),
        ],
        [weight("square", [1000, 1000], np.int64), weight("wide", [1, 1000], np.int64)],
        action="x",
    ),
)
hostile("nested_functions", "nodes", _nested(7, 14))
hostile("deep_functions", "functions", _nested(26, 2))
hostile("state_width", "signature", model(state=50_000_000))
hostile("claimed_gigabyte", "constants", _claimed(2**14, 2**14))
hostile("claimed_overflow", "shape", _claimed(2**62, 2**62))
hostile("claimed_product", "constants", _claimed(*[2**24] * 8))
hostile("negative_dims", "shape", _claimed(-1, -1))
hostile("many_messages", "nodes", _many_messages())
hostile(
    "many_parts", "nodes", _edited(lambda m: [m.graph.value_info.add() for _ in range(300_000)]).SerializeToString()
)
hostile("names_of_bytes", "format", stamped(model()).replace(b"hostile", b"\xff\xfe\xfd\xfc\xff\xff\xff"))
hostile("metadata_of_bytes", "format", stamped(model(), note="abcdef").replace(b"abcdef", b"\xff\xfe\xfd\xfc\xff\xff"))
hostile("many_inputs", "nodes", with_(node("Sum", ["mean"] * 60_000, ["x"])))
hostile("many_metadata", "metadata", stamped(model(), **{f"k{k}": "v" for k in range(100)}))
hostile("enormous_metadata", "metadata", stamped(model(), note="x" * 5_000_000))
hostile(
    "many_nodes",
    "nodes",
    with_(*(node("Neg", ["mean" if k == 0 else f"n{k}"], [f"n{k + 1}"]) for k in range(6000)),
          node("Neg", ["n6000"], ["x"])),
)  # fmt: skip
hostile(
    "many_axes",
    "shape",
    with_(
        node("Unsqueeze", ["mean", "all"], ["deep"]),
        node("ReduceSum", ["deep"], ["x"]),
        weights=[weight("all", range(2000), np.int64)],
    ),
)


def bomb(name: str, rule: str, *nodes: onnx.NodeProto, **sizes: Any) -> None:
    weights = [weight(key, value, np.int64) for key, value in sizes.items()]
    hostile(name, rule, model([*nodes, *summed("bomb")], [*weights, NOUGHT], action="x"))


bomb("constant_of_shape", "shape", node("ConstantOfShape", ["size"], ["bomb"]), size=[10**9])
bomb("constant_of_axes", "memory", node("ConstantOfShape", ["size"], ["bomb"]), size=[10**4, 10**5])
bomb("expand", "memory", node("Expand", ["mean", "size"], ["bomb"]), size=[1, 1, 10**6])
bomb("expand_fixed", "memory", node("Expand", ["mean_of", "size"], ["bomb"]), size=[10**6, 46, 1])
bomb("tile", "memory", node("Tile", ["mean", "size"], ["bomb"]), size=[1, 10**6])
bomb("range", "memory", node("Range", ["first", "last", "step"], ["bomb"]), first=0, last=16 * 10**6, step=1)
bomb("endless_range", "shape", node("Range", ["first", "last", "step"], ["bomb"]), first=0, last=5, step=0)
bomb("pad", "memory", node("Pad", ["mean", "size"], ["bomb"]), size=[0, 0, 0, 10**7])
bomb("resize", "operator", node("Resize", ["mean", "", "", "size"], ["bomb"]), size=[1, 10**9])
bomb("one_hot", "memory", node("Cast", ["mean"], ["k"], to=7), node("OneHot", ["k", "size", "two"], ["bomb"]),
     size=10**7, two=[0, 1])  # fmt: skip
bomb("doublings", "memory", *(node("Concat", [f"d{k}" if k else "mean"] * 2, [f"d{k + 1}"], axis=1) for k in range(60)),
     node("Identity", ["d60"], ["bomb"]))  # fmt: skip
bomb(
    "squares",
    "shape",
    *(node("Mul", [f"s{k}" if k else "size"] * 2, [f"s{k + 1}"]) for k in range(20)),
    node("ConstantOfShape", ["s20"], ["bomb"]),
    size=[3],
)
bomb("rows_by_rows", "across-lanes", node("Transpose", ["obs"], ["t"]), node("MatMul", ["obs", "t"], ["bomb"]))
bomb(
    "expand_by_rows",
    "lane-count",
    node("Shape", ["obs"], ["shape"]),
    node("Gather", ["shape", "zero"], ["n"]),
    node("Concat", ["n", "n"], ["square"], axis=0),
    node("ConstantOfShape", ["square"], ["bomb"]),
)
bomb(
    "tile_by_rows",
    "across-lanes",
    node("Shape", ["obs"], ["shape"]),
    node("Tile", ["obs", "shape"], ["bomb"]),
)
bomb("data_decides", "shape", node("Cast", ["state"], ["k"], to=7), node("ConstantOfShape", ["k"], ["bomb"]))


# What is not allowed


def _external(location: str) -> onnx.ModelProto:
    def edit(made: onnx.ModelProto) -> None:
        tensor = made.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return _edited(edit)


def _external_link(path: pathlib.Path) -> None:
    (path.parent / "weights.bin").symlink_to("/etc/passwd")
    path.write_bytes(stamped(_external("weights.bin")))


def _recursive(*names: str) -> onnx.ModelProto:
    made = model([node(names[0], ["mean"], ["x"], domain="own")], action="x")
    for name, following in zip(names, (*names[1:], names[0]), strict=True):
        opsets = [helper.make_opsetid("own", 1)]
        body = [node(following, ["a"], ["b"], domain="own")]
        made.functions.append(helper.make_function("own", name, ["a"], ["b"], body, opsets))
    made.opset_import.append(helper.make_opsetid("own", 1))
    return made


def _branch() -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Identity", ["mean"], ["y"])], "body", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    )
    condition = [node("ReduceMax", ["mean"], ["m"]), node("Cast", ["m"], ["c"], to=9)]
    return with_(*condition, node("If", ["c"], ["x"], then_branch=body, else_branch=body))


def _loop(kind: str) -> onnx.ModelProto:
    return with_(node(kind, ["one", "", "mean"], ["x"], body=helper.make_graph([], "body", [], [])))


hostile("external_relative", "external-data", _external("../../etc/passwd"))
hostile("external_absolute", "external-data", _external("/etc/passwd"))
hostile("external_link", "external-data", _external_link)
hostile("branch", "control-flow", _branch())
hostile("loop", "control-flow", _loop("Loop"))
hostile("scan", "control-flow", _loop("Scan"))
hostile("custom_domain", "domain", with_(node("Evil", ["mean"], ["x"], domain="com.evil")))
hostile("microsoft_domain", "domain", with_(node("FusedMatMul", ["obs", "mean_of"], ["x"], domain="com.microsoft")))
hostile("gradient", "domain", with_(node("Gradient", ["mean"], ["x"], domain="ai.onnx.preview.training")))
hostile("trees", "domain", with_(node("TreeEnsembleRegressor", ["obs"], ["x"], domain="ai.onnx.ml")))
hostile("own_default_domain", "functions",
        _edited(lambda m: m.functions.append(helper.make_function("", "Neg", ["a"], ["b"], [node("Exp", ["a"], ["b"])],
                                                                  [helper.make_opsetid("", 17)]))))  # fmt: skip
hostile("training_info", "training", _edited(lambda m: m.training_info.add()))
hostile(
    "dropout",
    "training",
    with_(node("Dropout", ["mean", "", "on"], ["x"]), weights=[weight("on", True, bool)]),
)
hostile(
    "batch_norm",
    "training",
    with_(
        node("BatchNormalization", ["mean", *"abcd"], ["x", "y", "z"], training_mode=1),
        weights=[weight(k, [1.0]) for k in "abcd"],
    ),
)
hostile("recursion", "functions", _recursive("f"))
hostile("mutual_recursion", "functions", _recursive("f", "g", "h"))
hostile("strings", "types", _edited(lambda m: m.graph.initializer.append(helper.make_tensor("s", 8, [1], [b"x"]))))
hostile("sparse", "types", _edited(lambda m: m.graph.sparse_initializer.add()))
hostile("half", "types", with_(node("Cast", ["mean"], ["h"], to=10), node("Cast", ["h"], ["x"], to=1)))
hostile("sequence", "operator", with_(node("SequenceConstruct", ["mean"], ["s"]),
                                      node("SequenceAt", ["s", "zero"], ["x"])))  # fmt: skip
hostile("optional", "operator", with_(node("Optional", ["mean"], ["s"]),
                                      node("OptionalGetElement", ["s"], ["x"])))  # fmt: skip
hostile("unknown_operator", "operator", with_(node("Teleport", ["mean"], ["x"])))
hostile("unique", "operator", with_(node("Unique", ["mean"], ["u"]), *summed("u"), weights=[NOUGHT]))
hostile("sequence_input", "signature",
        _edited(lambda m: m.graph.input[1].type.CopyFrom(
            helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [1])))))  # fmt: skip
hostile("constant_nan", "constants", _edited(lambda m: m.graph.initializer.append(weight("w", [np.nan]))))
hostile("constant_bool", "constants",
        _edited(lambda m: m.graph.initializer.append(
            TensorProto(name="w", data_type=9, dims=[4], raw_data=b"\x00\x01\x02\xff"))))  # fmt: skip
hostile("future_opset", "opset", model(opset=99))
hostile("past_opset", "opset", model(opset=9))
hostile("two_opsets", "opset", _edited(lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 18))))
hostile("future_ir", "format", _edited(lambda m: setattr(m, "ir_version", 99)))
hostile("future_fields", "format", stamped(model()) + b"\xfa\x7f\x03new")
hostile("fixed_batch", "fixed-batch", model(lanes=1))
hostile("computed_twice", "schema", with_(node("Neg", ["mean"], ["x"]), node("Abs", ["mean"], ["x"])))
hostile("computed_never", "schema", with_(node("Add", ["mean", "nowhere"], ["x"])))
hostile("circle", "schema", with_(node("Add", ["mean", "y"], ["x"]), node("Neg", ["x"], ["y"])))
hostile("unknown_attribute", "schema", with_(node("Neg", ["mean"], ["x"], speed=9)))
hostile("wide_action", "signature", with_(node("Concat", ["mean", "mean"], ["x"], axis=1)))
hostile("no_checksum", "checksum", model().SerializeToString())
hostile("old_checksum", "checksum", _edited(lambda m: m.metadata_props.add(key="checksum", value="0" * 64))
        .SerializeToString())  # fmt: skip
hostile("changed", "checksum", stamped(model()).replace(b"hostile", b"gostile"))
hostile("other_profile", "made-for", stamped(model(), profile="h200", profile_fingerprint="0"))
hostile("no_window", "metadata", stamp(model(), {key: value for key, value in FACTS.items() if key != "window"}))
hostile("action_kind", "action", stamped(model(), action="absolute"))
hostile("strange_origin", "metadata", stamped(model(), requests="9" * 5000))
hostile(
    "strange_names",
    "operator",
    with_(node("\x1b[2J<script>alert(1)</script>../../etc/passwd\n" * 50, ["mean"], ["x"], name="\x1b]0;x\x07")),
)
hostile("strange_profile", "metadata", stamped(model(), profile="\x1b[31m" * 900, profile_fingerprint="<b>" * 900))
hostile("strange_domain", "domain", with_(node("N", ["mean"], ["x"], domain="\x1b[2J\u202e" * 50)))
hostile("strange_input", "signature", _edited(lambda m: setattr(m.graph.input[0], "name", "\x1b[2J" * 500)))

for kind in ("RandomNormalLike", "RandomUniformLike", "Bernoulli"):
    hostile(kind, "random", with_(node(kind, ["mean"], ["x"])))
for kind in ("RandomNormal", "RandomUniform"):
    hostile(kind, "random", with_(node(kind, [], ["r"], shape=[1, 1]), node("Add", ["r", "mean"], ["x"])))
hostile("Multinomial", "random", with_(node("Multinomial", ["obs"], ["r"]), node("Cast", ["r"], ["x"], to=1)))


# What joins lanes, or counts them


def across(name: str, rule: str, *nodes: onnx.NodeProto, **weights: Any) -> None:
    hostile(name, rule, with_(*nodes, weights=[weight(key, value, np.int64) for key, value in weights.items()]))


for kind in ("ReduceMean", "ReduceMax", "ReduceL2", "ReduceProd"):
    across(f"{kind}_lanes", "across-lanes", node(kind, ["mean"], ["m"], axes=[0]), node("Sub", ["mean", "m"], ["x"]))
across("ReduceSum_lanes", "across-lanes", node("ReduceSum", ["mean", "zero"], ["m"]), node("Sub", ["mean", "m"], ["x"]))
across("ReduceAll", "across-lanes", node("ReduceSum", ["mean"], ["m"]), node("Sub", ["mean", "m"], ["x"]))
across("Softmax_lanes", "across-lanes", node("Softmax", ["mean"], ["x"], axis=0))
across("CumSum_lanes", "across-lanes", node("CumSum", ["mean", "zero"], ["x"]))
across("TopK_lanes", "across-lanes", node("TopK", ["mean", "one"], ["x", "where"], axis=0))
across("ArgMax_lanes", "across-lanes", node("ArgMax", ["mean"], ["w"], axis=0), node("Gather", ["mean", "w"], ["x"]))
across("Concat_lanes", "across-lanes", node("Concat", ["mean", "mean"], ["x"], axis=0))
across("Slice_lanes", "across-lanes", node("Slice", ["mean", "zero", "one"], ["f"]), node("Sub", ["mean", "f"], ["x"]))
across("Gather_lanes", "across-lanes", node("Gather", ["mean", "zero"], ["f"]), node("Sub", ["mean", "f"], ["x"]))
across("Pad_lanes", "across-lanes", node("Pad", ["mean", "by"], ["x"]), by=[1, 0, -1, 0])
across("Reverse_lanes", "across-lanes", node("Slice", ["mean", "end", "start", "zero", "back"], ["x"]),
       start=[-(2**63) + 1], end=[-1], back=[-1])  # fmt: skip
across("Split_lanes", "across-lanes", node("Split", ["mean"], ["x"]))
across("Outer", "across-lanes", node("Transpose", ["mean"], ["t"]), node("Add", ["mean", "t"], ["o"]),
       node("ReduceMean", ["o"], ["x"], axes=[1]))  # fmt: skip
across("MatMul_lanes", "across-lanes", node("Transpose", ["mean"], ["t"]), node("MatMul", ["t", "mean"], ["g"]),
       node("Mul", ["mean", "g"], ["x"]))  # fmt: skip
across("Gemm_lanes", "across-lanes", node("Gemm", ["mean", "mean"], ["g"], transA=1), node("Mul", ["mean", "g"], ["x"]))
across("Einsum_lanes", "across-lanes", node("Einsum", ["mean", "mean"], ["g"], equation="ni,nj->ij"),
       node("Mul", ["mean", "g"], ["x"]))  # fmt: skip
across("Reshape_lanes", "across-lanes", node("Reshape", ["obs", "turned"], ["r"]), node("Transpose", ["r"], ["s"]),
       node("ReduceMean", ["s"], ["x"], axes=[1]), turned=[46, -1])  # fmt: skip
across("LayerNorm_lanes", "across-lanes", node("LayerNormalization", ["mean", "mean"], ["x"], axis=0))
across("Transposed_softmax", "across-lanes", node("Transpose", ["mean"], ["t"]), node("Softmax", ["t"], ["s"]),
       node("Transpose", ["s"], ["x"]))  # fmt: skip
across("lane_count", "lane-count", node("Shape", ["obs"], ["s"]), node("Gather", ["s", "zero"], ["n"]),
       node("Cast", ["n"], ["f"], to=1), node("Mul", ["mean", "f"], ["x"]))  # fmt: skip
across("lane_number", "lane-count", node("Shape", ["obs"], ["s"]), node("Gather", ["s", "zero"], ["n"]),
       node("Squeeze", ["n"], ["m"]), node("Squeeze", ["zero"], ["z"]), node("Squeeze", ["one"], ["o"]),
       node("Range", ["z", "m", "o"], ["r"]), node("Cast", ["r"], ["f"], to=1), node("Unsqueeze", ["f", "one"], ["g"]),
       node("Add", ["mean", "g"], ["x"]))  # fmt: skip
across("lane_switch", "lane-count", node("Shape", ["obs"], ["s"]), node("Gather", ["s", "zero"], ["n"]),
       node("Equal", ["n", "seven"], ["e"]), node("Where", ["e", "huge", "one"], ["w"]),
       node("ConstantOfShape", ["w"], ["b"]), node("ReduceSum", ["b"], ["t"]), node("Add", ["mean", "t"], ["x"]),
       seven=[7], huge=[10**9])  # fmt: skip
across("squeezed_lanes", "fixed-batch", node("Squeeze", ["mean"], ["q"]), node("Unsqueeze", ["q", "one"], ["x"]))
across("baked_batch", "fixed-batch", node("Reshape", ["mean", "shape"], ["x"]), shape=[2, 1])
across("constant_rows", "fixed-batch", node("ConstantOfShape", ["shape"], ["x"]), shape=[1, 1])
across("added_rows", "fixed-batch", node("ConstantOfShape", ["shape"], ["c"]), node("Add", ["mean", "c"], ["x"]),
       shape=[5, 1])  # fmt: skip
# The least integer over -1 ends the process in onnxruntime
across("least_integer", "integer-division", node("Cast", ["mean"], ["k"], to=7), node("Mul", ["k", "nil"], ["z"]),
       node("Add", ["z", "least"], ["l"]), node("Div", ["l", "by"], ["q"]), node("Cast", ["q"], ["x"], to=1),
       nil=[0], least=[-(2**63)], by=[-1])  # fmt: skip
across("integer_by_data", "integer-division", node("Cast", ["mean"], ["k"], to=7), node("Mod", ["k", "k"], ["q"]),
       node("Cast", ["q"], ["x"], to=1))  # fmt: skip

# So does a recurrent operator over nothing
across("empty_recurrence", "shape", node("Slice", ["obs", "one", "zero", "one"], ["none"]),
       node("Unsqueeze", ["none", "zero"], ["steps"]),
       node("ConstantOfShape", ["w_shape"], ["w"]), node("ConstantOfShape", ["r_shape"], ["r"]),
       node("LSTM", ["steps", "w", "r"], ["y", "h"], hidden_size=1), node("Squeeze", ["h", "zero"], ["x"]),
       w_shape=[1, 4, 0], r_shape=[1, 4, 1])  # fmt: skip


# What only shows when it runs

hostile("nan", "finite", with_(node("Sub", ["mean", "mean"], ["z"]), node("Div", ["z", "z"], ["x"])))
hostile("infinite", "finite", with_(node("Sub", ["mean", "mean"], ["z"]), node("Reciprocal", ["z"], ["x"])))
hostile(
    "infinite_state",
    "finite",
    model(
        [node("Add", ["state", "lots"], ["s"]), node("Mul", ["s", "s"], ["more"])],
        [weight("lots", 1e15)],
        following="more",
    ),
)
hostile("infinite_at_the_bounds", "finite",
        with_(node("ReduceMin", ["obs"], ["m"], axes=[1]), node("Add", ["m", "one_f"], ["p"]),
              node("Log", ["p"], ["x"]), weights=[weight("one_f", 1.0)]))  # fmt: skip
hostile("index_out_of_range", "runtime",
        with_(node("Cast", ["mean"], ["k"], to=7), node("Add", ["k", "far"], ["l"]),
              node("Gather", ["row", "l"], ["x"]),
              weights=[weight("far", 1000, np.int64), weight("row", [1.0, 2.0])]))  # fmt: skip
