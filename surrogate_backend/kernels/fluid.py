"""What of a node is known and need not be learned: a fluid model of its users and of its two caches, compiled.

Users: hot ones in ``GROUPS`` groups of equal heat, whose mean history grows with their visits and starts anew with
turnover, and the cold ones; and how skewed the popularity was under which they chose what their histories hold.
Caches: Che's approximation of LRU (Che, Tung and Wang, JSAC 2002): an entry requested at rate ``q`` is held with
probability ``1 - exp(-q T)``. T, the age at which entries are evicted, follows the capacity by one step of Newton's an
interval. It is dynamic by one rule: T grows by no more than the requests that were served, for a cache that has gained
memory fills by misses, and it falls at once.

It says what an interval would report within some two per cent; the networks (network.py) learn the rest. Logarithms
and exponentials stand as polynomials and ratios of the same shape: what matters is that fitting and stepping use the
very same ones, and both call this module. Rows are parameters, groups or buckets; columns are the lanes of a block
(functions.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.profile import Profile
from helm_gym.workload.state import INDEX
from surrogate_backend.kernels.functions import LANES, F, inverse_exp, kernel, to_blocks
from surrogate_backend.kernels.shape import shape
from surrogate_backend.layout import FOLLOWED, KNOTS

GROUPS = 16  # so many float32 are one vector
BUCKETS = 16  # of item popularity, geometric
SPLITS = 1 + len(FOLLOWED)  # the present split, and those of the simulated curve

# State of a lane, float32: mean history by group, share of each group seen by now, the cold users' mean history, the
# exponents of popularity that hot and cold histories were chosen by; of each cache at each split: T (KV: requests; EMB:
# look-ups), what T's entries occupy, and how that grows with log T; look-ups a request at each split; the most
# hot users that there were; and of each split, how often a hot user of heat 1 came within KV's T.
LENGTH, SEEN, COLD, HOT_ZIPF, COLD_ZIPF = 0, GROUPS, 2 * GROUPS, 2 * GROUPS + 1, 2 * GROUPS + 2
KV, EMB = COLD_ZIPF + 1, COLD_ZIPF + 1 + 3 * SPLITS
LOOKUPS = KV + 6 * SPLITS
MOST_HOT = LOOKUPS + SPLITS
CAME = MOST_HOT + 1
STATE = CAME + SPLITS
# Scratch rows of a block: rate, pages and growth by group; popularity by bucket under each exponent; and what adds up.
_RATE, _SIZE, _NEW_ITEMS = 0, GROUPS, 2 * GROUPS
_HOT_ITEMS, _COLD_ITEMS, _ROW = _NEW_ITEMS + BUCKETS, _NEW_ITEMS + 2 * BUCKETS, _NEW_ITEMS + 3 * BUCKETS
_USED, _SLOPE, _HIT, _AGAIN, _APART, _AGE = _ROW, _ROW + 1, _ROW + 2, _ROW + 3, _ROW + 4, _ROW + 5
_STREAMED, _COLD_RATE, _COLD_SIZE, _LOOK, _BY_NEW = _ROW + 6, _ROW + 7, _ROW + 8, _ROW + 9, _ROW + 10
_BY_HOT, _BY_COLD, _EMB_AGE, _MISSING = _ROW + 11, _ROW + 12, _ROW + 13, _ROW + 14
_KNOWN = _ROW + 15  # share of each group that a visit of this interval finds seen before
_CAME = _KNOWN + GROUPS
SCRATCH = _CAME + 1

# Estimates: of the users, tokens looked up a request at the present split, of each split, and quantiles (shape.py).
HISTORY, COLD_HISTORY, HOT_HISTORY, HOT_PAGES, TOKENS, PER_SPLIT = 0, 1, 2, 3, 4, 5
SERVICE_MS, KV_HIT, RECOMPUTED, MISSES, KV_FILLED, EMB_FILLED, SPLIT_WIDTH = 0, 1, 2, 3, 4, 5, 6
SHAPE = PER_SPLIT + SPLITS * SPLIT_WIDTH
ESTIMATES = SHAPE + KNOTS

# A node's place in its cluster; a single node has none: its pool over the profile's; over how many nodes' users
# its requests are spread, each of whom then comes as much more rarely; and how many tastes, each of items of its own,
# those users have.
MEMORY, SPREAD, PER_SPREAD, TASTES, PER_TASTES, PLACE = range(6)  # PER_: one over it

_EXPONENTS, _ZIPF_CENTRE = np.linspace(0.4, 1.4, 41), F(0.9)
_HOT_SHARE, _HOT_USERS, _MEAN_HISTORY = INDEX["hot_share"], INDEX["hot_users"], INDEX["mean_history"]
_ZIPF, _TURNOVER, _NEW = INDEX["item_zipf"], INDEX["turnover"], INDEX["new_share"]
_DELTA, _CANDIDATES = INDEX["delta_tokens"], INDEX["candidates"]
_MAX_GROWTH = F(320.0)  # tokens of a user in one interval


class Constants(NamedTuple):
    """What the profile fixes.

    Attributes:
        scalars: float32, requests an interval, users, ceiling of a history, tokens a page, pages, rows a page, the
            items, cost model's four figures, link latency and row (ms), spread of log histories, longest history.
        powers: float32 (7 BUCKETS,), share of requests that each bucket of items gets, as a polynomial of the exponent
            of popularity, highest power first (within 1e-3 of the share from .4 to 1.4).
        inside: float32 (BUCKETS,), items in each bucket.
    """

    scalars: NDArray[np.float32]
    powers: NDArray[np.float32]
    inside: NDArray[np.float32]


def constants(profile: Profile) -> Constants:
    """The constants of a profile."""
    population, cost, pool = profile.population, profile.cost, profile.pool
    edges = np.unique(np.round(np.geomspace(1, population.items + 1, BUCKETS + 1))).astype(np.int64)
    while len(edges) < BUCKETS + 1:  # few items: the small buckets coincide, so the largest gap is halved
        at = int(np.diff(edges).argmax())
        edges = np.insert(edges, at + 1, (edges[at] + edges[at + 1]) // 2)
    rank = np.arange(1, population.items + 1, dtype=np.float64)
    popularity = np.empty((len(_EXPONENTS), BUCKETS))
    for k, exponent in enumerate(_EXPONENTS):
        total = np.concatenate([[0.0], np.cumsum(rank**-exponent)])
        popularity[k] = np.diff(total[edges - 1]) / total[-1]
    powers = np.polynomial.polynomial.polyfit(_EXPONENTS - float(_ZIPF_CENTRE), popularity, 6)[::-1]
    scalars = (
        *(profile.interval.requests, population.users, 0.725 * profile.model.max_history, profile.tokens_per_page),
        *(pool.pages, profile.rows_per_page, population.items),
        *(cost.base_ms, cost.per_token_ms, cost.per_pair_ms, cost.per_context_ms),
        *(profile.link.latency_ms, profile.row_ms, population.log_sigma, profile.model.max_history),
    )
    return Constants(np.array(scalars, F), powers.astype(F).ravel(), np.diff(edges).astype(F))


def initial_state(values: NDArray[np.float64], m: int = LANES) -> NDArray[np.float32]:
    """Cold caches and users drawn under ``values`` (lanes, parameters), in blocks: float32 (blocks, STATE * m)."""
    state = np.zeros((len(values), STATE), F)
    state[:, LENGTH : LENGTH + GROUPS] = state[:, COLD : COLD + 1] = values[:, _MEAN_HISTORY, None]
    state[:, [HOT_ZIPF, COLD_ZIPF]] = values[:, _ZIPF, None]
    for cache in range(KV, LOOKUPS, 3):
        state[:, cache], state[:, cache + 2] = 1.0, 1.0
    state[:, LOOKUPS:MOST_HOT] = 100.0
    state[:, MOST_HOT] = values[:, _HOT_USERS]
    return to_blocks(state, m)


@kernel
def _room(full):
    """What is kept of a history's growth as its mean nears the ceiling that cuts at the model's maximum set it."""
    square = full * full
    return max(F(1.0) - square * square, F(0.0))


@kernel
def _of(place, row, x, m):
    """A row of a node's place in its cluster; without a place the factor 1, which compilation leaves out."""
    if place is None:
        return F(1.0)
    return place[row * m + x]


@kernel
def _users(s, w, place, scalars, t, f, n, m):
    """Moves the users of ``n`` lanes on by one interval; fills groups' rates and pages, and estimates."""
    requests, users, ceiling, page_tokens = scalars[0], scalars[1], scalars[2], scalars[3]
    inverse, per_page = F(1.0) / ceiling, F(1.0) / page_tokens
    for x in range(n):
        t[_HIT * m + x] = t[_AGAIN * m + x] = t[_USED * m + x] = F(0.0)
    for g in range(GROUPS):
        share, lengths = F((2 * g + 1) / (GROUPS * GROUPS)), s[(LENGTH + g) * m :]
        for x in range(n):
            t[_USED * m + x] += lengths[x] * share
    for x in range(n):  # hot users who leave join the cold ones, with their histories
        leaving = w[_TURNOVER * m + x] * w[_HOT_USERS * m + x] / users
        s[COLD * m + x] += leaving * (t[_USED * m + x] - s[COLD * m + x])
        s[COLD_ZIPF * m + x] += leaving * (s[HOT_ZIPF * m + x] - s[COLD_ZIPF * m + x])
        s[HOT_ZIPF * m + x] += w[_TURNOVER * m + x] * (w[_ZIPF * m + x] - s[HOT_ZIPF * m + x])
    for g in range(GROUPS):
        lengths, seens = s[(LENGTH + g) * m :], s[(SEEN + g) * m :]
        rates, sizes, known = t[(_RATE + g) * m :], t[(_SIZE + g) * m :], t[(_KNOWN + g) * m :]
        for x in range(n):
            delta = w[_DELTA * m + x]
            # Where there are more hot users than ever, those of least heat are new.
            joined = (F((g + 1) ** 2 / GROUPS**2) - s[MOST_HOT * m + x] / w[_HOT_USERS * m + x]) * F(
                GROUPS**2 / (2 * g + 1)
            )
            turnover = max(w[_TURNOVER * m + x], min(joined, F(1.0)))
            # Heat is Zipf with exponent .5: equal shares of the hot requests go to growing groups.
            members = w[_HOT_USERS * m + x] * F((2 * g + 1) / (GROUPS * GROUPS))
            rate = w[_HOT_SHARE * m + x] * F(1.0 / GROUPS) / members
            visits = requests * rate
            length = lengths[x]
            length += turnover * (w[_MEAN_HISTORY * m + x] - length)
            length = min(length + min(delta * visits, _MAX_GROWTH) * _room(length * inverse), ceiling)
            # Unseen users decay with their visits: half an interval's of them on average, all of them at its end.
            unseen, half = F(1.0) - seens[x] * (F(1.0) - turnover), inverse_exp(F(0.5) * visits)
            known[x], seen = F(1.0) - unseen * half, F(1.0) - unseen * half * half
            size = members * _of(place, SPREAD, x, m) * (length * per_page + F(0.5))
            lengths[x], seens[x], rates[x], sizes[x] = length, seen, rate * _of(place, PER_SPREAD, x, m), size
            t[_HIT * m + x] += length
            t[_AGAIN * m + x] += size
    for x in range(n):
        s[MOST_HOT * m + x] = max(s[MOST_HOT * m + x], w[_HOT_USERS * m + x])
    # In four loops: the compiler makes no vectors of one over so many rows.
    for x in range(n):
        delta, arriving, new = w[_DELTA * m + x], w[_MEAN_HISTORY * m + x], w[_NEW * m + x]
        asked = requests * (F(1.0) - w[_HOT_SHARE * m + x]) / users
        cold = s[COLD * m + x]
        cold += asked * (new * (arriving - cold) + (F(1.0) - new) * delta * _room(cold * inverse))
        s[COLD * m + x] = f[COLD_HISTORY * m + x] = cold
    for x in range(n):
        new, delta, cold = w[_NEW * m + x], w[_DELTA * m + x], f[COLD_HISTORY * m + x]
        asked = requests * (F(1.0) - w[_HOT_SHARE * m + x]) / users
        s[COLD_ZIPF * m + x] += (
            asked * (new + (F(1.0) - new) * delta / cold) * (w[_ZIPF * m + x] - s[COLD_ZIPF * m + x])
        )
    for x in range(n):
        f[HOT_PAGES * m + x], hot = t[_AGAIN * m + x], t[_HIT * m + x] * F(1.0 / GROUPS)
        f[HOT_HISTORY * m + x] = hot
        renewed = min(requests * w[_HOT_SHARE * m + x] / w[_HOT_USERS * m + x] * w[_DELTA * m + x] / hot, F(1.0))
        s[HOT_ZIPF * m + x] += renewed * (w[_ZIPF * m + x] - s[HOT_ZIPF * m + x])
    for x in range(n):
        hot_share, new = w[_HOT_SHARE * m + x], w[_NEW * m + x]
        cold = new * w[_MEAN_HISTORY * m + x] + (F(1.0) - new) * f[COLD_HISTORY * m + x]
        all_users = hot_share * f[HOT_HISTORY * m + x] + (F(1.0) - hot_share) * cold
        f[HISTORY * m + x] = all_users + w[_DELTA * m + x]


@kernel
def _popularity(powers, exponents, at, out, n, m):
    """Share of requests that each bucket of items gets, under the exponents in row ``at``; fills BUCKETS rows."""
    exponent = exponents[at * m :]
    for b in range(BUCKETS):
        for x in range(n):
            z = exponent[x] - _ZIPF_CENTRE
            share = powers[b]
            share = share * z + powers[1 * BUCKETS + b]
            share = share * z + powers[2 * BUCKETS + b]
            share = share * z + powers[3 * BUCKETS + b]
            share = share * z + powers[4 * BUCKETS + b]
            share = share * z + powers[5 * BUCKETS + b]
            share = share * z + powers[6 * BUCKETS + b]
            out[b * m + x] = max(share, F(1e-6))


@kernel
def _aged(age, used, slope, capacity, served):
    """T of a cache after one step of Newton's towards filling ``capacity``; it grows by at most what was served."""
    change = (capacity - used) / (slope + F(1e-3) * capacity)
    age = min(age * (F(1.0) + max(change, F(-0.5))), age + served)
    return min(max(age, F(1.0)), F(3e7))


@kernel
def _kv(s, w, k, split, place, scalars, t, f, n, m):
    """The KV cache at split number ``k``, its alphas in row 0 of ``split``."""
    requests, pages = scalars[0], scalars[4]
    state, emb_age, came = s[(KV + 3 * k) * m :], s[(EMB + 3 * k) * m :], s[(CAME + k) * m :]
    looked, of_split = s[(LOOKUPS + k) * m :], f[(PER_SPLIT + k * SPLIT_WIDTH) * m :]
    for x in range(n):
        capacity = (F(1.0) - split[x]) * pages * _of(place, MEMORY, x, m)
        age = _aged(state[x], state[m + x], state[2 * m + x], capacity, requests)
        # Visits within T: those of this interval's requests, and before them at the rate that was. What a request of
        # this interval meets lies between the two.
        rate = w[_HOT_SHARE * m + x] / w[_HOT_USERS * m + x] * _of(place, PER_SPREAD, x, m)
        before, own = came[x] / state[x], min(age, requests)
        met = own * (F(1.0) - F(0.5) * own / requests)
        t[_CAME * m + x] = rate * met + before * (age - met)
        came[x] = rate * own + before * (age - own)
        state[x] = t[_AGE * m + x] = age
        # Of EMB, in requests, as of the last interval.
        t[_EMB_AGE * m + x] = emb_age[x] / looked[x]
        gone = inverse_exp(t[_COLD_RATE * m + x] * age)
        t[_USED * m + x] = t[_STREAMED * m + x] * age + t[_COLD_SIZE * m + x] * (F(1.0) - gone)
        t[_SLOPE * m + x] = t[_STREAMED * m + x] * age + t[_COLD_SIZE * m + x] * t[_COLD_RATE * m + x] * age * gone
        t[_MISSING * m + x] = gone
        t[_HIT * m + x] = t[_AGAIN * m + x] = t[_APART * m + x] = F(0.0)
    used, slope, hit, visits = t[_USED * m :], t[_SLOPE * m :], t[_HIT * m :], t[_CAME * m :]
    all_again, apart, emb_ages = t[_AGAIN * m :], t[_APART * m :], t[_EMB_AGE * m :]
    for g in range(GROUPS):
        rates, sizes = t[(_RATE + g) * m :], t[(_SIZE + g) * m :]
        known, length = t[(_KNOWN + g) * m :], s[(LENGTH + g) * m :]
        heat = F(GROUPS / (2 * g + 1))
        for x in range(n):
            rate, size, within = rates[x], sizes[x], heat * visits[x]
            gone = inverse_exp(within)
            used[x] += size * (F(1.0) - gone)
            slope[x] += size * within * gone
            found = min(known[x], F(1.0) - gone)  # of two events, both since a visit, the one that is less far back
            again = length[x] * (F(1.0) - found)
            hit[x] += found
            all_again[x] += again
            # Rows of a history that was gone through of late are resident for that alone.
            apart[x] += again * inverse_exp(rate * (F(1.0) - found) * emb_ages[x])
    by_new, by_hot, by_cold, looked_up = t[_BY_NEW * m :], t[_BY_HOT * m :], t[_BY_COLD * m :], t[_LOOK * m :]
    for x in range(n):
        hot_share, new = w[_HOT_SHARE * m + x], w[_NEW * m + x]
        arrived = (F(1.0) - hot_share) * new * w[_MEAN_HISTORY * m + x]
        cold_again = (F(1.0) - hot_share) * (F(1.0) - new) * f[COLD_HISTORY * m + x] * t[_MISSING * m + x]
        of_new = w[_DELTA * m + x] + w[_CANDIDATES * m + x] + arrived
        of_hot = hot_share * F(1.0 / GROUPS) * apart[x]
        lookups = of_new + cold_again + of_hot
        looked_up[x], by_new[x] = lookups, of_new / lookups
        by_hot[x], by_cold[x] = of_hot / lookups, cold_again / lookups
    for x in range(n):
        state[m + x], state[2 * m + x] = used[x], slope[x]
    for x in range(n):
        hot_share, new, gone = w[_HOT_SHARE * m + x], w[_NEW * m + x], t[_MISSING * m + x]
        per_group, known = hot_share * F(1.0 / GROUPS), (F(1.0) - hot_share) * (F(1.0) - new)
        arrived = (F(1.0) - hot_share) * new * w[_MEAN_HISTORY * m + x]
        of_split[KV_HIT * m + x] = per_group * hit[x] + known * (F(1.0) - gone)
        of_split[RECOMPUTED * m + x] = per_group * all_again[x] + known * f[COLD_HISTORY * m + x] * gone + arrived
    for x in range(n):
        of_split[KV_FILLED * m + x] = used[x] / ((F(1.0) - split[x]) * pages * _of(place, MEMORY, x, m))


@kernel
def _emb(s, w, k, split, place, scalars, inside, t, f, n, m):
    """The embedding cache at split number ``k``, and the service time that both caches make."""
    requests, slots, most = scalars[0], scalars[4] * scalars[5], F(0.995) * scalars[6]
    state, looked = s[(EMB + 3 * k) * m :], s[(LOOKUPS + k) * m :]
    of_split = f[(PER_SPLIT + k * SPLIT_WIDTH) * m :]
    for x in range(n):
        capacity, lookups = min(split[x] * slots * _of(place, MEMORY, x, m), most), requests * t[_LOOK * m + x]
        t[_AGE * m + x] = _aged(state[x], state[m + x], state[2 * m + x], capacity, lookups)
        t[_MISSING * m + x] = t[_USED * m + x] = t[_SLOPE * m + x] = F(0.0)
    missing, used, slope, ages = t[_MISSING * m :], t[_USED * m :], t[_SLOPE * m :], t[_AGE * m :]
    by_new, by_hot, by_cold = t[_BY_NEW * m :], t[_BY_HOT * m :], t[_BY_COLD * m :]
    for b in range(BUCKETS):
        items, held = inside[b], F(1.0) / inside[b]
        of_new, of_hot = t[(_NEW_ITEMS + b) * m :], t[(_HOT_ITEMS + b) * m :]
        of_cold = t[(_COLD_ITEMS + b) * m :]
        for x in range(n):
            asked = by_new[x] * of_new[x] + by_hot[x] * of_hot[x] + by_cold[x] * of_cold[x]
            age = ages[x]
            gone = inverse_exp(asked * held * _of(place, PER_TASTES, x, m) * age)
            missing[x] += asked * gone
            used[x] += items * _of(place, TASTES, x, m) * (F(1.0) - gone)
            slope[x] += asked * age * gone
    for x in range(n):
        state[x], looked[x] = ages[x], t[_LOOK * m + x]
        state[m + x], state[2 * m + x] = used[x], slope[x]
    for x in range(n):
        misses, history = missing[x] * t[_LOOK * m + x], f[HISTORY * m + x]
        tokens = w[_DELTA * m + x] + w[_CANDIDATES * m + x] + of_split[RECOMPUTED * m + x]
        of_split[MISSES * m + x] = misses
        computed = scalars[7] + tokens * (scalars[8] + scalars[9] * history) + scalars[10] * history
        of_split[SERVICE_MS * m + x] = computed + scalars[11] + misses * scalars[12]
    for x in range(n):
        of_split[EMB_FILLED * m + x] = used[x] / (split[x] * slots * _of(place, MEMORY, x, m))


@kernel
def fluid_step(s, w, splits, place, scalars, powers, inside, t, f, n, m):
    """Moves ``n`` lanes of a block on by one interval and fills their estimates.

    All float32, flat, rows of m columns: s (STATE), w (parameters), splits (SPLITS: the present alpha, then
    ``layout.FOLLOWED``), place (PLACE rows, see there, or None), t (SCRATCH), f (ESTIMATES).
    """
    requests, users, page_tokens = scalars[0], scalars[1], scalars[3]
    _users(s, w, place, scalars, t, f, n, m)
    for x in range(n):
        cold_share, new = F(1.0) - w[_HOT_SHARE * m + x], w[_NEW * m + x]
        arrived = w[_MEAN_HISTORY * m + x] / page_tokens + F(0.5)
        leaving = w[_HOT_USERS * m + x] * min(w[_TURNOVER * m + x], F(0.2)) / requests
        t[_STREAMED * m + x] = (cold_share * new + leaving) * arrived
        t[_COLD_RATE * m + x] = cold_share * (F(1.0) - new) / users * _of(place, PER_SPREAD, x, m)
        t[_COLD_SIZE * m + x] = (f[COLD_HISTORY * m + x] / page_tokens + F(0.5)) * users * _of(place, SPREAD, x, m)
    _popularity(powers, w, _ZIPF, t[_NEW_ITEMS * m :], n, m)
    _popularity(powers, s, HOT_ZIPF, t[_HOT_ITEMS * m :], n, m)
    _popularity(powers, s, COLD_ZIPF, t[_COLD_ITEMS * m :], n, m)
    for k in range(SPLITS):
        split = splits[k * m : (k + 1) * m]
        _kv(s, w, k, split, place, scalars, t, f, n, m)
        _emb(s, w, k, split, place, scalars, inside, t, f, n, m)
    fresh = t[_ROW * m :]
    for x in range(n):
        fresh[x] = w[_DELTA * m + x] + w[_CANDIDATES * m + x]
        f[TOKENS * m + x] = fresh[x] + f[(PER_SPLIT + RECOMPUTED) * m + x]
    shape(
        scalars, f[HISTORY * m :], fresh, f[(PER_SPLIT + KV_HIT) * m :], f[(PER_SPLIT + RECOMPUTED) * m :],
        f[(PER_SPLIT + MISSES) * m :], f[SHAPE * m :], n, m,
    )  # fmt: skip
