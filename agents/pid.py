"""PID on the marginal-utility error."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from helm_gym.errors import InvalidInputError
from helm_gym.kernels.jit import kernel
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats
from helm_gym.training.search_space import Trial, settings_only_agent

if TYPE_CHECKING:
    import onnx

_MARGINALS = ("emb_gain", "emb_loss", "kv_gain", "kv_loss")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Hyper-parameters.

    Attributes:
        kp: alpha that an error of 1 is worth at once.
        ki: alpha that an error of 1 adds in each decision.
        kd: alpha that an error rising by 1 a decision is worth.
        slope_filter: weight of the newest slope in the filtered one; 1 does not filter.
        floor: added to the sum of marginals that the error is relative to: where little is at stake, little is done.
    """

    kp: float = 0.05
    ki: float = 0.06
    kd: float = 0.0
    slope_filter: float = 0.3
    floor: float = 0.2

    def __post_init__(self) -> None:
        if self.floor <= 0 or not 0 < self.slope_filter <= 1:
            raise InvalidInputError("PID needs a floor above 0 and a slope_filter above 0 and at most 1.")

    @staticmethod
    def space(trial: Trial) -> dict[str, Any]:
        return {
            "kp": trial.suggest_float("kp", 0.0, 0.3),
            "ki": trial.suggest_float("ki", 0.002, 0.2, log=True),
            "kd": trial.suggest_float("kd", 0.0, 0.5),
            "slope_filter": trial.suggest_float("slope_filter", 0.05, 1.0, log=True),
            "floor": trial.suggest_float("floor", 0.02, 2.0, log=True),
        }


class Pid:
    """A PID controller of the target alpha; its set point is equal marginal utility of a page on both sides.

        error  = (EMB's marginals - KV's) / (their sum + floor), in (-1, 1)
        target = integral + kp error + kd slope

    The integral is an alpha, so that it needs no other start than the present target (bumpless), and what bounds and
    step limit take off the output is taken off the integral (anti-windup by back-calculation, Astrom and Hagglund,
    Advanced PID Control, 2006). The slope is the error's, low-pass filtered.

    State: integral (alpha), last error, filtered slope, whether it has started.
    """

    def __init__(self, layout: ObservationLayout, settings: Settings | None = None):
        self.name = "pid"
        self.layout = layout
        self.settings = settings or Settings()
        self._columns = np.array([layout.column(n) for n in (*_MARGINALS, "target_alpha")])
        s, pool = self.settings, layout.profile.pool
        limits = (layout.profile.max_step, pool.min_alpha, pool.max_alpha, pool.pages)
        self._numbers = tuple(np.float32(x) for x in (s.kp, s.ki, s.kd, s.slope_filter, s.floor, *limits))

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, 4), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        action, following = np.empty((len(observation), 1), np.float32), np.empty_like(state)
        _decide(observation, state, self._columns, self._numbers, action, following)
        return action, following


@kernel
def _clip(x, low, high):
    """NaN stays NaN, as with numpy."""
    x = low if x < low else x
    return high if x > high else x


@kernel
def _decide(observation, state, columns, numbers, action, following):
    """``action`` (rows, 1) and ``following`` (rows, 4), all of it float32; numbers: see ``Pid``."""
    kp, ki, kd, new, floor, max_step, low, high, pages = numbers
    nought, one, half = np.float32(0.0), np.float32(1.0), np.float32(0.5)
    for row in range(observation.shape[0]):
        seen, kept = observation[row], state[row]
        emb, kv = seen[columns[0]] + seen[columns[1]], seen[columns[2]] + seen[columns[3]]
        present = seen[columns[4]]
        error = (emb - kv) / (emb + kv + floor)

        started = kept[3] > nought
        last = kept[1] if started else error
        slope = kept[2] + new * (error - last - kept[2])
        fast = kp * error + kd * slope
        integral = (kept[0] if started else present - fast) + ki * error

        wanted = integral + fast
        reached = _clip(_clip(wanted, present - max_step, present + max_step), low, high)
        following[row, 0], following[row, 1] = integral + reached - wanted, error
        following[row, 2], following[row, 3] = slope, one

        change = reached - present  # as policy.towards has it
        step = (nought if abs(change) * pages <= half else change) / max_step
        action[row, 0] = _clip(step, -one, one)


def _graph(layout: ObservationLayout, settings: Settings) -> onnx.ModelProto:
    """``Pid.act``.

    An operator takes onnxruntime half a microsecond, whatever it does: what is linear is two products of matrices.
    """
    from helm_gym.policies.onnx_graph import Graph

    s, pool, max_step = settings, layout.profile.pool, layout.profile.max_step
    graph = Graph("pid", layout, state=4)
    op, constant = graph.op, graph.constant

    signs = {"emb_gain": 1.0, "emb_loss": 1.0, "kv_gain": -1.0, "kv_loss": -1.0}
    seen = np.zeros((layout.width, 3))
    for name, sign in signs.items():
        seen[layout.column(name)] = sign, 1.0, 0.0
    seen[layout.column("target_alpha"), 2] = 1.0
    difference, stake, present = graph.parts(graph.linear("obs", seen, (0.0, s.floor, 0.0)), 1, 1, 1)
    error = op("Div", difference, stake)

    # What follows from the error, the state and the present target: the first decision's output, the fast part of it
    # and the slope, the same of a later one, and what the output is held within.
    known = graph.concatenate(error, "state", present)
    new = s.slope_filter
    slope = np.array([new, 0.0, -new, 1.0 - new, 0.0, 0.0])
    e, integral, started, target = (np.eye(6)[k] for k in (0, 1, 4, 5))
    fast = s.kp * e + s.kd * slope
    first = [target + s.ki * e, s.kp * e, 0 * e]
    later = [integral + s.ki * e + fast, fast, slope]
    weights = np.stack([*first, *later, started, target, target, e, 0 * e], axis=1)
    offsets = [0.0] * 7 + [-max_step, max_step, 0.0, 1.0]
    first_, later_, gate, low, high, error_, one = graph.parts(graph.linear(known, weights, offsets), 3, 3, *[1] * 5)
    chosen = op("Where", op("Greater", gate, constant(0.0)), later_, first_)
    wanted, fast_, slope_ = graph.parts(chosen, 1, 1, 1)
    reached = graph.clip(op("Min", op("Max", wanted, low), high), pool.min_alpha, pool.max_alpha)
    following = graph.concatenate(op("Sub", reached, fast_), error_, slope_, one)
    return graph.model(graph.towards(reached, present), following)


PID = settings_only_agent("pid", Settings, Pid, _graph)
