"""The native vector form of the single-agent cluster: all lanes of one control loop, stepped as one batch."""

from __future__ import annotations

from typing import Any

from helm_gym.actions import Mode
from helm_gym.control_loop import Step
from helm_gym.envs.cluster_render import ClusterScreen
from helm_gym.envs.cluster_single import (
    ClusterLike,
    apply_joint,
    cluster_spaces,
    global_state,
    open_cluster_loop,
)
from helm_gym.envs.info import describe_cluster, describe_lanes, masked
from helm_gym.envs.partition import PathLike
from helm_gym.envs.render import check_render_mode
from helm_gym.envs.vector import Floats, LanesVectorEnv
from helm_gym.profile import Profile
from helm_gym.tasks import Task
from helm_gym.workload.traces import Trace


class ClusterVectorEnv(LanesVectorEnv):
    """``num_envs`` lanes of ``ClusterEnv``, each bit-identical to it under the same seed; see ``LanesVectorEnv``.

    Args:
        num_envs: number of lanes; the real backend has one.
        max_episode_steps: truncates episodes earlier, as a ``TimeLimit`` around one environment would.
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
        task: str | Task | None = None,
        regime: str | None = None,
        profile: PathLike | Profile | None = None,
        backend: str = "modelled",
        cluster: ClusterLike = 4,
        action_mode: Mode = "delta",
        trace: PathLike | Trace | None = None,
        intervals: int | None = None,
        render_mode: str | None = None,
    ):
        check_render_mode(render_mode)
        loop = open_cluster_loop(num_envs, task, regime, profile, backend, cluster, action_mode, trace, intervals)
        super().__init__(loop, cluster_spaces(loop), max_episode_steps, render_mode)

    def apply(self, actions: Floats) -> Step:
        return apply_joint(self.loop, actions)

    def observe(self, outcome: Step) -> Floats:
        return global_state(outcome)

    def describe(self, outcome: Step) -> dict[str, Any]:
        """``info`` of the last interval: arrays (lanes,) or, of the nodes, (lanes, nodes)."""
        of_all = describe_lanes(self.loop, outcome, self.seeds, self._everywhere)
        return of_all | masked(describe_cluster(outcome), self._everywhere)
