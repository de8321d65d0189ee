"""Layer 3, burst-aware recovery: notices that the workload has jumped, and takes the target where it is needed.

Each signal has a slow mean. The CUSUM of what it deviates by, in units of its noise, raises an alarm; the alarm takes
control from the layers below by degrees (``grip``, 0 to 1), resets the sums and speeds up the slow means, so that the
new level becomes the normal one. Control is held and handed back over ``hold`` decisions; an alarm at the end of the
burst is answered in the same way (CUSUM: Page, Biometrika 41, 1954).

While it has control, the target goes to the split that the workload asks for, extrapolated by its last change: the
window that telemetry is taken over still holds requests from before the jump.
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
_NOISE = np.array([*NOISE.values(), SPLIT_NOISE])
_COLUMNS = len(NOISE)
# State: slow means, sums, grip, the split of the last decision.
MEANS, SUMS, GRIP, LAST = slice(0, SIGNALS), slice(SIGNALS, 2 * SIGNALS), 2 * SIGNALS, 2 * SIGNALS + 1
WIDTH = 2 * SIGNALS + 2
_DRIFT, _ALARM, _HOLD, _SLOW, _LEAD = range(5)


def recovery_parameters(settings: Settings) -> np.ndarray:
    """What ``watch`` takes, (parameters,)."""
    s = settings
    return np.array([s.drift, s.alarm, s.hold, s.slow, s.lead])


@kernel
def watch(observed, columns, split, started, state, following, parameters):
    """How far the recovery is in control, 0 to 1; ``following`` (WIDTH,) is its state to come.

    observed: (D,) one row; columns: places of the signals. split: that is asked for now. started: False at first.
    """
    loudest = 0.0
    for k in range(SIGNALS):
        x = observed[columns[k]] if k < _COLUMNS else split
        mean = state[k] if started else x
        total = state[SIGNALS + k] + abs(x - mean) / _NOISE[k] - parameters[_DRIFT]
        total = max(total, 0.0)
        loudest = max(loudest, total)
        following[k], following[SIGNALS + k] = mean, total
    alarm = min(max(loudest / parameters[_ALARM] - 1.0, 0.0), 1.0)
    grip = max(alarm, state[GRIP] - 1.0 / parameters[_HOLD])
    grip = max(grip, 0.0)
    gain = parameters[_SLOW] + (1.0 - parameters[_SLOW]) * 0.5 * grip
    for k in range(SIGNALS):
        x = observed[columns[k]] if k < _COLUMNS else split
        following[k] += gain * (x - following[k])
        following[SIGNALS + k] *= 1.0 - alarm
    following[GRIP], following[LAST] = grip, split
    return grip


@kernel
def jump(target, split, started, state, grip, parameters):
    """The target with the recovery's part in it."""
    last = state[LAST] if started else split
    return target + grip * (split + parameters[_LEAD] * (split - last) - target)


def draw_watch(graph: Graph, split: str, started: str, state: str, settings: Settings) -> tuple[str, str]:
    """``watch`` in a graph: the grip (lanes, 1) and the state to come (lanes, WIDTH)."""
    op, constant, s = graph.op, graph.constant, settings
    signals = graph.concatenate(*(graph.column(name) for name in NOISE), split)
    means = op("Where", started, graph.columns(state, 0, SIGNALS), signals)
    off = op("Div", op("Abs", op("Sub", signals, means)), constant(_NOISE))
    sums = op("Sub", op("Add", graph.columns(state, SIGNALS, 2 * SIGNALS), off), constant(s.drift))
    sums = op("Max", sums, constant(0.0))
    loudest = op("ReduceMax", sums, axes=[1], keepdims=1)
    alarm = graph.clip(op("Sub", op("Div", loudest, constant(s.alarm)), constant(1.0)), 0.0, 1.0)
    held = op("Sub", graph.columns(state, GRIP, GRIP + 1), constant(1.0 / s.hold))
    grip = op("Max", alarm, op("Max", held, constant(0.0)))
    gain = op("Add", op("Mul", grip, constant(0.5 * (1.0 - s.slow))), constant(s.slow))
    means = op("Add", means, op("Mul", gain, op("Sub", signals, means)))
    sums = op("Mul", sums, op("Sub", constant(1.0), alarm))
    return grip, graph.concatenate(means, sums, grip, split)


def draw_jump(graph: Graph, target: str, split: str, started: str, state: str, grip: str, settings: Settings) -> str:
    """``jump`` in a graph."""
    op = graph.op
    last = op("Where", started, graph.columns(state, LAST, LAST + 1), split)
    goal = op("Add", split, op("Mul", op("Sub", split, last), graph.constant(settings.lead)))
    return op("Add", target, op("Mul", grip, op("Sub", goal, target)))
