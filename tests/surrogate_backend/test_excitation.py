"""The designs: fixed by seed and number, wide enough to learn from, and arranged so that a twin can be judged."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from helm_gym import profile as profiles
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.profile import Profile
from helm_gym.workload.state import INDEX, bounds
from helm_gym.workload.traces import Trace
from surrogate_backend.data import excitation
from surrogate_backend.data.excitation import (
    POLICIES,
    POLICY_SEEDS,
    REPEATS,
    SWEEP,
    SWEEP_SEEDS,
    TEST_REGIMES,
    Episode,
    episode,
    episodes_for,
    round_of,
)
from surrogate_backend.data.excitation import policies as policies_of

FIRST = 80  # train episodes: the number that `helm-gym collect` logs where it is not told


@pytest.fixture(scope="module")
def profile() -> Profile:
    return profiles.load("cpu-small")


@pytest.fixture(scope="module")
def train(profile: Profile) -> list[Episode]:
    return [episode("train", number, profile, 480, 0) for number in range(FIRST)]


@pytest.fixture(scope="module")
def setting(profile: Profile) -> list[Episode]:
    return [episode("test", number, profile, 120, 0) for number in range(episodes_for(1, profile))]


@pytest.fixture
def trace() -> Trace:
    return Trace("made-up", np.arange(300) * 0.02, np.full(300, 100), None)


def same(one: Episode, other: Episode) -> bool:
    if one.schedule is None or other.schedule is None:
        held = one.schedule is other.schedule
    else:
        held = np.array_equal(one.schedule, other.schedule)
    return held and np.array_equal(one.path.values, other.path.values) and one.request_seed == other.request_seed


@pytest.mark.parametrize("design", ["train", "test"])
def test_an_episode_is_a_function_of_design_seed_and_number_alone(design: str, profile: Profile) -> None:
    numbers = (0, 3, 18, 36) if design == "train" else (0, 18, 36)
    first = [episode(design, number, profile, 60, 0) for number in numbers]
    again = [episode(design, number, profile, 60, 0) for number in reversed(numbers)]
    assert all(map(same, first, reversed(again)))
    assert not any(same(a, episode(design, a.number, profile, 60, 1)) for a in first)
    assert not any(same(a, b) for a, b in itertools.combinations(first, 2))


def test_designs_draw_what_they_drew_when_the_shipped_logs_were_made(profile: Profile) -> None:
    train, test = episode("train", 0, profile, 480, 0), episode("test", 0, profile, 480, 2)
    assert (train.request_seed, test.request_seed) == (1809783661636, 8049330286771)
    assert train.schedule is not None and test.schedule is not None
    assert (train.schedule[0], test.schedule[0]) == pytest.approx((0.3316995642769006, 0.17718312624742905))
    assert train.path.values[0, 200, INDEX["hot_share"]] == pytest.approx(0.31812754641802693)


def test_every_regime_comes_up_under_every_driver(train: list[Episode]) -> None:
    pairs = {(e.regime, e.driver) for e in train}
    drivers = {"hold", "steps", "sweep", "walk"}
    assert pairs == set(itertools.product(("excite", "burst", "mixed", "trend", "steady"), drivers))
    assert all(e.group == "train" and e.setting == e.number // 2 for e in train)


def test_a_trace_is_one_more_regime_under_every_driver(profile: Profile, trace: Trace, train: list[Episode]) -> None:
    traced = [episode("train", number, profile, 20, 0, trace) for number in range(90)]
    recorded = [e for e in traced if e.regime == "trace"]
    assert {e.driver for e in recorded} == {"hold", "steps", "sweep", "walk"}
    assert {e.regime for e in traced} == {e.regime for e in train} | {"trace"}
    assert all(np.isfinite(e.path.gaps_s).all() for e in recorded)
    assert all(np.isnan(e.path.gaps_s).all() for e in traced if e.regime != "trace")


def test_each_parameter_of_a_workload_covers_its_range(profile: Profile, train: list[Episode]) -> None:
    """What a twin is asked about later, by any regime, lies within what it has seen."""
    rest = profile.population
    wanted = {
        "hot_share": (0.05, 0.95),
        "hot_users": (0.55 * rest.hot_users, 1.8 * rest.hot_users),
        "mean_history": (0.65 * rest.mean_history, 1.85 * rest.mean_history),
        "item_zipf": (rest.item_zipf - 0.15, rest.item_zipf + 0.45),
        "item_drift": (0.0, 36.0),
        "turnover": (0.3 * rest.turnover, 1.0),
        "new_share": (0.02, 0.95),
        "delta_tokens": (0.6 * rest.delta_tokens, 1.8 * rest.delta_tokens),
        "candidates": (0.55 * rest.candidates, 1.25 * rest.candidates),
    }
    values = np.concatenate([e.path.values[0] for e in train])
    assert set(wanted) | {"arrival_rate_rps"} == set(INDEX)
    for name, (low, high) in wanted.items():
        seen = values[:, INDEX[name]]
        assert seen.min() <= low and seen.max() >= high, name
    rates = values[:, INDEX["arrival_rate_rps"]]
    assert rates.min() > 0 and rates.max() > 3 * rates.min()


def test_workloads_and_splits_stay_within_what_a_backend_takes(
    profile: Profile, train: list[Episode], setting: list[Episode]
) -> None:
    low, high = bounds(profile)
    for e in (*train, *setting):
        assert (e.path.values >= low).all() and (e.path.values <= high).all()
        if e.schedule is not None:
            assert len(e.schedule) == e.path.intervals
            assert profile.pool.min_alpha <= e.schedule.min() <= e.schedule.max() <= profile.pool.max_alpha


def test_alpha_is_moved_both_ways_far_and_near(profile: Profile, train: list[Episode]) -> None:
    schedules = {d: np.stack([e.schedule for e in train if e.driver == d]) for d in ("hold", "steps", "sweep", "walk")}
    assert np.ptp(np.concatenate([s.ravel() for s in schedules.values()])) > 0.85
    assert (np.diff(schedules["hold"]) == 0).all()
    jumps = np.diff(schedules["steps"])[np.diff(schedules["steps"]) != 0]
    assert jumps.min() < -0.5 and jumps.max() > 0.5 and (np.diff(schedules["steps"]) == 0).mean() > 0.9
    assert 0 < np.abs(np.diff(schedules["sweep"])).max() < profile.max_step
    assert 0.005 < np.abs(np.diff(schedules["walk"])).mean() < profile.max_step


@pytest.mark.parametrize("intervals", [1, 2, 5])
def test_short_episodes_can_be_drawn(intervals: int, profile: Profile) -> None:
    for design, number in itertools.product(("train", "test"), range(8 * len(TEST_REGIMES))):
        assert np.isfinite(episode(design, number, profile, intervals, 0).path.values).all()


def test_a_setting_is_one_path_served_in_every_way_that_it_is_judged_by(
    profile: Profile, setting: list[Episode]
) -> None:
    repeats, (retake,) = setting[:REPEATS], setting[REPEATS : REPEATS + 1]
    named = policies_of(profile)
    driven, held = POLICY_SEEDS * len(named), SWEEP_SEEDS * len(SWEEP)
    sweep, policies = setting[REPEATS + 1 : -driven], setting[-driven:]
    groups = ("repeat",) * REPEATS + ("retake",) + ("sweep",) * held + ("policy",) * driven
    assert tuple(e.group for e in setting) == groups
    first = setting[0]
    assert len({e.request_seed for e in repeats}) == REPEATS
    assert all(np.array_equal(e.schedule, first.schedule) for e in (*repeats, retake))
    assert same(retake, first)
    assert all(np.array_equal(e.path.values, first.path.values) for e in (*repeats, retake, *policies))
    for e, alpha in zip(sweep, SWEEP * SWEEP_SEEDS, strict=True):
        assert e.schedule is not None and (e.schedule == alpha).all()
        assert (e.path.values == sweep[0].path.values[:, :1]).all()
        assert (e.path.values[0, :, INDEX["turnover"]] < 1).all()
    assert tuple(e.driver for e in policies) == named * POLICY_SEEDS
    assert {"ppo", "three-layer-ppo", "pid"} < set(named)  # trained or tuned on the surrogate
    assert len({(e.driver, e.request_seed) for e in policies}) == driven and all(e.schedule is None for e in policies)


def test_what_is_compared_is_served_in_turns_on_the_same_requests(profile: Profile, setting: list[Episode]) -> None:
    rounds: dict[int, list[Episode]] = {}
    for e in setting:
        rounds.setdefault(round_of("test", e.number, profile), []).append(e)
    assert all(first == members[0].number for first, members in rounds.items())
    shared = [members for members in rounds.values() if len(members) > 1]
    splits, policies = shared[:SWEEP_SEEDS], shared[SWEEP_SEEDS:]
    assert len(policies) == POLICY_SEEDS and all(len({e.request_seed for e in members}) == 1 for members in shared)
    assert all(tuple(float(e.schedule[0]) for e in members if e.schedule is not None) == SWEEP for members in splits)
    assert all(tuple(e.driver for e in members) == policies_of(profile) for members in policies)
    other = dataclasses.replace(profile, name="mine")
    assert policies_of(other) == POLICIES, "nothing is shipped for it"
    assert [round_of("train", number, profile) for number in range(3)] == [0, 1, 2]


def test_settings_go_through_the_regimes(profile: Profile) -> None:
    starts = [episode("test", episodes_for(k, profile), profile, 30, 0) for k in range(2 * len(TEST_REGIMES))]
    assert tuple(e.regime for e in starts) == TEST_REGIMES * 2
    assert not any(np.array_equal(a.path.values, b.path.values) for a, b in itertools.combinations(starts, 2))


def test_mistakes_are_named(profile: Profile, trace: Trace) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'train'"):
        episode("trian", 0, profile, 10, 0)
    with pytest.raises(InvalidInputError, match="takes no recorded arrivals"):
        episode("test", 0, profile, 10, 0, trace)
    with pytest.raises(InvalidInputError, match="an interval alone needs more"):
        short = Trace("short", np.arange(3.0), np.full(3, 100), None)
        excitation.episode("train", 16, profile, 10, 0, short)


def test_each_training_setting_is_served_twice_with_other_requests(train: list[Episode]) -> None:
    for first, second in zip(train[::2], train[1::2], strict=True):
        np.testing.assert_array_equal(first.path.values, second.path.values)
        np.testing.assert_array_equal(first.schedule, second.schedule)
        assert first.request_seed != second.request_seed
