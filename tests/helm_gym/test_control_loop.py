"""The one loop: observations, actions and rewards over lanes and nodes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from helm_gym.actions import apply_action
from helm_gym.backend import open_backend
from helm_gym.control_loop import ControlLoop
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.observation import COLUMNS, FAST, ObservationLayout
from helm_gym.profile import load
from helm_gym.tasks import TASKS, find_task
from helm_gym.telemetry import ALPHA_GRID, WIDTH, Telemetry

PROFILE = load("cpu-small")
LAYOUT = ObservationLayout(PROFILE)


def make_loop(lanes: int = 2, intervals: int = 6, task: str = "burst-v0") -> ControlLoop:
    quick = dataclasses.replace(find_task(task), warmup=5)
    return ControlLoop(quick, open_backend("modelled", PROFILE, lanes=lanes), intervals=intervals)


def test_an_episode_from_reset_to_its_end():
    loop = make_loop()
    step = loop.reset([1, 2])
    assert step.observation.shape == (2, 1, LAYOUT.width)
    assert step.observation.dtype == np.float32
    for t in range(6):
        step = loop.step(np.zeros((2, 1, 1)))
        assert step.done == (t == 5)
        assert (step.observation >= LAYOUT.low).all()
        assert (step.observation <= LAYOUT.high).all()
        np.testing.assert_allclose(step.reward, -sum(step.terms.values()))
    with pytest.raises(InvalidInputError, match="reset"):
        loop.step(np.zeros((2, 1, 1)))


def test_an_action_moves_the_target_by_its_share_of_the_largest_step():
    loop = make_loop()
    loop.reset([1, 2])
    step = loop.step(np.array([[[0.5]], [[-1.0]]]))
    column = LAYOUT.column("target_alpha")
    np.testing.assert_allclose(
        step.observation[:, 0, column], [0.5 + 0.5 * PROFILE.max_step, 0.5 - PROFILE.max_step], atol=1e-3
    )


@pytest.mark.parametrize(("mode", "expected"), [("delta", 0.95), ("absolute", 0.95)])
def test_targets_stay_within_the_profiles_bounds(mode, expected):
    target = np.array([[0.9]])
    assert apply_action(PROFILE, target, np.full((1, 1, 1), 7.0), mode).item() == pytest.approx(expected)


@pytest.mark.parametrize("action", [np.full((2, 1, 1), np.nan), np.zeros((2, 1)), np.zeros((1, 1, 1))])
def test_a_bad_action_is_refused(action):
    loop = make_loop()
    loop.reset([1, 2])
    with pytest.raises(InvalidInputError, match="Action"):
        loop.step(action)


def test_nodes_are_observed_row_by_row():
    """Two nodes of three lanes are six rows, each from its own telemetry."""
    rng = np.random.default_rng(0)
    telemetry = Telemetry(rng.uniform(0, 5, (3, 2, WIDTH)))
    whole = LAYOUT.observe(telemetry, 10.0)
    for lane in range(3):
        for node in range(2):
            one = LAYOUT.observe(Telemetry(telemetry.values[lane : lane + 1, node : node + 1]), 10.0)
            np.testing.assert_array_equal(one[0, 0], whole[lane, node])


def test_changes_are_differences_between_observations():
    loop = make_loop()
    before = loop.reset([1, 2]).observation
    after = loop.step(np.zeros((2, 1, 1))).observation
    for name in FAST:
        change = after[..., LAYOUT.column(name)] - before[..., LAYOUT.column(name)]
        np.testing.assert_allclose(after[..., LAYOUT.column(f"change_{name}")], change, atol=1e-6)


def test_every_column_has_a_place_and_the_curve_one_a_grid_point():
    assert LAYOUT.width == sum(c.width for c in COLUMNS) + len(FAST) == len(LAYOUT.names)
    curve = LAYOUT.column("predicted")
    assert isinstance(curve, slice)
    assert curve.stop - curve.start == len(ALPHA_GRID)
    with pytest.raises(UnknownNameError, match="did you mean 'alpha'"):
        LAYOUT.column("alhpa")


def test_unknown_tasks_name_the_nearest_and_known_ones_are_versioned():
    with pytest.raises(UnknownNameError, match="did you mean 'burst-v0'"):
        find_task("bursts-v0")
    assert all(name.rpartition("-v")[2].isdigit() for name in TASKS)


def test_unknown_backends_and_counts_that_cannot_be():
    with pytest.raises(UnknownNameError, match="did you mean 'modelled'"):
        open_backend("modeled", PROFILE)
    with pytest.raises(InvalidInputError, match="node"):
        open_backend("modelled", PROFILE, nodes=2)
    with pytest.raises(InvalidInputError, match="seeds"):
        make_loop(lanes=2).reset([1])
