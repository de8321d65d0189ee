"""One node's control path: freshness, observation, policy, guard, and what takes over where one of them fails."""

from __future__ import annotations

import collections
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.deploy.guard import Guard
from helm_gym.deploy.installing import Installed, UnsoundError, sound
from helm_gym.deploy.running import LateError, Runner
from helm_gym.deploy.settings import ControlSettings, Level, Mode
from helm_gym.kernels import control_interval
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats
from helm_gym.telemetry import AT, WIDTH

RECORDED = 64  # observations that a policy to come is tried on
_F64 = np.dtype(np.float64)


class Decision(NamedTuple):
    """What a node is to do until the next one.

    Attributes:
        target_alpha: EMB's share of the pool that the memory manager is to move towards.
        reason: why it is not what the policy asked for, a key of ``settings.REASONS``; None where it is.
        step_s: time that the policy took; 0 where it was not asked.
        shadow_alpha: in mode ``shadow``, the target that would have been given; else None.
    """

    target_alpha: float
    reason: str | None
    step_s: float
    shadow_alpha: float | None


class Record(NamedTuple):
    """A decision in a node's history."""

    number: int
    now_s: float
    mode: Mode
    decision: Decision


class Node:
    """What a controller knows of one node. One thread at a time decides for it; each node may have its own.

    Attributes:
        target: the split that it was last told, or that its telemetry said; None before the first.
        level: who decides.
        heard: intervals with requests, of which it had telemetry.
        p99_ms: of the last of them, by which nodes are compared.
        entered: the split at which it went on trial.
        restoring: the split that a node that acted in a trial returns to; None where it need not.
    """

    def __init__(self, layout: ObservationLayout, settings: ControlSettings, fallback: Installed):
        self._layout, self._settings, self._fallback = layout, settings, fallback
        self._per_scale = layout.per_scale(layout.profile.slo_ms)
        self._pages = layout.profile.pool.pages
        self._row, self._seen = np.zeros((1, 1, WIDTH)), np.zeros((1, 1, layout.width), np.float32)
        self._memory = layout.memory(1, 1)
        self.guard = Guard(layout.profile, settings)
        self.mode: Mode = "off"
        self.killed = False
        self.fell: Level | None = None  # who has just failed too often, until it is told
        self.target: float | None = None
        self.entered: float | None = None
        self.restoring: float | None = None
        self.decisions = self.heard = 0
        self.interventions: collections.Counter[str] = collections.Counter()
        self.history: collections.deque[Record] = collections.deque(maxlen=settings.history)
        self.p99_ms: collections.deque[float] = collections.deque(maxlen=RECORDED)
        self._observed, self._acted = np.zeros((RECORDED, layout.width), np.float32), np.zeros(RECORDED, np.float32)
        self._recorded = 0
        self.installed: Installed | None = None
        self.runner: Runner | None = None
        self._pid: Runner | None = None
        self.calm()

    def scale(self, slo_ms: float) -> None:
        """Latencies are scaled by this SLO from now on."""
        self._per_scale = self._layout.per_scale(slo_ms)

    def calm(self) -> None:
        """No fault counts any longer: the policy decides again."""
        self.level: Level = "policy"
        self._faults = self._blind = 0
        self.guard.forget()

    def follow(self, installed: Installed | None, runner: Runner | None) -> None:
        """Another policy decides from now on; None: nothing does."""
        self.installed, self.runner = installed, runner
        self._recorded = 0
        self.calm()

    def look_away(self) -> None:
        """What was last observed is not of the last interval any longer."""
        self._memory[...] = np.nan

    def recorded(self) -> tuple[Floats, Floats]:
        """Observations (n, D) and what the policy did on them (n,), the oldest first."""
        count, start = min(self._recorded, RECORDED), self._recorded % RECORDED
        order = np.arange(count) if self._recorded <= RECORDED else (np.arange(RECORDED) + start) % RECORDED
        return self._observed[order], self._acted[order]

    def decide(
        self, telemetry: NDArray[np.float64] | None, now_s: float, measured_s: float | None, requests: int | None
    ) -> Decision:
        """See ``Controller.decide``."""
        self.decisions += 1
        mode = self.mode  # which another thread may change meanwhile
        trouble = self._sense(telemetry, now_s, measured_s, requests, mode)
        target = self.target
        if target is None:  # nothing was ever known of it
            static = self._settings.static_alpha
            target = static if static == static else (self.guard.low + self.guard.high) / 2.0
        step_s, shadow, reason = 0.0, None, None
        if mode == "off":
            reached = self._restored(target)
        else:
            wanted, reason, step_s = self._choose(target, trouble)
            reached, limited = self.guard.limit(target, wanted, now_s)
            if reason is None and limited is not None:
                reason = limited
            if reason is not None:
                self.interventions[reason] += 1
            if mode == "shadow":
                shadow, reached = reached, self._restored(target)
            else:
                self.guard.moved(target, reached, now_s)
        if self.target is not None:
            self.target = reached
        decision = Decision(reached, reason, step_s, shadow)
        self.history.append(Record(self.decisions, now_s, mode, decision))
        return decision

    def _sense(
        self, telemetry: Any, now_s: float, measured_s: float | None, requests: int | None, mode: Mode
    ) -> str | None:
        """Takes telemetry in; what is wrong with it, or that it is idle."""
        if telemetry is None:
            return "absent"
        if type(telemetry) is not np.ndarray or telemetry.dtype is not _F64:
            try:
                telemetry = np.asarray(telemetry, np.float64)
            except (TypeError, ValueError):
                return "invalid"
        if telemetry.shape != (WIDTH,) and telemetry.shape != (1, 1, WIDTH):
            return "invalid"
        # Of two clocks or of one that jumped back nothing follows; an age below 0 is none.
        if measured_s is not None and not now_s - measured_s <= self._settings.max_age_s:
            return "stale"
        self._row[0, 0] = telemetry  # a copy: its owner may write the next interval while this one is decided on
        row = self._row[0, 0]
        present = float(row[AT.target_alpha])
        if self.target is None or abs(present - self.target) * self._pages > 0.5 + 1e-6:
            if not 0.0 <= present <= 1.0:
                return "telemetry_not_finite" if present != present else "invalid"
            if self.target is None:
                self.entered = present
            self.target = present  # whoever moved it: changes go on from where the node is
        if requests == 0 or (requests is None and row[AT.interval_service_ms] == 0.0 == row[AT.interval_sojourn_ms]):
            return "idle"
        self.p99_ms.append(float(row[AT.sojourn_p99_ms]))
        self.heard += 1
        if mode == "off":
            return None
        control_interval.observe(self._row, self._per_scale, self._memory, self._seen)
        return None if control_interval.finite(0.0, self._seen[0]) else "telemetry_not_finite"

    def _restored(self, target: float) -> float:
        """Where a node that is not controlled stays, or is on its way back to."""
        if self.restoring is None:
            return target
        step = self._layout.profile.max_step
        reached = min(max(self.restoring, target - step), target + step)
        if reached == self.restoring:
            self.restoring = None
        return reached

    def _choose(self, target: float, trouble: str | None) -> tuple[float, str | None, float]:
        """The target that whoever decides wants, why it is not the policy who does, and the policy's time (s)."""
        if self.killed:
            return self._static(target), "killed", 0.0
        if trouble == "idle":
            return target, trouble, 0.0
        if trouble is not None:
            self._blind += 1
            if self._blind < self._settings.faults:
                return target, trouble, 0.0
            self.interventions["static"] += 1
            return self._static(target), trouble, 0.0
        self._blind = 0
        if self.level == "policy" and self.runner is not None:
            return self._ask(self.runner, target)
        if self.level == "pid":
            if self._pid is None:
                self._pid = self._fallback.runner()
            wanted, trouble, step_s = self._ask(self._pid, target)
            return wanted, trouble or "pid", step_s
        return self._static(target), "static", 0.0

    def _static(self, target: float) -> float:
        static = self._settings.static_alpha
        if static != static:
            return target
        step = self._layout.profile.max_step
        return min(max(static, target - step), target + step)

    def _ask(self, runner: Runner, target: float) -> tuple[float, str | None, float]:
        seen, deadline_s = self._seen[0], self._settings.deadline_s
        fault, action, following = None, 0.0, None
        started = time.perf_counter()
        try:
            given, state = runner.run(seen, deadline_s)
            step_s = time.perf_counter() - started
            if step_s > deadline_s:
                fault = "late"
            else:
                action, following = sound(given, state, runner.state)
                if self.guard.alternates(action):
                    fault = "alternating"
        except LateError:
            step_s, fault = time.perf_counter() - started, "late"
        except UnsoundError as error:
            step_s, fault = time.perf_counter() - started, error.reason
        except Exception:  # a policy may raise anything; the node goes on
            step_s, fault = time.perf_counter() - started, "error"
        if following is not None and runner is (self._pid if self.level == "pid" else self.runner):
            runner.keep(following)  # also of one that alternates: it is to see what it would have gone on with
        if fault is None:
            self._faults = 0
            if self.level == "policy":
                place = self._recorded % RECORDED
                self._observed[place], self._acted[place] = seen, action
                self._recorded += 1
            return self.guard.target_of(target, action), None, step_s
        self._faults += 1
        if self._faults >= self._settings.faults:
            self.fell = self.level
            self.level, self._faults = ("pid" if self.level == "policy" else "static"), 0
            self._pid = None
            self.guard.forget()
        return target, fault, step_s

    def facts(self) -> dict[str, Any]:
        """As a status shows it."""
        last = self.history[-1] if self.history else None
        return {
            "mode": self.mode,
            "level": self.level,
            "policy": None if self.installed is None else self.installed.identity,
            "target_alpha": self.target,
            "decisions": self.decisions,
            "interventions": dict(self.interventions),
            "last": None
            if last is None
            else {
                "now_s": last.now_s,
                "target_alpha": last.decision.target_alpha,
                "reason": last.decision.reason,
                "step_us": last.decision.step_s * 1e6,
                "shadow_alpha": last.decision.shadow_alpha,
            },
        }
