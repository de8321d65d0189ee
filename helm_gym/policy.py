"""Policies: pure functions with explicit state, opened by name; and oracles, which are typed apart.

    action, state = policy.act(observation, state)

Reward is not passed: what a controller may learn from while it serves is in the observation. PID's integral, a
recurrent memory and an adapter's weights are all ``state``, so every policy is vectorised and can be snapshotted,
replayed and swapped while it runs.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from helm_gym.observation import ObservationLayout
from helm_gym.profile import Profile
from helm_gym.tasks import Task
from helm_gym.workload.state import WorkloadPath

Floats = NDArray[np.float32]


@runtime_checkable
class Policy(Protocol):
    """Decides the change of target alpha; rows are lanes x nodes."""

    name: str

    def initial_state(self, rows: int) -> Floats:
        """State before the first decision, (rows, S); S may be 0."""
        ...

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        """observation (rows, D), state (rows, S) -> action (rows, 1) in [-1, 1], the next state (rows, S)."""
        ...


@dataclasses.dataclass(frozen=True)
class Truth:
    """What only an oracle is handed: the hidden workload of the episodes that it is about to control.

    Attributes:
        path: the lanes' workload.
        seeds: one a lane; with the path they fix every request.
        alpha_star: float64 (lanes, intervals), the offline optimum (evaluation/optimum.py).
        task: whose warm-up a replay must go through.
    """

    task: Task
    profile: Profile
    path: WorkloadPath
    seeds: tuple[int, ...]
    alpha_star: NDArray[np.float64]


@runtime_checkable
class Oracle(Policy, Protocol):
    """A policy that is told the truth. Nothing that is deployed or ranked can be one."""

    def prepare(self, truth: Truth) -> None:
        """Called before each batch of episodes."""
        ...


def towards(layout: ObservationLayout, observation: Floats, target: NDArray[np.floating]) -> Floats:
    """The action (rows, 1) that brings the target alpha to ``target`` (rows,), as far as one step reaches.

    Targets within half a page of the present one are the same: observed splits are whole pages.
    """
    change = target - observation[:, layout.column("target_alpha")]
    change = np.where(np.abs(change) * layout.profile.pool.pages <= 0.5, 0.0, change)
    step = change / layout.profile.max_step
    return np.clip(step, -1.0, 1.0).astype(np.float32)[:, None]
