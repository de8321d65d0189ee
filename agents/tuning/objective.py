"""What a search minimises: an agent's cost on seeded episodes, relative to a static split on the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from helm_gym.backend import open_backend
from helm_gym.control_loop import ControlLoop
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Policy
from helm_gym.profile import Profile
from helm_gym.tasks import Task

BLOCK = 8  # episodes side by side; a trial can be given up between two blocks
BACKENDS = ("modelled", "surrogate", "surrogate-measured")


def blocks(seeds: Sequence[int]) -> Iterator[Sequence[int]]:
    """The seeds in the order in which they are served, ``BLOCK`` at a time."""
    return (seeds[first : first + BLOCK] for first in range(0, len(seeds), BLOCK))


def reference_name(task: Task) -> str:
    """The policy that costs are relative to: the split that episodes start at, held."""
    return f"static:{task.start_alpha:g}"


class Objective:
    """Serves policies through episodes of a task; backends are opened once and used for every trial.

    The cost is the task's own (``helm_gym.reward``), averaged over the intervals that an evaluation scores. Single
    episodes differ tenfold in cost with their load, so each counts relative to the reference's cost on its seed.

    Args:
        backend: ``modelled`` or ``surrogate``.
    """

    def __init__(self, task: Task, profile: Profile, backend: str):
        self.task, self.profile, self.backend = task, profile, backend
        self._loops: dict[int, ControlLoop] = {}
        self._reference: dict[tuple[int, ...], NDArray[np.float64]] = {}

    def relative_costs(self, policy: Policy, seeds: Sequence[int]) -> NDArray[np.float64]:
        """One a seed, (seeds,): below 1 is better than the reference; the seeds are served side by side."""
        return np.asarray(self._costs(policy, seeds) / self.reference_costs(seeds))

    def reference_costs(self, seeds: Sequence[int]) -> NDArray[np.float64]:
        """The reference's own costs, one a seed, (seeds,)."""
        key = tuple(seeds)
        if key not in self._reference:
            reference = open_policy(reference_name(self.task), self._loop(len(seeds)).layout)
            self._reference[key] = self._costs(reference, seeds)
        return self._reference[key]

    def close(self) -> None:
        for loop in self._loops.values():
            loop.backend.close()

    def _loop(self, lanes: int) -> ControlLoop:
        if lanes not in self._loops:
            backend = open_backend(self.backend, self.profile, lanes=lanes)
            self._loops[lanes] = ControlLoop(self.task, backend, intervals=self.task.settle + self.task.horizon)
        return self._loops[lanes]

    def _costs(self, policy: Policy, seeds: Sequence[int]) -> NDArray[np.float64]:
        loop = self._loop(len(seeds))
        step, state = loop.reset(seeds), policy.initial_state(len(seeds))
        total = np.zeros(len(seeds))
        for t in range(loop.intervals):
            action, state = policy.act(step.observation[:, 0], state)
            step = loop.step(action[:, None])
            if t >= self.task.settle:
                total -= step.reward
        return total / self.task.horizon
