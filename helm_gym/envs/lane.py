"""What the Gymnasium environments share: the only lane of a control loop, its seeds, its pictures."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from helm_gym.control_loop import ControlLoop, Step
from helm_gym.envs.render import METADATA, Screen
from helm_gym.envs.vector import Box, Floats, episode_seed
from helm_gym.errors import InvalidInputError


class LaneEnv(gym.Env[Floats, Floats]):
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
        """Starts the episode of ``seed``, or of the next seed that ``np_random`` draws; ``options`` are not used."""
        super().reset(seed=seed)
        self._seed = episode_seed(seed, self.np_random)
        return self._shown(self.loop.reset([self._seed]))

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Serves one control interval.

        Raises:
            InvalidInputError: an action of a wrong shape or not finite, or an episode that is over.
        """
        action = np.asarray(action)
        if action.shape != self.action_space.shape:
            raise InvalidInputError(f"Action has shape {action.shape}; {self.action_space.shape} is needed.")
        outcome = self.apply(action)
        observation, info = self._shown(outcome)
        return observation, outcome.reward.item(), False, outcome.done, info

    def render(self) -> Any:
        """Text (``ansi``), or an image, uint8 (height, width, 3)."""
        if self._screen is None:
            gym.logger.warn("render() shows nothing without a render_mode; give one to gym.make.")
            return None
        return self._screen.render(self.render_mode, 0)

    def close(self) -> None:
        self.loop.backend.close()

    def _shown(self, outcome: Step) -> tuple[Floats, dict[str, Any]]:
        if self._screen is not None:
            self._screen.record(outcome)
        return self.observe(outcome), self.describe(outcome)
