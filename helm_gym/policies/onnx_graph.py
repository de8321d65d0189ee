"""Writing a policy as an ONNX graph: ``obs[lanes, D], state[lanes, S] -> action[lanes, A], state_out[lanes, S]``."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from helm_gym.cluster.router_observation import RouterLayout
from helm_gym.observation import ObservationLayout

OPSET, IR_VERSION = 17, 8  # what any onnxruntime of the last years reads


class Graph:
    """Builds a policy's graph, operator by operator; values are names.

        graph = Graph("pid", layout, state=4)
        present = graph.column("target_alpha")
        action = graph.op("Clip", graph.op("Mul", present, graph.constant(2.0)), graph.constant(-1.0), ...)
        model = graph.model(action, state_out)

    Args:
        name: of the policy.
        layout: whose observations it takes.
        state: S; the state starts at zeros.
        actions: A, 1 of a node and 3 of a router.
    """

    def __init__(self, name: str, layout: ObservationLayout | RouterLayout, state: int, actions: int = 1):
        self.name, self.layout, self.state, self.actions = name, layout, state, actions
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, value: ArrayLike, kind: type = np.float32) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One operator with one output; returns its output's name."""
        name = f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def parts(self, value: str, *widths: int) -> list[str]:
        """``value`` (lanes, sum of widths) cut into columns of these widths, by one operator."""
        names = [f"part{len(self._nodes)}_{k}" for k in range(len(widths))]
        node = helper.make_node("Split", [value, self.constant(widths, np.int64)], names, name=names[0], axis=1)
        self._nodes.append(node)
        return names

    def linear(self, value: str, weights: ArrayLike, offsets: ArrayLike) -> str:
        """``value`` (lanes, m) times ``weights`` (m, n), plus ``offsets`` (n,)."""
        return self.op("Gemm", value, self.constant(weights), self.constant(offsets))

    def columns(self, value: str, start: int, stop: int) -> str:
        """``value[:, start:stop]``."""
        ends = (self.constant([end], np.int64) for end in (start, stop, 1))
        return self.op("Slice", value, *ends)

    def column(self, name: str) -> str:
        """A column of the observation by name, (lanes, 1), or (lanes, width) where it is one a grid point."""
        place = self.layout.column(name)
        start, stop = (place.start, place.stop) if isinstance(place, slice) else (place, place + 1)
        return self.columns("obs", start, stop)

    def concatenate(self, *values: str) -> str:
        """Side by side."""
        return self.op("Concat", *values, axis=1)

    def fill(self, value: float) -> str:
        """A column (lanes, 1) of one value."""
        nought = self.op("Mul", self.columns("obs", 0, 1), self.constant(0.0))
        return self.op("Add", nought, self.constant(value))

    def clip(self, value: str, low: float, high: float) -> str:
        return self.op("Clip", value, self.constant(low), self.constant(high))

    def towards(self, target: str, present: str = "") -> str:
        """``policy.towards``: the action that brings the target alpha to ``target`` (lanes, 1).

        Args:
            present: the present target (lanes, 1), where the graph has it already.
        """
        assert isinstance(self.layout, ObservationLayout)
        profile = self.layout.profile
        change = self.op("Sub", target, present or self.column("target_alpha"))
        still = self.op("LessOrEqual", self.op("Abs", change), self.constant(0.5 / profile.pool.pages))
        change = self.op("Where", still, self.constant(0.0), change)
        return self.clip(self.op("Div", change, self.constant(profile.max_step)), -1.0, 1.0)

    def model(self, action: str, following: str) -> onnx.ModelProto:
        """The finished graph; ``action`` (lanes, A) and ``following`` (lanes, S) are what it returns."""
        ends = [
            helper.make_node("Identity", [value], [name], name=name)
            for value, name in ((action, "action"), (following, "state_out"))
        ]
        graph = helper.make_graph(
            [*self._nodes, *ends],
            self.name,
            [_value("obs", self.layout.width), _value("state", self.state)],
            [_value("action", self.actions), _value("state_out", self.state)],
            self._constants,
        )
        model = helper.make_model(graph, producer_name="helm-gym", opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        return model


def _value(name: str, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["lanes", width])
