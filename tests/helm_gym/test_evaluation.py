"""The evaluation protocol on short episodes of the modelled rung, and the offline optimum where it is known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from helm_gym import profile as profiles
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.evaluation.optimum import cut_path, expected_cost, near_optimal, offline_optimum
from helm_gym.evaluation.protocol import evaluate
from helm_gym.evaluation.results import Evaluation, Optimum
from helm_gym.evaluation.statistics import paired_difference
from helm_gym.evaluation.summary import by_seed, summarise, to_json
from helm_gym.observation import ObservationLayout
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Floats
from helm_gym.tasks import find_task
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import INDEX, PARAMETERS, WorkloadPath
from tests.registering import Measured, give_name

PROFILE = profiles.load("cpu-small")
LAYOUT = ObservationLayout(PROFILE)
BURST = dataclasses.replace(find_task("burst-v0"), warmup=10, settle=30, horizon=100)
SHORT = dataclasses.replace(find_task("steady-v0"), warmup=4, settle=3, horizon=8)
FIGURES = {
    *("mean_latency_ms", "p99_ms", "slo_satisfaction", "throughput_rps", "alpha_gap", "alpha_near_optimal"),
    *("gain_captured", "gain_captured_p99", "gain_of_clairvoyant", "cost", "moved_bytes", "h2d_critical_bytes"),
    *("moves_ms", "offloads_ms", "delay_ms", "background_ms"),
    *("service_ms", "emb_hit_rate", "kv_hit_rate", "utilisation", "mean_alpha", "requests"),
    *("mean_latency_ms_over_first", "p99_ms_over_first", "cost_over_first", "decision_us_p50", "decision_us_p99"),
}


class Still:
    """Never moves; optionally spoils one row's action at one decision."""

    def __init__(self, name: str = "still", spoil: float = 0.0, width: int = 1):
        self.name, self.spoil, self.width = name, spoil, width

    def initial_state(self, rows: int) -> Floats:
        return np.stack([np.arange(rows), np.zeros(rows)], axis=1).astype(np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        action = np.zeros((len(observation), self.width), np.float32)
        row, t = state.T
        action[(row == 1) & (t == 5)] = self.spoil
        return action, (state + np.array([0.0, 1.0])).astype(np.float32)


@pytest.fixture(scope="module")
def burst() -> Evaluation:
    return evaluate(BURST, [Still(), open_policy("static:0.1", LAYOUT)], seeds=(0, 1, 2))


@pytest.fixture(scope="module")
def single() -> Evaluation:
    return evaluate(BURST, [Still()], seeds=(1,), references=False)


def test_only_scored_intervals_are_kept(burst: Evaluation) -> None:
    lanes, horizon = 3, BURST.horizon
    for episodes in burst.references.values():
        assert episodes.sojourn_ms.shape == (lanes, horizon, PROFILE.interval.requests)
        assert episodes.cost.shape == episodes.alpha.shape == (lanes, horizon)
    assert burst.optimum is not None
    assert burst.path.intervals == horizon == burst.optimum.alpha_star.shape[1]
    whole = make_path("burst", PROFILE, (0, 1, 2), BURST.settle + horizon)
    assert np.array_equal(burst.path.values, whole.values[:, BURST.settle :])
    # A static split has reached its place before anything is scored.
    assert np.allclose(burst.policies[1].alpha, 0.1, atol=1e-3)


def test_policies_meet_the_same_requests(burst: Evaluation) -> None:
    still, static = burst.policies
    assert np.array_equal(still.nodes["interval_arrival_s"], static.nodes["interval_arrival_s"])
    assert not np.array_equal(still.sojourn_ms, static.sojourn_ms)
    assert np.array_equal(still.sojourn_ms, burst.references["static:0.5"].sojourn_ms)  # where episodes start


def test_lane_does_not_depend_on_its_neighbours(burst: Evaluation, single: Evaluation) -> None:
    assert np.array_equal(single.policies[0].sojourn_ms[0], burst.policies[0].sojourn_ms[1])
    alone = offline_optimum(BURST, PROFILE, make_path("burst", PROFILE, (1,), BURST.settle + BURST.horizon), (1,))
    assert burst.optimum is not None and single.optimum is None  # it goes with the references
    assert np.array_equal(alone.cost_ms[:, 0, BURST.settle :], burst.optimum.cost_ms[:, 1])


def test_reference_that_was_asked_for_is_not_run_twice(burst: Evaluation) -> None:
    assert burst.policies[1] is burst.references["static:0.1"]


def test_oracle_beats_every_static_on_bursts(burst: Evaluation) -> None:
    oracle = burst.references["oracle"]
    for name, static in burst.references.items():
        if name != "oracle":
            assert oracle.mean_latency_ms().mean() < static.mean_latency_ms().mean(), name
    worst = summarise(burst, burst.references["static:0.1"])
    told = summarise(burst, oracle)
    best = summarise(burst, burst.references[f"static:{burst.best_static:g}"])
    assert (told["gain_captured"].value, best["gain_captured"].value) == (1.0, 0.0)
    assert worst["gain_captured"].value < 0
    assert told["alpha_gap"].value < best["alpha_gap"].value < worst["alpha_gap"].value
    assert told["alpha_near_optimal"].value > best["alpha_near_optimal"].value
    costs = [episodes.cost.mean(axis=1) for episodes in (oracle, burst.references["static:0.1"])]
    assert paired_difference(costs[0], costs[1], np.random.default_rng(0)).high < 0


def test_slo_satisfaction_counts_answers(burst: Evaluation) -> None:
    for episodes in burst.references.values():
        met = (episodes.sojourn_ms <= burst.slo_ms).mean(axis=(1, 2))
        assert np.allclose(by_seed(burst, episodes)["slo_satisfaction"], met, atol=1e-6)


def test_throughput_is_that_of_the_arrivals_where_the_queue_drains(burst: Evaluation) -> None:
    rate = summarise(burst, burst.references["oracle"])["throughput_rps"].value
    assert rate == pytest.approx(np.median(1.0 / (1.0 / burst.path.parameter("arrival_rate_rps")).mean(1)), rel=0.05)


def test_json_is_strict_and_complete(burst: Evaluation) -> None:
    result = json.loads(json.dumps(to_json(burst), allow_nan=False))
    assert set(result) == {
        *("task", "rung", "profile", "link", "seeds", "machine", "versions", "date", "slo_ms"),
        *("nodes", "cluster", "in_turns", "best_static", "best_static_p99", "policies", "references"),
    }
    assert (result["task"], result["rung"], result["profile"], result["seeds"]) == (
        "burst-v0",
        "modelled",
        "cpu-small",
        [0, 1, 2],
    )
    assert result["link"] == "modelled"
    assert [row["name"] for row in result["policies"]] == ["still", "static:0.1"]
    for row in result["policies"] + result["references"]:
        assert set(row) == {"name"} | FIGURES
        assert all(set(row[name]) == {"value", "low", "high"} for name in FIGURES)
        assert row["p99_ms"]["low"] <= row["p99_ms"]["value"] <= row["p99_ms"]["high"]
        assert row["decision_us_p50"]["value"] > 0
        assert row["gain_of_clairvoyant"]["value"] is None
    assert to_json(burst) == to_json(burst)


def test_single_seed_without_references(single: Evaluation) -> None:
    result = to_json(single)
    (row,) = result["policies"]
    assert row["mean_latency_ms"]["value"] > 0 and row["mean_latency_ms"]["low"] is None
    assert row["gain_captured"]["value"] is None
    assert result["best_static"] is None and result["references"] == []
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (Still("broken", spoil=np.nan), r"'broken' returned actions of nan at interval 5 in lane 1 \(seed 7\)"),
        (Still("wide", width=2), r"'wide' returned actions of shape \(2, 2\) at interval 0 .*lane 0 \(seed 3\)"),
    ],
)
def test_what_is_no_action_stops_the_evaluation(policy: Still, said: str) -> None:
    with pytest.raises(HelmError, match=said):
        evaluate(SHORT, [policy], seeds=(3, 7), references=False)


def test_mistakes_in_what_is_asked() -> None:
    with pytest.raises(InvalidInputError, match="policy 'still' was given twice"):
        evaluate(SHORT, [Still(), Still()])
    with pytest.raises(InvalidInputError, match="seed '4' was given twice"):
        evaluate(SHORT, [Still()], seeds=(4, 4))
    with pytest.raises(InvalidInputError, match="at least one seed"):
        evaluate(SHORT, [Still()], seeds=())


def test_backend_of_one_lane_takes_seeds_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Served by the modelled rung, so that the episodes can be compared with those side by side."""
    together = evaluate(SHORT, [Still()], seeds=SHORT.seeds[:2])
    give_name(monkeypatch, "backend", "real", Measured)
    seen: list[tuple[int, int]] = []
    alone = evaluate(SHORT, [Still()], backend="real", progress=lambda label, done, total: seen.append((done, total)))
    assert alone.seeds == SHORT.seeds[:2]
    assert np.array_equal(alone.policies[0].sojourn_ms, together.policies[0].sojourn_ms)
    # Only the statics that replay finds best, and the oracle, are run there.
    assert alone.best_static == together.best_static
    assert f"static:{alone.best_static:g}" in alone.references and "oracle" in alone.references
    assert len(alone.references) <= 3
    assert np.array_equal(alone.references["oracle"].alpha, together.references["oracle"].alpha)
    assert seen == sorted(seen) and seen[-1][0] <= seen[-1][1]
    assert alone.in_turns and not together.in_turns
    # What serves is the modelled rung itself, so nothing is lost on the way; and on that rung nothing is said of it.
    here, there = to_json(alone)["policies"][0], to_json(together)["policies"][0]
    assert (
        here["gain_lost"]["value"] == 0 and here["gain_captured_modelled"]["value"] == there["gain_captured"]["value"]
    )
    assert "gain_lost" not in there


def flat_path(setting: dict[str, float], intervals: int = 20) -> WorkloadPath:
    path = make_path("steady", PROFILE, (0, 1), intervals)
    for name, value in setting.items():
        path.values[:, :, INDEX[name]] = value
    return path


@pytest.mark.parametrize(
    ("setting", "star"),
    [
        # Nobody returns, so that KV is of no use; and everybody does, to rows that are nearly always the same few.
        ({"hot_share": 0.0, "new_share": 1.0, "turnover": 0.0}, 0.95),
        ({"hot_share": 1.0, "hot_users": 200, "mean_history": 400.0, "item_zipf": 1.4, "turnover": 0.0}, 0.05),
    ],
)
def test_optimum_where_only_one_side_is_of_use(setting: dict[str, float], star: float) -> None:
    task = dataclasses.replace(SHORT, warmup=60)
    optimum = offline_optimum(task, PROFILE, flat_path(setting), (0, 1), grid=np.array([0.05, 0.35, 0.65, 0.95]))
    assert optimum.cost_ms.shape == (4, 2, 20)
    assert np.abs(optimum.alpha_star - star).max() < 0.16
    assert (optimum.alpha_star == optimum.alpha_star[:, :1]).all()


def test_optimum_does_not_depend_on_threads_and_counts_what_it_did() -> None:
    path = flat_path({}, 6)
    done: list[int] = []
    a = offline_optimum(SHORT, PROFILE, path, (0, 1), grid=np.array([0.2, 0.5, 0.8]), threads=1, advance=done.append)
    b = offline_optimum(SHORT, PROFILE, path, (0, 1), grid=np.array([0.2, 0.5, 0.8]), threads=3)
    assert np.array_equal(a.cost_ms, b.cost_ms)
    assert sum(done) == a.cost_ms.size
    with pytest.raises(InvalidInputError, match="three evenly spaced"):
        offline_optimum(SHORT, PROFILE, path, (0, 1), grid=np.array([0.01, 0.5, 0.99]))


def test_expected_cost_averages_over_the_same_workload() -> None:
    """Ten intervals held, with new users in the first, then fifty that drift."""
    values = np.ones((1, 60, len(PARAMETERS)))
    values[0, 0, INDEX["turnover"]] = 0.5
    values[0, 10:, INDEX["hot_share"]] = np.linspace(0.2, 0.8, 50)
    segment = np.repeat([[0, 1]], [10, 50], axis=1)
    path = WorkloadPath(values, np.full((1, 60, 1), np.nan), segment, (("calm", "trend"),))
    cost = np.arange(60.0)[None, None]
    expected = expected_cost(cost, path)[0, 0]
    assert np.allclose(expected[:10], 4.5)
    assert np.allclose(expected[[10, 30, 47, 59]], [16.0, 30.0, 47.0, 53.0])  # 10 to 22, ..., 47 to 59
    assert cut_path(path, intervals=slice(10, None)).segment.tolist() == [[1] * 50]


def test_near_optimal_interpolates_between_splits() -> None:
    expected = np.array([1.10, 1.00, 1.02])[:, None, None]
    optimum = Optimum(np.array([0.2, 0.4, 0.6]), expected, expected, np.full((1, 1), 0.4))
    for alpha, near in (
        (0.2, False),
        (0.37, False),
        (0.385, True),
        (0.4, True),
        (0.49, True),
        (0.51, False),
        (0.9, False),
    ):
        assert near_optimal(optimum, np.full((1, 1), alpha)).item() is near
