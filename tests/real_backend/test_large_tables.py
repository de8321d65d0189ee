"""Tables of more rows than have an entry each: hashed, they behave as listed ones do, and take the pool's memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helm_gym import profile as profiles
from helm_gym.backend import open_backend
from helm_gym.cluster.topology import Cluster, Node
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.workload import sampling
from helm_gym.workload.regimes import make_path
from real_backend.memory import layout, row_index
from real_backend.memory.layout import EVICTED_ROWS, Memory, make_memory
from tests.real_backend.machine import ends, tiny_profile


def series(profile: Profile, name: str = "modelled", intervals: int = 12) -> np.ndarray:
    backend = open_backend(name, profile)
    path = make_path("burst", profile, [3], intervals)
    backend.reset(path.at(0), np.array([3]), np.full((1, 1), 0.5))
    alphas = (0.5, 0.2, 0.6, 0.05, 0.55)
    return np.stack(
        [backend.step(np.full((1, 1), alphas[t // 3 % 5]), path.at(t)).values[0, 0] for t in range(intervals)]
    )


@pytest.mark.parametrize("prefilled", [False, True])
def test_a_hashed_table_behaves_as_a_listed_one_to_the_last_bit(monkeypatch, prefilled):
    for base in (tiny_profile(40, 2, host_users=4), profiles.load("cpu-small")):
        profile = dataclasses.replace(base, pool=dataclasses.replace(base.pool, prefilled=prefilled))
        listed = series(profile)
        monkeypatch.setattr(layout, "DIRECT_ITEMS", 0)
        hashed = series(profile)
        monkeypatch.undo()
        np.testing.assert_array_equal(hashed, listed)
        assert np.ptp(listed[:, 0]) > 0.05


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=300), st.integers(0, 2**20))
def test_the_index_is_a_dictionary(steps, offset):
    """Rows come, move and go in any order, many of them with homes side by side."""
    profile = tiny_profile(24)
    profile = dataclasses.replace(profile, population=dataclasses.replace(profile.population, items=2**25))
    m = Memory._make(array[0] for array in make_memory(profile, np.array([12])))
    ring = len(m.evicted_ring)
    assert len(m.row_slot) < 24 * profile.rows_per_page * 2 and len(m.row_evicted) == 2 * ring
    slots, evicted = {}, []
    free = list(range(24 * profile.rows_per_page))[:30]
    with ends():
        for number, move in steps:
            row = offset + number
            if row not in slots and free:
                slots[row] = free.pop()
                row_index.put_row(m, row, slots[row])
            elif row in slots and move and free:
                row_index.move_row(m, row, slots[row], free[-1])
                slots[row], free[-1] = free[-1], slots[row]
            elif row in slots:
                row_index.drop_row(m, row, slots[row])
                free.append(slots.pop(row))
                row_index.note_evicted(m, row)
                evicted.append(row)
            for other in range(offset, offset + 41):
                assert row_index.slot_of(m, other) == slots.get(other, -1)
        assert m.n[EVICTED_ROWS] == len(evicted)
        for row in range(offset, offset + 41):
            last = max((t for t, gone in enumerate(evicted) if gone == row), default=-1)
            known = last >= 0 and last >= len(evicted) - ring
            assert row_index.evicted_at(m, row) == last if known else row_index.evicted_at(m, row) < 0


def test_a_short_shadow_list_forgets_in_order():
    profile = tiny_profile(24)
    profile = dataclasses.replace(
        profile,
        pool=dataclasses.replace(profile.pool, shadow_pages=0),
        population=dataclasses.replace(profile.population, items=2**25),
    )
    m = Memory._make(array[0] for array in make_memory(profile, np.array([12])))
    for row in (5, 6, 5):
        row_index.note_evicted(m, row)
    assert (row_index.evicted_at(m, 5), row_index.evicted_at(m, 6)) == (2, row_index._NEVER)


def test_prefilled_caches_hold_the_most_popular_rows():
    base = tiny_profile(40)
    profile = dataclasses.replace(base, pool=dataclasses.replace(base.pool, prefilled=True))
    backend = open_backend("modelled", profile)
    path = make_path("steady", profile, [1], 1)
    backend.reset(path.at(0), np.array([1]), np.full((1, 1), 0.5))
    memory, traffic = backend._memory, backend._traffic
    room = 20 * profile.rows_per_page
    popular = traffic.items_of_rank[: min(room, profile.population.items)]
    assert set(np.flatnonzero(memory.row_slot[0] >= 0)) == set(popular.tolist())
    warm, cold = (open_backend("real", p).spec.profile for p in (profile, base))
    first = [series(p, "real", 1)[0] for p in (warm, cold)]
    hit = profile_column("emb_hit_rate")
    assert first[0][hit] > first[1][hit] + 0.2


def profile_column(name: str) -> int:
    from helm_gym.telemetry import COLUMN

    return COLUMN[name]


def test_scores_of_a_prefilled_pool_are_those_of_an_empty_one():
    """Rows that were loaded when the server started are rows of the table."""
    base = tiny_profile(40)
    profile = dataclasses.replace(base, pool=dataclasses.replace(base.pool, prefilled=True))
    backend = open_backend("real", profile)
    path = make_path("steady", profile, [1], 1)
    backend.reset(path.at(0), np.array([1]), np.full((1, 1), 0.5))
    backend.step(np.full((1, 1), 0.5), path.at(0))
    engine, slot_row = backend.nodes[0].engine, backend._memory.slot_row[0]
    slots = np.flatnonzero(slot_row[: len(engine.rows)] >= 0)
    assert len(slots) and (engine.rows[slots] == engine.table[slot_row[slots]]).all()


@pytest.mark.parametrize("exponent", [0.4, 0.8, 1.0, 1.2])
def test_popularity_of_a_large_catalogue_is_the_law(monkeypatch, exponent):
    """What is integrated beyond a million ranks agrees with what is summed one by one."""
    items, row = 3_000_000, int(np.argmin(np.abs(sampling.EXPONENTS - exponent)))
    sampling._zipf_tables.cache_clear()
    exact = sampling._zipf_tables(items)[row].astype(float)
    sampling._zipf_tables.cache_clear()
    monkeypatch.setattr(sampling, "LISTED_ITEMS", 1000)
    near = sampling._zipf_tables(items)[row].astype(float)
    sampling._zipf_tables.cache_clear()
    np.testing.assert_allclose(near, exact, rtol=2e-4, atol=1.0)


@pytest.mark.parametrize("items", [2**24 + 1, 10**8, 2**30])
def test_a_large_catalogue_is_a_permutation_and_a_sample_of_it_is_fair(items):
    count, factor, shift = sampling._catalogue(items)
    assert np.gcd(factor, count) == 1
    ranks = np.arange(200_000)
    rows = (ranks * factor + shift) % count
    assert len(np.unique(rows)) == len(rows) and rows.max() < items
    sampled = layout.sampling_of(items)
    shares = [(part % sampled == 0).mean() * sampled for part in np.split(rows, 4)]
    np.testing.assert_allclose(shares, 1.0, atol=0.15)


def test_a_cluster_of_a_large_table_is_refused_with_the_reason():
    base = profiles.load("cpu-small")
    profile = dataclasses.replace(base, population=dataclasses.replace(base.population, items=2**25))
    with pytest.raises(InvalidInputError, match="router lists each item: at most 16,777,216"):
        open_backend("modelled", profile, cluster=Cluster((Node(2),)))
