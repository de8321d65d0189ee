"""Aggregates against numbers worked out by hand, and what an interval says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from helm_gym.evaluation.statistics import (
    Figure,
    bootstrap,
    captured_share,
    iqm,
    paired_difference,
    probability_of_improvement,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [([7.0], 7.0), ([1.0, 3.0], 2.0), ([0.0, 1.0, 2.0, 99.0], 1.5), ([9, 0, 1, 2, 3, 4, 5, 6, 7, 800], 4.5)],
)
def test_iqm_by_hand(samples: list[float], expected: float) -> None:
    assert iqm(np.array(samples, float)) == expected


def test_iqm_over_an_axis() -> None:
    assert iqm(np.arange(20.0).reshape(2, 10), axis=-1).tolist() == [4.5, 14.5]
    assert iqm(np.arange(8.0).reshape(4, 2), axis=0).tolist() == [3.0, 4.0]


def test_bootstrap_of_two_seeds_by_hand() -> None:
    # Resamples of two seeds have the means 1, 2 (half of them) and 3; each end takes 2.5% of the resamples.
    figure = bootstrap((np.array([1.0, 3.0]),), iqm, rng())
    assert (figure.value, figure.low, figure.high) == (2.0, 1.0, 3.0)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).normal(5.0, 1.0, (200, 30))
    figures = [bootstrap((sample,), lambda x, axis: x.mean(axis), rng()) for sample in draws]
    covered = sum(figure.low <= 5.0 <= figure.high for figure in figures)
    assert 0.88 <= covered / len(figures) <= 0.99


def test_bootstrap_is_reproducible() -> None:
    samples = (np.random.default_rng(1).normal(size=10),)
    assert bootstrap(samples, iqm, rng()) == bootstrap(samples, iqm, rng())


def test_single_seed_has_a_value_and_no_interval() -> None:
    figure = bootstrap((np.array([4.0]),), iqm, rng())
    assert figure.to_json() == {"value": 4.0, "low": None, "high": None}


def test_paired_difference_ignores_what_seeds_share() -> None:
    hard = np.random.default_rng(1).normal(100.0, 50.0, 10)
    figure = paired_difference(hard + 1.0, hard, rng())
    assert np.allclose([figure.value, figure.low, figure.high], 1.0)


def test_probability_of_improvement_by_hand() -> None:
    figure = probability_of_improvement(np.array([1.0, 1.0, 2.0, 5.0]), np.array([2.0, 2.0, 2.0, 3.0]), rng())
    assert figure.value == (1 + 1 + 0.5 + 0) / 4
    assert figure.low < figure.value < figure.high


def test_captured_share_ends_and_half_way() -> None:
    baseline, limit = np.array([10.0, 40.0, 20.0, 15.0]), np.array([8.0, 20.0, 15.0, 14.0])
    for share in (0.0, 0.5, 1.0):
        policy = baseline - share * (baseline - limit)
        figure = captured_share(baseline, policy, limit, rng())
        assert np.allclose([figure.value, figure.low, figure.high], share)


def test_captured_share_where_there_is_nothing_to_capture() -> None:
    a = np.array([1.0, 2.0, 3.0])
    assert captured_share(a, a - 0.5, a + 0.1, rng()).to_json() == {"value": None, "low": None, "high": None}


def test_captured_share_where_the_limits_gain_is_within_noise() -> None:
    baseline, limit = np.array([10.0, 10.0, 10.0]), np.array([9.0, 10.2, 9.0])
    assert math.isnan(captured_share(baseline, baseline + 1.0, limit, rng()).value)
    # A single seed tells nothing about noise; its value stands, without an interval.
    one = captured_share(baseline[:1], baseline[:1] - 0.5, limit[:1], rng())
    assert one.to_json() == {"value": 0.5, "low": None, "high": None}


def test_figure_writes_null_for_what_is_no_number() -> None:
    assert Figure(math.nan, -math.inf, math.inf).to_json() == {"value": None, "low": None, "high": None}
