"""A row of telemetry from what a foreign engine counts, over this project's clock and windows.

    counters = Counters(profile)
    ...                                   # for every request that the node has answered:
    counters.add(arrival_s=t, sojourn_ms=9.1, service_ms=4.0, user="u17", kv_hit=True, lookups=256, misses=31)
    if counters.due:                      # an interval is over
        row = counters.close(alpha=pool.alpha, target_alpha=pool.target, emb_gain_ms=..., kv_gain_ms=...)

docs/deploy.md says which columns need what, and what stands in them where nothing is known.
"""

from __future__ import annotations

import collections
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.profile import Profile
from helm_gym.telemetry import ALPHA_GRID, AT, COLUMN, WIDTH
from helm_gym.text import shown

_COLUMNS = (
    "arrival_s",
    "sojourn_ms",
    "service_ms",
    "transfer_ms",
    "kv_hit",
    "lookups",
    "misses",
    "history",
    "recomputed",
)
_PLACE = {name: k for k, name in enumerate(_COLUMNS)}
_LEAST_S = 1e-9


class _Interval(NamedTuple):
    values: NDArray[np.float64]  # (requests, columns)
    users: list[Hashable]
    span_s: float  # from the last arrival before it to its own last


class Counters:
    """One node's. Not for several threads at once.

    Args:
        profile: whose clock, row size and SLO are used.
        slo_ms: another SLO.
    """

    def __init__(self, profile: Profile, slo_ms: float | None = None):
        self._profile = profile
        self._slo_ms = profile.slo_ms if slo_ms is None else slo_ms
        window = profile.interval.window // profile.interval.requests
        self._window: collections.deque[_Interval] = collections.deque(maxlen=window)
        self._values: list[tuple[float, ...]] = []
        self._users: list[Hashable] = []
        self._last_arrival_s: float | None = None

    def add(
        self,
        *,
        arrival_s: float,
        sojourn_ms: float,
        service_ms: float,
        user: Hashable,
        kv_hit: bool,
        lookups: int,
        misses: int,
        history: float = 0.0,
        recomputed: float = 0.0,
        transfer_ms: float = 0.0,
    ) -> None:
        """Counts a request that was answered.

        Args:
            arrival_s: by a monotonic clock.
            sojourn_ms: from its arrival to its answer.
            service_ms: of it, being served.
            user: whatever tells users apart.
            kv_hit: whether the user's KV was in the pool.
            lookups, misses: of embedding rows.
            history: its length in tokens.
            recomputed: history tokens that were computed again.
            transfer_ms: of ``service_ms``, waiting for the host link.
        """
        values = (arrival_s, sojourn_ms, service_ms, transfer_ms, kv_hit, lookups, misses, history, recomputed)
        self._values.append(tuple(map(float, values)))
        self._users.append(user)

    @property
    def requests(self) -> int:
        """Counted since the last interval was closed."""
        return len(self._users)

    @property
    def due(self) -> bool:
        """Whether as many requests were answered as an interval has."""
        return self.requests >= self._profile.interval.requests

    def close(
        self, *, alpha: float, target_alpha: float, **columns: float | NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The interval's telemetry, float64 (WIDTH,); the next one begins.

        An interval without a request is idle: its columns are 0, and windows cover what there was before.

        Args:
            alpha, target_alpha: EMB's share of the pool, and what it moves towards.
            columns: others by name, as ``helm_gym.telemetry.FIELDS`` has them; they replace what was counted.

        Raises:
            UnknownNameError: no such column.
            InvalidInputError: a column of another width.
        """
        self._window.append(self._closed())
        row = np.zeros(WIDTH)
        self._fill_window(row)
        self._fill_interval(row, self._window[-1])
        return filled(self._profile, row, {"alpha": alpha, "target_alpha": target_alpha, **columns})

    def _closed(self) -> _Interval:
        values, users = np.array(self._values).reshape(-1, len(_COLUMNS)), self._users
        self._values, self._users = [], []
        span_s = 0.0
        if users:
            arrivals = values[:, 0]
            before = arrivals.min() if self._last_arrival_s is None else self._last_arrival_s
            span_s, self._last_arrival_s = max(0.0, arrivals.max() - before), arrivals.max()
        return _Interval(values, users, span_s)

    def _fill_window(self, row: NDArray[np.float64]) -> None:
        values = np.concatenate([interval.values for interval in self._window])
        if not len(values):
            return
        mean, total = dict(zip(_COLUMNS, values.mean(axis=0), strict=True)), values.sum(axis=0)
        service, sojourn = values[:, _PLACE["service_ms"]], values[:, _PLACE["sojourn_ms"]]
        lookups, misses = total[_PLACE["lookups"]], total[_PLACE["misses"]]
        row[AT.emb_hit_rate] = 1.0 - misses / max(1.0, lookups)
        row[AT.kv_hit_rate] = mean["kv_hit"]
        row[AT.emb_miss_bytes] = mean["misses"] * self._profile.row_bytes
        row[AT.kv_recomputed_tokens] = mean["recomputed"]
        row[AT.transfer_share] = mean["transfer_ms"] / max(_LEAST_S, mean["service_ms"])
        row[AT.compute_share] = 1.0 - row[AT.transfer_share]
        counts = collections.Counter(user for interval in self._window for user in interval.users)
        row[AT.unique_users] = len(counts) / len(values)
        row[AT.returning_share] = sum(count for count in counts.values() if count > 1) / len(values)
        row[AT.mean_history] = mean["history"]
        span_s = max(_LEAST_S, sum(interval.span_s for interval in self._window))
        row[AT.arrival_rate_rps] = len(values) / span_s
        row[AT.utilisation] = service.sum() * 1e-3 / span_s
        row[AT.service_mean_ms], row[AT.service_p99_ms] = mean["service_ms"], np.quantile(service, 0.99)
        row[AT.sojourn_mean_ms] = mean["sojourn_ms"]
        row[AT.sojourn_p50_ms], row[AT.sojourn_p99_ms] = np.quantile(sojourn, (0.5, 0.99))
        row[AT.queue_depth] = row[AT.arrival_rate_rps] * row[AT.sojourn_mean_ms] * 1e-3  # Little's law
        row[AT.slo_violations] = (sojourn > self._slo_ms).mean()

    def _fill_interval(self, row: NDArray[np.float64], last: _Interval) -> None:
        if not last.users:
            return
        service, sojourn = last.values[:, _PLACE["service_ms"]], last.values[:, _PLACE["sojourn_ms"]]
        transfer = last.values[:, _PLACE["transfer_ms"]].sum()
        row[AT.interval_service_ms], row[AT.interval_sojourn_ms] = service.mean(), sojourn.mean()
        row[AT.interval_p99_ms] = np.quantile(sojourn, 0.99)
        row[AT.interval_violations] = (sojourn > self._slo_ms).mean()
        row[AT.interval_arrival_s] = last.span_s
        row[AT.h2d_critical_bytes] = last.values[:, _PLACE["misses"]].sum() * self._profile.row_bytes
        row[AT.compute_ms], row[AT.transfer_ms] = service.sum() - transfer, transfer


def filled(
    profile: Profile, row: NDArray[np.float64], columns: Mapping[str, float | Sequence[float] | NDArray[np.float64]]
) -> NDArray[np.float64]:
    """``row`` (WIDTH,) with these columns by name, and with what stands for those that nobody knows.

    Raises:
        UnknownNameError: no such column.
        InvalidInputError: a column of another width, or no numbers.
    """
    row[AT.speed] = 1.0
    for name, value in columns.items():
        _set(row, name, value)
    if "pending_pages" not in columns:
        row[AT.pending_pages] = np.rint((row[AT.target_alpha] - row[AT.alpha]) * profile.pool.pages)
    if "predicted_ms" not in columns:
        # Nothing known of other splits: none is better, so who follows these curves stays.
        row[AT.predicted_ms : AT.predicted_ms + len(ALPHA_GRID)] = row[AT.service_mean_ms]
    return row


def _set(row: NDArray[np.float64], name: str, value: float | Sequence[float] | NDArray[np.float64]) -> None:
    if name not in COLUMN:
        raise UnknownNameError("telemetry column", name, COLUMN)
    width = len(ALPHA_GRID) if name == "predicted_ms" else 1
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"Column {name} is {shown(value)}; numbers are needed.") from error
    if numbers.size != width:
        raise InvalidInputError(f"Column {name} has {numbers.size} values; {width} are needed.")
    row[COLUMN[name] : COLUMN[name] + width] = numbers.reshape(-1)
