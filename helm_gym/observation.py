"""From telemetry to what a controller sees: float32, bounded, one row a node, with fixed documented scales.

Everything here is telemetry that a live node can report; nothing reads the hidden regime. The layout, the clock and
the window belong together: a policy trained under one version is refused under another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import UnknownNameError
from helm_gym.profile import Profile
from helm_gym.telemetry import ALPHA_GRID, Telemetry

LAYOUT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Scales:
    """What makes telemetry dimensionless; all from the profile.

    ``service_ms``: an eighth of the SLO, the mean service time at the steady optimum.
    """

    slo_ms: float
    service_ms: float
    row_bytes: float
    max_history: float
    backlog_rows: float
    page_budget: float


@dataclasses.dataclass(frozen=True)
class Column:
    """One column, or one a grid point: ``value(telemetry, scales)``, clipped to [low, high]."""

    name: str
    low: float
    high: float
    doc: str
    value: Callable[[Telemetry, Scales], NDArray[np.float64]]
    width: int = 1


def _plain(name: str) -> Callable[[Telemetry, Scales], NDArray[np.float64]]:
    return lambda t, s: t[name]


def _log(x: NDArray[np.float64], top: float) -> NDArray[np.float64]:
    """0 at 0, 1 at ``top``, logarithmic between: latencies span three decades."""
    return np.log1p(np.maximum(x, 0.0)) / np.log1p(top)


def _saving(name: str) -> Callable[[Telemetry, Scales], NDArray[np.float64]]:
    return lambda t, s: t[name] / (0.2 * s.service_ms)


def _latency(name: str) -> Callable[[Telemetry, Scales], NDArray[np.float64]]:
    return lambda t, s: _log(t[name] / s.slo_ms, 50.0)


def _ratio(now: str, window: str) -> Callable[[Telemetry, Scales], NDArray[np.float64]]:
    return lambda t, s: np.log(np.maximum(t[now], 1e-6) / np.maximum(t[window], 1e-6)) / np.log(10.0)


COLUMNS = (
    Column("alpha", 0, 1, "EMB's share of the pool", _plain("alpha")),
    Column("target_alpha", 0, 1, "the split being moved towards", _plain("target_alpha")),
    Column("moving", -1, 1, "target minus alpha", lambda t, s: t["target_alpha"] - t["alpha"]),
    Column("moved", -1, 1, "pages moved over the budget, towards EMB", lambda t, s: t["moved_pages"] / s.page_budget),
    Column("emb_hit_rate", 0, 1, "row look-ups that hit", _plain("emb_hit_rate")),
    Column("kv_hit_rate", 0, 1, "requests whose user hit", _plain("kv_hit_rate")),
    Column(
        "emb_miss", 0, 1, "rows missed a request / 200", lambda t, s: t["emb_miss_bytes"] / s.row_bytes / 200
    ),
    Column(
        "kv_recomputed", 0, 1, "tokens again / longest history", lambda t, s: t["kv_recomputed_tokens"] / s.max_history
    ),
    Column("compute_share", 0, 1, "of service time", _plain("compute_share")),
    Column("transfer_share", 0, 1, "of service time", _plain("transfer_share")),
    Column("emb_gain", 0, 1, "EMB one shadow depth larger saves, / .2 service", _saving("emb_gain_ms")),
    Column("emb_loss", 0, 1, "EMB one shadow depth smaller loses, / .2 service", _saving("emb_loss_ms")),
    Column("kv_gain", 0, 1, "KV one shadow depth larger saves, / .2 service", _saving("kv_gain_ms")),
    Column("kv_loss", 0, 1, "KV one shadow depth smaller loses, / .2 service", _saving("kv_loss_ms")),
    Column(
        "predicted",
        0,
        1,
        f"simulated service at alpha {ALPHA_GRID[0]} ... {ALPHA_GRID[-1]}, / 4 service",
        lambda t, s: t["predicted_ms"] / (4 * s.service_ms),
        len(ALPHA_GRID),
    ),
    Column("returning_share", 0, 1, "requests of users seen again in the window", _plain("returning_share")),
    Column("unique_users", 0, 1, "distinct users a request", _plain("unique_users")),
    Column("mean_history", 0, 1, "history / longest history", lambda t, s: t["mean_history"] / s.max_history),
    Column("load", 0, 1, "arrival rate x service / 2", lambda t, s: t["arrival_rate_rps"] * s.service_ms / 2000),
    Column("utilisation", 0, 1, "busy time over time / 2", lambda t, s: t["utilisation"] / 2),
    Column("queue_depth", 0, 1, "log, 1 at 200 requests", lambda t, s: _log(t["queue_depth"], 200.0)),
    Column("emb_empty", 0, 1, "EMB slots not filled", _plain("emb_empty_share")),
    Column("kv_empty", 0, 1, "KV pages not occupied", _plain("kv_empty_share")),
    Column("backlog", 0, 1, "rows to be refilled / shadow depth", lambda t, s: t["backlog_rows"] / s.backlog_rows),
    Column("service_mean", 0, 1, "/ 4 service", lambda t, s: t["service_mean_ms"] / (4 * s.service_ms)),
    Column("service_p99", 0, 1, "/ 16 service", lambda t, s: t["service_p99_ms"] / (16 * s.service_ms)),
    Column("sojourn_mean", 0, 1, "log of / SLO, 1 at 50 SLO", _latency("sojourn_mean_ms")),
    Column("sojourn_p50", 0, 1, "log of / SLO, 1 at 50 SLO", _latency("sojourn_p50_ms")),
    Column("sojourn_p99", 0, 1, "log of / SLO, 1 at 50 SLO", _latency("sojourn_p99_ms")),
    Column("slo_violations", 0, 1, "share of answers", _plain("slo_violations")),
    Column("service_trend", -1, 1, "log10 of interval / window", _ratio("interval_service_ms", "service_mean_ms")),
    Column("sojourn_trend", -1, 1, "log10 of interval / window", _ratio("interval_sojourn_ms", "sojourn_mean_ms")),
)
FAST = ("emb_hit_rate", "kv_hit_rate", "returning_share", "unique_users", "mean_history", "load")


class ObservationLayout:
    """Names, places and bounds of the observation's columns, and the function that fills them.

    Columns are those of ``COLUMNS`` and, for each of ``FAST``, ``change_<name>``: its change since the last interval.
    """

    def __init__(self, profile: Profile):
        self.version = LAYOUT_VERSION
        self.profile = profile
        self.names: list[str] = []
        low: list[float] = []
        high: list[float] = []
        self._start: dict[str, int] = {}
        self._width: dict[str, int] = {}
        changes = tuple((f"change_{name}", -1.0, 1.0, 1) for name in FAST)
        for name, a, b, width in (*((c.name, c.low, c.high, c.width) for c in COLUMNS), *changes):
            self._start[name], self._width[name] = len(self.names), width
            self.names += [name] if width == 1 else [f"{name}_{k}" for k in range(width)]
            low += [a] * width
            high += [b] * width
        self.low = np.array(low, np.float32)
        self.high = np.array(high, np.float32)
        self.width = len(self.names)

    def column(self, name: str) -> int | slice:
        """Where a column stands; a slice where it is one a grid point.

        Raises:
            UnknownNameError: no such column.
        """
        if name not in self._start:
            raise UnknownNameError("observation column", name, self._start)
        start, width = self._start[name], self._width[name]
        return start if width == 1 else slice(start, start + width)

    def observe(
        self, telemetry: Telemetry, slo_ms: float, previous: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """The observation, (lanes, nodes, width); ``previous`` is the last interval's, None in the first."""
        pool = self.profile.pool
        scales = Scales(
            slo_ms=slo_ms,
            service_ms=slo_ms / 8,
            row_bytes=self.profile.row_bytes,
            max_history=self.profile.model.max_history,
            backlog_rows=pool.shadow_pages * self.profile.rows_per_page,
            page_budget=pool.page_moves_per_interval,
        )
        lanes, nodes = telemetry.values.shape[:2]
        out = np.zeros((lanes, nodes, self.width))
        for column in COLUMNS:
            out[:, :, self.column(column.name)] = column.value(telemetry, scales)
        if previous is not None:
            for name in FAST:
                out[:, :, self.column(f"change_{name}")] = out[:, :, self.column(name)] - previous[:, :, self.column(name)]
        return np.clip(out, self.low, self.high).astype(np.float32)
