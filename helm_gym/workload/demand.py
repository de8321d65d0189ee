"""What a workload would cost at rest: mean service time over alpha, in closed form.

Arrival rates are set from this before an episode starts, so that a regime's load is what it says whatever the machine
or the policy does. Hit rates follow Che's approximation of LRU (Che, Tung and Wang, JSAC 2002): an entry requested at
rate ``q`` is resident with probability ``1 - exp(-q T)``, where T is the time in which the cache is filled. It is an
estimate within some ten per cent; alpha* of the evaluation comes from replay and not from here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from helm_gym.profile import Profile
from helm_gym.workload.state import INDEX

ALPHAS = np.linspace(0.05, 0.95, 19)
_BUCKETS = 160
_TIMES = np.logspace(-3, 9, 97)


def _characteristic_time(
    rates: NDArray[np.float64], sizes: NDArray[np.float64], streamed: float, capacity: NDArray[np.float64]
) -> NDArray[np.float64]:
    """T for each capacity: read off a grid of T, then three Newton steps in its logarithm.

    rates, sizes: (entries,), request rate and size of each entry times its multiplicity; streamed: size that enters
    per unit of time and is never asked for again; capacity: (alphas,). Returns (alphas,).
    """
    filled = sizes @ -np.expm1(-rates[:, None] * _TIMES) + streamed * _TIMES
    x = np.interp(capacity, filled, np.log(_TIMES))
    for _ in range(3):
        time = np.exp(x)
        left = np.exp(-rates[:, None] * time)
        excess = sizes @ (1.0 - left) + streamed * time - capacity
        slope = ((sizes * rates) @ left + streamed) * time
        x = x - np.clip(excess / np.maximum(slope, 1e-300), -0.3, 0.3)
    return np.clip(np.exp(x), _TIMES[0], _TIMES[-1])


def _kv(
    profile: Profile, x: NDArray[np.float64], alphas: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """What a KV cache of each size leaves to be computed again, by kind of user.

    Returns: (users, alphas) history tokens a request; (users, alphas) how often a user's history is gone through, a
    request; the mean history length of a request. Users: each hot one, all cold ones, those seen only once.
    """
    p, interval = profile.population, profile.interval.requests
    hot_share, turnover = x[INDEX["hot_share"]], max(1e-6, x[INDEX["turnover"]])
    count = int(x[INDEX["hot_users"]])
    heat = np.diff(np.sqrt(np.arange(count + 1) / count)) * hot_share  # Zipf .5
    visits = heat * interval / turnover  # of a hot user while hot
    ceiling = 0.75 * profile.model.max_history
    length = np.minimum(x[INDEX["mean_history"]] + x[INDEX["delta_tokens"]] * visits, ceiling)
    cold = (1.0 - hot_share) * (1.0 - x[INDEX["new_share"]])
    tokens = profile.tokens_per_page
    cold_pages = x[INDEX["mean_history"]] / tokens + 0.5
    rates = np.append(heat, cold / p.users)
    sizes = np.append(length / tokens + 0.5, cold_pages * p.users)
    # A departed hot user's pages stay until they are the oldest.
    streamed = ((1.0 - hot_share) * x[INDEX["new_share"]] + count * turnover / interval) * cold_pages
    time = _characteristic_time(rates, sizes, streamed, (1.0 - alphas) * profile.pool.pages)
    found = 1.0 - np.exp(-rates[:, None] * time)
    found[:-1] *= (1.0 - np.minimum(1.0, 1.0 / np.maximum(visits, 1e-9)))[:, None]  # a first visit never hits
    once = (1.0 - hot_share) * x[INDEX["new_share"]]
    lengths = np.append(length, x[INDEX["mean_history"]])
    shares = np.append(heat, cold)
    tokens_again = (shares * lengths)[:, None] * (1.0 - found)
    tokens_once = np.full((1, len(alphas)), once * x[INDEX["mean_history"]])
    passes = rates[:, None] * (1.0 - found)
    return (
        np.concatenate([tokens_again, tokens_once]),
        np.concatenate([passes, np.zeros((1, len(alphas)))]),
        float((shares * lengths).sum() + tokens_once[0, 0]),
    )


def service_ms(
    profile: Profile, values: NDArray[np.float64], alphas: NDArray[np.float64] = ALPHAS
) -> NDArray[np.float64]:
    """Mean service time at rest, (settings, alphas), of each row of ``values`` (settings, parameters)."""
    items, cost = profile.population.items, profile.cost
    edges = np.unique(np.round(np.geomspace(1, items + 1, _BUCKETS)))
    inside = np.diff(edges)
    result = np.empty((len(values), len(alphas)))
    for k, x in enumerate(values):
        again, passes, length = _kv(profile, x, alphas)
        popularity = (0.5 * (edges[1:] + edges[:-1])) ** -x[INDEX["item_zipf"]] * inside
        popularity /= popularity.sum()
        rows = alphas * profile.pool.pages * profile.rows_per_page
        time = _characteristic_time(popularity / inside, inside, 0.0, np.minimum(rows, 0.999 * items))
        missing = (popularity[:, None] * np.exp(-(popularity / inside)[:, None] * time)).sum(0)
        fresh = x[INDEX["candidates"]] + x[INDEX["delta_tokens"]]
        tokens = fresh + again.sum(0)
        # A row of a history that is gone through often stays resident for that alone.
        missed = missing * (fresh + (again * np.exp(-passes * time / tokens)).sum(0))
        result[k] = (
            cost.base_ms
            + tokens * (cost.per_token_ms + cost.per_pair_ms * length)
            + cost.per_context_ms * length
            + profile.link.latency_ms
            + missed * profile.row_ms
        )
    return result


def rate_for_load(profile: Profile, values: NDArray[np.float64], load: NDArray[np.float64]) -> NDArray[np.float64]:
    """Arrival rate (requests/s) at which a node at its best alpha is busy for the share ``load`` of the time.

    values: (settings, parameters); load: (settings,). Returns (settings,).
    """
    settings, which = np.unique(values, axis=0, return_inverse=True)  # segments hold their setting: few are distinct
    return load / (service_ms(profile, settings).min(1)[which.ravel()] * 1e-3)
