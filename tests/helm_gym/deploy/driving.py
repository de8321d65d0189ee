"""What controllers of these tests are driven by: rows of telemetry, and policies that do harm."""

from __future__ import annotations

import functools
import pathlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from helm_gym.benchmarks.decision_time import record
from helm_gym.deploy import Controller, ControlSettings, Decision
from helm_gym.policies import onnx_export
from helm_gym.policies.onnx_graph import Graph
from helm_gym.policy import Floats
from helm_gym.telemetry import AT
from tests.conformance.policy import make_layout

LAYOUT = make_layout()
PROFILE = LAYOUT.profile
ROOT = pathlib.Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "agents" / "shipped"
PATIENT = ControlSettings(deadline_s=5.0)  # where lateness is not what is tested: this machine is shared


@functools.cache
def _recorded() -> tuple[NDArray[np.float64], ...]:
    _, _, seen = record(40, profile=PROFILE)
    return tuple(values[0, 0].copy() for values in seen)


def row(k: int = 0, **columns: float) -> NDArray[np.float64]:
    """A node's telemetry, an interval of an episode on the surrogate at a split of .5, with these columns in place."""
    rows = _recorded()
    values = rows[k % len(rows)].copy()
    for name, value in columns.items():
        values[getattr(AT, name)] = value
    return values


class Plant:
    """The least of a node: its split is the target that it was given."""

    def __init__(self, controller: Controller, node: int = 0):
        self.controller, self.node, self.alpha, self.k = controller, node, 0.5, 0

    def step(self, columns: Mapping[str, float] | None = None, **arguments: Any) -> Decision:
        """One interval and its decision."""
        telemetry = row(self.k, alpha=self.alpha, target_alpha=self.alpha, **(columns or {}))
        decision = self.controller.decide(self.node, telemetry, 0.15 * self.k, **arguments)
        self.alpha, self.k = decision.target_alpha, self.k + 1
        return decision


class Own:
    """A policy that answers what it is told to, with a count of its decisions as state."""

    def __init__(self, answer: Callable[[int], Any]):
        self.name, self._answer = "own", answer

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, 1), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        count = int(state[0, 0])
        return np.full((1, 1), self._answer(count), np.float32), state + np.float32(1)


class Broken(Own):
    """Sound while it is tried out, and then what ``fault`` is called for, until it is mended."""

    def __init__(self, fault: Callable[[], float]):
        super().__init__(lambda count: 0.0)
        self.fault, self.broken = fault, False

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        answer = self.fault() if self.broken else 0.5
        return np.full((1, 1), answer, np.float32), state + np.float32(1)


def hang() -> float:
    """Longer than any deadline, and not for ever: the thread is to end with the test."""
    threading.Event().wait(3.0)
    return 0.5


def write(path: pathlib.Path, model: onnx.ModelProto, **facts: Any) -> pathlib.Path:
    """A policy's file, with the metadata that this layout needs, or others."""
    path.write_bytes(onnx_export.stamp(model, onnx_export.origin_facts(LAYOUT, routes=False) | facts))
    return path


def mover(action: float, scale: float = 1e-3) -> onnx.ModelProto:
    """Always the same action; its state counts decisions, each as much as ``scale``."""
    graph = Graph("mover", LAYOUT, state=1)
    counted = graph.clip(graph.op("Add", graph.columns("state", 0, 1), graph.constant(scale)), 0.0, 1e3)
    return graph.model(graph.fill(action), counted)
