"""The best static split that can be known beforehand: the one with the least mean sojourn on training episodes.

`best static` in a report is another: the best in hindsight, over the episodes that are judged.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from baselines.simple import Static
from helm_gym.backend import open_backend
from helm_gym.control_loop import ControlLoop
from helm_gym.evaluation.optimum import MAX_LANES, argmin
from helm_gym.observation import ObservationLayout
from helm_gym.play import Entrant, play
from helm_gym.telemetry import ALPHA_GRID
from helm_gym.training.run_folder import Tensors
from helm_gym.training.trainable import Trainable, Training

if TYPE_CHECKING:
    import onnx

_EPISODES = 0  # the purpose of the training's generator
_LEAST_SEED = 2**32  # tasks publish small ones


@dataclasses.dataclass(frozen=True)
class Settings:
    """None."""


def _policy(layout: ObservationLayout, settings: Settings, tensors: Tensors) -> Static:
    return Static(layout, float(tensors["alpha"][0]))


def _graph(layout: ObservationLayout, settings: Settings, tensors: Tensors) -> onnx.ModelProto:
    from helm_gym.policies.onnx_graph import Graph

    graph = Graph("best-static", layout, state=0)
    present = graph.column("target_alpha")
    change = graph.op("Sub", graph.constant(_policy(layout, settings, tensors).alpha), present)
    pages = layout.profile.pool.pages
    moves = graph.op("Greater", graph.op("Abs", change), graph.constant(0.5 / pages))
    step = graph.op("Div", change, graph.constant(layout.profile.max_step))
    action = graph.op("Where", moves, step, graph.constant(0.0))
    return graph.model(graph.clip(action, -1.0, 1.0), "state")


def _train(training: Training) -> Tensors:
    """Serves the same episodes at each split; the mean sojourn's argmin, refined by a parabola, is a whole percent."""
    pool, intervals = training.profile.pool, training.task.settle + training.task.horizon
    total = -(-training.steps // intervals)
    alphas = np.array([alpha for alpha in ALPHA_GRID if pool.min_alpha <= alpha <= pool.max_alpha])
    drawn = training.generator(_EPISODES).integers(_LEAST_SEED, 2**63, size=total).tolist()
    sojourn_ms = np.zeros(len(alphas))
    for first in range(0, total, MAX_LANES):
        seeds = drawn[first : first + MAX_LANES]
        with contextlib.closing(open_backend("modelled", training.profile, lanes=len(seeds))) as backend:
            loop = ControlLoop(training.task, backend, intervals=intervals)
            for number, alpha in enumerate(alphas):
                sojourn_ms[number] += _serve(loop, Static(training.layout, alpha), seeds) / total
                done = (first * len(alphas) + len(seeds) * (number + 1)) / (total * len(alphas))
                training.progress(int(done * training.steps), training.steps, f"static:{alpha:g}")
    best = round(float(argmin(alphas, sojourn_ms)), 2)
    training.facts |= {f"sojourn_ms_{alpha:g}": float(ms) for alpha, ms in zip(alphas, sojourn_ms, strict=True)}
    return {"alpha": np.array([np.clip(best, pool.min_alpha, pool.max_alpha)])}


def _serve(loop: ControlLoop, policy: Static, seeds: list[int]) -> float:
    """The mean sojourn (ms) of the scored intervals, summed over episodes."""
    served = [step.telemetry["interval_sojourn_ms"][:, 0].copy() for step in play(loop, Entrant(policy), seeds)]
    return float(np.mean(served[loop.task.settle :], axis=0).sum())


BEST_STATIC = Trainable(
    "best-static",
    Settings,
    steps=32 * 520,
    train=_train,
    policy=_policy,
    graph=_graph,
    round=lambda settings, task: task.settle + task.horizon,  # an episode
)
