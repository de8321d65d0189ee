"""What stands between a policy's wish and the memory manager: limits, and the detection of a policy that alternates."""

from __future__ import annotations

import numpy as np

from helm_gym.actions import apply_action
from helm_gym.deploy.settings import ControlSettings
from helm_gym.profile import Profile

_LARGE = 0.5  # of the largest step
_SEEN = (1 << 8) - 1  # actions that are looked back on
_SLACK = 1e-9  # rounding of a sum of steps


class Guard:
    """One node's."""

    def __init__(self, profile: Profile, settings: ControlSettings):
        self._profile, self._settings = profile, settings
        self.low, self.high = settings.bounds(profile)
        self._step = min(profile.max_step, settings.max_step) if settings.max_step > 0 else profile.max_step
        self._least_move = 0.5 / profile.pool.pages
        self._target, self._action = np.zeros((1, 1)), np.zeros((1, 1, 1))
        self._moved_s = -np.inf
        self.forget()

    def forget(self) -> None:
        """What was seen of the policy's actions: another one decides from now on."""
        self._sign, self._flips = 0, 0

    def alternates(self, action: float) -> bool:
        """Whether a policy that now acts so changes its mind too often; to be called once a decision."""
        sign = (action >= _LARGE) - (action <= -_LARGE)
        flipped = sign != 0 and sign == -self._sign
        self._sign = sign or self._sign
        self._flips = (self._flips << 1 | flipped) & _SEEN
        return self._flips.bit_count() >= self._settings.reversals

    def target_of(self, target: float, action: float) -> float:
        """The target that a finite action asks for, within the profile's bounds: the control loop's own rule."""
        self._target[0, 0], self._action[0, 0, 0] = target, action
        return float(apply_action(self._profile, self._target, self._action)[0, 0])

    def limit(self, target: float, wanted: float, now_s: float) -> tuple[float, str | None]:
        """The next target of a node that is at ``target``, and which limit made it another than wanted."""
        reason = None
        if wanted < self.low:
            wanted, reason = self.low, "least_emb"
        elif wanted > self.high:
            wanted, reason = self.high, "least_kv"
        if abs(wanted - target) > self._step + _SLACK:
            wanted, reason = target + (self._step if wanted > target else -self._step), reason or "step"
        if self._settings.cooldown_s > 0 and abs(wanted - target) > self._least_move:
            since = now_s - self._moved_s
            if 0.0 <= since < self._settings.cooldown_s:  # a clock that went back says nothing
                return target, "cooldown"
        return wanted, reason

    def moved(self, target: float, reached: float, now_s: float) -> None:
        """The node's target was changed."""
        if abs(reached - target) > self._least_move:
            self._moved_s = now_s
