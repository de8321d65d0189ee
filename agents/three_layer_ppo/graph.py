"""The three layers as an ONNX graph, operator by operator what ``policy._decide`` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from agents.three_layer_ppo import adapter, recovery
from agents.three_layer_ppo.base import draw_base_action
from agents.three_layer_ppo.curves import draw_curves_split
from agents.three_layer_ppo.policy import LEARNS, ThreeLayerPolicy
from agents.three_layer_ppo.settings import Settings
from helm_gym.observation import ObservationLayout
from helm_gym.training.run_folder import Tensors

if TYPE_CHECKING:
    import onnx


def draw(layout: ObservationLayout, settings: Settings, tensors: Tensors) -> onnx.ModelProto:
    """The policy's graph; raises what ``ThreeLayerPolicy`` does."""
    from helm_gym.policies.onnx_graph import Graph

    policy, pool, max_step = ThreeLayerPolicy(layout, settings, tensors), layout.profile.pool, layout.profile.max_step
    graph = Graph(policy.name, layout, state=policy.initial_state(1).shape[1])
    op, constant, has = graph.op, graph.constant, settings.chosen
    started = op("Greater", graph.columns("state", 0, 1), constant(0.0))
    present = graph.column("target_alpha")
    curve = graph.column("predicted")
    asked = draw_curves_split(graph, curve, settings.sharpness)
    older = graph.columns("state", LEARNS, graph.state)
    weights, before = graph.columns("state", 1, 1 + adapter.WIDTH), graph.columns("state", 1 + adapter.WIDTH, LEARNS)
    distance, wanted, calm, watched = op("Sub", asked, present), present, graph.fill(1.0), before
    if "recovery" in has:
        grip, watched = recovery.draw_watch(graph, curve, asked, started, before, settings)
        calm = op("Sub", calm, grip)
    if "base" in has:
        first = op("Tile", "obs", constant([1, settings.windows - 1], np.int64))
        windows = graph.concatenate("obs", op("Where", started, older, first))
        output = policy.network.draw(graph, graph.concatenate(windows, distance))
        lean = op("Mul", distance, constant(settings.pull / max_step))
        wanted = op("Add", wanted, op("Mul", draw_base_action(graph, output, lean), constant(max_step)))
        older = graph.columns(windows, 0, graph.state - LEARNS)
    split = asked
    if "adapter" in has:
        split, weights = adapter.draw_learn(graph, asked, calm, weights, settings)
        split = graph.clip(split, pool.min_alpha, pool.max_alpha)
        wanted = adapter.draw_correct(graph, wanted, split, calm, settings)
    if "recovery" in has:
        wanted = recovery.draw_jump(graph, present, wanted, asked, split, started, before, watched, settings)
    wanted = graph.clip(wanted, pool.min_alpha, pool.max_alpha)
    action = graph.clip(op("Div", op("Sub", wanted, present), constant(max_step)), -1.0, 1.0)
    return graph.model(action, graph.concatenate(graph.fill(1.0), weights, watched, older))
