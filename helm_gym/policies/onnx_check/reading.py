"""From a path to bytes and from bytes to a model, neither of them trusted."""

from __future__ import annotations

import pathlib

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import AttributeProto

from helm_gym import files
from helm_gym.policies.onnx_check.rules import (
    MAX_FILE_BYTES,
    MAX_IR,
    MAX_METADATA_BYTES,
    MAX_METADATA_ENTRIES,
    MAX_NODES,
    MAX_OPSET,
    MAX_PARTS,
    MAX_VALUES,
    MIN_IR,
    MIN_OPSET,
    quoted,
    refuse,
)
from helm_gym.policies.onnx_check.tensors import array_of

DEFAULT_DOMAINS = ("", "ai.onnx")
_SUBGRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_ALLOWED = (
    AttributeProto.FLOAT,
    AttributeProto.FLOATS,
    AttributeProto.INT,
    AttributeProto.INTS,
    AttributeProto.STRING,
    AttributeProto.STRINGS,  # activations of a recurrent operator
    AttributeProto.TENSOR,
)


def read_file(path: pathlib.Path) -> bytes:
    """The bytes of a regular file, or of one that a link leads to; what blocks or never ends is not waited for.

    Raises:
        RefusedError: no such file, a folder, device or pipe, or more than ``MAX_FILE_BYTES``.
    """
    try:
        content = files.read_start(path, MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        refuse("file", f"it cannot be read: {files.reason(error)}; give an .onnx file.")
    check_size(len(content))
    return content


def check_size(length: int) -> None:
    if length > MAX_FILE_BYTES:
        refuse("size", f"it is larger than {MAX_FILE_BYTES // 2**20} MiB; no controller needs as much.")


def parse(content: bytes) -> onnx.ModelProto:
    """The model, its parts counted and of kinds that a policy may have.

    Raises:
        RefusedError: anything that can be told without following the graph.
    """
    check_size(len(content))
    try:
        model = onnx.ModelProto.FromString(content)
    except (DecodeError, ValueError):
        refuse("format", "it is no ONNX file, or a broken one; export it again.")
    if not model.HasField("graph"):
        refuse("format", "it is no ONNX file: it holds no graph.")
    _check_counts(model)  # first: what follows looks at each part
    try:
        _check_parts(model)
    except UnicodeDecodeError:  # as protobuf says of texts in a list; a text alone it returns as bytes
        refuse("format", "it has names that are no text: it is no ONNX file, or a broken one.")
    if not MIN_IR <= model.ir_version <= MAX_IR:
        refuse("format", f"its IR version is {model.ir_version}; {MIN_IR} to {MAX_IR} can be read.")
    _check_metadata(model)
    if model.training_info:
        refuse("training", "it carries training information; export the model for inference.")
    if model.graph.sparse_initializer or model.graph.quantization_annotation:
        refuse("types", "it has sparse or quantised weights; export plain ones.")
    _check_opsets(model)
    for function in model.functions:
        _check_nodes(function.node, function.attribute_proto)
    _check_nodes(model.graph.node)
    for tensor in model.graph.initializer:
        array_of(tensor, f"weight {quoted(tensor.name)}")
    known = onnx.ModelProto()
    known.CopyFrom(model)
    known.DiscardUnknownFields()
    if known.ByteSize() != model.ByteSize():
        refuse("format", "it has fields that this version of onnx does not know; export it with an older opset.")
    return model


def _check_metadata(model: onnx.ModelProto) -> None:
    entries = model.metadata_props
    if len(entries) > MAX_METADATA_ENTRIES or sum(e.ByteSize() for e in entries) > MAX_METADATA_BYTES:
        refuse(
            "metadata",
            f"it has more metadata than {MAX_METADATA_ENTRIES} entries and {MAX_METADATA_BYTES // 2**10} KiB.",
        )
    if len({entry.key for entry in entries}) < len(entries):
        refuse("metadata", "it has a metadata entry twice.")


def _check_counts(model: onnx.ModelProto) -> None:
    graph, functions = model.graph, model.functions
    counts = (len(graph.node), len(graph.initializer), len(functions), len(graph.input), len(graph.output))
    if max(counts) > MAX_NODES or sum(len(f.node) for f in functions) + len(graph.node) > MAX_NODES:
        refuse("nodes", f"it has more than {MAX_NODES} nodes, weights or functions.")
    nodes = [*graph.node, *(node for function in functions for node in function.node)]
    if sum(len(n.input) + len(n.output) + len(n.attribute) for n in nodes) > MAX_VALUES:
        refuse("nodes", f"its nodes have more than {MAX_VALUES} inputs, outputs and attributes.")


def _check_parts(model: onnx.ModelProto) -> None:
    """Counts the messages that a model is made of, and reads every text in them."""
    parts: list[Message] = [model]
    seen = 0
    while parts:
        for field, value in parts.pop().ListFields():
            several = not isinstance(value, str | bytes | int | float | Message)
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                parts.extend(value if several else [value])
            elif field.type == FieldDescriptor.TYPE_STRING:
                for text in value if several else [value]:
                    if not isinstance(text, str):
                        refuse("format", "it has names that are no text: it is no ONNX file, or a broken one.")
        seen += 1
        if seen + len(parts) > MAX_PARTS:
            refuse("nodes", f"it is made of more than {MAX_PARTS} parts.")


def _check_opsets(model: onnx.ModelProto) -> None:
    versions = [entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS]
    if len(versions) != 1 or not MIN_OPSET <= versions[0] <= MAX_OPSET:
        found = ", ".join(str(version) for version in versions[:4]) or "none"
        refuse("opset", f"its default operator set has version {found}; one of {MIN_OPSET} to {MAX_OPSET} is needed.")


def _check_nodes(nodes: list[onnx.NodeProto], defaults: list[AttributeProto] | tuple[()] = ()) -> None:
    for attribute in [*(a for node in nodes for a in node.attribute), *defaults]:
        if attribute.type in _SUBGRAPHS or attribute.HasField("g") or attribute.graphs:
            refuse("control-flow", "it has branches or loops; a decision is one pass through its graph.")
        strange = attribute.HasField("sparse_tensor") or attribute.HasField("tp") or attribute.tensors
        if strange or attribute.sparse_tensors or attribute.type_protos or attribute.type not in _ALLOWED:
            refuse("types", f"attribute {quoted(attribute.name)} is of a type that no policy needs.")
        if attribute.HasField("t"):
            array_of(attribute.t, f"the constant of attribute {quoted(attribute.name)}")
