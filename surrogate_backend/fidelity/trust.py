"""Where the surrogate may be trusted: its error of mean service over alpha and over every parameter of a workload."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.workload.state import INDEX, PARAMETERS

Floats = NDArray[np.float64]
EDGES = np.linspace(0.0, 1.0, 6)  # of alpha and of hot_share
FIFTHS = 5
LEAST_INTERVALS = 20  # of a cell that is shown


class Stretch(NamedTuple):
    """One setting's schedule or held split.

    Attributes:
        error: (T,), mean service of surrogate over real less one, in per cent, with its sign.
        alpha: (T,), as the real backend applied it.
        workload: (T, parameters).
    """

    error: Floats
    alpha: Floats
    workload: Floats


@dataclasses.dataclass(frozen=True)
class Cell:
    """Intervals of one kind: from ``low`` to ``high`` of a parameter; ``error`` is NaN where there are too few."""

    low: float
    high: float
    error: float
    intervals: int


@dataclasses.dataclass(frozen=True)
class Trust:
    """The map.

    A cell's error: each stretch's mean error over its intervals in the cell, its absolute value, averaged over
    stretches by their number of intervals. Within a stretch requests' noise averages out, between stretches a bias
    one way does not hide one the other way.

    Attributes:
        error: (hot_share, alpha), per cent; NaN where there are fewer than ``LEAST_INTERVALS``.
        intervals: (hot_share, alpha).
        parameters: by name, the fifths of its logged values; one cell where it never changes.
    """

    error: Floats
    intervals: NDArray[np.int64]
    parameters: dict[str, tuple[Cell, ...]]

    def to_json(self) -> dict[str, Any]:
        return {
            "field": "service_mean_ms",
            "edges": EDGES.round(6).tolist(),
            "hot_share_by_alpha": {
                "error": [[_finite(x) for x in row] for row in self.error.tolist()],
                "intervals": self.intervals.tolist(),
            },
            "parameters": {
                name: [dataclasses.asdict(cell) | {"error": _finite(cell.error)} for cell in cells]
                for name, cells in self.parameters.items()
            },
        }


def map_trust(stretches: Sequence[Stretch]) -> Trust:
    """The map of what these stretches show."""
    size = len(EDGES) - 1
    error, count = np.full((size, size), np.nan), np.zeros((size, size), np.int64)
    for row in range(size):
        for column in range(size):
            masks = [
                (_bin(s.workload[:, INDEX["hot_share"]], EDGES) == row) & (_bin(s.alpha, EDGES) == column)
                for s in stretches
            ]
            error[row, column], count[row, column] = _error(stretches, masks)
    return Trust(error, count, {p.name: _fifths(stretches, INDEX[p.name]) for p in PARAMETERS} if stretches else {})


def _fifths(stretches: Sequence[Stretch], column: int) -> tuple[Cell, ...]:
    values = np.concatenate([s.workload[:, column] for s in stretches])
    edges = np.unique(np.quantile(values, np.linspace(0.0, 1.0, FIFTHS + 1)))
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    cells = []
    for k in range(len(edges) - 1):
        masks = [_bin(s.workload[:, column], edges) == k for s in stretches]
        cells.append(Cell(float(edges[k]), float(edges[k + 1]), *_error(stretches, masks)))
    return tuple(cells)


def _bin(values: Floats, edges: Floats) -> NDArray[np.intp]:
    """Which bin each lies in; the last edge belongs to the last."""
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)


def _error(stretches: Iterable[Stretch], masks: Sequence[NDArray[np.bool_]]) -> tuple[float, int]:
    pairs = [(s.error[mask].mean(), int(mask.sum())) for s, mask in zip(stretches, masks, strict=True) if mask.any()]
    total = sum(count for _, count in pairs)
    if total < LEAST_INTERVALS:
        return math.nan, total
    return float(sum(abs(mean) * count for mean, count in pairs) / total), total


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
