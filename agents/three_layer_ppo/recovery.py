"""Layer 3, burst-aware recovery: notices that the workload has jumped, and takes the target where it is needed.

Each signal has a slow mean. The CUSUM of what it deviates by, in units of its noise, raises an alarm (Page, Biometrika
41, 1954). An alarm grips by degrees (0 to 1), resets the sums and speeds up the slow means, so that the new level
becomes the normal one; the grip is let go over ``hold`` decisions. The end of a burst is a jump like its beginning.

While it grips, the layers below are quickened, and while it does not they are calmed: most of what they then want is
noise. And the target jumps a share of the way to the split that the workload asks for, extrapolated by its last
change: the window that telemetry is taken over still holds requests from before. It is the target itself that moves,
so that nothing undoes it afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from helm_gym.compiled import kernel

if TYPE_CHECKING:
    from agents.graph import Graph
    from agents.three_layer_ppo.settings import Settings

# Column -> standard deviation over windows of one workload (cpu-small, 200 requests).
NOISE = {"returning_share": 0.03, "mean_history": 0.02, "load": 0.025}
SIGNALS = len(NOISE) + 1  # and the split that is asked for
SPLIT_NOISE = 0.05
_NOISE = np.array([*NOISE.values(), SPLIT_NOISE], np.float32)
_COLUMNS = len(NOISE)
# State: slow means, sums over the alarm's threshold, grip, the split of the last decision.
MEANS, SUMS, GRIP, LAST = slice(0, SIGNALS), slice(SIGNALS, 2 * SIGNALS), 2 * SIGNALS, 2 * SIGNALS + 1
WIDTH = 2 * SIGNALS + 2
_NOUGHT, _HALF, _ONE = (np.float32(x) for x in (0.0, 0.5, 1.0))
_FULL = np.float32(2.0)  # the sum at which the alarm grips fully; it needs not grow any further
_DRIFT, _ALARM, _HOLD, _SLOW, _LEAD, _CALM, _QUICKEN, _JUMP = range(8)


def recovery_parameters(settings: Settings) -> np.ndarray:
    """What ``watch`` takes, (parameters,)."""
    s = settings
    return np.array([s.drift, s.alarm, s.hold, s.slow, s.lead, s.calm, s.quicken, s.jump], np.float32)


@kernel
def watch(observed, columns, split, started, state, following, parameters):
    """How far the recovery is in control, 0 to 1; ``following`` (WIDTH,) is its state to come.

    observed: (D,) one row; columns: places of the signals. split: that is asked for now. started: False at first.
    """
    # In float32 throughout, as a graph computes it: sums would gather what else is rounded off.
    split, loudest = np.float32(split), _NOUGHT
    for k in range(SIGNALS):
        x = observed[columns[k]] if k < _COLUMNS else split
        mean = state[k] if started else x
        total = state[SIGNALS + k] + (abs(x - mean) / _NOISE[k] - parameters[_DRIFT]) / parameters[_ALARM]
        total = min(max(total, _NOUGHT), _FULL)
        loudest = max(loudest, total)
        following[k], following[SIGNALS + k] = mean, total
    alarm = max(loudest - _ONE, _NOUGHT)
    grip = max(alarm, state[GRIP] - _ONE / parameters[_HOLD])
    grip = max(grip, _NOUGHT)
    gain = grip * (_HALF * (_ONE - parameters[_SLOW])) + parameters[_SLOW]
    for k in range(SIGNALS):
        x = observed[columns[k]] if k < _COLUMNS else split
        following[k] += gain * (x - following[k])
        following[SIGNALS + k] *= _ONE - alarm
    following[GRIP], following[LAST] = grip, split
    return grip


@kernel
def jump(present, target, split, started, state, grip, parameters):
    """The target that the layers below want, moved on by the recovery.

    present: the target before this decision. split: that is asked for.
    """
    last = state[LAST] if started else split
    goal = split + parameters[_LEAD] * (split - last)
    pace = parameters[_CALM] + grip * (parameters[_QUICKEN] - parameters[_CALM])
    return present + pace * (target - present) + grip * parameters[_JUMP] * (goal - target)


def draw_watch(graph: Graph, split: str, started: str, state: str, settings: Settings) -> tuple[str, str]:
    """``watch`` in a graph: the grip (lanes, 1) and the state to come (lanes, WIDTH)."""
    op, constant, s = graph.op, graph.constant, settings
    signals = graph.concatenate(*(graph.column(name) for name in NOISE), split)
    means = op("Where", started, graph.columns(state, 0, SIGNALS), signals)
    off = op("Div", op("Abs", op("Sub", signals, means)), constant(_NOISE))
    louder = op("Div", op("Sub", off, constant(s.drift)), constant(s.alarm))
    sums = graph.clip(op("Add", graph.columns(state, SIGNALS, 2 * SIGNALS), louder), 0.0, float(_FULL))
    loudest = op("ReduceMax", sums, axes=[1], keepdims=1)
    alarm = op("Max", op("Sub", loudest, constant(1.0)), constant(0.0))
    held = op("Sub", graph.columns(state, GRIP, GRIP + 1), constant(1.0 / s.hold))
    grip = op("Max", alarm, op("Max", held, constant(0.0)))
    gain = op("Add", op("Mul", grip, constant(0.5 * (1.0 - s.slow))), constant(s.slow))
    means = op("Add", means, op("Mul", gain, op("Sub", signals, means)))
    sums = op("Mul", sums, op("Sub", constant(1.0), alarm))
    return grip, graph.concatenate(means, sums, grip, split)


def draw_jump(
    graph: Graph, present: str, target: str, split: str, started: str, state: str, grip: str, settings: Settings
) -> str:
    """``jump`` in a graph."""
    op, constant, s = graph.op, graph.constant, settings
    last = op("Where", started, graph.columns(state, LAST, LAST + 1), split)
    goal = op("Add", split, op("Mul", op("Sub", split, last), constant(s.lead)))
    pace = op("Add", op("Mul", grip, constant(s.quicken - s.calm)), constant(s.calm))
    moved = op("Add", present, op("Mul", pace, op("Sub", target, present)))
    jumped = op("Mul", op("Sub", goal, target), constant(s.jump))
    return op("Add", moved, op("Mul", grip, jumped))
