"""RegimeOracle and Clairvoyant."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from baselines.oracles import Clairvoyant, RegimeOracle
from helm_gym.backend import open_backend
from helm_gym.control_loop import ControlLoop
from helm_gym.errors import InvalidInputError
from helm_gym.policy import Oracle, Policy, Truth
from helm_gym.tasks import find_task
from helm_gym.telemetry import Telemetry
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import WorkloadPath
from tests.conformance.policy import PolicyConformance, make_layout, make_truth, observe

LAYOUT = make_layout()
TASK = dataclasses.replace(find_task("burst-v0"), warmup=5)
SEEDS = (1003, 1004, 1008)


class TestRegimeOracle(PolicyConformance):
    name = "oracle"


class TestRegimeOracleLate(PolicyConformance):
    name = "oracle-late:1"


class TestClairvoyant(PolicyConformance):
    name = "clairvoyant"


def wanted_targets(policy: Oracle, truth: Truth) -> NDArray[np.float64]:
    """The targets (lanes, T) that the actions ask for, read off small steps from just beside them."""
    lanes, intervals = truth.alpha_star.shape
    policy.prepare(truth)
    state, targets = policy.initial_state(lanes), np.empty((lanes, intervals))
    for t in range(intervals):
        script = policy.script[:, t]  # type: ignore[attr-defined]
        action, state = policy.act(observe(LAYOUT, lanes, target_alpha=script - 0.01), state)
        targets[:, t] = script - 0.01 + action[:, 0] * LAYOUT.profile.max_step
    return targets


@pytest.mark.parametrize("windows", [0, 1, 3])
def test_a_late_oracle_lags_by_its_windows_exactly(windows: int) -> None:
    truth = make_truth(LAYOUT)
    policy = RegimeOracle(LAYOUT, windows)
    targets, late = wanted_targets(policy, truth), 4 * windows
    np.testing.assert_allclose(targets[:, late:], truth.alpha_star[:, : targets.shape[1] - late], atol=1e-6)
    np.testing.assert_allclose(targets[:, :late], np.repeat(truth.alpha_star[:, :1], late, axis=1), atol=1e-6)


def test_each_node_of_a_lane_follows_its_lane() -> None:
    truth = make_truth(LAYOUT, lanes=3)
    policy = RegimeOracle(LAYOUT)
    policy.prepare(truth)
    action, _ = policy.act(observe(LAYOUT, 6, target_alpha=0.5), policy.initial_state(6))
    expected = np.clip((np.repeat(truth.alpha_star[:, 0], 2) - 0.5) / LAYOUT.profile.max_step, -1, 1)
    np.testing.assert_allclose(action[:, 0], expected, atol=1e-5)


def test_what_an_oracle_refuses() -> None:
    with pytest.raises(InvalidInputError, match="ahead"):
        RegimeOracle(LAYOUT, -1)
    with pytest.raises(InvalidInputError, match="prepare"):
        RegimeOracle(LAYOUT).initial_state(1)
    policy = RegimeOracle(LAYOUT)
    policy.prepare(make_truth(LAYOUT, lanes=3))
    with pytest.raises(InvalidInputError, match="3 lanes"):
        policy.initial_state(4)


def play(policy: Policy, path_length: int, seeds: tuple[int, ...] = SEEDS) -> list[Telemetry]:
    """The control loop's telemetry, one an interval."""
    loop = ControlLoop(TASK, open_backend("modelled", LAYOUT.profile, lanes=len(seeds)), intervals=path_length)
    step, state, reports = loop.reset(seeds), policy.initial_state(len(seeds)), []
    while not step.done:
        action, state = policy.act(step.observation[:, 0], state)
        step = loop.step(action[:, None])
        reports.append(step.telemetry)
    return reports


def short_truth(intervals: int = 10, seeds: tuple[int, ...] = SEEDS) -> Truth:
    path = make_path("burst", LAYOUT.profile, seeds, intervals)
    star = np.tile(np.linspace(0.3, 0.75, intervals), (len(seeds), 1))
    return Truth(TASK, LAYOUT.profile, path, seeds, star)


def test_the_episode_repeats_what_the_clairvoyant_saw() -> None:
    truth = short_truth()
    policy = Clairvoyant(LAYOUT, horizon=5)
    policy.prepare(truth)
    reports = play(policy, truth.path.intervals)

    twin = open_backend("modelled", LAYOUT.profile, lanes=len(SEEDS))
    start = np.full((len(SEEDS), 1), TASK.start_alpha)
    twin.reset(truth.path.at(0), np.array(SEEDS), start)
    for _ in range(TASK.warmup):
        twin.step(start, truth.path.at(0))
    for t, report in enumerate(reports):
        seen = twin.step(policy.script[:, t, None], truth.path.at(t))
        np.testing.assert_array_equal(report.values, seen.values)
        np.testing.assert_array_equal(report.sojourn_ms, seen.sojourn_ms)


def test_a_lane_is_planned_alike_alone_and_beside_others() -> None:
    together, alone = Clairvoyant(LAYOUT, horizon=5), Clairvoyant(LAYOUT, horizon=5)
    together.prepare(short_truth())
    alone.prepare(short_truth(seeds=SEEDS[1:2]))
    np.testing.assert_array_equal(alone.script[0], together.script[1])


def test_the_clairvoyant_serves_faster_than_standing_still_or_its_own_candidates() -> None:
    """From a hopeless start: it must leave it, whatever alpha* says."""
    truth = dataclasses.replace(short_truth(24), task=dataclasses.replace(TASK, start_alpha=0.15))
    policy = Clairvoyant(LAYOUT)
    policy.prepare(truth)
    still = cost_of(np.full_like(policy.script, 0.15), truth.path, truth)
    assert cost_of(policy.script, truth.path, truth) < still


def cost_of(script: NDArray[np.float64], path: WorkloadPath, truth: Truth) -> float:
    """Mean sojourn (ms) of a script of targets, from the truth's warm-up on."""
    backend = open_backend("modelled", LAYOUT.profile, lanes=len(script))
    start = np.full((len(script), 1), truth.task.start_alpha)
    backend.reset(path.at(0), np.array(truth.seeds), start)
    for _ in range(truth.task.warmup):
        backend.step(start, path.at(0))
    steps = [backend.step(script[:, t, None], path.at(t)) for t in range(path.intervals)]
    return float(np.mean([step["interval_sojourn_ms"] for step in steps]))
