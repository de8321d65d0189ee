"""Methods are told apart over training seeds: intervals and tests against scipy, closed cases and known truths."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from helm_gym.evaluation.statistics import bootstrap, iqm
from leaderboard import ranking
from leaderboard.board import Board
from leaderboard.evaluating import METRICS
from leaderboard.intervals import Intervals, difference_of_methods, generator
from leaderboard.season import HIDDEN, RANKING, Season
from leaderboard.standings import Standings
from leaderboard.submissions import METHOD, Submission, state_record
from tests.leaderboard.boards import TASK, make_board

EPISODES = 20
DIFFICULTY = np.random.default_rng(3).gamma(4.0, 1.0, EPISODES)
Values = NDArray[np.float64]


def method(mean: float, between: float, seed: int, members: int = 5, noise: float = 0.05) -> Values:
    """(members, episodes): each member is better or worse in all episodes alike."""
    rng = np.random.default_rng(seed)
    offsets = between * rng.normal(size=(members, 1))
    return DIFFICULTY + mean + offsets + noise * rng.normal(size=(members, EPISODES))


def interval(values: Values) -> tuple[float, float, float]:
    ((latency, _),) = Intervals().of([values], None)
    return latency.value, latency.low, latency.high


def test_members_that_are_all_the_same_have_the_interval_of_one_policy() -> None:
    one = bootstrap((DIFFICULTY,), iqm, generator())
    value, low, high = interval(np.tile(DIFFICULTY, (8, 1)))
    assert value == pytest.approx(one.value)
    assert (low, high) == (pytest.approx(one.low, rel=0.03), pytest.approx(one.high, rel=0.03))


def test_episodes_that_are_all_the_same_leave_the_interval_of_the_training_seeds() -> None:
    members = np.random.default_rng(1).normal(10, 1, 12)
    wanted = stats.bootstrap((members,), iqm, method="percentile", rng=generator(), n_resamples=5000, axis=-1)
    value, low, high = interval(np.tile(members[:, None], (1, EPISODES)))
    assert value == pytest.approx(float(iqm(members)))
    ends = wanted.confidence_interval
    assert (low, high) == (pytest.approx(ends.low, abs=0.1), pytest.approx(ends.high, abs=0.1))


def test_where_nothing_varies_the_interval_is_a_point_and_the_score_is_exact() -> None:
    assert interval(np.full((5, EPISODES), 7.0)) == (7.0, 7.0, 7.0)
    null, oracle = DIFFICULTY + 2, DIFFICULTY
    halfway = np.tile((null + oracle) / 2, (5, 1))
    ((_, score),) = Intervals().of([halfway], (null, oracle))
    assert (score.value, score.low, score.high) == pytest.approx((0.5, 0.5, 0.5))


def test_the_interval_covers_other_training_seeds_which_one_over_episodes_does_not() -> None:
    """Truth: members vary by 1 ms, episodes by 1 ms; 95% is asked for, and ten of a kind are few."""
    covered, covered_by_episodes, trials = 0, 0, 60
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        values = 10 + rng.normal(size=(10, 1)) + rng.normal(size=(1, EPISODES)) + 0.3 * rng.normal(size=(10, EPISODES))
        _, low, high = interval(values)
        covered += low <= 10 <= high
        over_episodes = bootstrap((values.mean(axis=0),), iqm, generator())
        covered_by_episodes += over_episodes.low <= 10 <= over_episodes.high
    assert covered / trials >= 0.9 > covered_by_episodes / trials


def test_the_test_over_training_seeds_is_welch_s_of_the_members_figures() -> None:
    a, b, c = method(0, 1, 1, members=5), method(0.5, 2, 2, members=9), method(0, 1, 3, members=6)
    figures = [iqm(a), iqm(b), iqm(c)]
    differences, found = ranking.seeds_test(figures, np.array([0, 1]), np.array([1, 2]))
    for k, (x, y) in enumerate(((figures[0], figures[1]), (figures[1], figures[2]))):
        assert found[k] == pytest.approx(stats.ttest_ind(x, y, equal_var=False).pvalue)
        assert differences[k] == pytest.approx(x.mean() - y.mean())


@pytest.mark.parametrize(("first", "second", "p"), [(1.0, 1.0, 1.0), (1.0, 2.0, 0.0)])
def test_members_that_do_not_differ_leave_nothing_to_chance(first: float, second: float, p: float) -> None:
    given = [np.full(5, first), np.full(6, second)]
    assert ranking.seeds_test(given, np.array([0]), np.array([1]))[1] == pytest.approx([p])


@pytest.mark.parametrize("draw", ["normal", "lognormal"])
def test_methods_of_equal_worth_are_seldom_told_apart(draw: str) -> None:
    """At most 5% of pairs of five seeds each, and what 4,000 trials let chance do; skewed figures too."""
    rng, trials = np.random.default_rng(4), 4000
    figures = list(getattr(rng, draw)(size=(2 * trials, 5)))
    _, p = ranking.seeds_test(figures, np.arange(trials), np.arange(trials, 2 * trials))
    assert (p <= 0.05).mean() < 0.06


def test_a_difference_that_training_seeds_explain_is_none() -> None:
    """In every episode the first has the lower mean, by luck of its seeds: over episodes it would be told apart."""
    first, second = method(0.0, 1.0, 1), method(0.0, 1.0, 2)
    first = first - (first.mean() - second.mean()) - 0.2
    over_episodes = ranking.paired_test((first.mean(axis=0) - second.mean(axis=0))[None])
    assert over_episodes[0] < 0.001
    assert ranking.rank_intervals([first, second]) == [(1, 2), (1, 2)]
    assert ranking.rank_intervals([first, second - 20, first + 20]) == [(2, 2), (1, 1), (3, 3)]


def test_two_methods_are_compared_in_the_same_episodes() -> None:
    first = method(0.0, 0.1, 1)
    shifted = difference_of_methods(np.tile(DIFFICULTY, (5, 1)), np.tile(DIFFICULTY + 0.5, (7, 1)))
    assert (shifted.value, shifted.low, shifted.high) == pytest.approx((-0.5, -0.5, -0.5))
    found = difference_of_methods(first, method(0.5, 0.1, 2))
    assert found.low < found.value < found.high < 0
    # How hard the episodes are is in both: it widens each one's interval, and not that of the difference.
    assert found.high - found.low < 0.5 * (interval(first)[2] - interval(first)[1])


def fill(board: Board, season: Season, name: str, values: Values) -> str:
    """A verified method with these figures."""
    digests = tuple(hashlib.sha256(f"{name} {member}".encode()).hexdigest() for member in range(len(values)))
    given = Submission("ada", name, METHOD, digests, "", season.tasks, {})
    place = {"submission": given.id, "season": 1, "task": TASK, "split": HIDDEN, "rung": RANKING}
    entries: list[tuple[str, dict[str, Any]]] = [("submission", given.body()), state_record(given.id, "queued")]
    for member, episodes in enumerate(values):
        told = [dict.fromkeys(METRICS, float(value)) for value in episodes]
        entries.append(("scores", place | {"member": member, "episodes": told, "where": {}}))
    board.store.append([*entries, state_record(given.id, "verified")])
    return given.id


def test_a_board_of_methods_ranks_and_compares_over_training_seeds(tmp_path: pathlib.Path) -> None:
    season = Season(1, tasks=(TASK,), hidden=EPISODES)
    board = make_board(tmp_path, season=season)
    first, second = fill(board, season, "first", method(0, 0.1, 1)), fill(board, season, "second", method(3, 0.1, 2, 6))
    third = fill(board, season, "third", method(3, 3, 3, 7))
    standings = Standings(board)
    rows = standings.table(TASK, METHOD)["rows"]
    assert {row["entry"]: row["members"] for row in rows} == {first: 5, second: 6, third: 7}
    places = {row["entry"]: (row["best"], row["worst"]) for row in rows}
    assert places[first][0] == 1 and places[second][1] == places[third][1] == 3
    (told,) = standings.compare(first, second)
    assert told["test"] == "training seeds" and told["p"] < 0.001 and told["difference"]["high"] < 0
    assert standings.table(TASK)["rows"] == []  # policies have a board of their own
    board.store.close()
