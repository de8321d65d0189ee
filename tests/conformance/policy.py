"""What every policy must do, whatever it decides: a suite to inherit.

    class TestPid(PolicyConformance):
        name = "pid"

A subclass names a policy, or overrides ``policy`` to build or train one. Each test says what its failure would break.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
from numpy.typing import ArrayLike

from helm_gym import profile as profiles
from helm_gym.observation import ObservationLayout
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Floats, Oracle, Policy, Truth
from helm_gym.tasks import find_task
from helm_gym.workload.regimes import make_path

ROWS = 5  # lanes of the truth that oracles are told, one node each
INTERVALS = 24


def make_layout() -> ObservationLayout:
    return ObservationLayout(profiles.load("cpu-small"))


def make_truth(
    layout: ObservationLayout, lanes: int = ROWS, intervals: int = INTERVALS, task: str = "burst-v0"
) -> Truth:
    """A truth whose alpha* is arbitrary: different in each lane and at each interval."""
    rng = np.random.default_rng(7)
    seeds = tuple(range(1000, 1000 + lanes))
    path = make_path(find_task(task).regime, layout.profile, seeds, intervals)
    return Truth(find_task(task), layout.profile, path, seeds, rng.uniform(0.1, 0.9, (lanes, intervals)))


def observations(layout: ObservationLayout, steps: int = 12, rows: int = ROWS) -> list[Floats]:
    """Whatever the bounds allow: all low, all high, each column at either end, and anywhere between."""
    rng = np.random.default_rng(11)
    low, high = np.tile(layout.low, (rows, 1)), np.tile(layout.high, (rows, 1))
    drawn: list[Floats] = [low, high, low]
    while len(drawn) < steps:
        share = rng.random(low.shape) if len(drawn) % 2 else rng.integers(0, 2, low.shape)
        drawn.append((low + share * (high - low)).astype(np.float32))
    return drawn


def observe(layout: ObservationLayout, rows: int = 1, /, **columns: ArrayLike) -> Floats:
    """An observation (rows, D) with these columns, each a number, (rows,) or (rows, width), and nought elsewhere."""
    seen = np.zeros((rows, layout.width), np.float32)
    for name, value in columns.items():
        seen[:, layout.column(name)] = value
    return seen


def settle(
    policy: Policy, layout: ObservationLayout, start: float = 0.5, steps: int = 60, /, **columns: ArrayLike
) -> Floats:
    """The targets (steps,) that a node goes through while all but the split stays the same."""
    state, target, targets = policy.initial_state(1), start, []
    for _ in range(steps):
        action, state = policy.act(observe(layout, target_alpha=target, alpha=target, **columns), state)
        target = float(np.clip(target + action[0, 0] * layout.profile.max_step, 0.05, 0.95))
        targets.append(target)
    return np.array(targets, np.float32)


def follow(policy: Policy, seen: list[Floats], state: Floats) -> tuple[list[Floats], list[Floats]]:
    """Actions and states, one a step."""
    actions, states = [], []
    for observation in seen:
        action, state = policy.act(observation, state)
        actions.append(action)
        states.append(state)
    return actions, states


class PolicyConformance:
    """Inherit as ``Test...``; ``name`` is what ``open_policy`` takes."""

    name: str
    actions = 1

    @pytest.fixture(scope="class")
    @classmethod
    def layout(cls) -> ObservationLayout:
        return make_layout()

    @pytest.fixture(scope="class")
    @classmethod
    def policy(cls, layout: ObservationLayout) -> Policy:
        policy = open_policy(cls.name, layout)
        if isinstance(policy, Oracle):
            policy.prepare(make_truth(layout))
        return policy

    def test_is_a_policy_of_its_name(self, policy: Policy) -> None:
        assert isinstance(policy, Policy)
        assert policy.name == self.name

    def test_shapes_and_types_are_kept(self, policy: Policy, layout: ObservationLayout) -> None:
        """Without it no loop, environment or graph could hold its state."""
        first = policy.initial_state(ROWS)
        assert first.ndim == 2 and len(first) == ROWS and first.dtype == np.float32
        actions, states = follow(policy, observations(layout), first)
        assert {(a.shape, a.dtype) for a in actions} == {((ROWS, self.actions), np.dtype(np.float32))}
        assert {(s.shape, s.dtype) for s in states} == {(first.shape, np.dtype(np.float32))}

    def test_actions_and_state_stay_finite_and_bounded(self, policy: Policy, layout: ObservationLayout) -> None:
        """Extreme observations are what a live node reports on its worst day."""
        actions, states = follow(policy, observations(layout, 40), policy.initial_state(ROWS))
        assert np.isfinite(states).all()
        assert np.abs(actions).max() <= 1.0

    def test_rows_are_independent(self, policy: Policy, layout: ObservationLayout) -> None:
        """A row alone does what it does in a batch: evaluation of many lanes is what one node will do."""
        seen, first = observations(layout), policy.initial_state(ROWS)
        together, after = follow(policy, seen, first)
        for row in range(ROWS):
            part = slice(row, row + 1)
            alone, alone_after = follow(policy, [o[part] for o in seen], first[part])
            np.testing.assert_allclose(np.stack(alone), np.stack(together)[:, part], atol=1e-6)
            np.testing.assert_allclose(np.stack(alone_after), np.stack(after)[:, part], atol=1e-6)

    def test_everything_it_remembers_is_in_its_state(self, policy: Policy, layout: ObservationLayout) -> None:
        """So that it can be snapshotted, replayed and swapped while it runs."""
        seen, first = observations(layout), policy.initial_state(ROWS)
        actions, states = follow(policy, seen, first)
        again, _ = follow(policy, seen, policy.initial_state(ROWS))
        np.testing.assert_array_equal(np.stack(again), np.stack(actions))
        half = len(seen) // 2
        resumed, _ = follow(policy, seen[half:], states[half - 1])
        np.testing.assert_array_equal(np.stack(resumed), np.stack(actions)[half:])

    def test_its_arguments_are_not_written_to(self, policy: Policy, layout: ObservationLayout) -> None:
        """A loop passes its own observation; a replay its own state."""
        state = policy.initial_state(ROWS)
        for observation in observations(layout):
            given = copy.deepcopy((observation, state))
            _, following = policy.act(observation, state)
            np.testing.assert_array_equal(observation, given[0])
            np.testing.assert_array_equal(state, given[1])
            state = following
