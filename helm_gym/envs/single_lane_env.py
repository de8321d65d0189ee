"""What the Gymnasium environments share: the only lane of a control loop, its seeds, its pictures."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym

from helm_gym.actions import as_floats
from helm_gym.control_loop import ControlLoop, Step
from helm_gym.envs.arguments import check_options, check_seed
from helm_gym.envs.render import METADATA, Screen
from helm_gym.envs.spec import PlainSpec
from helm_gym.envs.vector import Box, Floats, episode_seed


class LaneEnv(PlainSpec, gym.Env[Floats, Floats]):
    """The only lane of a control loop; a subclass says what it takes (``apply``) and shows (``observe``, ``describe``).

    Args:
        loop: the control loop, of one lane.
        lane_spaces: what the lane shows and takes.
        render_mode: how it is drawn, if it is.
    """

    metadata = METADATA
    screen: ClassVar[type[Screen]] = Screen

    def __init__(self, loop: ControlLoop, lane_spaces: tuple[Box, Box], render_mode: str | None):
        self.loop, self.render_mode = loop, render_mode
        self.observation_space, self.action_space = lane_spaces
        self._action_shape = lane_spaces[1].shape
        self._screen = self.screen(loop) if render_mode else None
        self._seed = 0

    def apply(self, action: Floats) -> Step:
        """Steps the loop under ``action``."""
        raise NotImplementedError  # of the abstract method

    def observe(self, outcome: Step) -> Floats:
        """What the lane shows of a step."""
        raise NotImplementedError  # of the abstract method

    def describe(self, outcome: Step) -> dict[str, Any]:
        """``info`` of the last interval."""
        raise NotImplementedError  # of the abstract method

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Starts the episode of ``seed``, or of the next seed that ``np_random`` draws.

        Args:
            seed: a whole number from 0 to 2^63 - 1, of Python's or numpy's.
            options: there are none.

        Raises:
            InvalidInputError: another seed, an option, or an environment that is closed.
        """
        check_options(options)
        seed = None if seed is None else check_seed(seed)
        super().reset(seed=seed)
        self._seed = episode_seed(seed, self.np_random)
        outcome = self.loop.reset([self._seed])
        if self._screen is not None:
            self._screen.record(outcome)
        return self.observe(outcome), self.describe(outcome)

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Serves one control interval.

        Raises:
            InvalidInputError: an action of a wrong shape, not real or not finite, or an episode that is over.
        """
        outcome = self.apply(as_floats(action, self._action_shape, "Action"))
        if self._screen is not None:
            self._screen.record(outcome)
        return self.observe(outcome), outcome.reward.item(), False, outcome.done, self.describe(outcome)

    def render(self) -> Any:
        """Text (``ansi``), or an image, uint8 (height, width, 3)."""
        if self._screen is None:
            gym.logger.warn("render() shows nothing without a render_mode; give one to gym.make.")
            return None
        return self._screen.render(self.render_mode, 0)

    def close(self) -> None:
        self.loop.close()

    @property
    def episode_steps(self) -> int:
        return self.loop.intervals
