"""Layer 3, burst-aware recovery: notices that the workload has jumped, and takes the target where it is needed.

Each signal has a slow mean. The CUSUM of what it deviates by, in units of its noise, raises an alarm (Page, Biometrika
41, 1954). An alarm grips by degrees (0 to 1), resets the sums and speeds up the slow means, so that the new level
becomes the normal one; the grip is let go over ``hold`` decisions. The end of a burst is a jump like its beginning.

While it grips, the layers below are quickened. And the target jumps a share of the way to the split that the curves ask
for, extrapolated by its last change: the window that telemetry is taken over still holds requests from before. It is
the target itself that moves, so that nothing undoes it afterwards.

Without an alarm, most of what the layers below want is noise, and every page that follows it costs a miss. The nearer
the target is to the split that the workload asks for, the less of it is done: a dead band without edges, in which the
target stays still when nothing changes, and out of which a trend takes it.

Where bursts come faster than pages can be moved, whoever follows them is always on the wrong side. Then the grip hardly
ever lets go: its mean tells, and the target rests, drifting to where the mean of the curves is least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from agents.three_layer_ppo.curves import GRID, curves_split, draw_curves_split
from helm_gym.kernels.jit import kernel

if TYPE_CHECKING:
    from agents.three_layer_ppo.settings import Settings
    from helm_gym.policies.onnx_graph import Graph

# Column -> standard deviation over windows of one workload (cpu-small, 200 requests).
NOISE = {"returning_share": 0.03, "mean_history": 0.02, "load": 0.025}
SIGNALS = len(NOISE) + 1  # and the split that the curves ask for
SPLIT_NOISE = 0.05
_NOISE = np.array([*NOISE.values(), SPLIT_NOISE], np.float32)
_COLUMNS, _POINTS = len(NOISE), len(GRID)
# State: slow means, sums over the alarm's threshold, grip, the split of the last decision, mean grip, mean curve.
SUMS, GRIP, LAST, RESTLESS = SIGNALS, 2 * SIGNALS, 2 * SIGNALS + 1, 2 * SIGNALS + 2
CURVE = RESTLESS + 1
WIDTH = CURVE + _POINTS
_NOUGHT, _HALF, _ONE = (np.float32(x) for x in (0.0, 0.5, 1.0))
_FULL = np.float32(2.0)  # the sum at which the alarm grips fully; it needs not grow any further
_DRIFT, _ALARM, _HOLD, _SLOW, _LEAD, _STILL, _QUICKEN, _JUMP, _MEMORY, _REST_FROM, _REST_AT, _HOMING = range(12)


def recovery_parameters(settings: Settings) -> np.ndarray:
    """What ``watch`` and ``jump`` take, (parameters,)."""
    s = settings
    watching = [s.drift, s.alarm, s.hold, s.slow]
    jumping = [s.lead, s.still, s.quicken, s.jump]
    resting = [s.memory, s.rest_from, s.rest_at, s.homing]
    return np.array(watching + jumping + resting, np.float32)


@kernel
def watch(observed, columns, curve, asked, started, state, following, parameters):
    """How far the recovery is in control, 0 to 1; ``following`` (WIDTH,) is its state to come.

    observed: (D,) one row; columns: places of the signals. curve: (grid,), and the split ``asked`` for by it.
    started: False at first.
    """
    # In float32 throughout, as a graph computes it: sums would gather what else is rounded off.
    asked, loudest = np.float32(asked), _NOUGHT
    for k in range(SIGNALS):
        x = observed[columns[k]] if k < _COLUMNS else asked
        mean = state[k] if started else x
        total = state[SUMS + k] + (abs(x - mean) / _NOISE[k] - parameters[_DRIFT]) / parameters[_ALARM]
        total = min(max(total, _NOUGHT), _FULL)
        loudest = max(loudest, total)
        following[k], following[SUMS + k] = mean, total
    alarm = max(loudest - _ONE, _NOUGHT)
    grip = max(alarm, state[GRIP] - _ONE / parameters[_HOLD])
    grip = max(grip, _NOUGHT)
    gain = grip * (_HALF * (_ONE - parameters[_SLOW])) + parameters[_SLOW]
    for k in range(SIGNALS):
        x = observed[columns[k]] if k < _COLUMNS else asked
        following[k] += gain * (x - following[k])
        following[SUMS + k] *= _ONE - alarm
    following[GRIP], following[LAST] = grip, asked
    memory = parameters[_MEMORY]
    following[RESTLESS] = state[RESTLESS] + memory * (grip - state[RESTLESS])
    for k in range(_POINTS):
        mean = state[CURVE + k] if started else curve[k]
        following[CURVE + k] = mean + memory * (curve[k] - mean)
    return grip


@kernel
def jump(present, target, asked, split, started, state, following, sharpness, parameters):
    """The target that the layers below want, moved on by the recovery.

    present: the target before this decision. asked: the split that the curves ask for; split: the workload, as far as
    the adapter knows.
    state, following: of ``watch``.
    """
    grip, last = following[GRIP], state[LAST] if started else asked
    goal = asked + parameters[_LEAD] * (asked - last)
    far = min(abs(split - present) / parameters[_STILL], _ONE)
    pace = far * far + grip * (parameters[_QUICKEN] - far * far)
    wanted = present + pace * (target - present) + grip * parameters[_JUMP] * (goal - target)
    rest = (following[RESTLESS] - parameters[_REST_FROM]) / (parameters[_REST_AT] - parameters[_REST_FROM])
    if rest > _NOUGHT:
        home = curves_split(following[CURVE:], sharpness)
        wanted += min(rest, _ONE) * (present + parameters[_HOMING] * (home - present) - wanted)
    return wanted


def draw_watch(graph: Graph, curve: str, asked: str, started: str, state: str, settings: Settings) -> tuple[str, str]:
    """``watch`` in a graph: the grip (lanes, 1) and the state to come (lanes, WIDTH)."""
    op, constant, s = graph.op, graph.constant, settings
    signals = graph.concatenate(*(graph.column(name) for name in NOISE), asked)
    means = op("Where", started, graph.columns(state, 0, SIGNALS), signals)
    off = op("Div", op("Abs", op("Sub", signals, means)), constant(_NOISE))
    louder = op("Div", op("Sub", off, constant(s.drift)), constant(s.alarm))
    sums = graph.clip(op("Add", graph.columns(state, SUMS, GRIP), louder), 0.0, float(_FULL))
    loudest = op("ReduceMax", sums, axes=[1], keepdims=1)
    alarm = op("Max", op("Sub", loudest, constant(1.0)), constant(0.0))
    held = op("Sub", graph.columns(state, GRIP, GRIP + 1), constant(1.0 / s.hold))
    grip = op("Max", alarm, op("Max", held, constant(0.0)))
    gain = op("Add", op("Mul", grip, constant(0.5 * (1.0 - s.slow))), constant(s.slow))
    means = op("Add", means, op("Mul", gain, op("Sub", signals, means)))
    sums = op("Mul", sums, op("Sub", constant(1.0), alarm))
    before = graph.columns(state, RESTLESS, WIDTH)
    now = graph.concatenate(grip, curve)
    first = graph.concatenate(graph.columns(state, RESTLESS, CURVE), curve)
    before = op("Where", started, before, first)
    slow = op("Add", before, op("Mul", op("Sub", now, before), constant(s.memory)))
    return grip, graph.concatenate(means, sums, grip, asked, slow)


def draw_jump(
    graph: Graph, present: str, target: str, asked: str, split: str, started: str, state: str, following: str,
    settings: Settings,
) -> str:  # fmt: skip
    """``jump`` in a graph."""
    op, constant, s = graph.op, graph.constant, settings
    grip, restless = (graph.columns(following, k, k + 1) for k in (GRIP, RESTLESS))
    last = op("Where", started, graph.columns(state, LAST, LAST + 1), asked)
    goal = op("Add", asked, op("Mul", op("Sub", asked, last), constant(s.lead)))
    far = op("Min", op("Div", op("Abs", op("Sub", split, present)), constant(s.still)), constant(1.0))
    far = op("Mul", far, far)
    pace = op("Add", far, op("Mul", grip, op("Sub", constant(s.quicken), far)))
    moved = op("Add", present, op("Mul", pace, op("Sub", target, present)))
    jumped = op("Mul", op("Sub", goal, target), constant(s.jump))
    wanted = op("Add", moved, op("Mul", grip, jumped))
    rest = op("Div", op("Sub", restless, constant(s.rest_from)), constant(s.rest_at - s.rest_from))
    home = draw_curves_split(graph, graph.columns(following, CURVE, WIDTH), s.sharpness)
    homing = op("Add", present, op("Mul", op("Sub", home, present), constant(s.homing)))
    return op("Add", wanted, op("Mul", graph.clip(rest, 0.0, 1.0), op("Sub", homing, wanted)))
