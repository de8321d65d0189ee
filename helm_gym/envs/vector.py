"""What the native vector environments share: lanes on one clock, their seeds, their autoreset."""

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

from helm_gym.actions import as_floats
from helm_gym.control_loop import ControlLoop, Step
from helm_gym.envs.arguments import check_options, check_seed, is_many, lane_seeds, one_of, refuse, whole_number
from helm_gym.envs.info import masked
from helm_gym.envs.render import METADATA, Screen
from helm_gym.envs.spec import PlainSpec
from helm_gym.errors import InvalidInputError

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Outcome = tuple[Floats, NDArray[np.float64], Bools, Bools, dict[str, Any]]
Box = spaces.Box[np.float32]


class LanesVectorEnv(PlainSpec, VectorEnv[Floats, Floats, NDArray[Any]]):
    """All lanes of a control loop, stepped as one batch.

    All lanes end together. What comes then is ``autoreset_mode``, as Gymnasium has it. ``NEXT_STEP`` (the default): the
    step after that ignores its actions, starts every lane's next episode and returns its first observation with reward
    0. ``SAME_STEP``: the last step itself returns the next episode's first observation, and its own observation and
    info as ``info["final_obs"]``, an object array of one observation a lane, and ``info["final_info"]``. ``DISABLED``:
    ``reset`` has to be called.

    Seeds: ``reset(seed=s)`` gives lane i seed s + i, as ``SyncVectorEnv`` does; a list gives one a lane (None: draw).
    Every later episode's seed is drawn by a generator of the lane's own, so episode k of a lane is a function of the
    lane's first seed. Where no seed is ever given, the lanes' generators are seeded from ``np_random``.

    ``reset`` and ``step`` are made of ``start`` and ``serve``, which adapters with another autoreset use too. A
    subclass says what a lane takes (``apply``) and shows (``observe``, ``describe``).

    Args:
        loop: the control loop.
        single_spaces: what one lane shows and takes.
        max_episode_steps: truncates episodes earlier, as a ``TimeLimit`` around one environment would; -1: it does not.
        render_mode: how lanes are drawn, if they are.
        autoreset_mode: see above; a value of ``gymnasium.vector.AutoresetMode``, such as ``"SameStep"``, will do.

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
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ):
        super().__init__()
        self._autoreset = _autoreset_mode(autoreset_mode)
        self.metadata = self.metadata | {"autoreset_mode": self._autoreset}
        self.loop, self.render_mode = loop, render_mode
        self.num_envs = loop.shape[0]
        self.single_observation_space, self.single_action_space = single_spaces
        self._lane_shape = single_spaces[1].shape
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._limit = loop.intervals
        if max_episode_steps is not None and not (isinstance(max_episode_steps, int) and max_episode_steps == -1):
            limit = whole_number("max_episode_steps", max_episode_steps, "interval")
            self._limit = min(self._limit, limit)
        self._screen = self.screen(loop) if render_mode else None
        self._random: list[np.random.Generator] = []
        self.seeds = np.zeros(self.num_envs, np.int64)
        self._everywhere = np.ones(self.num_envs, np.bool_)
        self._everywhere.flags.writeable = False
        self.ended = False

    @property
    def episode_steps(self) -> int:
        return self._limit

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
        self,
        *,
        seed: int | Sequence[int | None] | NDArray[np.integer] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Floats, dict[str, Any]]:
        """Starts an episode in every lane.

        Args:
            seed: see the class.
            options: ``reset_mask``, as Gymnasium has it, must name all lanes: they share one clock.

        Raises:
            UnknownNameError: another option.
            InvalidInputError: seeds that are not from 0 to 2^63 - 1, another number of them than lanes, a mask that
                leaves lanes out, or an environment that is closed.
        """
        mask = check_options(options, ("reset_mask",)).get("reset_mask")
        if mask is not None:
            self._check_mask(mask)
        seeds = lane_seeds(seed, self.num_envs)
        super().reset(seed=None if is_many(seed) else seeds[0])
        return self._shown(self.start(seeds))

    def step(self, actions: Floats) -> Outcome:
        """Serves one control interval in every lane; what comes when episodes end is ``autoreset_mode``.

        Raises:
            InvalidInputError: actions of a wrong shape, not real or not finite, an environment that was never
                reset, or without autoreset an episode that is over.
        """
        if self.ended:
            if self._autoreset is AutoresetMode.DISABLED:
                raise InvalidInputError("The episodes are over and autoreset is disabled; call reset.")
            observation, info = self._shown(self.start())
            return observation, np.zeros(self.num_envs), self._all(False), self._all(False), info
        outcome = self.serve(actions)
        observation, info = self._shown(outcome)
        truncated = self._all(self.ended)
        if self.ended and self._autoreset is AutoresetMode.SAME_STEP:
            last = np.empty(self.num_envs, object)
            last[:] = list(observation)
            final = masked({"final_obs": last, "final_info": info}, self._everywhere)
            observation, info = self._shown(self.start())
            info |= final
        return observation, outcome.reward, self._all(False), truncated, info

    def start(self, seeds: Sequence[int | None] | None = None) -> Step:
        """Starts an episode in every lane: that of its seed, or the next that its generator draws where it has none."""
        if not self._random:
            self._random = [seeding.np_random(int(s))[0] for s in self.np_random.integers(2**63, size=self.num_envs)]
        given = [None] * self.num_envs if seeds is None else [None if s is None else check_seed(s) for s in seeds]
        for lane, seed in enumerate(given):
            if seed is not None:
                self._random[lane] = seeding.np_random(seed)[0]
        self.seeds = np.array([episode_seed(seed, rng) for seed, rng in zip(given, self._random, strict=True)])
        self.ended = False
        return self._recorded(self.loop.reset(self.seeds.tolist()))

    def serve(self, actions: Floats) -> Step:
        """Serves one control interval in every lane; ``ended`` says afterwards whether it was the episodes' last."""
        outcome = self.apply(as_floats(actions, (self.num_envs, *self._lane_shape), "The lanes' action"))
        self.ended = self.loop.t >= self._limit
        return self._recorded(outcome)

    def render(self) -> tuple[Any, ...] | None:
        """One text or image a lane."""
        if self._screen is None:
            gym.logger.warn("render() shows nothing without a render_mode; give one to gym.make_vec.")
            return None
        return tuple(self._screen.render(self.render_mode, lane) for lane in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        self.loop.close()

    def _check_mask(self, mask: Any) -> None:
        """Raises InvalidInputError unless ``mask`` is Gymnasium's and names all lanes."""
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            refuse("reset_mask", mask, f"a numpy array of {self.num_envs} booleans")
        if not mask.all():
            raise InvalidInputError("reset_mask leaves lanes out; they share one clock and are reset together.")

    def _recorded(self, outcome: Step) -> Step:
        if self._screen is not None:
            self._screen.record(outcome)
        return outcome

    def _shown(self, outcome: Step) -> tuple[Floats, dict[str, Any]]:
        return self.observe(outcome), self.describe(outcome)

    def _all(self, value: bool) -> Bools:
        return np.full(self.num_envs, value)


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    if isinstance(mode, AutoresetMode):
        return mode
    return AutoresetMode(one_of("autoreset_mode", mode, [known.value for known in AutoresetMode]))


def episode_seed(seed: int | None, random: np.random.Generator) -> int:
    """The workload's seed of an episode: the given one, or else a draw that no task publishes (they are small)."""
    return int(random.integers(2**32, 2**63)) if seed is None else seed
