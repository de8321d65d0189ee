"""A node as the walk hands it to its operator's rule: what it reads, its attributes, and what it will cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import onnx
from onnx.helper import get_attribute_value

from helm_gym.policies.onnx_check.rules import refuse
from helm_gym.policies.onnx_check.values import INTEGERS, Length, Value


class Node:
    """One node, its inputs known.

    Attributes:
        op: the operator.
        inputs: a value each; None for an optional one that is left out.
        work: multiply-adds that it takes, of each lane where its results have lanes; None for ten an element of its
            results, about what a transcendental function costs.
        scratch: bytes beside its results.
    """

    def __init__(self, proto: onnx.NodeProto, inputs: Sequence[Value | None]):
        self.op, self.outputs, self.inputs = proto.op_type, len(proto.output), inputs
        self.work: int | None = None
        self.scratch = 0
        self._attributes = {attribute.name: attribute for attribute in proto.attribute}
        self._sizes: set[int] = set()

    def has(self, number: int) -> bool:
        return number < len(self.inputs) and self.inputs[number] is not None

    def given(self) -> list[Value]:
        """All inputs that are not left out; at least one."""
        values = [value for value in self.inputs if value is not None]
        return values or [self.input(0)]

    def input(self, number: int) -> Value:
        value = self.inputs[number] if self.has(number) else None
        if value is None:
            refuse("schema", f"Input {number} of {self.op} is missing.")
        return value

    def fixed(self, number: int) -> Value:
        """An input that may not depend on a lane, such as a convolution's weights."""
        value = self.input(number)
        if value.lane is not None:
            refuse("across-lanes", f"Input {number} of {self.op} is {value.text()}; it must be the same for all lanes.")
        return value

    def lengths(self, number: int) -> list[Length]:
        """An input as the numbers of a shape, which must follow from the file and the number of lanes."""
        value = self.input(number)
        if value.data is None or value.dtype not in INTEGERS:
            refuse("shape", f"Input {number} of {self.op} decides a shape and is not known before the graph runs.")
        self._sizes.add(number)
        return [n if not isinstance(n, int | np.integer) else int(n) for n in value.data.reshape(-1).tolist()]

    def integers(self, number: int) -> list[int]:
        """The same where the number of lanes is none of them."""
        numbers = [n for n in self.lengths(number) if isinstance(n, int)]
        if len(numbers) != self.input(number).size:
            refuse("lane-count", f"Input {number} of {self.op} depends on the number of lanes.")
        return numbers

    def integer(self, number: int) -> int:
        numbers = self.integers(number)
        if len(numbers) != 1:
            refuse("schema", f"Input {number} of {self.op} has {len(numbers)} elements; one is needed.")
        return numbers[0]

    def attribute(self, name: str, default: Any = None) -> Any:
        found = self._attributes.get(name)
        return default if found is None else get_attribute_value(found)

    def text(self, name: str, default: str) -> str:
        value = self.attribute(name, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def tensor(self, name: str) -> onnx.TensorProto | None:
        found = self._attributes.get(name)
        return found.t if found is not None and found.HasField("t") else None

    def axes(self, number: int = 1) -> list[int] | None:
        """``axes`` as the attribute or the input that it is in different versions; None where it is left out."""
        if self.has(number):
            return self.integers(number)
        found = self.attribute("axes")
        return None if found is None else list(found)

    def check_lane_count(self) -> None:
        """Refuses numbers of lanes among the inputs that did not serve as lengths."""
        for number, value in enumerate(self.inputs):
            if value is not None and value.counts_lanes and number not in self._sizes:
                refuse("lane-count", f"{self.op} computes with the number of lanes; it may shape tensors only.")

    def unsupported(self, what: str) -> NoReturn:
        refuse("operator", f"{self.op} {what} is not allowed.")
