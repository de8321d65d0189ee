"""Requests from a workload's parameters: users whose histories grow, items by popularity, candidates, arrivals.

All randomness is in ``Traffic.rng``, seeded once a lane; nothing a policy does reaches it, so a seed fixes the
requests. A user is an entry of a fixed-size table and a version: when one leaves, a new one takes the entry over
with the next version, and what was cached under the old version is worthless.

A cluster's nodes share one stream: as many times the users, hot users and arrivals as it has nodes. Its users have
interests, each with a popularity of its own: the same Zipf, moved on among the items. So nodes can specialise.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.kernels.jit import kernel
from helm_gym.machine_memory import bytes_a_unit
from helm_gym.profile import Profile
from helm_gym.workload.state import INDEX

EXPONENTS = np.linspace(0.4, 1.4, 21)
QUANTILES = 1 << 14
MAX_HOT_USERS = 512
_TABLE_BYTES = 36  # an item, while ``make_traffic`` makes its tables (measured)

_HOT_SHARE, _HOT_USERS, _MEAN_HISTORY = INDEX["hot_share"], INDEX["hot_users"], INDEX["mean_history"]
_ZIPF, _DRIFT, _TURNOVER, _NEW = INDEX["item_zipf"], INDEX["item_drift"], INDEX["turnover"], INDEX["new_share"]
_DELTA, _CANDIDATES, _RATE = INDEX["delta_tokens"], INDEX["candidates"], INDEX["arrival_rate_rps"]
_ZIPF_LOW, _ZIPF_STEP = float(EXPONENTS[0]), float(EXPONENTS[1] - EXPONENTS[0])


class Traffic(NamedTuple):
    """One source of requests for each unit, which is a lane; every array leads with the unit."""

    rng: NDArray[np.uint64]  # (units, 4), xoshiro256+
    items: NDArray[np.int32]  # (units, users, max_history), what each user consumed, oldest first
    length: NDArray[np.int32]  # (units, users)
    version: NDArray[np.int32]  # (units, users)
    last_used: NDArray[np.int32]  # (units, users), interval of the last request; an entry is not taken over within it
    hot: NDArray[np.int32]  # (units, nodes MAX_HOT_USERS), users by heat
    hot_count: NDArray[np.int32]  # (units, 1), how many of ``hot`` have been drawn
    interval: NDArray[np.int32]  # (units, 1)
    drift: NDArray[np.float64]  # (units, 1), ranks that popularity has moved on
    permutation: NDArray[np.int32]  # (items,), rank -> item, the same for all units
    zipf: NDArray[np.float32]  # (exponents, QUANTILES + 1), inverse of the popularity's distribution function
    log_sigma: NDArray[np.float64]  # (1,)
    nodes: NDArray[np.int64]  # (1,), that share each unit's stream
    interests: NDArray[np.int64]  # (1,); a user's is the entry modulo this
    interest_share: NDArray[np.float64]  # (1,), of a user's items; the others are drawn from common popularity


class Requests(NamedTuple):
    """The requests of one interval; every array leads with (units, requests)."""

    user: NDArray[np.int32]
    version: NDArray[np.int32]
    length: NDArray[np.int32]  # history tokens, the visit's own delta included
    delta: NDArray[np.int32]
    candidates: NDArray[np.int32]  # (units, requests, max_candidates)
    candidate_count: NDArray[np.int32]
    gap_s: NDArray[np.float64]  # time since the arrival before it
    number: NDArray[np.int64]  # (units, 1), how many there are; the arrays may have room for more


@functools.lru_cache(maxsize=4)
def _zipf_tables(items: int) -> NDArray[np.float32]:
    """Inverse distribution functions of Zipf popularity over ``items`` ranks, one row an exponent."""
    tables = np.empty((len(EXPONENTS), QUANTILES + 1), dtype=np.float32)
    at = np.linspace(0.0, 1.0, QUANTILES + 1)
    ranks = np.arange(items + 1, dtype=np.float64)
    for row, exponent in enumerate(EXPONENTS):
        cumulative = np.concatenate(([0.0], np.cumsum(np.arange(1, items + 1) ** -exponent)))
        tables[row] = np.interp(at, cumulative / cumulative[-1], ranks)
    tables[:, -1] = np.nextafter(np.float32(items), np.float32(0))
    return tables


def make_traffic(
    profile: Profile,
    values: NDArray[np.float64],
    seeds: NDArray[np.int64],
    nodes: int = 1,
    interests: int = 1,
    interest_share: float = 0.0,
) -> Traffic:
    """Draws each unit's users under its parameters ``values`` (units, parameters), seeded by ``seeds`` (units,)."""
    p = profile.population
    states = [np.random.SeedSequence([int(s), 0x48454C4D]).generate_state(4, np.uint64) for s in seeds]
    traffic = Traffic(
        rng=np.stack(states).astype(np.uint64),
        **_make_users(profile, len(seeds), nodes),
        permutation=np.random.default_rng(profile.model.seed).permutation(p.items).astype(np.int32),
        zipf=_zipf_tables(p.items),
        log_sigma=np.array([p.log_sigma]),
        nodes=np.array([nodes]),
        interests=np.array([interests]),
        interest_share=np.array([interest_share]),
    )
    _populate(traffic, values)
    return traffic


def _make_users(profile: Profile, units: int, nodes: int) -> dict[str, NDArray[Any]]:
    """The arrays of ``Traffic`` that lead with the unit, but for the random numbers, before anything is drawn."""
    users = profile.population.users
    return {
        "items": np.zeros((units, users, profile.model.max_history), np.int32),
        "length": np.zeros((units, users), np.int32),
        "version": np.zeros((units, users), np.int32),
        "last_used": np.full((units, users), -1, np.int32),
        "hot": np.zeros((units, nodes * MAX_HOT_USERS), np.int32),
        "hot_count": np.zeros((units, 1), np.int32),
        "interval": np.zeros((units, 1), np.int32),
        "drift": np.zeros((units, 1)),
    }


def traffic_bytes(profile: Profile, units: int, nodes: int = 1) -> int:
    """Memory of ``make_traffic``, what it takes on its way included."""
    return units * bytes_a_unit(_make_users(profile, 0, nodes).values()) + _TABLE_BYTES * profile.population.items


def make_requests(profile: Profile, units: int, nodes: int = 1) -> Requests:
    """Room for one interval's requests of a stream that so many nodes share."""
    shape = (units, nodes * profile.interval.requests)
    small = [np.zeros(shape, np.int32) for _ in range(5)]
    wide = np.zeros((*shape, profile.model.max_candidates), np.int32)
    number = np.zeros((units, 1), np.int64)
    return Requests(small[0], small[1], small[2], small[3], wide, small[4], np.zeros(shape), number)


@kernel
def _uniform(state):
    """xoshiro256+ (Blackman and Vigna 2018): a float64 in [0, 1)."""
    result = state[0] + state[3]
    t = state[1] << np.uint64(17)
    state[2] ^= state[0]
    state[3] ^= state[1]
    state[1] ^= state[2]
    state[0] ^= state[3]
    state[2] ^= t
    state[3] = (state[3] << np.uint64(45)) | (state[3] >> np.uint64(19))
    return np.float64(result >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@kernel
def _item(rng, row, zipf, drift, permutation):
    """An item by popularity: rank by inverse transform, moved on by the drift, through the fixed permutation."""
    x = _uniform(rng) * QUANTILES
    k = int(x)
    low = zipf[row, k]
    rank = int(low + (x - k) * (zipf[row, k + 1] - low)) + drift
    n = permutation.shape[0]
    return permutation[rank if rank < n else rank - n]


@kernel
def _own_drift(t, user, drift):
    """Where the popularity of ``user``'s interest stands: all interests lie evenly among the items."""
    n, interests = t.permutation.shape[0], t.interests[0]
    return (drift + (user % interests) * (n // interests)) % n


@kernel
def _liked_item(t, rng, row, drift, own_drift):
    """An item that a user takes: by the popularity of his interest, or by the common one."""
    share = t.interest_share[0]
    if share > 0.0 and _uniform(rng) < share:
        drift = own_drift
    return _item(rng, row, t.zipf, drift, t.permutation)


@kernel
def _zipf_row(rng, exponent):
    """One of the two tabled exponents next to ``exponent``, drawn so that the mixture has its mean."""
    x = (exponent - _ZIPF_LOW) / _ZIPF_STEP
    low = min(int(x), len(EXPONENTS) - 2)
    return low + 1 if _uniform(rng) < x - low else low


@kernel
def _new_user(t, u, user, values, drift):
    """A new user takes the entry over: next version, a log-normal history under the present parameters."""
    rng = t.rng[u]
    radius = np.sqrt(-2.0 * np.log(1.0 - _uniform(rng)))
    normal = radius * np.cos(2.0 * np.pi * _uniform(rng))
    sigma = t.log_sigma[0]
    limit = t.items.shape[2]
    length = int(round(values[_MEAN_HISTORY] * np.exp(sigma * normal - 0.5 * sigma * sigma)))
    length = min(max(length, min(32, limit // 2)), limit)
    t.version[u, user] += 1
    t.length[u, user] = length
    row, own = _zipf_row(rng, values[_ZIPF]), _own_drift(t, user, drift)
    for i in range(length):
        t.items[u, user, i] = _liked_item(t, rng, row, drift, own)


@kernel
def _keep_newest_half(t, u, user):
    """A history at the model's maximum is cut; positions count from its new start, so it is another version."""
    keep = t.items.shape[2] // 2
    start = t.length[u, user] - keep
    for i in range(keep):
        t.items[u, user, i] = t.items[u, user, start + i]
    t.length[u, user] = keep
    t.version[u, user] += 1


@kernel
def _draw_hot(t, u, slot, values, drift):
    """Another user becomes the hot one of ``slot``: an entry outside the hot set, taken over by a new user."""
    users = t.length.shape[1]
    user = int(_uniform(t.rng[u]) * users)
    for _ in range(users):  # at most half of them are hot
        taken = False
        for other in range(t.hot_count[u, 0]):
            if t.hot[u, other] == user:
                taken = True
        if not taken:
            break
        user = user + 1 if user + 1 < users else 0
    t.hot[u, slot] = user
    if slot == t.hot_count[u, 0]:
        t.hot_count[u, 0] += 1
    _new_user(t, u, user, values, drift)


@kernel
def _populate(t, values):
    for u in range(values.shape[0]):
        for user in range(t.length.shape[1]):
            _new_user(t, u, user, values[u], 0)


@kernel
def sample_intervals(t, values, gaps_s, requests):
    """``sample_interval`` of every unit; values: (units, parameters); gaps_s: (units, requests)."""
    for u in range(values.shape[0]):
        sample_interval(t, u, values[u], gaps_s[u], requests)


@kernel
def sample_interval(t, u, values, gaps_s, requests):
    """Draws the next interval's requests of unit ``u`` into ``requests``: as many as there is room for.

    values: (parameters,); gaps_s: (requests,), recorded gaps or NaN for Poisson arrivals.
    """
    rng, nodes = t.rng[u], t.nodes[0]
    users, limit = t.length.shape[1], t.items.shape[2]
    n_items = t.permutation.shape[0]
    now = t.interval[u, 0]
    t.interval[u, 0] = now + 1
    t.drift[u, 0] = (t.drift[u, 0] + values[_DRIFT]) % n_items
    drift = int(t.drift[u, 0])

    hot_users = min(nodes * int(values[_HOT_USERS]), t.hot.shape[1], users // 2)
    known = t.hot_count[u, 0]
    for slot in range(hot_users):
        if slot >= known or _uniform(rng) < values[_TURNOVER]:
            _draw_hot(t, u, slot, values, drift)

    requests.number[u, 0] = requests.user.shape[1]
    for r in range(requests.user.shape[1]):
        if _uniform(rng) < values[_HOT_SHARE] and hot_users > 0:
            heat = _uniform(rng)
            user = t.hot[u, min(int(hot_users * heat * heat), hot_users - 1)]  # Zipf with exponent .5
        else:
            user = int(_uniform(rng) * users)
            if _uniform(rng) < values[_NEW]:
                for _ in range(users):  # there are more of them than requests in an interval
                    if t.last_used[u, user] != now:
                        break
                    user = user + 1 if user + 1 < users else 0
                _new_user(t, u, user, values, drift)
        delta = max(1, int(values[_DELTA] * (0.5 + _uniform(rng)) + 0.5))
        if t.length[u, user] + 4 * int(values[_DELTA]) > limit and t.last_used[u, user] != now:
            _keep_newest_half(t, u, user)
        length = t.length[u, user]
        delta = min(delta, limit - length)
        row, own = _zipf_row(rng, values[_ZIPF]), _own_drift(t, user, drift)
        for i in range(length, length + delta):
            t.items[u, user, i] = _liked_item(t, rng, row, drift, own)
        t.length[u, user] = length + delta
        t.last_used[u, user] = now
        count = min(int(values[_CANDIDATES]), requests.candidates.shape[2])
        for i in range(count):
            requests.candidates[u, r, i] = _liked_item(t, rng, row, drift, own)
        requests.user[u, r] = user
        requests.version[u, r] = t.version[u, user]
        requests.length[u, r] = length + delta
        requests.delta[u, r] = delta
        requests.candidate_count[u, r] = count
        gap = -np.log(1.0 - _uniform(rng)) / (nodes * values[_RATE])
        requests.gap_s[u, r] = gap if np.isnan(gaps_s[r]) else gaps_s[r]
