"""The native vector environment: all lanes of one control loop, stepped as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from helm_gym.actions import Mode
from helm_gym.control_loop import Step
from helm_gym.envs.info import describe_lanes
from helm_gym.envs.partition import (
    Floats,
    PartitionEnv,
    PathLike,
    check_render_mode,
    episode_seed,
    lane_spaces,
    open_loop,
)
from helm_gym.envs.render import Screen
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.tasks import Task
from helm_gym.workload.traces import Trace

Bools = NDArray[np.bool_]
Outcome = tuple[Floats, NDArray[np.float64], Bools, Bools, dict[str, Any]]


class PartitionVectorEnv(VectorEnv[Floats, Floats, NDArray[Any]]):
    """``num_envs`` lanes of ``PartitionEnv``, each bit-identical to it under the same seed.

    Autoreset is next-step: all lanes end together, and the step after that ignores its actions, starts every lane's
    next episode and returns its first observation with reward 0.

    Seeds: ``reset(seed=s)`` gives lane i seed s + i, as ``SyncVectorEnv`` does; a list gives one a lane (None: draw).
    Every later episode's seed is drawn by a generator of the lane's own, so episode k of a lane is a function of the
    lane's first seed. Where no seed is ever given, the lanes' generators are seeded from ``np_random``.

    ``reset`` and ``step`` are made of ``start`` and ``serve``, which adapters with another autoreset use too.

    Args:
        num_envs: number of lanes; the real backend has one.
        max_episode_steps: truncates episodes earlier, as a ``TimeLimit`` around one environment would; ``intervals``
            in contrast also shortens the workload's path, so that a trend drifts faster.
        task, regime, profile, backend, action_mode, trace, intervals, render_mode: see ``PartitionEnv``.

    Attributes:
        loop: the control loop.
        seeds: int64 (lanes,), of the present episodes.
        ended: whether the last step was the episodes' last.

    Raises:
        UnknownNameError, InvalidInputError: as ``PartitionEnv``, and for a number of lanes that a backend cannot have.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        **PartitionEnv.metadata,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        task: str | Task | None = None,
        regime: str | None = None,
        profile: PathLike | Profile | None = None,
        backend: str = "surrogate",
        action_mode: Mode = "delta",
        trace: PathLike | Trace | None = None,
        intervals: int | None = None,
        render_mode: str | None = None,
    ):
        super().__init__()
        check_render_mode(render_mode)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.loop = open_loop(num_envs, task, regime, profile, backend, action_mode, trace, intervals)
        self.single_observation_space, self.single_action_space = lane_spaces(self.loop)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._limit = min(self.loop.intervals, max_episode_steps or self.loop.intervals)
        self._screen = Screen(self.loop) if render_mode else None
        self._random: list[np.random.Generator] = []
        self.seeds = np.zeros(num_envs, np.int64)
        self._everywhere = np.ones(num_envs, np.bool_)
        self._everywhere.flags.writeable = False
        self.ended = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Starts an episode in every lane.

        Args:
            seed: see the class.
            options: ``reset_mask``, as Gymnasium has it, must name all lanes: they share one clock.

        Raises:
            InvalidInputError: another number of seeds than lanes, or a mask that leaves lanes out.
        """
        super().reset(seed=seed if isinstance(seed, int) else None)
        mask = (options or {}).get("reset_mask")
        if mask is not None and not np.all(mask):
            raise InvalidInputError("reset_mask leaves lanes out; they share one clock and are reset together.")
        given = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if given is not None and len(given) != self.num_envs:
            raise InvalidInputError(f"{len(given)} seeds were given for {self.num_envs} lanes.")
        return self._shown(self.start(given))

    def step(self, actions: Floats) -> Outcome:
        """Serves one control interval in every lane, or starts the next episodes where the last step ended theirs.

        Raises:
            InvalidInputError: actions of a wrong shape or not finite, or an environment that was never reset.
        """
        if self.ended:
            observation, info = self._shown(self.start())
            return observation, np.zeros(self.num_envs), self._all(False), self._all(False), info
        outcome = self.serve(actions)
        observation, info = self._shown(outcome)
        return observation, outcome.reward, self._all(False), self._all(self.ended), info

    def start(self, seeds: Sequence[int | None] | None = None) -> Step:
        """Starts an episode in every lane: that of its seed, or the next that its generator draws where it has none."""
        if not self._random:
            self._random = [seeding.np_random(int(s))[0] for s in self.np_random.integers(2**63, size=self.num_envs)]
        given = [None] * self.num_envs if seeds is None else seeds
        for lane, seed in enumerate(given):
            if seed is not None:
                self._random[lane] = seeding.np_random(seed)[0]
        self.seeds = np.array([episode_seed(seed, rng) for seed, rng in zip(given, self._random, strict=True)])
        self.ended = False
        return self._recorded(self.loop.reset(self.seeds.tolist()))

    def serve(self, actions: Floats) -> Step:
        """Serves one control interval in every lane; ``ended`` says afterwards whether it was the episodes' last."""
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise InvalidInputError(f"Actions have shape {actions.shape}; {self.action_space.shape} is needed.")
        outcome = self.loop.step(actions[:, None])
        self.ended = self.loop.t >= self._limit
        return self._recorded(outcome)

    def describe(self, outcome: Step) -> dict[str, Any]:
        """``info`` of the last interval."""
        return describe_lanes(self.loop, outcome, self.seeds, self._everywhere)

    def render(self) -> tuple[Any, ...] | None:
        """One text or image a lane."""
        if self._screen is None:
            gym.logger.warn("render() shows nothing without a render_mode; give one to gym.make_vec.")
            return None
        return tuple(self._screen.render(self.render_mode, lane) for lane in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        self.loop.backend.close()

    def _recorded(self, outcome: Step) -> Step:
        if self._screen is not None:
            self._screen.record(outcome)
        return outcome

    def _shown(self, outcome: Step) -> tuple[Floats, dict[str, Any]]:
        return outcome.observation[:, 0], self.describe(outcome)

    def _all(self, value: bool) -> Bools:
        return np.full(self.num_envs, value)
