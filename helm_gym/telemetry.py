"""What a backend reports after each control interval: the fields, their units and bounds, and their array.

Fields marked *window* cover the rolling window of the last ``interval.window`` requests (what a controller sees);
fields marked *interval* cover only the last control interval (what it is paid for).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

ALPHA_GRID = tuple(round(0.1 * k, 1) for k in range(1, 10))


@dataclasses.dataclass(frozen=True)
class Field:
    name: str
    unit: str
    low: float
    high: float
    over: str
    doc: str
    width: int = 1


_INF = float("inf")
FIELDS = (
    Field("alpha", "share of pool", 0, 1, "now", "pages that EMB owns"),
    Field("target_alpha", "share of pool", 0, 1, "now", "the split that the memory manager moves towards"),
    Field("pending_pages", "pages", -_INF, _INF, "now", "pages still to be moved, positive towards EMB"),
    Field("moved_pages", "pages", -_INF, _INF, "interval", "pages moved, positive towards EMB"),
    Field("moved_bytes", "B", 0, _INF, "interval", "bytes of the pages that changed hands"),
    Field("emb_hit_rate", "", 0, 1, "window", "row look-ups served from the pool"),
    Field("kv_hit_rate", "", 0, 1, "window", "requests whose user's KV was in the pool"),
    Field("emb_miss_bytes", "B/request", 0, _INF, "window", "embedding rows fetched over the host link"),
    Field("kv_recomputed_tokens", "tokens/request", 0, _INF, "window", "history tokens computed again"),
    Field("compute_share", "", 0, 1, "window", "share of service time spent computing"),
    Field("transfer_share", "", 0, 1, "window", "share of service time spent waiting for the host link"),
    Field("emb_gain_ms", "ms/request", 0, _INF, "window", "saved by EMB having the shadow depth's pages more"),
    Field("emb_loss_ms", "ms/request", 0, _INF, "window", "lost by EMB having the shadow depth's pages fewer"),
    Field("kv_gain_ms", "ms/request", 0, _INF, "window", "saved by KV having the shadow depth's pages more"),
    Field("kv_loss_ms", "ms/request", 0, _INF, "window", "lost by KV having the shadow depth's pages fewer"),
    Field("predicted_ms", "ms/request", 0, _INF, "window", "service at alpha .1 ... .9, simulated", len(ALPHA_GRID)),
    Field("returning_share", "", 0, 1, "window", "requests from users seen more than once in the window"),
    Field("unique_users", "", 0, 1, "window", "distinct users a request"),
    Field("mean_history", "tokens", 0, _INF, "window", "history length"),
    Field("arrival_rate_rps", "requests/s", 0, _INF, "window", "rate of arrivals"),
    Field("utilisation", "", 0, _INF, "window", "service time over time between arrivals"),
    Field("queue_depth", "requests", 0, _INF, "window", "mean number waiting or in service"),
    Field("emb_empty_share", "", 0, 1, "now", "EMB slots not filled yet"),
    Field("kv_empty_share", "", 0, 1, "now", "KV pages not occupied"),
    Field("backlog_rows", "rows", 0, _INF, "now", "rows that background refill still has to bring"),
    Field("service_mean_ms", "ms", 0, _INF, "window", "mean service time"),
    Field("service_p99_ms", "ms", 0, _INF, "window", "P99 of service time"),
    Field("sojourn_mean_ms", "ms", 0, _INF, "window", "mean time from arrival to answer"),
    Field("sojourn_p50_ms", "ms", 0, _INF, "window", "P50 of the same"),
    Field("sojourn_p99_ms", "ms", 0, _INF, "window", "P99 of the same"),
    Field("slo_violations", "", 0, 1, "window", "answers later than the SLO"),
    Field("interval_service_ms", "ms", 0, _INF, "interval", "mean service time"),
    Field("interval_sojourn_ms", "ms", 0, _INF, "interval", "mean sojourn"),
    Field("interval_p99_ms", "ms", 0, _INF, "interval", "P99 of sojourn"),
    Field("interval_violations", "", 0, 1, "interval", "answers later than the SLO"),
    Field("interval_arrival_s", "s", 0, _INF, "interval", "time between the interval's first and last arrival"),
    Field("h2d_critical_bytes", "B", 0, _INF, "interval", "host to device, waited for by requests"),
    Field("h2d_background_bytes", "B", 0, _INF, "interval", "host to device, in the background"),
    Field("d2h_bytes", "B", 0, _INF, "interval", "device to host (KV of evicted users, where there is a host tier)"),
    Field("compute_ms", "ms", 0, _INF, "interval", "service time spent computing"),
    Field("transfer_ms", "ms", 0, _INF, "interval", "service time spent waiting for the host link"),
    Field("speed", "", 0, _INF, "now", "this machine's compute time over the cost model's; 1 where none is measured"),
)
COLUMN: dict[str, int] = {}
for _field in FIELDS:
    COLUMN[_field.name] = sum(f.width for f in FIELDS[: FIELDS.index(_field)])
WIDTH = sum(field.width for field in FIELDS)
# The same places by attribute, for kernels: AT.alpha. Whoever writes or reads telemetry names its columns so.
AT: Any = collections.namedtuple("AT", COLUMN)(**COLUMN)
_BY_NAME = {field.name: field for field in FIELDS}


@dataclasses.dataclass(frozen=True)
class RoutedTraffic:
    """Where a cluster's requests of one interval went.

    Attributes:
        requests: (lanes, nodes), how many each node was given.
        alive: bool (lanes, nodes).
        spills: (lanes,), requests that went elsewhere because their node's load was bounded.
        rerouted: (lanes,), requests of a node that was lost, which other nodes served again.
        given_up: (lanes,), requests of lost nodes beyond an interval's, for which there is no room: what a cluster owes
            that has long been overloaded.
        preferred: (lanes, nodes), how many each node's caches would have drawn to it if no node had work ahead; under a
            rule that looks at no cache, none. None from a backend that does not say.
        apart: float64 (lanes, 3), of ``preferred``: the share of requests to which all nodes were equal, and of the
            others the weighted cost (ms) of the next best node and of the mean node over the preferred one's.
    """

    requests: NDArray[np.int64]
    alive: NDArray[np.bool_]
    spills: NDArray[np.int64]
    rerouted: NDArray[np.int64]
    given_up: NDArray[np.int64]
    preferred: NDArray[np.int64] | None = None
    apart: NDArray[np.float64] | None = None


ACCOUNTS = (  # (name, unit, what it is), of the last interval
    ("compute_ms", "ms", "of requests' service: computing"),
    ("rows_ms", "ms", "of requests' service: missed rows coming up, at the link's full bandwidth"),
    ("uploads_ms", "ms", "of requests' service: KV coming up from the host tier"),
    ("offloads_ms", "ms", "of requests' service: KV going down before its page is used again"),
    (
        "delay_ms",
        "ms",
        "of requests' service: these three longer, as background traffic has its share of the link",
    ),
    ("moves_ms", "ms", "the server's time, in no request's service: rows moved within the pool when alpha changes"),
    ("background_ms", "ms", "the link's time for background traffic at its full bandwidth, beside requests' service"),
    ("rows_bytes", "B", "missed rows that came up"),
    ("uploads_bytes", "B", "KV that came up"),
    ("offloads_bytes", "B", "KV that went down because requests needed its pages"),
    ("moved_down_bytes", "B", "KV that went down because a page moved to EMB"),
    ("refill_bytes", "B", "rows that background traffic brought back"),
    ("moved_rows_bytes", "B", "rows that changed their place in the pool"),
    ("staged_bytes", "B", "most that a micro-batch held behind the pool, because its rows found no slot"),
    ("kv_unused_bytes", "B", "now: places for tokens in pages that users occupy, without a token"),
)
_ACCOUNT = {name: i for i, (name, _, _) in enumerate(ACCOUNTS)}


@dataclasses.dataclass(frozen=True)
class Accounts:
    """Every byte and millisecond of an interval, told apart; no controller observes it.

    A server is busy for ``SERVER_MS`` together: requests' service, of each micro-batch once, and moves of rows.

    Attributes:
        values: float64 (lanes, nodes, accounts); ``accounts["delay_ms"]`` is a view, (lanes, nodes).
    """

    SERVER_MS: ClassVar[tuple[str, ...]] = (
        "compute_ms",
        "rows_ms",
        "uploads_ms",
        "offloads_ms",
        "delay_ms",
        "moves_ms",
    )
    values: NDArray[np.float64]

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return self.values[:, :, _ACCOUNT[name]]


@dataclasses.dataclass(frozen=True)
class Telemetry:
    """One interval's report.

    Attributes:
        values: float64 (lanes, nodes, WIDTH); ``telemetry["kv_hit_rate"]`` is a view, (lanes, nodes) or
            (lanes, nodes, width).
        sojourn_ms, service_ms: (lanes, nodes, requests), each request of the interval, where the backend has requests;
            in a cluster, infinite behind a node's last.
        extrapolating: bool (lanes, nodes), whether a learned backend was asked for what it does not know; None from
            a backend that serves requests.
        traffic: what a cluster's router did; None from a single node.
        accounts: where bytes and time went; None from a backend that has no memory manager.
    """

    values: NDArray[np.float64]
    sojourn_ms: NDArray[np.floating] | None = None
    service_ms: NDArray[np.floating] | None = None
    extrapolating: NDArray[np.bool_] | None = None
    traffic: RoutedTraffic | None = None
    accounts: Accounts | None = None

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        field, column = _BY_NAME[name], COLUMN[name]
        if field.width == 1:
            return self.values[:, :, column]
        return self.values[:, :, column : column + field.width]

    def items(self) -> Iterator[tuple[str, NDArray[np.float64]]]:
        for field in FIELDS:
            yield field.name, self[field.name]
