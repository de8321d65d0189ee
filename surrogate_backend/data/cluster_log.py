"""The log of clusters: Parquet as of single nodes (surrogate_backend/data/log.py), a row a node and interval."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from helm_gym.cluster.routing import RULES, WEIGHTS
from helm_gym.cluster.topology import Cluster, Node, Outage
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.telemetry import FIELDS
from helm_gym.workload.state import PARAMETERS
from surrogate_backend.data.log import CONSTANTS, list_type, planned_intervals, read_tables, refuse, take_column

OF_CLUSTER = {"cluster": pa.string(), "nodes": pa.int32()}  # constants beside CONSTANTS; cluster: its fields as JSON
# Of a node and interval: requests that it was given, and those that it would have been if nothing waited; of the lane's
# interval, the same in each of its rows: the share of requests to which all nodes were equal, and of the others the
# weighted cost (ms) of the next best node and of the mean one over the best's.
ROUTED = ("requests", "preferred", "spills", "rerouted", "tied", "next_ms", "mean_ms")


def schema() -> pa.Schema:
    """Columns of a log of clusters; each request's times are lists, as long as a node was given requests."""
    return pa.schema(
        [
            *CONSTANTS.items(),
            *OF_CLUSTER.items(),
            ("node", pa.int32()),
            ("interval", pa.int32()),
            *((f"w_{parameter.name}", pa.float64()) for parameter in PARAMETERS),
            ("alive", pa.float64()),
            ("rule", pa.float64()),
            *((f"weight_{weight}", pa.float64()) for weight in WEIGHTS),
            ("asked_alpha", pa.float64()),
            ("slo_ms", pa.float64()),
            *((name, pa.float64()) for name in ROUTED),
            *((field.name, pa.float64() if field.width == 1 else list_type(field.width)) for field in FIELDS),
            ("request_service_ms", pa.list_(pa.float32())),
            ("request_sojourn_ms", pa.list_(pa.float32())),
        ]
    )


@dataclasses.dataclass(frozen=True)
class LoggedCluster:
    """One episode as it was read.

    Attributes:
        constants: by the names of ``CONSTANTS``.
        workload: (T, parameters), the cluster's.
        alive: bool (T, nodes); rule: int (T,); weights: (T, 3).
        routed: by the names of ``ROUTED``, (T, nodes).
        telemetry: by field, (T, nodes) or (T, nodes, width).
        service_ms, sojourn_ms: (T, nodes, most), infinite behind a node's last.
    """

    constants: Mapping[str, Any]
    cluster: Cluster
    workload: NDArray[np.float64]
    alive: NDArray[np.bool_]
    rule: NDArray[np.int64]
    weights: NDArray[np.float64]
    asked_alpha: NDArray[np.float64]
    slo_ms: NDArray[np.float64]
    routed: Mapping[str, NDArray[np.float64]]
    telemetry: Mapping[str, NDArray[np.float64]]
    service_ms: NDArray[np.float64]
    sojourn_ms: NDArray[np.float64]

    @property
    def intervals(self) -> int:
        return len(self.workload)

    @property
    def nodes(self) -> int:
        return self.cluster.size


def to_text(cluster: Cluster) -> str:
    """A cluster as the log's constant; ``to_cluster`` is the inverse."""
    return json.dumps(dataclasses.asdict(cluster), sort_keys=True)


def to_cluster(text: str) -> Cluster:
    """Raises ValueError, TypeError, KeyError or InvalidInputError for what is no cluster."""
    fields = json.loads(text)
    kinds = {"nodes": Node, "outages": Outage}
    return Cluster(**fields | {name: tuple(kind(**entry) for entry in fields[name]) for name, kind in kinds.items()})


def read_clusters(folder: pathlib.Path, profile: Profile, groups: tuple[str, ...] = ()) -> Iterator[LoggedCluster]:
    """Yields the episodes of a log of clusters, in the order of their numbers, each of them checked.

    Raises:
        InvalidInputError: as surrogate_backend.data.log.read_log; or a log of single nodes.
    """
    expected, planned = schema(), planned_intervals(folder)
    for path, constants, table in read_tables(folder, profile, expected, (*CONSTANTS, *OF_CLUSTER), groups):
        try:
            cluster = to_cluster(constants["cluster"])
        except (ValueError, TypeError, KeyError, AttributeError, InvalidInputError) as error:
            refuse(path, "holds no cluster in its column 'cluster'", error)
        yield _episode(path, constants, cluster, table, planned)


def _episode(
    path: pathlib.Path, constants: Mapping[str, Any], cluster: Cluster, table: pa.Table, planned: object
) -> LoggedCluster:
    nodes = cluster.size
    intervals = table.num_rows // nodes
    node, interval = take_column(path, table, "node"), take_column(path, table, "interval")
    in_order = np.array_equal(node, np.tile(np.arange(nodes), intervals))
    if not in_order or not np.array_equal(interval, np.repeat(np.arange(intervals), nodes)):
        refuse(path, f"lacks a node or an interval, or has them out of order ({table.num_rows} rows of {nodes} nodes)")

    def column(name: str, width: int = 1, low: float = -np.inf, high: float = np.inf) -> NDArray[np.float64]:
        values = take_column(path, table, name, width, low, high)
        return values.reshape(intervals, nodes, *values.shape[1:])

    def of_cluster(name: str, low: float = -np.inf, high: float = np.inf) -> NDArray[np.float64]:
        values = column(name, 1, low, high)
        if (values != values[:, :1]).any():
            refuse(path, f"has a column '{name}', which is of the cluster, that differs between nodes of an interval")
        return np.asarray(values[:, 0])

    if constants["group"] != "sweep" and isinstance(planned, int) and intervals != planned:
        refuse(path, f"holds {intervals} of {planned} intervals")
    if constants["nodes"] != nodes:
        refuse(path, f"says {constants['nodes']} nodes of a cluster of {nodes}")
    routed, alive = {name: column(name, 1, 0.0) for name in ROUTED}, column("alive", 1, 0.0, 1.0)
    if not (alive.any(axis=1) & routed["requests"].any(axis=1)).all():
        refuse(path, "has an interval without a node alive, or without a request")
    most = int(routed["requests"].max())
    times = [_times(path, table, name, routed["requests"], most) for name in ("service", "sojourn")]
    return LoggedCluster(
        constants=constants,
        cluster=cluster,
        workload=np.stack([of_cluster(f"w_{p.name}", p.low, p.high) for p in PARAMETERS], axis=1),
        alive=alive > 0,
        rule=of_cluster("rule", 0.0, len(RULES) - 1).astype(np.int64),
        weights=np.stack([of_cluster(f"weight_{w}", 0.0) for w in WEIGHTS], axis=1),
        asked_alpha=column("asked_alpha", 1, 0.0, 1.0),
        slo_ms=of_cluster("slo_ms", 0.0),
        routed=routed,
        telemetry={field.name: column(field.name, field.width, field.low, field.high) for field in FIELDS},
        service_ms=times[0],
        sojourn_ms=times[1],
    )


def _times(
    path: pathlib.Path, table: pa.Table, name: str, requests: NDArray[np.float64], most: int
) -> NDArray[np.float64]:
    """(T, nodes, most) of lists that are as long as ``requests``, (T, nodes), says."""
    lists, counts = table[f"request_{name}_ms"].combine_chunks(), requests.astype(np.int64).ravel()
    if lists.null_count or not np.array_equal(lists.value_lengths().to_numpy(), counts):
        refuse(path, f"has the column 'request_{name}_ms' without a time for each request")
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
        refuse(path, f"has a time in the column 'request_{name}_ms' that is negative or not finite")
    padded = np.full((len(counts), most), np.inf)
    padded[np.arange(most) < counts[:, None]] = values
    return padded.reshape(*requests.shape, most)
