"""The native vector form of the single-agent cluster: all lanes of one control loop, stepped as one batch."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import AutoresetMode

from helm_gym.actions import Mode
from helm_gym.control_loop import Step
from helm_gym.envs.arguments import ClusterLike, ProfileLike, TaskLike, TraceLike, choose_cluster, open_loop
from helm_gym.envs.cluster_gymnasium import apply_joint, cluster_spaces, global_state
from helm_gym.envs.cluster_render import ClusterScreen
from helm_gym.envs.info import describe_cluster, describe_lanes, masked
from helm_gym.envs.vector import Floats, LanesVectorEnv


class ClusterVectorEnv(LanesVectorEnv):
    """``num_envs`` lanes of ``ClusterEnv``, each bit-identical to it under the same seed; see ``LanesVectorEnv``.

    Args:
        num_envs: number of lanes; the real backend has one.
        max_episode_steps: truncates episodes earlier, as a ``TimeLimit`` around one environment would.
        autoreset_mode: see ``PartitionVectorEnv``.
        task, regime, profile, backend, cluster, action_mode, trace, intervals, render_mode: see ``ClusterEnv``.

    Raises:
        UnknownNameError, InvalidInputError: as ``ClusterEnv``, and for a number of lanes that a backend cannot have.
    """

    screen = ClusterScreen

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        task: TaskLike | None = None,
        regime: str | None = None,
        profile: ProfileLike | None = None,
        backend: str = "modelled",
        cluster: ClusterLike = 4,
        action_mode: Mode = "delta",
        trace: TraceLike | None = None,
        intervals: int | None = None,
        render_mode: str | None = None,
    ):
        cluster = choose_cluster(cluster)
        loop = open_loop(num_envs, task, regime, profile, backend, action_mode, trace, intervals, render_mode, cluster)
        super().__init__(loop, cluster_spaces(loop), max_episode_steps, render_mode, autoreset_mode)

    def apply(self, actions: Floats) -> Step:
        return apply_joint(self.loop, actions)

    def observe(self, outcome: Step) -> Floats:
        return global_state(outcome)

    def describe(self, outcome: Step) -> dict[str, Any]:
        """``info`` of the last interval: arrays (lanes,) or, of the nodes, (lanes, nodes)."""
        of_all = describe_lanes(self.loop, outcome, self.seeds, self._everywhere)
        return of_all | masked(describe_cluster(outcome), self._everywhere)
