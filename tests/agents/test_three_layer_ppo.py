"""The three-layer controller: each layer does its own part, leaves the others' alone, and is in the graph as it acts."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import onnx
import pytest

from agents.three_layer_ppo import THREE_LAYER_PPO, adapter, recovery
from agents.three_layer_ppo.graph import draw
from agents.three_layer_ppo.policy import Seen, ThreeLayerPolicy
from agents.three_layer_ppo.settings import LAYERS, Settings
from helm_gym.backend import open_backend
from helm_gym.control_loop import ControlLoop
from helm_gym.errors import InvalidInputError
from helm_gym.onnx_policy import OnnxPolicy
from helm_gym.policy import Floats, open_policy
from helm_gym.runs import Tensors
from helm_gym.tasks import find_task
from helm_gym.telemetry import ALPHA_GRID
from tests.agents.trainings import train_small
from tests.conformance.policy import PolicyConformance, follow, make_layout, observations, observe

LAYOUT = make_layout()


def random_tensors(settings: Settings, size: float = 0.3) -> Tensors:
    rng = np.random.default_rng(3)
    width, hidden = Seen(LAYOUT, settings).width, settings.hidden
    tensors = {"mean": rng.random(width), "scale": 0.5 + rng.random(width)}
    for k, (inputs, outputs) in enumerate([(width, hidden), (hidden, hidden), (hidden, 1)]):
        tensors[f"{k}.weight"] = size * rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
        tensors[f"{k}.bias"] = size * rng.standard_normal(outputs)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def make_policy(layers: str = ",".join(LAYERS), **changes: float) -> ThreeLayerPolicy:
    settings = dataclasses.replace(Settings(), layers=layers, **changes)
    return ThreeLayerPolicy(LAYOUT, settings, random_tensors(settings))


def curves(alpha: float) -> Floats:
    """Simulated curves whose least is at ``alpha``, (grid,)."""
    return (0.25 + 0.5 * (np.array(ALPHA_GRID) - alpha) ** 2).astype(np.float32)


def episode(task: str, seeds: list[int], intervals: int) -> tuple[list[Floats], list[np.ndarray]]:
    """Observations (lanes, D) on the modelled rung at a split that is held, and the segments they were served in."""
    backend = open_backend("modelled", LAYOUT.profile, lanes=len(seeds))
    loop = ControlLoop(find_task(task), backend, intervals=intervals)
    step, seen, segments = loop.reset(seeds), [], []
    while not step.done:
        step = loop.step(np.zeros((len(seeds), 1, 1)))
        seen.append(step.observation[:, 0])
        segments.append(loop.path.segment[:, loop.t - 1])  # type: ignore[union-attr]
    backend.close()
    return seen, segments


class TestShippedThreeLayerPpo(PolicyConformance):
    name = "three-layer-ppo"


@pytest.mark.parametrize("layers", ["base", "adapter", "recovery", "base,recovery", "base,adapter,recovery"])
def test_graph_and_compiled_policy_are_one_function(layers: str, tmp_path: pathlib.Path) -> None:
    """Over whatever can be observed, each on its own states."""
    policy = make_policy(layers)
    path = tmp_path / "policy.onnx"
    model = draw(LAYOUT, policy.settings, random_tensors(policy.settings))
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(model, full_check=True)
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ours = theirs = policy.initial_state(5)
    for seen in observations(LAYOUT, 40):
        action, ours = policy.act(seen, ours)
        action_, theirs = session.run(["action", "state_out"], {"obs": seen, "state": theirs})
        np.testing.assert_allclose(action_, action, atol=1e-5)
        np.testing.assert_allclose(theirs, ours, atol=1e-5)
