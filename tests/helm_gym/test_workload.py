"""Regimes and request sampling: seeded, policy-blind, and shaped as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.profile import load
from helm_gym.workload.demand import service_ms
from helm_gym.workload.regimes import REGIMES, make_path
from helm_gym.workload.sampling import EXPONENTS, make_requests, make_traffic, sample_interval
from helm_gym.workload.state import INDEX, PARAMETERS, at_rest
from helm_gym.workload.traces import Trace

PROFILE = load("cpu-small")


def sample(values: np.ndarray, seed: int = 0, intervals: int = 40) -> tuple[dict[str, np.ndarray], object]:
    """Requests of several intervals, one after the other."""
    traffic = make_traffic(PROFILE, values[None], np.array([seed]))
    requests = make_requests(PROFILE, 1)
    gaps = np.full(PROFILE.interval.requests, np.nan)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in requests._fields}
    for _ in range(intervals):
        sample_interval(traffic, 0, values, gaps, requests)
        for name, array in requests._asdict().items():
            rows[name].append(array[0].copy())
    return {name: np.concatenate(parts) for name, parts in rows.items()}, traffic


def setting(**changes: float) -> np.ndarray:
    values = at_rest(PROFILE)
    values[INDEX["arrival_rate_rps"]] = 400.0
    for name, value in changes.items():
        values[INDEX[name]] = value
    return values


@pytest.mark.parametrize("regime", REGIMES)
def test_a_path_is_a_function_of_its_own_seed(regime):
    together = make_path(regime, PROFILE, [5, 6, 7], 120)
    alone = make_path(regime, PROFILE, [6], 120)
    np.testing.assert_array_equal(together.values[1], alone.values[0])
    assert (together.values[0] != together.values[1]).any()


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("seed", range(4))
def test_parameters_stay_within_their_bounds(regime, seed):
    path = make_path(regime, PROFILE, [seed], 300)
    for k, parameter in enumerate(PARAMETERS):
        values = path.values[0, :, k]
        assert np.isfinite(values).all()
        assert (values >= parameter.low).all(), parameter.name
        assert (values <= parameter.high).all(), parameter.name
    assert (path.parameter("arrival_rate_rps") > 0).all()
    assert path.parameter("mean_history").max() <= PROFILE.model.max_history


def test_bursts_come_and_go_and_calm_returns():
    path = make_path("burst", PROFILE, [0], 480)
    kinds = [path.kind[0][s] for s in np.unique(path.segment[0])]
    assert set(kinds[::2]) == {"calm"}
    assert set(kinds[1::2]) == {"wave", "flood", "viral"}
    calm = path.values[0][[k == "calm" for k in np.take(path.kind[0], path.segment[0])]]
    assert len(np.unique(calm[:, INDEX["hot_share"]])) == 1, "the calm after a burst is the calm before it"


def test_steady_is_steady_and_trend_drifts():
    steady, trend = (make_path(name, PROFILE, [1], 200) for name in ("steady", "trend"))
    assert (steady.values[0] == steady.values[0, 0]).all()
    share = trend.parameter("hot_share")[0]
    assert np.ptp(share) > 0.4
    assert np.abs(np.diff(share)).max() < 0.05


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    hot=st.floats(0, 1),
    new=st.floats(0, 1),
    turnover=st.floats(0, 1),
    zipf=st.floats(EXPONENTS[0], EXPONENTS[-1] - 0.001),
    history=st.floats(32, 600),
)
def test_histories_grow_by_each_visits_delta(seed, hot, new, turnover, zipf, history):
    """Under one version a user's history never shrinks, and grows by what the visit brings."""
    rows, _ = sample(
        setting(hot_share=hot, new_share=new, turnover=turnover, item_zipf=zipf, mean_history=history), seed, 12
    )
    last: dict[tuple[int, int], int] = {}
    for user, version, length, delta in zip(rows["user"], rows["version"], rows["length"], rows["delta"], strict=True):
        key = (int(user), int(version))
        if key in last:
            assert length == last[key] + delta
        last[key] = int(length)
        assert 0 <= delta <= length <= PROFILE.model.max_history
    assert rows["candidates"].max() < PROFILE.population.items
    assert (rows["gap_s"] >= 0).all()


def test_shares_and_rates_are_what_was_asked_for():
    rows, _ = sample(setting(hot_share=0.7, hot_users=30, turnover=0.0, new_share=0.0), intervals=200)
    counts = np.bincount(rows["user"], minlength=PROFILE.population.users)
    top = np.sort(counts)[::-1][:30].sum() / counts.sum()
    assert abs(top - 0.7) < 0.03
    assert abs(1 / rows["gap_s"].mean() / 400 - 1) < 0.05


def test_popularity_follows_zipf_and_drifts():
    still, _ = sample(setting(item_zipf=1.0), intervals=300)
    counts = np.sort(np.bincount(still["candidates"][:, :48].ravel(), minlength=PROFILE.population.items))[::-1]
    ranks = np.arange(1, PROFILE.population.items + 1)
    expected = 1 / ranks / (1 / ranks).sum() * counts.sum()
    np.testing.assert_allclose(counts[:20], expected[:20], rtol=0.1)
    np.testing.assert_allclose(counts[:1000].sum(), expected[:1000].sum(), rtol=0.02)
    moving, _ = sample(setting(item_zipf=1.0, item_drift=50.0), intervals=300)
    early, late = (
        np.bincount(part[:, :48].ravel()).argmax() for part in np.array_split(moving["candidates"], 20)[::19]
    )
    assert early != late


def test_recorded_gaps_reach_the_requests_unchanged():
    n = 50 * PROFILE.interval.requests
    rng = np.random.default_rng(0)
    trace = Trace("made", np.cumsum(rng.exponential(size=n)), rng.integers(100, 900, n), None)
    path = make_path("trace", PROFILE, [3], 20, trace)
    ratio = path.gaps_s[0].ravel()[1:] / path.gaps_s[0].ravel()[:-1]
    own = np.diff(trace.arrival_s, prepend=0.0)
    start = int(np.random.default_rng([3, 0x54524143]).integers(n))
    picked = own[(start + np.arange(20 * PROFILE.interval.requests)) % n]
    keep = slice(0, min(n - start - 1, len(ratio)))  # up to where the recording goes round
    np.testing.assert_allclose(ratio[keep], (picked[1:] / picked[:-1])[keep])
    traffic, requests = make_traffic(PROFILE, path.values[:, 0], np.array([3])), make_requests(PROFILE, 1)
    sample_interval(traffic, 0, path.values[0, 0], path.gaps_s[0, 0], requests)
    np.testing.assert_array_equal(requests.gap_s[0], path.gaps_s[0, 0])


def test_a_trace_is_needed_and_must_be_long_enough():
    with pytest.raises(InvalidInputError, match="--trace"):
        make_path("trace", PROFILE, [0], 10)
    short = Trace("short", np.arange(10.0), np.full(10, 100), None)
    with pytest.raises(InvalidInputError, match="10 requests"):
        make_path("trace", PROFILE, [0], 10, short)
    with pytest.raises(UnknownNameError, match="did you mean 'burst'"):
        make_path("brust", PROFILE, [0], 10)


def test_the_closed_form_sees_the_trade_off():
    """Both ends are worse than the middle, and a flood of newcomers wants more EMB than a wave of long histories."""
    flood = setting(hot_share=0.08, new_share=0.95)
    wave = setting(hot_share=0.95, hot_users=76, mean_history=375, turnover=0.01)
    curves = service_ms(PROFILE, np.stack([at_rest(PROFILE), flood, wave]))
    best = curves.argmin(1)
    assert (best > 0).all() and (best < curves.shape[1] - 1).all()
    assert best[2] < best[0] < best[1]
