"""Layer 3, burst-aware recovery: notices that the workload has jumped, and takes the target where it is needed.

Each signal has a slow mean. The CUSUM of what it deviates by, in units of its noise, raises an alarm (Page, Biometrika
41, 1954). An alarm grips by degrees (0 to 1), resets the sums and speeds up the slow means, so that the new level
becomes the normal one; the grip is let go over ``hold`` decisions. The end of a burst is a jump like its beginning.

While it grips, the layers below are quickened, and while it does not they are calmed: most of what they then want is
noise. And the target jumps a share of the way to the split that the workload asks for, extrapolated by its last
change: the window that telemetry is taken over still holds requests from before. It is the target itself that moves,
so that nothing undoes it afterwards.

Where bursts come faster than pages can be moved, whoever follows them is always on the wrong side. Then the grip hardly
ever lets go: its mean tells, and the target rests, drifting towards the mean of what was asked for.
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
# State: slow means, sums over the alarm's threshold, grip, the split of the last decision, mean grip, mean split.
MEANS, SUMS, GRIP, LAST = slice(0, SIGNALS), slice(SIGNALS, 2 * SIGNALS), 2 * SIGNALS, 2 * SIGNALS + 1
RESTLESS, HOME = 2 * SIGNALS + 2, 2 * SIGNALS + 3
WIDTH = 2 * SIGNALS + 4
_NOUGHT, _HALF, _ONE = (np.float32(x) for x in (0.0, 0.5, 1.0))
_FULL = np.float32(2.0)  # the sum at which the alarm grips fully; it needs not grow any further
_DRIFT, _ALARM, _HOLD, _SLOW, _LEAD, _CALM, _QUICKEN, _JUMP, _MEMORY, _REST_FROM, _REST_AT, _HOMING = range(12)


def recovery_parameters(settings: Settings) -> np.ndarray:
    """What ``watch`` takes, (parameters,)."""
    s = settings
    watching = [s.drift, s.alarm, s.hold, s.slow]
    jumping = [s.lead, s.calm, s.quicken, s.jump]
    resting = [s.memory, s.rest_from, s.rest_at, s.homing]
    return np.array(watching + jumping + resting, np.float32)


@kernel
def watch(observed, columns, split, started, state, following, parameters):
    """Writes the recovery's state to come, ``following`` (WIDTH,): with its grip, how far it is in control, 0 to 1.

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
    home = state[HOME] if started else split
    following[RESTLESS] = state[RESTLESS] + parameters[_MEMORY] * (grip - state[RESTLESS])
    following[HOME] = home + parameters[_MEMORY] * (split - home)


@kernel
def jump(present, target, split, started, state, following, parameters):
    """The target that the layers below want, moved on by the recovery.

    present: the target before this decision. split: that is asked for.
    state, following: of ``watch``.
    """
    grip = following[GRIP]
    last = state[LAST] if started else split
    goal = split + parameters[_LEAD] * (split - last)
    pace = parameters[_CALM] + grip * (parameters[_QUICKEN] - parameters[_CALM])
    wanted = present + pace * (target - present) + grip * parameters[_JUMP] * (goal - target)
    rest = (following[RESTLESS] - parameters[_REST_FROM]) / (parameters[_REST_AT] - parameters[_REST_FROM])
    rest = min(max(rest, 0.0), 1.0)
    return wanted + rest * (present + parameters[_HOMING] * (following[HOME] - present) - wanted)


def draw_watch(graph: Graph, split: str, started: str, state: str, settings: Settings) -> str:
    """``watch`` in a graph: the state to come (lanes, WIDTH)."""
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
    restless, home = (graph.columns(state, k, k + 1) for k in (RESTLESS, HOME))
    home = op("Where", started, home, split)
    restless, home = (
        op("Add", mean, op("Mul", op("Sub", now, mean), constant(s.memory)))
        for mean, now in ((restless, grip), (home, split))
    )
    return graph.concatenate(means, sums, grip, split, restless, home)


def draw_jump(
    graph: Graph, present: str, target: str, split: str, started: str, state: str, following: str, settings: Settings
) -> str:
    """``jump`` in a graph."""
    op, constant, s = graph.op, graph.constant, settings
    grip, restless, home = (graph.columns(following, k, k + 1) for k in (GRIP, RESTLESS, HOME))
    last = op("Where", started, graph.columns(state, LAST, LAST + 1), split)
    goal = op("Add", split, op("Mul", op("Sub", split, last), constant(s.lead)))
    pace = op("Add", op("Mul", grip, constant(s.quicken - s.calm)), constant(s.calm))
    moved = op("Add", present, op("Mul", pace, op("Sub", target, present)))
    jumped = op("Mul", op("Sub", goal, target), constant(s.jump))
    wanted = op("Add", moved, op("Mul", grip, jumped))
    rest = op("Div", op("Sub", restless, constant(s.rest_from)), constant(s.rest_at - s.rest_from))
    homing = op("Add", present, op("Mul", op("Sub", home, present), constant(s.homing)))
    return op("Add", wanted, op("Mul", graph.clip(rest, 0.0, 1.0), op("Sub", homing, wanted)))
