"""Requests on their way through nodes, what nodes report, and who is told of it."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from helm_gym.telemetry import COLUMN
from real_backend.memory.ledger import REQUESTS


class Answer(NamedTuple):
    """What a node says to a request: scores, float32 (candidates,); tokens that were cached; seconds since it came."""

    scores: NDArray[np.float32]
    cached: int
    took_s: float


@dataclasses.dataclass
class Errand:
    """A request on its way through a node.

    Attributes:
        place, version, length, delta: see ``live_node.Ask``.
        arrival_s: by ``time.perf_counter``, which all processes of a machine share.
        sent_s: when it was sent to the node that it is at; expected_ms: what the router expects it to take.
        tries: how many nodes it was sent to; node: the last of them.
    """

    place: int
    version: int
    length: int
    delta: int
    candidates: NDArray[np.int32]
    arrival_s: float
    answer: asyncio.Future[Answer]
    sent_s: float = 0.0
    expected_ms: float = 0.0
    tries: int = 0
    node: int = -1


@dataclasses.dataclass(frozen=True)
class Report:
    """What a node says at the end of an interval.

    Attributes:
        row: (WIDTH,), its telemetry; sums: (SUMS,) of the interval (real_backend/memory/ledger.py).
        move_s, waited_move_s: since its start, time of page moves, and how much of it while requests waited.
    """

    node: int
    alpha: float
    row: NDArray[np.float64]
    sums: NDArray[np.float64]
    move_s: float
    waited_move_s: float
    managed_s: float

    @property
    def requests(self) -> int:
        """How many came in the interval."""
        return int(self.sums[REQUESTS])

    def facts(self) -> dict[str, float]:
        """The node's telemetry as far as a person wants it."""
        shown = ("kv_hit_rate", "emb_hit_rate", "sojourn_mean_ms", "sojourn_p99_ms", "arrival_rate_rps", "utilisation")
        return {"alpha": self.alpha} | {name: float(self.row[COLUMN[name]]) for name in (*shown, "speed")}


class Owner(Protocol):
    """Who is told what happens to nodes."""

    def node_up(self, node: int) -> None: ...

    def node_down(self, node: int, lost: list[Errand]) -> None:
        """A node is gone; ``lost`` are the requests that it had not answered."""

    def answered(self, node: int, errand: Errand) -> None: ...

    def reported(self, report: Report) -> None: ...

    def published(self, node: int, cached: NDArray[np.int32]) -> None: ...
