"""A log's parameters over time: arrival rate, hot share, users, histories, popularity and turnover."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from helm_gym.errors import InvalidInputError
from helm_gym.workload.visits import Visits

HOT_REQUESTS = 3  # in a window; whoever makes so many is a hot user there
POPULAR = 100  # most popular items, whose change from window to window is told
COUNTED_ITEMS = 10  # interactions of an item from which on it tells the exponent: rarer ones' ranks are noise
LEAST_RANKS = 10
MAX_WINDOWS = 1000


@dataclasses.dataclass(frozen=True)
class Window:
    """A stretch of time of a log; a figure that the log does not tell is NaN.

    Attributes:
        start_s: since the first request.
        seconds: its length.
        requests: visits that arrive in it.
        arrival_rate_rps: requests a second.
        users: different users.
        hot_users: users with ``HOT_REQUESTS`` requests or more in it.
        hot_share: share of requests that come from hot users.
        turnover: share of the last window's hot users who are not hot in this one; NaN in the first.
        new_share: share of the other users' requests that are a user's first in the log.
        mean_history: interactions in the user's history when a request arrives, its own not included; mean of all.
        p90_history: the same, 90th percentile.
        delta_tokens: mean interactions of a request.
        items: different items.
        item_zipf: exponent of the items' popularity, by maximum likelihood over items with ``COUNTED_ITEMS``
            interactions in the window or more.
        popular_changed: share of the last window's ``POPULAR`` most popular items that are no longer among them.
    """

    start_s: float
    seconds: float
    requests: int
    arrival_rate_rps: float
    users: float
    hot_users: float
    hot_share: float
    turnover: float
    new_share: float
    mean_history: float
    p90_history: float
    delta_tokens: float
    items: int
    item_zipf: float
    popular_changed: float


@dataclasses.dataclass(frozen=True)
class Description:
    """A log in windows of the same length, and as a whole; ``whole`` has no turnover.

    Of the whole, a hot user's requests are counted window by window: ``hot_share`` and ``new_share`` are means over
    requests, ``hot_users`` over windows.
    """

    windows: tuple[Window, ...]
    whole: Window


def describe(visits: Visits, windows: int = 12) -> Description:
    """Describes a log over time.

    Args:
        visits: its requests.
        windows: parts of the same length into which its time is cut.

    Raises:
        InvalidInputError: ``windows`` is not from 1 to ``MAX_WINDOWS``, or all requests come at once.
    """
    if not 1 <= windows <= MAX_WINDOWS:
        raise InvalidInputError(f"{windows} windows cannot be; give 1 to {MAX_WINDOWS}.")
    end_s = float(visits.arrival_s[-1])
    if end_s <= 0:
        raise InvalidInputError(f"Log '{visits.log.name}' has one visit; give a longer log, or a shorter session.")
    edges = np.linspace(0.0, end_s, windows + 1)
    bounds = np.searchsorted(visits.arrival_s, edges)
    bounds[-1] = len(visits)
    times = visits.log.time_ns
    marks = np.searchsorted(times, times[0] + (edges * 1e9).astype(np.int64))
    marks[-1] = len(times)
    found: list[Window] = []
    hot_before: NDArray[np.int64] | None = None
    popular_before: NDArray[np.int64] | None = None
    for k in range(windows):
        part, items = slice(int(bounds[k]), int(bounds[k + 1])), visits.log.item[marks[k] : marks[k + 1]]
        window, hot, popular = _window(
            visits, part, items, float(edges[k]), float(edges[k + 1]), hot_before, popular_before
        )
        found.append(window)
        hot_before, popular_before = hot, popular
    everything = slice(0, len(visits))
    whole, _, _ = _window(visits, everything, visits.log.item, 0.0, end_s, None, None)
    requests = np.array([window.requests for window in found], np.float64)
    whole = dataclasses.replace(
        whole,
        hot_users=_mean([window.hot_users for window in found], np.ones(windows)),
        hot_share=_mean([window.hot_share for window in found], requests),
        new_share=_mean(
            [window.new_share for window in found], requests * [1 - np.nan_to_num(w.hot_share) for w in found]
        ),
    )
    return Description(tuple(found), whole)


def _mean(values: list[float], weights: NDArray[np.float64]) -> float:
    """Weighted mean of what is not NaN."""
    known = ~np.isnan(values) & (weights > 0)
    return float(np.average(np.array(values)[known], weights=weights[known])) if known.any() else math.nan


def _window(
    visits: Visits,
    part: slice,
    items: NDArray[np.int32],
    start_s: float,
    end_s: float,
    hot_before: NDArray[np.int64] | None,
    popular_before: NDArray[np.int64] | None,
) -> tuple[Window, NDArray[np.int64] | None, NDArray[np.int64]]:
    """The window, its hot users and its popular items."""
    number, nan = part.stop - part.start, math.nan
    counts = np.bincount(items, minlength=visits.log.items)
    popular = np.argsort(-counts, kind="stable")[: min(POPULAR, np.count_nonzero(counts))]
    changed = nan if popular_before is None or not len(popular_before) else _gone(popular_before, popular)
    users = hot_users = hot_share = turnover = new_share = mean_history = p90_history = nan
    hot = None
    if visits.user is not None and visits.length is not None:
        user, delta = visits.user[part], visits.delta[part]
        history = visits.length[part] - delta
        visited = np.bincount(user, minlength=visits.log.users)
        hot = np.flatnonzero(visited >= HOT_REQUESTS)
        users, hot_users = float(np.count_nonzero(visited)), float(len(hot))
        if number:
            cold = visited[user] < HOT_REQUESTS
            hot_share = 1.0 - float(cold.mean())
            new_share = float((history[cold] == 0).mean()) if cold.any() else nan
            mean_history, p90_history = float(history.mean()), float(np.percentile(history, 90))
        if hot_before is not None and len(hot_before):
            turnover = _gone(hot_before, hot)
    window = Window(
        start_s=start_s,
        seconds=end_s - start_s,
        requests=number,
        arrival_rate_rps=number / (end_s - start_s),
        users=users,
        hot_users=hot_users,
        hot_share=hot_share,
        turnover=turnover,
        new_share=new_share,
        mean_history=mean_history,
        p90_history=p90_history,
        delta_tokens=float(visits.delta[part].mean()) if number else nan,
        items=int(np.count_nonzero(counts)),
        item_zipf=zipf_exponent(counts),
        popular_changed=changed,
    )
    return window, hot, popular


def _gone(before: NDArray[np.int64], now: NDArray[np.int64]) -> float:
    return 1.0 - float(np.isin(before, now).mean())


def zipf_exponent(counts: NDArray[np.integer]) -> float:
    """The exponent s of Zipf's law, under which the k-th most popular item is taken in proportion to k ** -s.

    By maximum likelihood over the items with ``COUNTED_ITEMS`` interactions or more, given that one of these is taken:
    the rarer ones' order is chance, and would make the law look steeper than it is.

    Returns:
        NaN where fewer than ``LEAST_RANKS`` items have so many.
    """
    top = np.sort(counts[counts >= COUNTED_ITEMS])[::-1].astype(np.float64)
    if len(top) < LEAST_RANKS:
        return math.nan
    logs = np.log(np.arange(1, len(top) + 1))
    total, weighted = top.sum(), float(top @ logs)

    def loss(s: float) -> float:
        return float(s * weighted + total * np.log(np.exp(-s * logs).sum()))

    return float(optimize.minimize_scalar(loss, bounds=(0.0, 4.0), method="bounded").x)
