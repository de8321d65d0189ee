"""PID on the marginal-utility error."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from helm_gym.errors import InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats, towards
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

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, 4), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        s, pool, max_step = self.settings, self.layout.profile.pool, self.layout.profile.max_step
        emb_gain, emb_loss, kv_gain, kv_loss, present = observation[:, self._columns].T
        emb, kv = emb_gain + emb_loss, kv_gain + kv_loss
        error = (emb - kv) / (emb + kv + s.floor)

        integral, last, slope, started = state.T
        last = np.where(started > 0, last, error)
        slope = slope + s.slope_filter * (error - last - slope)
        fast = s.kp * error + s.kd * slope
        integral = np.where(started > 0, integral, present - fast) + s.ki * error

        wanted = integral + fast
        # In place of np.clip, which takes about twice as long for one row.
        reached = np.minimum(np.maximum(wanted, present - max_step), present + max_step)
        reached = np.minimum(np.maximum(reached, pool.min_alpha), pool.max_alpha)
        following = np.ones_like(state)
        following[:, :3] = np.array([integral + reached - wanted, error, slope]).T
        return towards(self.layout, observation, reached), following


def _graph(layout: ObservationLayout, settings: Settings) -> onnx.ModelProto:
    """``Pid.act``, line by line."""
    from helm_gym.policies.onnx_graph import Graph

    s, pool, max_step = settings, layout.profile.pool, layout.profile.max_step
    graph = Graph("pid", layout, state=4)
    op, constant = graph.op, graph.constant

    def scaled(value: str, factor: float) -> str:
        return op("Mul", value, constant(factor))

    emb_gain, emb_loss, kv_gain, kv_loss, present = (graph.column(n) for n in (*_MARGINALS, "target_alpha"))
    emb, kv = op("Add", emb_gain, emb_loss), op("Add", kv_gain, kv_loss)
    error = op("Div", op("Sub", emb, kv), op("Add", op("Add", emb, kv), constant(s.floor)))

    integral, last, slope, started = (graph.columns("state", k, k + 1) for k in range(4))
    started = op("Greater", started, constant(0.0))
    last = op("Where", started, last, error)
    slope = op("Add", slope, scaled(op("Sub", op("Sub", error, last), slope), s.slope_filter))
    fast = op("Add", scaled(error, s.kp), scaled(slope, s.kd))
    integral = op("Add", op("Where", started, integral, op("Sub", present, fast)), scaled(error, s.ki))

    wanted, step = op("Add", integral, fast), constant(max_step)
    reached = op("Min", op("Max", wanted, op("Sub", present, step)), op("Add", present, step))
    reached = graph.clip(reached, pool.min_alpha, pool.max_alpha)
    following = graph.concatenate(op("Add", integral, op("Sub", reached, wanted)), error, slope, graph.fill(1.0))
    return graph.model(graph.towards(reached), following)


PID = settings_only_agent("pid", Settings, Pid, _graph)
