"""The table of an observation's columns: which telemetry each is made of, its scale, bounds and place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from helm_gym.telemetry import ALPHA_GRID

LAYOUT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Scales:
    """What makes telemetry dimensionless; all from the profile.

    ``service_ms``: an eighth of the SLO, about the mean service time at the steady optimum.
    """

    slo_ms: float
    service_ms: float
    row_bytes: float
    max_history: float
    backlog_rows: float
    pages: float
    page_budget: float


@dataclasses.dataclass(frozen=True)
class Column:
    """One column, or one a grid point, of one telemetry field, clipped to [low, high].

    linear: ``field / scale``. log (``log_top``): ``log1p(field / scale) / log1p(log_top)``, 0 at 0 and 1 at ``log_top``
    scales, since latencies span three decades. ratio (``over``): ``log10(field / over)``.
    """

    name: str
    field: str
    low: float
    high: float
    doc: str
    scale: Callable[[Scales], float] = lambda s: 1.0
    log_top: float = 0.0
    over: str = ""
    width: int = 1


def _slo(s: Scales) -> float:
    return s.slo_ms


def _saving(s: Scales) -> float:
    return 0.2 * s.service_ms


def _history(s: Scales) -> float:
    return s.max_history


_GRID = f"simulated service at alpha {ALPHA_GRID[0]} ... {ALPHA_GRID[-1]}, / 4 service"
COLUMNS = (
    Column("alpha", "alpha", 0, 1, "EMB's share of the pool"),
    Column("target_alpha", "target_alpha", 0, 1, "the split being moved towards"),
    Column("moving", "pending_pages", -1, 1, "pages still to be moved / pool, towards EMB", lambda s: s.pages),
    Column("moved", "moved_pages", -1, 1, "pages moved / budget, towards EMB", lambda s: s.page_budget),
    Column("emb_hit_rate", "emb_hit_rate", 0, 1, "row look-ups that hit"),
    Column("kv_hit_rate", "kv_hit_rate", 0, 1, "requests whose user hit"),
    Column("emb_miss", "emb_miss_bytes", 0, 1, "rows missed a request / 200", lambda s: 200 * s.row_bytes),
    Column("kv_recomputed", "kv_recomputed_tokens", 0, 1, "tokens again a request / longest history", _history),
    Column("compute_share", "compute_share", 0, 1, "of service time"),
    Column("transfer_share", "transfer_share", 0, 1, "of service time"),
    Column("emb_gain", "emb_gain_ms", 0, 1, "what EMB saves one shadow depth larger, / .2 service", _saving),
    Column("emb_loss", "emb_loss_ms", 0, 1, "what EMB loses one shadow depth smaller, / .2 service", _saving),
    Column("kv_gain", "kv_gain_ms", 0, 1, "what KV saves one shadow depth larger, / .2 service", _saving),
    Column("kv_loss", "kv_loss_ms", 0, 1, "what KV loses one shadow depth smaller, / .2 service", _saving),
    Column("predicted", "predicted_ms", 0, 1, _GRID, lambda s: 4 * s.service_ms, width=len(ALPHA_GRID)),
    Column("returning_share", "returning_share", 0, 1, "requests of users seen again in the window"),
    Column("unique_users", "unique_users", 0, 1, "distinct users a request"),
    Column("mean_history", "mean_history", 0, 1, "history / longest history", _history),
    Column("load", "arrival_rate_rps", 0, 1, "arrival rate x service / 2", lambda s: 2000 / s.service_ms),
    Column("utilisation", "utilisation", 0, 1, "busy time over time / 2", lambda s: 2.0),
    Column("queue_depth", "queue_depth", 0, 1, "log, 1 at 200 requests", log_top=200.0),
    Column("emb_empty", "emb_empty_share", 0, 1, "EMB slots not filled"),
    Column("kv_empty", "kv_empty_share", 0, 1, "KV pages not occupied"),
    Column("backlog", "backlog_rows", 0, 1, "rows to be refilled / shadow depth", lambda s: s.backlog_rows),
    Column("service_mean", "service_mean_ms", 0, 1, "/ 4 service", lambda s: 4 * s.service_ms),
    Column("service_p99", "service_p99_ms", 0, 1, "/ 16 service", lambda s: 16 * s.service_ms),
    Column("sojourn_mean", "sojourn_mean_ms", 0, 1, "log of / SLO, 1 at 50 SLO", _slo, 50.0),
    Column("sojourn_p50", "sojourn_p50_ms", 0, 1, "log of / SLO, 1 at 50 SLO", _slo, 50.0),
    Column("sojourn_p99", "sojourn_p99_ms", 0, 1, "log of / SLO, 1 at 50 SLO", _slo, 50.0),
    Column("slo_violations", "slo_violations", 0, 1, "share of answers"),
    Column("service_trend", "interval_service_ms", -1, 1, "log10 of interval / window", over="service_mean_ms"),
    Column("sojourn_trend", "interval_sojourn_ms", -1, 1, "log10 of interval / window", over="sojourn_mean_ms"),
)
FAST = ("emb_hit_rate", "kv_hit_rate", "returning_share", "unique_users", "mean_history", "load")


def _places() -> dict[str, slice]:
    """Where each column stands; changes come last, in the order of ``FAST``."""
    places: dict[str, slice] = {}
    start = 0
    for name, width in (*((c.name, c.width) for c in COLUMNS), *((f"change_{name}", 1) for name in FAST)):
        places[name] = slice(start, start + width)
        start += width
    return places


PLACES = _places()
