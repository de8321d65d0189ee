"""A graph with the bodies of its functions in place of their calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import onnx

from helm_gym.policies.onnx_check.reading import DEFAULT_DOMAINS
from helm_gym.policies.onnx_check.rules import MAX_FILE_BYTES, MAX_FUNCTION_DEPTH, MAX_NODES, quoted, refuse

Key = tuple[str, str, str]


def expand(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without functions, and without what no run needs: metadata, descriptions, intermediate types.

    Raises:
        RefusedError: a function that calls itself, nests too deep or grows too large; an operator of a domain that
            neither is the default one nor in the file.
    """
    flat = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    version = next(entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS)
    flat.opset_import.add(domain="", version=version)
    graph = flat.graph
    graph.name = "policy"
    for name in ("initializer", "input", "output"):
        getattr(graph, name).extend(getattr(model.graph, name))
    _Expansion(model, version).expand(model.graph.node, graph, {}, {}, ())
    return flat


@dataclasses.dataclass
class _Expansion:
    model: onnx.ModelProto
    version: int
    nodes: int = 0
    size: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        self.functions: dict[Key, onnx.FunctionProto] = {}
        for function in self.model.functions:
            key = function.domain, function.name, function.overload
            if key in self.functions or function.domain in DEFAULT_DOMAINS:
                refuse("functions", f"function {quoted(function.name)} is there twice, or in the default domain.")
            self.functions[key] = function
            versions = {entry.version for entry in function.opset_import if entry.domain in DEFAULT_DOMAINS}
            if versions - {self.version}:
                refuse("functions", f"function {quoted(function.name)} needs another operator set than the model.")

    def expand(
        self,
        nodes: Iterable[onnx.NodeProto],
        graph: onnx.GraphProto,
        names: Mapping[str, str],
        attributes: Mapping[str, onnx.AttributeProto],
        callers: tuple[Key, ...],
    ) -> None:
        """Appends ``nodes`` to ``graph``; inside of a function with names of its own and the call's attributes."""
        prefix = f"call{self.calls}/" if callers else ""

        def renamed(name: str) -> str:
            return names.get(name, f"{prefix}{name}") if name and callers else name

        for node in nodes:
            self.nodes += 1
            self.size += node.ByteSize()
            if self.nodes > MAX_NODES or self.size > 2 * MAX_FILE_BYTES:
                refuse("nodes", f"its functions expand to more than {MAX_NODES} nodes, or {2 * MAX_FILE_BYTES} bytes.")
            key = node.domain, node.op_type, node.overload
            if node.domain not in DEFAULT_DOMAINS and key not in self.functions:
                refuse("domain", f"operator {quoted(node.op_type)} of domain {quoted(node.domain)} is not allowed.")
            copy = onnx.NodeProto(op_type=node.op_type, name=renamed(node.name) if node.name else "")
            copy.input.extend(map(renamed, node.input))
            copy.output.extend(map(renamed, node.output))
            for attribute in node.attribute:
                if not attribute.ref_attr_name:
                    copy.attribute.add().CopyFrom(attribute)
                elif attribute.ref_attr_name in attributes:
                    copied = copy.attribute.add()
                    copied.CopyFrom(attributes[attribute.ref_attr_name])
                    copied.name = attribute.name
            for attribute in copy.attribute:
                attribute.doc_string = ""
            if node.domain in DEFAULT_DOMAINS:
                graph.node.append(copy)
            else:
                self._call(self.functions[key], copy, graph, (*callers, key))

    def _call(
        self, function: onnx.FunctionProto, call: onnx.NodeProto, graph: onnx.GraphProto, callers: tuple[Key, ...]
    ) -> None:
        if len(set(callers)) < len(callers):
            refuse("functions", f"function {quoted(function.name)} calls itself.")
        if len(callers) > MAX_FUNCTION_DEPTH:
            refuse("functions", f"its functions nest more than {MAX_FUNCTION_DEPTH} deep.")
        if len(call.input) > len(function.input) or len(call.output) > len(function.output):
            refuse("schema", f"function {quoted(function.name)} is called with more values than it has.")
        self.calls += 1
        names = dict.fromkeys(function.input, "")
        names |= dict(zip(function.input, call.input, strict=False))
        names |= {inside: outside for inside, outside in zip(function.output, call.output, strict=False) if outside}
        attributes = {attribute.name: attribute for attribute in function.attribute_proto}
        attributes |= {attribute.name: attribute for attribute in call.attribute}
        self.expand(function.node, graph, names, attributes, callers)
