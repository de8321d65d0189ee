"""Oracles: policies that are told the truth before an episode, and follow a script made of it.

All that an oracle decides is fixed by the truth, so it is decided in ``prepare``: ``act`` only reads the script, and is
as pure as any policy's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from helm_gym.backend import Backend, open_backend
from helm_gym.control_loop import start_warm
from helm_gym.errors import InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats, Truth, towards
from helm_gym.tasks import MAX_INTERVALS

_NEXT = np.array([0.0, 1.0], np.float32)  # same lane, one interval on


class _Scripted:
    """Follows a script of targets, (lanes, intervals). State: the row's lane, and the interval to come."""

    def __init__(self, layout: ObservationLayout, name: str):
        self.name = name
        self.layout = layout
        self._script: NDArray[np.float64] | None = None

    @property
    def script(self) -> NDArray[np.float64]:
        """Targets, (lanes, intervals).

        Raises:
            InvalidInputError: the oracle has not been told the truth.
        """
        if self._script is None:
            raise InvalidInputError(f"Policy '{self.name}' is an oracle; call prepare(truth) before each episode.")
        return self._script

    def initial_state(self, rows: int) -> Floats:
        lanes = len(self.script)
        if rows % lanes:
            raise InvalidInputError(f"Policy '{self.name}' was prepared for {lanes} lanes; {rows} rows do not fit.")
        lane = np.repeat(np.arange(lanes), rows // lanes)
        return np.stack([lane, np.zeros(rows)], axis=1).astype(np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        lane, t = state.astype(np.int64).T
        target = self.script[lane, np.minimum(t, self.script.shape[1] - 1)]
        return towards(self.layout, observation, target), state + _NEXT


class RegimeOracle(_Scripted):
    """Goes to alpha* of the present regime as fast as steps reach, and pays for its moves.

    Args:
        layout: of the observations to come.
        windows_late: how many telemetry windows after the regime it learns of it; until then, what was first.

    Raises:
        InvalidInputError: a negative lateness, or one beyond any episode.
    """

    def __init__(self, layout: ObservationLayout, windows_late: float = 0.0):
        super().__init__(layout, f"oracle-late:{windows_late:g}" if windows_late else "oracle")
        if windows_late < 0:
            raise InvalidInputError(f"oracle-late:{windows_late:g} looks ahead; give 0 or more windows.")
        if windows_late > MAX_INTERVALS:
            raise InvalidInputError(
                f"oracle-late:{windows_late:g} never learns of a regime; give at most {MAX_INTERVALS:,}."
            )
        interval = layout.profile.interval
        self.decisions_late = round(windows_late * interval.window / interval.requests)

    def prepare(self, truth: Truth) -> None:
        """See helm_gym.policy.Oracle."""
        star = truth.alpha_star
        known_at = np.maximum(np.arange(star.shape[1]) - self.decisions_late, 0)
        self._script = star[:, known_at]


class Clairvoyant(_Scripted):
    """Looks ahead with the true future requests: the limit that nothing online can be expected to beat.

    A receding horizon. A twin on the modelled rung goes through the episode first: every ``hold`` intervals it tries
    each candidate split, from a snapshot and for all lanes at once, on the requests of the next ``horizon`` intervals,
    and goes on with the one of the least mean sojourn. Moves and cold caches are paid for in the twin as they will be
    in the episode, so it starts to move before a burst arrives. On the modelled rung the episode repeats the twin's
    bit by bit; on others the script stays what was best on the modelled one.

    Args:
        layout: of the observations to come.
        hold: intervals between looks ahead.
        horizon: intervals that a look ahead sees.
        leads: how many intervals ahead the alpha* that are tried lie.
        nudge: change of the target that is tried either way, so that it is not bound to alpha*.
    """

    def __init__(
        self,
        layout: ObservationLayout,
        hold: int = 6,
        horizon: int = 14,
        leads: tuple[int, ...] = (0, 10),
        nudge: float = 0.1,
    ):
        super().__init__(layout, "clairvoyant")
        self.hold, self.horizon, self.leads, self.nudge = hold, horizon, leads, nudge

    def prepare(self, truth: Truth) -> None:
        """See helm_gym.policy.Oracle. Takes minutes for many lanes."""
        path, task = truth.path, truth.task
        twin = open_backend("modelled", truth.profile, lanes=len(truth.seeds))
        target = np.full((len(truth.seeds), 1), task.start_alpha)
        start_warm(twin, task, path, truth.seeds, target)
        script = np.empty((len(target), path.intervals))
        for t in range(0, path.intervals, self.hold):
            goal = self._best(twin, truth, target, t)
            for k in range(t, min(t + self.hold, path.intervals)):
                target = self._step_towards(goal, target)
                twin.step(target, path.at(k))
                script[:, k] = target[:, 0]
        twin.close()
        self._script = script

    def _best(self, twin: Backend, truth: Truth, target: NDArray[np.float64], t: int) -> NDArray[np.float64]:
        """The candidate, (lanes, 1), with the least sojourn from interval ``t`` on; the twin is left as it was."""
        now = twin.snapshot()
        candidates = self._candidates(truth, target, t)
        costs = []
        for goal in candidates:
            reached, cost = target, np.zeros(len(target))
            for k in range(t, min(t + self.horizon, truth.path.intervals)):
                reached = self._step_towards(goal, reached)
                cost += twin.step(reached, truth.path.at(k))["interval_sojourn_ms"][:, 0]
            costs.append(cost)
            twin.restore(now)
        return candidates[np.argmin(costs, axis=0), np.arange(len(target))]

    def _candidates(self, truth: Truth, target: NDArray[np.float64], t: int) -> NDArray[np.float64]:
        """To stay, to go where alpha* is or will be, and a nudge either way; (candidates, lanes, 1)."""
        star, last = truth.alpha_star, truth.alpha_star.shape[1] - 1
        ahead = [star[:, min(t + lead, last), None] for lead in self.leads]
        return np.stack([target, *ahead, target - self.nudge, target + self.nudge])

    def _step_towards(self, goal: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
        """As far as one action goes, in whole pages, so that the episode rounds a target as its twin did."""
        pool, max_step = self.layout.profile.pool, self.layout.profile.max_step
        low, high = np.ceil(pool.min_alpha * pool.pages), np.floor(pool.max_alpha * pool.pages)
        step = np.floor(max_step * pool.pages)
        present = np.round(target * pool.pages)
        pages = np.clip(np.round(goal * pool.pages), present - step, present + step)
        return np.asarray(np.clip(pages, low, high) / pool.pages)
