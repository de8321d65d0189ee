"""What the native vector environments share: lanes on one clock, their seeds, next-step autoreset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from helm_gym.control_loop import ControlLoop, Step
from helm_gym.envs.render import METADATA, Screen
from helm_gym.errors import InvalidInputError

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Outcome = tuple[Floats, NDArray[np.float64], Bools, Bools, dict[str, Any]]
Box = spaces.Box[np.float32]


class LanesVectorEnv(VectorEnv[Floats, Floats, NDArray[Any]]):
    """All lanes of a control loop, stepped as one batch.

    Autoreset is next-step: all lanes end together, and the step after that ignores its actions, starts every lane's
    next episode and returns its first observation with reward 0.

    Seeds: ``reset(seed=s)`` gives lane i seed s + i, as ``SyncVectorEnv`` does; a list gives one a lane (None: draw).
    Every later episode's seed is drawn by a generator of the lane's own, so episode k of a lane is a function of the
    lane's first seed. Where no seed is ever given, the lanes' generators are seeded from ``np_random``.

    ``reset`` and ``step`` are made of ``start`` and ``serve``, which adapters with another autoreset use too. A
    subclass says what a lane takes (``apply``) and shows (``observe``, ``describe``).

    Args:
        loop: the control loop.
        single_spaces: what one lane shows and takes.
        max_episode_steps: truncates episodes earlier, as a ``TimeLimit`` around one environment would.
        render_mode: how lanes are drawn, if they are.

    Attributes:
        loop: the control loop.
        seeds: int64 (lanes,), of the present episodes.
        ended: whether the last step was the episodes' last.
    """

    metadata = METADATA | {"autoreset_mode": AutoresetMode.NEXT_STEP}
    screen: ClassVar[type[Screen]] = Screen

    def __init__(
        self,
        loop: ControlLoop,
        single_spaces: tuple[Box, Box],
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ):
        super().__init__()
        self.loop, self.render_mode = loop, render_mode
        self.num_envs = loop.shape[0]
        self.single_observation_space, self.single_action_space = single_spaces
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._limit = min(loop.intervals, max_episode_steps or loop.intervals)
        self._screen = self.screen(loop) if render_mode else None
        self._random: list[np.random.Generator] = []
        self.seeds = np.zeros(self.num_envs, np.int64)
        self._everywhere = np.ones(self.num_envs, np.bool_)
        self._everywhere.flags.writeable = False
        self.ended = False

    def apply(self, actions: Floats) -> Step:
        """Steps the loop under ``actions`` (lanes, ...)."""
        raise NotImplementedError  # of the abstract method

    def observe(self, outcome: Step) -> Floats:
        """What the lanes show of a step, (lanes, ...)."""
        raise NotImplementedError  # of the abstract method

    def describe(self, outcome: Step) -> dict[str, Any]:
        """``info`` of the last interval."""
        raise NotImplementedError  # of the abstract method

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
        outcome = self.apply(actions)
        self.ended = self.loop.t >= self._limit
        return self._recorded(outcome)

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
        return self.observe(outcome), self.describe(outcome)

    def _all(self, value: bool) -> Bools:
        return np.full(self.num_envs, value)


def episode_seed(seed: int | None, random: np.random.Generator) -> int:
    """The workload's seed of an episode: the given one, or else a draw that no task publishes (they are small)."""
    return int(random.integers(2**32, 2**63)) if seed is None else seed
