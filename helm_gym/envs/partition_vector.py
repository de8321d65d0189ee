"""The native vector environment: all lanes of one control loop, stepped as one batch."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import AutoresetMode

from helm_gym.actions import Mode
from helm_gym.control_loop import Step
from helm_gym.envs.arguments import ProfileLike, TaskLike, TraceLike, open_loop
from helm_gym.envs.info import describe_lanes
from helm_gym.envs.partition import lane_spaces
from helm_gym.envs.vector import Floats, LanesVectorEnv


class PartitionVectorEnv(LanesVectorEnv):
    """``num_envs`` lanes of ``PartitionEnv``, each bit-identical to it under the same seed; see ``LanesVectorEnv``.

    Args:
        num_envs: number of lanes; the real backend has one.
        max_episode_steps: truncates episodes earlier, as a ``TimeLimit`` around one environment would; ``intervals``
            in contrast also shortens the workload's path, so that a trend drifts faster.
        autoreset_mode: Gymnasium's ``AutoresetMode`` or its value, ``"NextStep"``, ``"SameStep"`` or ``"Disabled"``.
        task, regime, profile, backend, action_mode, trace, intervals, render_mode: see ``PartitionEnv``.

    Raises:
        UnknownNameError, InvalidInputError: as ``PartitionEnv``, and for a number of lanes that a backend cannot have.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        task: TaskLike | None = None,
        regime: str | None = None,
        profile: ProfileLike | None = None,
        backend: str = "surrogate",
        action_mode: Mode = "delta",
        trace: TraceLike | None = None,
        intervals: int | None = None,
        render_mode: str | None = None,
    ):
        loop = open_loop(num_envs, task, regime, profile, backend, action_mode, trace, intervals, render_mode)
        super().__init__(loop, lane_spaces(loop), max_episode_steps, render_mode, autoreset_mode)

    def apply(self, actions: Floats) -> Step:
        return self.loop.step(actions[:, None])

    def observe(self, outcome: Step) -> Floats:
        return outcome.observation[:, 0]

    def describe(self, outcome: Step) -> dict[str, Any]:
        """``info`` of the last interval."""
        return describe_lanes(self.loop, outcome, self.seeds, self._everywhere)
