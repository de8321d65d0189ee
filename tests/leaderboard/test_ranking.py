"""Ranks and their intervals, against scipy, closed cases, and entries whose place is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from leaderboard import ranking

RNG = np.random.default_rng(3)
DIFFICULTY = RNG.gamma(4.0, 1.0, 20)  # of the episodes, which all entries share


def entry(ms: float, noise: float = 0.05, seed: int = 0) -> np.ndarray:
    return DIFFICULTY + ms + noise * np.random.default_rng(seed).normal(size=20)


def policies(entries: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of one member each."""
    return {name: values[None] for name, values in entries.items()}


REFERENCES = {f"static:0.{k}": entry(2 + abs(k - 6), seed=50 + k) for k in range(1, 10)} | {"oracle": entry(0, seed=9)}


def test_known_entries_have_the_scores_that_they_must_have() -> None:
    best = ranking.best_static({k: v for k, v in REFERENCES.items() if k != "oracle"})
    assert best == "static:0.6"
    half = (REFERENCES[best] + REFERENCES["oracle"]) / 2
    entries = {
        "null": REFERENCES[best],
        "oracle": REFERENCES["oracle"],
        "constant": REFERENCES["static:0.2"],
        "half": half,
    }
    found = {row.entry: row for row in ranking.rank(policies(entries), REFERENCES)}
    assert found["null"].score.value == 0.0 and found["oracle"].score.value == 1.0
    assert found["half"].score.value == pytest.approx(0.5, abs=1e-9)
    assert found["half"].score.low == pytest.approx(0.5, abs=1e-9) == found["half"].score.high
    assert found["constant"].score.value < -1
    assert [row.entry for row in ranking.rank(policies(entries), REFERENCES)] == ["oracle", "half", "null", "constant"]
    assert [(found[n].best, found[n].worst) for n in ("oracle", "half", "null", "constant")] == [
        (k, k) for k in range(1, 5)
    ]


def test_without_references_there_is_a_rank_and_no_score() -> None:
    (first, second) = ranking.rank(policies({"a": entry(1.0), "b": entry(0.0)}), {})
    assert first.entry == "b" and math.isnan(first.score.value) and (first.best, second.best) == (1, 2)
    assert first.latency.low <= first.latency.value <= first.latency.high
    assert ranking.rank({}, {}) == []


def test_where_the_oracle_gains_nothing_nobody_has_a_score() -> None:
    references = {"static:0.5": entry(1, 0.5, 1), "static:0.6": entry(1, 0.5, 2), "oracle": entry(1, 0.5, 3)}
    entries = {"same as best": references["static:0.5"], "other": entry(1, 0.5, 4)}
    rows = ranking.rank(policies(entries), references)
    assert all(math.isnan(row.score.value) for row in rows)
    assert ranking.scale_of(references) is None and ranking.scale_of(REFERENCES) is not None


def test_what_cannot_be_told_apart_shares_its_rank() -> None:
    entries = {"a": entry(0, 0.5, 1), "b": entry(0, 0.5, 2), "copy of a": entry(0, 0.5, 1), "worse": entry(3, 0.5, 3)}
    found = {row.entry: row for row in ranking.rank(policies(entries), REFERENCES)}
    assert {(found[n].best, found[n].worst) for n in ("a", "b", "copy of a")} == {(1, 3)}
    assert (found["worse"].best, found["worse"].worst) == (4, 4)


@given(st.integers(2, 9), st.integers(0, 1000))
def test_intervals_hold_the_order_of_the_means(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    entries = [DIFFICULTY + rng.normal(0, 1) + rng.normal(0, 0.3, (1, 20)) for _ in range(count)]
    intervals = ranking.rank_intervals(entries)
    assert all(1 <= best <= worst <= count for best, worst in intervals)
    assert intervals == ranking.rank_intervals(entries)
    turned = ranking.rank_intervals(entries[::-1])
    assert turned[::-1] == intervals  # whoever comes first in the file has nothing of it


def test_entries_of_equal_worth_keep_rank_one_within_their_interval() -> None:
    """At least 95% of them, less what a hundred trials let chance do."""
    kept, trials = 0, 100
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        intervals = ranking.rank_intervals([DIFFICULTY + rng.normal(0, 1, (1, 20)) for _ in range(6)])
        kept += sum(best == 1 and worst == 6 for best, worst in intervals)
    assert kept / (6 * trials) > 0.9


def test_the_paired_test_is_scipy_s() -> None:
    rows = RNG.normal(0.3, 1, (6, 20))
    rows[4], rows[5, :6] = 0.0, 0.0
    found = ranking.paired_test(rows)
    assert found[4] == 1.0
    for k in range(4):
        assert found[k] == stats.wilcoxon(rows[k], method="exact").pvalue
    assert found[5] == pytest.approx(stats.wilcoxon(rows[5], zero_method="zsplit", method="asymptotic").pvalue)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # Holm (1979), by hand
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm(given: list[float], wanted: list[float]) -> None:
    assert ranking.holm(given) == pytest.approx(wanted)


def test_a_lead_is_confirmed_where_it_holds_on_fresh_episodes() -> None:
    assert ranking.confirmed(entry(0)[None], [entry(1)[None], entry(0.5)[None]])
    assert not ranking.confirmed(entry(1)[None], [entry(0)[None]])


def test_over_all_tasks_the_mean_ranks_and_the_worst_is_told() -> None:
    nan = math.nan
    scores = {"t1": {"a": 0.9, "b": 0.6, "c": 1.0}, "t2": {"a": 0.1, "b": 0.6}, "t3": {"a": nan, "b": nan}}
    assert ranking.over_tasks(scores, ["t1", "t2", "t3"]) == [("b", 0.6, 0.6), ("a", 0.5, 0.1)]
    assert ranking.over_tasks({}, ["t1"]) == []


def test_ten_thousand_entries_are_ranked_and_the_first_compared() -> None:
    entries = {f"e{k}": DIFFICULTY + RNG.normal(0, 1, 20) for k in range(10_000)}
    found = ranking.rank(policies(entries), REFERENCES)
    assert len(found) == 10_000 and all(row.best for row in found[: ranking.MOST_COMPARED])
    assert not any(row.best for row in found[ranking.MOST_COMPARED :])
    assert [row.latency.value for row in found] == sorted(row.latency.value for row in found)
