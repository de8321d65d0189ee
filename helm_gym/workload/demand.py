"""What a workload would cost at rest: mean service time over alpha, in closed form.

Arrival rates are set from this before an episode starts, so that a regime's load is what it says whatever the machine
or the policy does. Hit rates follow Che's approximation of LRU (Che, Tung and Wang, JSAC 2002): an entry requested at
rate ``q`` is resident with probability ``1 - exp(-q T)``, where T is the time in which the cache is filled. It is an
estimate within some ten per cent; alpha* of the evaluation comes from replay and not from here.

A path asks for this hundreds of thousands of times, so it is compiled and thrifty: hot users are taken in groups of
like heat, and what concerns rows alone depends on one parameter and is tabled.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.kernels.jit import kernel
from helm_gym.profile import Profile
from helm_gym.workload.state import INDEX, PARAMETERS

ALPHAS = np.linspace(0.05, 0.95, 19)
GROWTH, MAX_GROUPS = 1.5, 24  # of groups of users: enough for 10,000 hot ones

_HOT_SHARE, _HOT_USERS, _MEAN_HISTORY = INDEX["hot_share"], INDEX["hot_users"], INDEX["mean_history"]
_ZIPF, _TURNOVER, _NEW = INDEX["item_zipf"], INDEX["turnover"], INDEX["new_share"]
_DELTA, _CANDIDATES = INDEX["delta_tokens"], INDEX["candidates"]
_EXPONENTS = np.linspace(PARAMETERS[_ZIPF].low, PARAMETERS[_ZIPF].high, 41)
_ZIPF_LOW, _ZIPF_STEP, _ZIPF_LAST = float(_EXPONENTS[0]), float(_EXPONENTS[1] - _EXPONENTS[0]), len(_EXPONENTS) - 1
_BUCKETS = 160  # of items
_STEPS = 100  # of Newton's method in a profile's table; a dozen are enough where rounding lets them settle
_TOLERANCE = 0.05  # a Newton step this small in proportion is the last: its square is what remains
FAR = 4  # alphas: the first steps of a search that starts nowhere in particular


class Demand(NamedTuple):
    """The profile's figures that the closed form needs, at given alphas."""

    users: float
    requests: float  # an interval
    longest: float  # tokens, the mean history of those whose histories are at the limit
    tokens_per_page: float
    pages: float
    latency_ms: float
    base_ms: float
    per_token_ms: float
    per_pair_ms: float
    per_context_ms: float
    row_ms: float
    alphas: NDArray[np.float64]  # (A,)
    row_time: NDArray[np.float64]  # (exponents, A), time in which EMB is filled, in rows asked for
    row_missing: NDArray[np.float64]  # (exponents, A), share of rows asked for that are not resident


class Users(NamedTuple):
    """Room for the users of one setting, in groups of like heat; the last group is the cold ones."""

    rate: NDArray[np.float64]  # (MAX_GROUPS,), visits of each user a request
    pages: NDArray[np.float64]  # pages of all
    tokens: NDArray[np.float64]  # history tokens a request
    again: NDArray[np.float64]  # share of visits that are not the first
    lost: NDArray[np.float64]  # share of visits that find no cached history, at one alpha


def make_demand(profile: Profile, alphas: NDArray[np.float64] = ALPHAS) -> Demand:
    """What the closed form needs of ``profile``; ``least_service`` takes the alphas to ascend."""
    cost = profile.cost
    rows = np.minimum(alphas * profile.pool.pages * profile.rows_per_page, 0.999 * profile.population.items)
    return Demand(
        float(profile.population.users),
        float(profile.interval.requests),
        0.75 * profile.model.max_history,
        float(profile.tokens_per_page),
        float(profile.pool.pages),
        profile.link.latency_ms,
        cost.base_ms + cost.per_request_ms,
        cost.per_token_ms,
        cost.per_pair_ms,
        cost.per_context_ms,
        profile.row_ms,
        alphas,
        *_row_tables(profile.population.items, tuple(rows.tolist())),
    )


def make_users() -> Users:
    return Users(*np.zeros((5, MAX_GROUPS)))


@functools.lru_cache(maxsize=16)
def _row_tables(items: int, rows: tuple[float, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``Demand.row_time`` and ``row_missing`` of a catalogue of ``items`` where EMB holds so many rows."""
    edges = np.unique(np.round(np.geomspace(1, items + 1, _BUCKETS)))
    inside = np.diff(edges)
    rate = (0.5 * (edges[1:] + edges[:-1])) ** -_EXPONENTS[:, None, None]  # (exponents, 1, buckets), of each item
    rate /= (rate @ inside)[..., None]
    time = np.tile(rows, (len(_EXPONENTS), 1))
    missing = np.ones_like(time)
    for _ in range(_STEPS):  # Newton steps, from below: as if no row was asked for twice
        left = np.exp(-rate * time[..., None])
        missing = (rate * left) @ inside
        step = (np.array(rows) - (1.0 - left) @ inside) / missing
        if (step <= 1e-6 * time).all():
            break
        time += step
    return time, missing


@kernel
def _hot_users(x):
    """How many hot users there are, and which share of them an interval replaces: never none, so that KV fills up."""
    return max(1.0, np.floor(x[_HOT_USERS])), max(1e-6, x[_TURNOVER])


@kernel
def _group_users(d, x, users):
    """Sorts the users of setting ``x`` into ``users``; returns the number of groups.

    The three hottest are a group each, and then every group ends half as far down again as the one before: heat is
    Zipf .5 and varies little within a group.
    """
    hot_users, turnover = _hot_users(x)
    groups, low, low_heat = 0, 0.0, 0.0
    while low < hot_users:
        high = min(hot_users, max(low + 1.0, GROWTH * low)) if groups < MAX_GROUPS - 2 else hot_users
        high_heat = np.sqrt(high / hot_users)
        share, count = x[_HOT_SHARE] * (high_heat - low_heat), high - low
        visits = share / count * d.requests / turnover  # of a user while hot
        length = min(x[_MEAN_HISTORY] + x[_DELTA] * visits, d.longest)
        users.rate[groups] = share / count
        users.pages[groups] = count * (length / d.tokens_per_page + 0.5)
        users.tokens[groups] = share * length
        users.again[groups] = 1.0 - min(1.0, 1.0 / max(visits, 1e-9))
        groups, low, low_heat = groups + 1, high, high_heat
    share = (1.0 - x[_HOT_SHARE]) * (1.0 - x[_NEW])
    users.rate[groups] = share / d.users
    users.pages[groups] = d.users * (x[_MEAN_HISTORY] / d.tokens_per_page + 0.5)
    users.tokens[groups] = share * x[_MEAN_HISTORY]
    users.again[groups] = 1.0
    return groups + 1


@kernel
def _inflow(d, x, users, groups):
    """KV pages that enter a request: those of users who are not seen again, and all, as if nobody was found cached.

    A departed hot user's pages stay until they are the oldest.
    """
    hot_users, turnover = _hot_users(x)
    leaving = (1.0 - x[_HOT_SHARE]) * x[_NEW] + hot_users * turnover / d.requests
    streamed = leaving * (x[_MEAN_HISTORY] / d.tokens_per_page + 0.5)
    inflow = streamed
    for g in range(groups):
        inflow += users.pages[g] * users.rate[g]
    return streamed, inflow


@kernel
def _lose(d, users, groups, streamed, inflow, k):
    """Sets ``users.lost`` for the KV cache that the k-th alpha leaves.

    Newton steps come from below to the time in which the cache is filled, and never beyond: what is filled is concave.
    """
    pages = (1.0 - d.alphas[k]) * d.pages
    time = pages / inflow
    for _ in range(100):
        filled, slope = streamed * time, streamed
        for g in range(groups):
            left = np.exp(-users.rate[g] * time)
            users.lost[g] = left
            filled += users.pages[g] * (1.0 - left)
            slope += users.pages[g] * users.rate[g] * left
        step = (pages - filled) / slope
        if not step > _TOLERANCE * time:
            break
        time += step
    step = max(0.0, min(step, _TOLERANCE * time))
    for g in range(groups):
        left = users.lost[g] * (1.0 - min(1.0, users.rate[g] * step))  # the last step's, without another exponential
        users.lost[g] = 1.0 - (1.0 - left) * users.again[g]


@kernel
def _service_at(d, x, users, groups, streamed, inflow, k):
    """Mean service time at the k-th alpha."""
    _lose(d, users, groups, streamed, inflow, k)
    once = (1.0 - x[_HOT_SHARE]) * x[_NEW] * x[_MEAN_HISTORY]
    fresh = x[_CANDIDATES] + x[_DELTA]
    length, tokens = once, fresh + once
    for g in range(groups):
        length += users.tokens[g]
        tokens += users.tokens[g] * users.lost[g]

    place = min(max((x[_ZIPF] - _ZIPF_LOW) / _ZIPF_STEP, 0.0), _ZIPF_LAST - 1e-9)
    e = int(place)
    share = place - e
    row_time = d.row_time[e, k] + share * (d.row_time[e + 1, k] - d.row_time[e, k])
    missing = d.row_missing[e, k] + share * (d.row_missing[e + 1, k] - d.row_missing[e, k])
    # A row of a history that is gone through often stays resident for that alone.
    asked = fresh + once
    for g in range(groups):
        again = users.tokens[g] * users.lost[g]
        asked += again * np.exp(-users.rate[g] * users.lost[g] * row_time / tokens)
    compute_ms = d.base_ms + tokens * (d.per_token_ms + d.per_pair_ms * length) + d.per_context_ms * length
    return compute_ms + d.latency_ms + missing * asked * d.row_ms


@kernel
def _service_over_alpha(d, values, users, result):
    for s in range(values.shape[0]):
        groups = _group_users(d, values[s], users)
        streamed, inflow = _inflow(d, values[s], users, groups)
        for k in range(d.alphas.shape[0]):
            result[s, k] = _service_at(d, values[s], users, groups, streamed, inflow, k)


@kernel
def least_service(d, x, users, at, reach):
    """Least mean service time over the alphas, and which of them has it.

    It falls with alpha and then rises, so that it is enough to go down from the ``at``-th alpha: in steps of ``reach``,
    halved where neither side is lower.
    """
    groups = _group_users(d, x, users)
    streamed, inflow = _inflow(d, x, users, groups)
    best = _service_at(d, x, users, groups, streamed, inflow, at)
    while reach > 0:
        start = at
        for step in (-reach, reach):
            if at != start:
                break  # the other side is where it came from
            k = at + step
            while 0 <= k < d.alphas.shape[0]:
                service = _service_at(d, x, users, groups, streamed, inflow, k)
                if service >= best:
                    break
                best, at, k = service, k, k + step
        reach //= 2
    return best, at


@kernel
def _least_services(d, values, users, result):
    at = d.alphas.shape[0] // 2
    for s in range(values.shape[0]):
        result[s], at = least_service(d, values[s], users, at, FAR)


def service_ms(
    profile: Profile, values: NDArray[np.float64], alphas: NDArray[np.float64] = ALPHAS
) -> NDArray[np.float64]:
    """Mean service time at rest, (settings, alphas), of each row of ``values`` (settings, parameters)."""
    result = np.empty((len(values), len(alphas)))
    _service_over_alpha(make_demand(profile, alphas), np.ascontiguousarray(values), make_users(), result)
    return result


def rate_for_load(profile: Profile, values: NDArray[np.float64], load: NDArray[np.float64]) -> NDArray[np.float64]:
    """Arrival rate (requests/s) at which a node at its best alpha is busy for the share ``load`` of the time.

    values: (settings, parameters); load: (settings,). Returns (settings,).
    """
    service = np.empty(len(values))
    _least_services(make_demand(profile), np.ascontiguousarray(values), make_users(), service)
    return load / (service * 1e-3)
