"""One measured figure of ``helm-gym bench``."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

RUNS = 3


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        value, low, high: median, least and largest of the runs.
        rung: of the backend underneath; none where there is none, as for a peer or the router alone.
        peers: the same rate of others, measured in the same run; ``ratio`` is ours over theirs.
        by_batch: further values, each by size of the micro-batches: of "measured", say.
    """

    value: float
    low: float
    high: float
    unit: str
    rung: str | None
    doc: str
    peers: dict[str, float] = dataclasses.field(default_factory=dict)
    by_batch: dict[str, dict[int, float]] = dataclasses.field(default_factory=dict)

    @property
    def ratio(self) -> dict[str, float]:
        return {name: self.value / rate for name, rate in self.peers.items()}


def figure_of(
    runs: list[float], unit: str, rung: str | None, doc: str, peers: dict[str, float] | None = None
) -> Figure:
    """The median of some runs, with the least and the largest."""
    return Figure(statistics.median(runs), min(runs), max(runs), unit, rung, doc, peers or {})


def rates_of(work: Callable[[], object], count: int) -> list[float]:
    """Units a CPU second in each run; ``work`` does ``count`` of them. One run first warms caches and compilers."""
    work()
    rates = []
    for _ in range(RUNS):
        started = time.process_time()
        work()
        rates.append(count / (time.process_time() - started))
    return rates
