"""A log as a stream of requests: visits, histories that grow, candidates that were popular then."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from helm_gym.errors import InvalidInputError
from helm_gym.workload.logs import Log, read_log
from helm_gym.workload.traces import Trace
from helm_gym.workload.visits import visits_of

T = 1_511_600_000


def log_of(tmp_path: pathlib.Path, rows: list[tuple[int, int, int]]) -> Log:
    path = tmp_path / "log"
    path.write_text("".join(f"{user},{item},1,pv,{T + s}\n" for user, item, s in rows), encoding="utf-8")
    return read_log(path)


def test_visits_end_after_a_pause_and_histories_grow(tmp_path: pathlib.Path) -> None:
    # The user of items 10 and on comes twice, another once in between; the file is not in order.
    visits = visits_of(log_of(tmp_path, [(5, 12, 5000), (5, 10, 0), (6, 20, 90), (5, 11, 60), (5, 13, 5060)]))
    np.testing.assert_array_equal(visits.arrival_s, [0, 90, 5000])
    np.testing.assert_array_equal(visits.delta, [2, 1, 2])
    assert visits.length is not None
    np.testing.assert_array_equal(visits.length, [2, 1, 4])
    items = [visits.log.item[[0, 1]].tolist(), visits.log.item[[2]].tolist(), visits.log.item[[0, 1, 3, 4]].tolist()]
    assert [visits.history(k).tolist() for k in range(3)] == items
    trace = visits.as_trace()
    assert trace.returning is not None and trace.tokens is not None
    assert trace.returning.tolist() == [False, False, True] and trace.tokens.tolist() == [2, 1, 4]


def test_a_session_of_no_length_makes_each_interaction_a_request(tmp_path: pathlib.Path) -> None:
    log = log_of(tmp_path, [(1, 1, 0), (1, 2, 1), (2, 1, 2)])
    assert len(visits_of(log, session_s=0)) == 3 and len(visits_of(log)) == 2
    with pytest.raises(InvalidInputError, match="give 0 or more seconds"):
        visits_of(log, session_s=-1)


def test_candidates_are_what_was_popular_then(tmp_path: pathlib.Path) -> None:
    early = [(user, 1, user) for user in range(300)]
    late = [(user, 2, 20_000 + user) for user in range(300, 20_000)]
    visits = visits_of(log_of(tmp_path, early + late))
    drawn = visits.candidates(np.array([0, 200, 600, 19_000]), 4000, np.random.default_rng(0))
    assert drawn.shape == (4, 4000)
    share = (drawn == visits.log.item[0]).mean(axis=1)
    np.testing.assert_allclose(share, [1.0, 1.0, 0.5, 0.0], atol=0.05)


def test_a_log_without_users_has_arrivals_and_popularity(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "all.csv"
    rows = [f"{k},2019-11-24 00:00:{k:02d}+00:00,{k % 3},1,0,0.1" for k in range(9)]
    path.write_text("\n".join([",timestamp,item_id,position,click,propensity_score", *rows]), encoding="utf-8")
    visits = visits_of(read_log(path))
    assert visits.user is None and len(visits) == 9 and len(visits.history(3)) == 0
    assert visits.as_trace().tokens is None and visits.candidates(np.arange(9), 5, np.random.default_rng(0)).max() == 2


def test_a_log_arrives_as_a_recording_did(tmp_path: pathlib.Path) -> None:
    visits = visits_of(log_of(tmp_path, [(user, 1, user) for user in range(5)]))
    other = visits.arriving_as(Trace("x", np.array([0.0, 1.0, 4.0]), None, None))
    np.testing.assert_allclose(other.arrival_s, [0, 1, 4, 6, 7])
    assert other.user is visits.user


def test_an_episode_follows_a_log(tmp_path: pathlib.Path) -> None:
    from helm_gym import profile
    from helm_gym.workload.regimes import make_path

    rng = np.random.default_rng(0)
    rows = [(int(user), int(item), 40 * k) for k, (user, item) in enumerate(rng.integers(0, 50, (3000, 2)))]
    trace = visits_of(log_of(tmp_path, rows)).as_trace()
    small = profile.load("cpu-small")
    path = make_path("trace", small, [0], 20, trace)
    assert path.parameter("arrival_rate_rps").min() > 0
    assert path.parameter("hot_share").max() > 0.5  # by then nearly all return
