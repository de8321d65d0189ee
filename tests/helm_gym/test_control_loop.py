"""The one loop: observations, actions and rewards over lanes and nodes."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from helm_gym.actions import apply_action
from helm_gym.backend import BackendSpec, check_allocation, open_backend
from helm_gym.cluster.routing import Routing
from helm_gym.cluster.topology import find_cluster
from helm_gym.control_loop import ControlLoop
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.observation import ObservationLayout
from helm_gym.observation_schema import COLUMNS, FAST
from helm_gym.profile import load
from helm_gym.reward import CostWeights
from helm_gym.tasks import all_tasks, find_task
from helm_gym.telemetry import ALPHA_GRID, FIELDS, WIDTH, Telemetry
from helm_gym.workload.regimes import make_path

PROFILE = load("cpu-small")
LAYOUT = ObservationLayout(PROFILE)


def make_loop(lanes: int = 2, intervals: int = 6, task: str = "burst-v0") -> ControlLoop:
    quick = dataclasses.replace(find_task(task), warmup=5)
    return ControlLoop(quick, open_backend("modelled", PROFILE, lanes=lanes), intervals=intervals)


def make_cluster() -> ControlLoop:
    quick = dataclasses.replace(find_task("burst-v0"), warmup=2)
    return ControlLoop(quick, open_backend("modelled", PROFILE, 2, find_cluster("3")), intervals=6)


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
        np.testing.assert_allclose(step.reward, -step.terms.sum(axis=0))
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


@pytest.mark.parametrize("mode", ["delta", "absolute"])
def test_an_action_means_the_same_in_every_type(mode):
    target = np.array([[0.5], [0.2], [0.93]])
    action = np.array([[[1.0]], [[-1.0]], [[0.0]]])
    expected = apply_action(PROFILE, target, action, mode)
    for other in (action.astype(np.float32), action.astype(np.float16), action.astype(int), action.tolist()):
        np.testing.assert_array_equal(apply_action(PROFILE, target, other, mode), expected)
    assert (target == [[0.5], [0.2], [0.93]]).all()


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (np.array([[[0.0]], [[np.nan]]]), "Action of lane 1, node 0 is nan; it must be finite."),
        (np.array([[[np.inf]], [[0.0]]]), "Action of lane 0, node 0 is inf; it must be finite."),
        (np.zeros((2, 1)), "Action has shape (2, 1); (2, 1, 1) (lanes, nodes, 1) is needed."),
        (np.zeros((1, 1, 1)), "Action has shape (1, 1, 1); (2, 1, 1) (lanes, nodes, 1) is needed."),
    ],
    ids=["nan", "inf", "dimensions", "lanes"],
)
def test_a_bad_action_is_refused(action, sentence):
    loop = make_loop()
    loop.reset([1, 2])
    with pytest.raises(InvalidInputError, match=re.escape(sentence)):
        loop.step(action)
    loop.step(np.zeros((2, 1, 1)))


def test_an_allocation_is_whole_pages():
    alpha = np.linspace(0.05, 0.95, 5000)[:, None]
    pages = check_allocation(PROFILE, alpha, (5000, 1))
    assert pages.dtype == np.int64
    np.testing.assert_array_equal(pages, np.round(alpha * PROFILE.pool.pages))


@pytest.mark.parametrize(
    ("alpha", "sentence"),
    [
        ([[0.5]], "Allocation has shape (1, 1); (2, 1) (lanes, nodes) is needed."),
        ([[0.99], [np.nan]], "Allocation has an alpha that is not finite: nan."),
        ([[0.5], [0.96]], "alpha 0.96 is out of bounds; profile 'cpu-small' allows 0.05 to 0.95."),
        ([[0.04], [0.5]], "alpha 0.04 is out of bounds; profile 'cpu-small' allows 0.05 to 0.95."),
    ],
    ids=["shape", "nan", "above", "below"],
)
def test_an_allocation_that_cannot_be_is_refused(alpha, sentence):
    with pytest.raises(InvalidInputError, match=re.escape(sentence)):
        check_allocation(PROFILE, np.array(alpha), (2, 1))


def drawn_telemetry(rng: np.random.Generator, lanes: int, nodes: int) -> Telemetry:
    """Values over five decades, with zeros, and negative ones where a field allows them."""
    values = 10.0 ** rng.uniform(-3, 2, (lanes, nodes, WIDTH)) * (rng.random((lanes, nodes, WIDTH)) > 0.1)
    telemetry = Telemetry(values)
    for field in FIELDS:
        if field.low < 0:
            telemetry[field.name][:] *= rng.choice([-1.0, 1.0], (lanes, nodes))
    return telemetry


def expected_observation(telemetry: Telemetry, slo_ms: float, before: np.ndarray | None) -> np.ndarray:
    """The declared table, column by column in numpy; ``before`` is the last interval's observation."""
    pool, service_ms = PROFILE.pool, slo_ms / 8
    scales = {
        "moving": pool.pages,
        "moved": pool.page_moves_per_interval,
        "emb_miss": 200 * PROFILE.row_bytes,
        "kv_recomputed": PROFILE.model.max_history,
        "mean_history": PROFILE.model.max_history,
        **dict.fromkeys(("emb_gain", "emb_loss", "kv_gain", "kv_loss"), 0.2 * service_ms),
        **dict.fromkeys(("predicted", "service_mean"), 4 * service_ms),
        "load": 2000 / service_ms,
        "utilisation": 2.0,
        "backlog": pool.shadow_pages * PROFILE.rows_per_page,
        "service_p99": 16 * service_ms,
        **dict.fromkeys(("sojourn_mean", "sojourn_p50", "sojourn_p99"), slo_ms),
    }
    out = np.zeros((*telemetry.values.shape[:2], LAYOUT.width))
    for column in COLUMNS:
        x = telemetry[column.field] / scales.get(column.name, 1.0)
        if column.log_top:
            x = np.log1p(x) / np.log1p(column.log_top)
        if column.over:
            x = np.log10(np.maximum(x, 1e-6) / np.maximum(telemetry[column.over], 1e-6))
        out[..., LAYOUT.column(column.name)] = np.clip(x, column.low, column.high)
    for name in FAST if before is not None else ():
        now, then = out[..., LAYOUT.column(name)], before[..., LAYOUT.column(name)]
        out[..., LAYOUT.column(f"change_{name}")] = now - then
    return out


def test_observations_are_the_declared_columns():
    rng = np.random.default_rng(1)
    memory, before = LAYOUT.memory(40, 2), None
    for slo_ms in (20.0, 20.0, 7.0):
        telemetry = drawn_telemetry(rng, 40, 2)
        shown = LAYOUT.observe(telemetry, slo_ms, memory)
        before = expected_observation(telemetry, slo_ms, before)
        assert shown.dtype == np.float32
        np.testing.assert_allclose(shown, before, rtol=1e-6, atol=2e-7)


def test_a_measurement_that_is_missing_is_not_hidden():
    telemetry = Telemetry(np.ones((1, 1, WIDTH)))
    telemetry["kv_hit_rate"][:] = telemetry["sojourn_p99_ms"][:] = np.nan
    shown = LAYOUT.observe(telemetry, 10.0)[0, 0]
    assert np.isnan(shown[[LAYOUT.column("kv_hit_rate"), LAYOUT.column("sojourn_p99")]]).all()


class Recorded:
    """A backend of any number of nodes that plays telemetry back."""

    slo_ms = 9.0

    def __init__(self, telemetry: list[Telemetry]):
        lanes, nodes, _ = telemetry[0].values.shape
        self.spec = BackendSpec("recorded", "modelled", PROFILE, lanes, nodes, deterministic=True, snapshots=False)
        self.telemetry = iter(telemetry)

    def reset(self, state, seeds, alpha):
        pass

    def step(self, allocation, state):
        return next(self.telemetry)


def test_a_step_of_several_nodes_observes_and_pays_each_interval():
    rng = np.random.default_rng(2)
    telemetry = [drawn_telemetry(rng, 3, 2) for _ in range(4)]
    weights = CostWeights(tail=0.3, slo=2, move=0.7)
    task = dataclasses.replace(find_task("steady-v0"), warmup=1, weights=weights)
    loop = ControlLoop(task, Recorded(telemetry), intervals=3)
    steps = [loop.reset([1, 2, 3], make_path("steady", PROFILE, [1, 2, 3], 3))]
    for _ in range(3):
        steps.append(loop.step(np.zeros((3, 2, 1))))
    before = None
    for step, report in zip(steps, telemetry, strict=True):
        before = expected_observation(report, 9.0, before)
        np.testing.assert_allclose(step.observation, before, rtol=1e-6, atol=2e-7)
        expected = [
            report["interval_sojourn_ms"] / 9.0,
            0.3 * report["interval_p99_ms"] / 9.0,
            2 * report["interval_violations"],
            0.7 * np.abs(report["moved_pages"]) / PROFILE.pool.pages,
        ]
        np.testing.assert_allclose(step.terms, np.mean(expected, axis=2), rtol=1e-12)
        np.testing.assert_allclose(step.reward, -np.mean(expected, axis=2).sum(axis=0), rtol=1e-12)


def test_what_becomes_of_an_observation_does_not_reach_the_next():
    untouched, scribbled = make_loop(), make_loop()
    untouched.reset([1, 2])
    scribbled.reset([1, 2]).observation.fill(9.0)
    still = np.zeros((2, 1, 1))
    np.testing.assert_array_equal(untouched.step(still).observation, scribbled.step(still).observation)


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
    assert all(name.rpartition("-v")[2].isdigit() for name in (task.name for task in all_tasks()))


def test_unknown_backends_and_counts_that_cannot_be():
    with pytest.raises(UnknownNameError, match="did you mean 'modelled'"):
        open_backend("modeled", PROFILE)
    with pytest.raises(InvalidInputError, match="lane"):
        open_backend("modelled", PROFILE, lanes=0)
    with pytest.raises(InvalidInputError, match="seeds"):
        make_loop(lanes=2).reset([1])


def test_a_cluster_is_routed_as_before_until_another_routing_is_given():
    loop = make_cluster()
    still, random = np.zeros((2, 3, 1)), Routing("random", np.array([[4.0, 1.0, 0.0]] * 2))
    first = loop.reset([1, 2], routing=random)
    assert first.observation.shape == (2, 3, LAYOUT.width) and first.reward.shape == (2,)
    assert first.cluster.node_reward.shape == (2, 3) and first.cluster.router.shape == (2, loop.router_layout.width)
    requests = []
    for routing in (None, Routing("round-robin", np.ones((2, 3))), None):
        step = loop.step(still, routing)
        requests.append(step.cluster.traffic.requests)
        shown = step.cluster.router[:, -3:]
        assert (shown == ([1.0, 0.0, -1.0] if len(requests) == 1 else 0.0)).all()
    assert requests[0].std() > 2
    assert (requests[1] == 50).all() and (requests[2] == 50).all()


def test_a_routing_that_is_refused_leaves_a_cluster_as_it_was():
    loop, kept = make_cluster(), make_cluster()
    loop.reset([1, 2]), kept.reset([1, 2])
    for wrong in (Routing("score", -np.ones((2, 3))), Routing("score", np.full((2, 3), np.nan))):
        with pytest.raises(InvalidInputError, match="at least 0"):
            loop.step(np.ones((2, 3, 1)), wrong)
    with pytest.raises(UnknownNameError, match="did you mean 'random'"):
        loop.step(np.ones((2, 3, 1)), Routing("rando", np.ones((2, 3))))
    still = np.zeros((2, 3, 1))
    np.testing.assert_array_equal(loop.step(still).observation, kept.step(still).observation)


def test_a_single_node_takes_no_routing():
    loop = make_loop()
    loop.reset([1, 2])
    with pytest.raises(InvalidInputError, match="routing was given to a single node"):
        loop.step(np.zeros((2, 1, 1)), Routing("random", np.ones((2, 3))))
    assert loop.step(np.zeros((2, 1, 1))).cluster is None
