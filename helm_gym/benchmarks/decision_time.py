"""How long a decision takes, from one interval's telemetry to the allocation that it asks for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym import profile as profiles
from helm_gym.actions import apply_action
from helm_gym.backend import open_backend
from helm_gym.control_loop import ControlLoop
from helm_gym.kernels import control_interval
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats, Policy
from helm_gym.profile import Profile
from helm_gym.tasks import find_task

_WARM = 200  # decisions before the first that counts


def record(
    intervals: int = 480, task: str = "burst-v0", profile: Profile | None = None, backend: str = "surrogate"
) -> tuple[ObservationLayout, float, list[NDArray[np.float64]]]:
    """One node's telemetry (1, 1, WIDTH) over an episode at the split it starts with, and its SLO."""
    found = find_task(task)
    with contextlib.closing(open_backend(backend, profile or profiles.load(found.profile))) as opened:
        loop = ControlLoop(found, opened, intervals=intervals)
        step, seen = loop.reset([0]), []
        while not step.done:
            step = loop.step(np.zeros((1, 1, 1)))
            seen.append(step.telemetry.values.copy())
        return loop.layout, opened.slo_ms, seen


def decision_us(
    policy: Policy, layout: ObservationLayout, slo_ms: float, seen: list[NDArray[np.float64]], count: int
) -> NDArray[np.float64]:
    """CPU time (us) of each of ``count`` decisions: observe, act, and the next target within its bounds."""
    per_scale, memory = layout.per_scale(slo_ms), layout.memory(1, 1)  # as a control loop keeps them
    state, target = policy.initial_state(1), np.full((1, 1), 0.5)

    def decide(values: NDArray[np.float64]) -> None:
        nonlocal state, target
        observation = np.empty((1, 1, layout.width), np.float32)
        control_interval.observe(values, per_scale, memory, observation)
        action, state = policy.act(observation[0], state)
        target = apply_action(layout.profile, target, action[None])

    return _times(decide, seen, count)


def predict_us(predict: Callable[[Floats], object], width: int, count: int) -> NDArray[np.float64]:
    """CPU time (us) of each of ``count`` calls of an agent's ``predict`` on one row of ``width`` numbers."""
    rows = list(np.random.default_rng(0).random((64, 1, width), np.float32))
    return _times(predict, rows, count)


def _times(call: Callable[[Any], object], arguments: list[Any], count: int) -> NDArray[np.float64]:
    times = np.empty(_WARM + count)
    for k in range(len(times)):
        argument = arguments[k % len(arguments)]
        started = time.thread_time_ns()  # a neighbour on this core is not the policy's doing
        call(argument)
        times[k] = time.thread_time_ns() - started
    return times[_WARM:] / 1e3
