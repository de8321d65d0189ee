"""Regimes and request sampling: seeded, policy-blind, and shaped as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helm_gym.cluster.topology import Cluster, Node, in_cluster
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.profile import Profile, load
from helm_gym.workload import demand
from helm_gym.workload.demand import rate_for_load, service_ms
from helm_gym.workload.regimes import KINDS, make_path
from helm_gym.workload.sampling import EXPONENTS, make_requests, make_traffic, sample_interval
from helm_gym.workload.script import hold
from helm_gym.workload.state import INDEX, PARAMETERS, WorkloadPath, at_rest, bounds
from helm_gym.workload.traces import Trace
from tests.registering import give_name

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


def setting(profile: Profile = PROFILE, /, **changes: float) -> np.ndarray:
    values = at_rest(profile)
    values[INDEX["arrival_rate_rps"]] = 400.0
    for name, value in changes.items():
        values[INDEX[name]] = value
    return values


@pytest.mark.parametrize("regime", ["burst", "mixed", "steady", "trend"])
def test_a_path_is_a_function_of_its_own_seed(regime):
    together = make_path(regime, PROFILE, [5, 6, 7], 120)
    alone = make_path(regime, PROFILE, [6], 120)
    np.testing.assert_array_equal(together.values[1], alone.values[0])
    assert (together.values[0] != together.values[1]).any()


@pytest.mark.parametrize("regime", ["burst", "mixed", "steady", "trend"])
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


@pytest.mark.parametrize("lanes", [1, 3, 300])
@pytest.mark.parametrize("regime", ["burst", "mixed", "steady", "trend"])
def test_a_path_has_its_shapes_and_lies_in_memory_as_it_is_read(regime, lanes):
    path = make_path(regime, PROFILE, range(lanes), 70)
    assert path.values.shape == (lanes, 70, len(PARAMETERS)) and path.values.dtype == np.float64
    assert path.segment.shape == (lanes, 70) and path.segment.dtype == np.int64
    assert path.gaps_s.shape == (lanes, 70, PROFILE.interval.requests) and path.gaps_s.dtype == np.float64
    assert np.isnan(path.gaps_s).all()
    assert path.gaps_s.strides == (0, 0, 0) and not path.gaps_s.flags.writeable, "Poisson gaps take no memory"
    state = path.at(69)
    assert state.values.shape == (lanes, len(PARAMETERS)) and state.values.flags.c_contiguous
    assert state.gaps_s.shape == (lanes, PROFILE.interval.requests)
    assert path.segment[:, 69].flags.c_contiguous


@pytest.mark.parametrize("regime", ["burst", "mixed", "steady", "trend"])
def test_every_interval_lies_in_a_segment_of_a_kind(regime):
    path = make_path(regime, PROFILE, range(40), 200)
    moves = np.diff(path.segment, axis=1)
    assert (path.segment[:, 0] == 0).all() and set(np.unique(moves)) <= {0, 1}
    for lane, segment in enumerate(path.segment):
        assert [path.kind[lane][s] for s in segment] == [path.kind_at(t)[lane] for t in range(200)]
        assert set(path.kind[lane][: segment[-1] + 1]) <= set(KINDS)
        assert not any(path.kind[lane][segment[-1] + 1 :])
    assert path.kind[2:5][1][0] == path.kind[3][0]
    one = WorkloadPath(path.values[:1], path.gaps_s[:1], path.segment[:1], (tuple(path.kind[0]),))
    assert one.kind_at(199).tolist() == path.kind_at(199)[:1].tolist()


def test_held_segments_are_held_and_bring_other_users():
    path = make_path("mixed", PROFILE, range(40), 300)
    lane, t = np.nonzero(np.diff(path.segment, axis=1))
    kind = np.array([path.kind[k][s] for k, s in zip(lane, path.segment[lane, t + 1], strict=True)])
    arriving = path.parameter("turnover")[lane, t + 1]
    assert (arriving[kind != "trend"] == 1.0).all() and (arriving[kind == "trend"] < 1.0).all()
    assert (path.parameter("turnover") == 1.0).sum() == (kind != "trend").sum(), "at edges, and nowhere else"
    inside = np.diff(path.segment, axis=1)[:, 1:] + np.diff(path.segment, axis=1)[:, :-1] == 0
    drifting = np.stack([path.kind_at(t) for t in range(2, 300)], axis=1) == "trend"
    changed = (path.values[:, 2:] != path.values[:, 1:-1]).any(axis=2)
    assert not changed[inside & ~drifting].any() and changed[inside & drifting].all()


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


def test_what_a_recording_does_not_know_stays_the_profiles():
    arrivals = np.cumsum(np.random.default_rng(0).exponential(size=50 * PROFILE.interval.requests))
    path = make_path("trace", PROFILE, [0, 1], 10, Trace("times", arrivals, None, None))
    known = np.delete(path.values, INDEX["arrival_rate_rps"], axis=2)
    assert np.array_equal(known, np.broadcast_to(np.delete(at_rest(PROFILE), INDEX["arrival_rate_rps"]), known.shape))


def test_many_recorded_requests_of_one_instant():
    size = PROFILE.interval.requests
    arrivals = np.cumsum(np.random.default_rng(0).exponential(size=100 * size))
    arrivals[10 * size : 14 * size] = arrivals[10 * size]
    burst = Trace("burst", arrivals, None, None)
    path = make_path("trace", PROFILE, range(4), 100, burst)  # goes round once, so every lane has them
    highest = bounds(PROFILE)[1][INDEX["arrival_rate_rps"]]
    assert np.all(path.values[..., INDEX["arrival_rate_rps"]].max(axis=1) == highest)
    cluster = in_cluster(path, Cluster((Node(2, speed=2.0),)), PROFILE, range(4))
    assert np.all(cluster.values[..., INDEX["arrival_rate_rps"]] <= highest)
    once = np.repeat([0.0, 1.0], 100 * size)
    with pytest.raises(InvalidInputError, match=r"Trace 'once' has .* all arrive at once"):
        make_path("trace", PROFILE, range(20), 10, Trace("once", once, None, None))


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


def reference_time(rates, sizes, streamed, capacity):
    """Che's characteristic time of each capacity, by bisection of its logarithm."""
    low, high = np.full(len(capacity), np.log(1e-4)), np.full(len(capacity), np.log(1e10))
    for _ in range(60):
        middle = 0.5 * (low + high)
        filled = sizes @ -np.expm1(-rates[:, None] * np.exp(middle)) + streamed * np.exp(middle)
        low, high = np.where(filled < capacity, middle, low), np.where(filled < capacity, high, middle)
    return np.exp(0.5 * (low + high))


def reference_service_ms(profile, x, alphas):
    """The closed form as it is meant: each hot user apart, items in 160 buckets, every equation solved."""
    p, cost, requests = profile.population, profile.cost, profile.interval.requests
    hot_share, new, history = (x[INDEX[name]] for name in ("hot_share", "new_share", "mean_history"))
    turnover, delta, count = max(1e-6, x[INDEX["turnover"]]), x[INDEX["delta_tokens"]], int(x[INDEX["hot_users"]])
    heat = np.diff(np.sqrt(np.arange(count + 1) / count)) * hot_share
    visits = heat * requests / turnover
    share = np.append(heat, (1.0 - hot_share) * (1.0 - new))
    length = np.append(np.minimum(history + delta * visits, 0.75 * profile.model.max_history), history)
    users = np.append(np.ones(count), p.users)
    pages = users * (length / profile.tokens_per_page + 0.5)
    once = (1.0 - hot_share) * new
    streamed = (once + count * turnover / requests) * (history / profile.tokens_per_page + 0.5)
    rate = share / users
    time = reference_time(rate, pages, streamed, (1.0 - alphas) * profile.pool.pages)
    found = -np.expm1(-rate[:, None] * time)
    found[:-1] *= (1.0 - np.minimum(1.0, 1.0 / np.maximum(visits, 1e-9)))[:, None]
    again = (share * length)[:, None] * (1.0 - found)
    fresh = x[INDEX["candidates"]] + delta
    tokens, mean_length = fresh + again.sum(0) + once * history, (share * length).sum() + once * history

    edges = np.unique(np.round(np.geomspace(1, p.items + 1, 160)))
    inside = np.diff(edges)
    asked = (0.5 * (edges[1:] + edges[:-1])) ** -x[INDEX["item_zipf"]]
    asked /= asked @ inside
    rows = np.minimum(alphas * profile.pool.pages * profile.rows_per_page, 0.999 * p.items)
    row_time = reference_time(asked, inside, 0.0, rows)
    missing = (asked * inside) @ np.exp(-asked[:, None] * row_time)
    passes = rate[:, None] * (1.0 - found)
    missed = missing * (fresh + once * history + (again * np.exp(-passes * row_time / tokens)).sum(0))
    return (
        cost.base_ms
        + tokens * (cost.per_token_ms + cost.per_pair_ms * mean_length)
        + cost.per_context_ms * mean_length
        + profile.link.latency_ms
        + missed * profile.row_ms
    )


ALPHAS = np.linspace(0.05, 0.95, 19)


@pytest.mark.parametrize("name", ["cpu-small", "h200"])
@settings(max_examples=150, deadline=None)
@given(
    hot_share=st.floats(0.02, 0.98),
    hot_users=st.floats(0.5, 2.0),
    history=st.floats(0.6, 2.0),
    zipf=st.floats(-0.2, 0.5),
    turnover=st.floats(0.25, 4.0),
    new_share=st.floats(0.0, 1.0),
    delta=st.sampled_from([0.5, 1.0, 1.0, 2.0]),
    candidates=st.sampled_from([0.5, 1.0, 1.0, 1.33]),
)
def test_the_compiled_closed_form_is_the_closed_form(
    name, hot_share, hot_users, history, zipf, turnover, new_share, delta, candidates
):
    """Over wider ranges than any regime draws from; factors are of the profile's own setting."""
    profile = load(name)
    p = profile.population
    x = setting(
        profile,
        hot_share=hot_share,
        hot_users=round(p.hot_users * hot_users),
        mean_history=min(p.mean_history * history, 0.65 * profile.model.max_history),
        item_zipf=p.item_zipf + zipf,
        turnover=p.turnover * turnover,
        new_share=new_share,
        delta_tokens=p.delta_tokens * delta,
        candidates=p.candidates * candidates,
    )
    expected, curve = reference_service_ms(profile, x, ALPHAS), service_ms(profile, x[None])[0]
    np.testing.assert_allclose(curve, expected, rtol=0.01)
    np.testing.assert_allclose(0.6e3 / rate_for_load(profile, x[None], np.array([0.6])), expected.min(), rtol=0.01)
    np.testing.assert_allclose(service_ms(profile, x[None], ALPHAS[3:5])[0], curve[3:5])


@pytest.mark.parametrize("name", ["cpu-small", "h200"])
@pytest.mark.parametrize("regime", ["burst", "mixed", "steady", "trend"])
def test_arrivals_bring_the_load_that_a_segment_is_offered(regime, name):
    """The load, from the rate and the reference, is one figure a segment; drifts keep to it between their knots."""
    profile = load(name)
    path = make_path(regime, profile, [8, 9], 160)
    for lane, segment in enumerate(path.segment):
        service = np.array([reference_service_ms(profile, x, ALPHAS).min() for x in path.values[lane]])
        load_of = path.parameter("arrival_rate_rps")[lane] * service * 1e-3
        for number in range(segment[-1] + 1):
            # A held segment's first interval replaces all hot users, and is offered what the others are.
            inside = np.flatnonzero((segment == number) & (path.parameter("turnover")[lane] < 1.0))
            np.testing.assert_allclose(load_of[inside], load_of[inside].mean(), rtol=0.02)
            assert 0.39 < load_of[inside].mean() < 0.86


@pytest.mark.parametrize(
    "changes", [{"hot_share": 0.0, "new_share": 1.0}, {"hot_share": 1.0, "turnover": 0.0}, {"hot_users": 1}]
)
def test_the_closed_form_holds_at_the_ends(changes):
    """Nobody who returns, nobody else, one hot user: it is the closed form there too, and finite without a cache."""
    x, inner = setting(**changes), np.array([0.01, 0.5, 0.99])
    np.testing.assert_allclose(service_ms(PROFILE, x[None], inner)[0], reference_service_ms(PROFILE, x, inner), 0.01)
    ends = service_ms(PROFILE, x[None], np.array([0.0, 1.0]))
    assert (ends > 0).all() and np.isfinite(ends).all()


@pytest.mark.parametrize("items", [1, 10**4, 10**8, 10**12, 10**15])
@pytest.mark.parametrize("rows", [0.05, 1.0, 1e4])
def test_the_closed_form_ends_for_any_catalogue(items, rows):
    """Of a huge one and a tiny cache, rounding keeps Newton's steps from ever being small enough."""
    held = min(rows, 0.999 * items)
    time, missing = demand._row_tables(items, (held,))
    assert (time > 0.5 * held).all() and np.isfinite(missing).all() and (missing >= 0).all()


def test_a_regime_that_stops_early_is_named(monkeypatch):
    """What it leaves unwritten would be read behind the end of its arrays."""

    def short(script):
        for lane in range(script.rng.shape[0]):
            hold(script, lane, 20, 0, 0.5)

    def none(script):
        pass

    for regime, told in ((short, "20 of 50"), (none, "0 of 50")):
        give_name(monkeypatch, "regime", "own", regime)
        with pytest.raises(InvalidInputError, match=f"'own' writes {told} intervals"):
            make_path("own", PROFILE, [0, 1], 50)


def test_a_regime_may_go_on_behind_the_end(monkeypatch):
    """It finds no room there, and what counts is what lies before."""

    def long(script):
        for lane in range(script.rng.shape[0]):
            for _ in range(100):
                hold(script, lane, 20, 0, 0.5)

    give_name(monkeypatch, "regime", "own", long)
    path = make_path("own", PROFILE, [0, 1], 50)
    assert path.segment[0].tolist() == [0] * 20 + [1] * 20 + [2] * 10


def test_nobody_is_hot_where_there_are_no_hot_users():
    """The share that would be theirs comes from everybody, and not from the one who stands in an empty table."""
    rows, _ = sample(setting(hot_users=0, hot_share=0.9, new_share=0.0), intervals=20)
    assert np.bincount(rows["user"]).max() < 20
