"""PID on the marginal-utility error."""

from __future__ import annotations

import numpy as np

from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats, towards

_INTEGRAL, _ERROR, _SLOPE, _STARTED = range(4)


class Pid:
    """A PID controller of the target alpha; its set point is equal marginal utility of a page on both sides.

        error  = (EMB's marginals, weighted, - KV's) / (their sum + floor), in (-1, 1)
        target = integral + kp error + kd slope

    The integral is an alpha, so that it needs no other start than the present target (bumpless), and what bounds and
    step limit take off the output is taken off the integral (anti-windup by back-calculation, Astrom and Hagglund,
    Advanced PID Control, 2006, section 3.5). The slope is the error's, low-pass filtered.

    Tuned on seeds 1000 ... 1005 of profile cpu-small, bursts:
    - ``emb_weight`` 2.5: the shadow lists see less of a page's worth for EMB, and at alpha* its marginals are about a
      third of KV's. With weight 1 none of five settings (``ki`` to .03) beat a static split; these gain .67 / .69.
    - ``floor`` .4 rests where no marginal is worth much; ``ki`` .09 gains no more than .06 and moves half more.
    - ``kd`` 0: .2, the one other value tried, did not help.

    State: integral (alpha), last error, filtered slope, whether it has started.
    """

    def __init__(
        self,
        layout: ObservationLayout,
        kp: float = 0.05,
        ki: float = 0.06,
        kd: float = 0.0,
        slope_filter: float = 0.3,
        floor: float = 0.4,
        emb_weight: float = 2.5,
    ):
        self.name = "pid"
        self.layout = layout
        self.kp, self.ki, self.kd = kp, ki, kd
        self.slope_filter, self.floor, self.emb_weight = slope_filter, floor, emb_weight
        self._marginals = np.array([layout.column(n) for n in ("emb_gain", "emb_loss", "kv_gain", "kv_loss")])
        self._target = layout.column("target_alpha")

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, 4), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        pool, max_step = self.layout.profile.pool, self.layout.profile.max_step
        emb_gain, emb_loss, kv_gain, kv_loss = observation[:, self._marginals].T
        emb, kv = self.emb_weight * (emb_gain + emb_loss), kv_gain + kv_loss
        error = (emb - kv) / (emb + kv + self.floor)
        present = observation[:, self._target]

        started = state[:, _STARTED] > 0
        last = np.where(started, state[:, _ERROR], error)
        slope = state[:, _SLOPE] + self.slope_filter * (error - last - state[:, _SLOPE])
        fast = self.kp * error + self.kd * slope
        integral = np.where(started, state[:, _INTEGRAL], present - fast) + self.ki * error

        wanted = integral + fast
        reached = np.clip(wanted, present - max_step, present + max_step)
        reached = np.clip(reached, pool.min_alpha, pool.max_alpha)
        integral += reached - wanted
        following = np.stack([integral, error, slope, np.ones_like(error)], axis=1).astype(np.float32)
        return towards(self.layout, observation, reached), following
