"""The service itself, whatever protocol asks: ids to places, a node for each request, and its answer."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.machine_memory import require
from helm_gym.profile import Profile
from helm_gym.telemetry import AT
from real_backend.base import managed_bytes
from real_backend.serving.control import Controller, ControlThread
from real_backend.serving.errands import Answer, Errand, Report
from real_backend.serving.fleet import Fleet
from real_backend.serving.item_index import Id, ItemIndex, NoRowLeftError
from real_backend.serving.live_router import LiveRouter
from real_backend.serving.metrics import Metrics
from real_backend.serving.user_index import NoPlaceLeftError, UserIndex
from real_backend.serving.wire import SharedMemory

log = logging.getLogger("helm_gym.serving")
MAX_EVENTS = 1 << 16  # in a request
_PLACE_BYTES = 400  # of a user beside the history: who is at a place, and what the router knows


class OverloadedError(HelmError):
    """All queues are full.

    Attributes:
        retry_after_s: when it is worth to ask again.
    """

    def __init__(self, sentence: str, retry_after_s: float):
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class UnavailableError(HelmError):
    """No node can answer now."""


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The answer to a request.

    Attributes:
        scores: float32 (candidates,), in the order of the request.
        total, seen: events of the user so far, and how many of the last ones the model saw.
        cached: of these, how many were not computed again.
        node: that answered.
        took_s: from the request's arrival at the service until the node had its scores.
    """

    scores: NDArray[np.float32]
    total: int
    seen: int
    cached: int
    node: int
    took_s: float


class Service:
    """Nodes, a router, and who is who; one asyncio loop holds it.

    Args:
        profile: machine, model and pool of a node.
        places: users that are remembered; the profile's for each node where not given.
        queue: requests that may wait at a node; where all have so many, others are shed.
        alpha: the split to start from.
        trained: whether item ids are rows of the table; where the table is drawn, any id is an item.
        controller: decides the splits; without one they stay.

    Raises:
        InvalidInputError: settings that do not fit each other.
    """

    def __init__(
        self,
        profile: Profile,
        nodes: int = 1,
        places: int | None = None,
        queue: int = 64,
        alpha: float = 0.5,
        trained: bool | None = None,
        controller: Controller | None = None,
        device: str | None = None,
        stall_s: float = 10.0,
    ):
        places = nodes * profile.population.users if places is None else places
        least = max(profile.interval.requests, 2 * profile.population.hot_users - 1, nodes * queue)
        if places <= least:
            raise InvalidInputError(
                f"{places} users are to be remembered, while {nodes * queue} requests may wait; remember at least "
                f"{least + 1}."
            )
        if not profile.pool.min_alpha <= alpha <= profile.pool.max_alpha:
            raise InvalidInputError(
                f"Alpha {alpha:g} is outside of profile '{profile.name}', {profile.pool.min_alpha:g} to "
                f"{profile.pool.max_alpha:g}."
            )
        population = dataclasses.replace(profile.population, users=places)
        self.profile, self.queue = dataclasses.replace(profile, population=population), queue
        shape = places, profile.model.max_history
        need = nodes * managed_bytes(self.profile, 1, 1) + places * (4 * profile.model.max_history + _PLACE_BYTES)
        require(
            need, f"A service of {nodes} nodes that remembers {places:,} users", "lower the number of users or of nodes"
        )
        shared = SharedMemory(4 * math.prod(shape))
        histories = shared.array(shape, np.int32)
        trained = bool(profile.model.table) if trained is None else trained
        self.items = ItemIndex(profile.population.items, trained)
        self.users = UserIndex(histories, self.items)
        self._router = LiveRouter(self.profile, nodes, histories)
        resident = self._router.resident if nodes > 1 else None
        self.fleet = Fleet(self.profile, nodes, alpha, shared, resident, self, device, stall_s)
        self.metrics = Metrics(nodes, self.profile.pool.pages * self.profile.pool.page_bytes)
        self.reports: dict[int, Report] = {}
        self._lost: dict[int, int] = {}  # requests lost with each node since it last reported
        self._controller, self._told = controller, (0, 0)
        self._control: ControlThread | None = None

    async def start(self) -> None:
        """Starts the nodes; returns when all of them can serve."""
        await self.fleet.start()
        if self._controller is not None:
            loop = asyncio.get_running_loop()

            def decided(node: int, decision: Any, took_s: float) -> None:
                loop.call_soon_threadsafe(self._follow, node, decision, took_s)

            self._control = ControlThread(self._controller, decided)

    def close(self) -> None:
        if self._control is not None:
            self._control.close()
        self.fleet.close()

    @property
    def under_way(self) -> int:
        """Requests that are not answered."""
        return sum(self.fleet.under_way(node) for node in range(len(self.fleet)))

    async def rank(self, user: Id, start: int, events: Sequence[Id], candidates: Sequence[Id]) -> Ranked:
        """Scores of ``candidates`` for a user whose history goes on with ``events``.

        Args:
            start: how many events came before ``events``; 0: they are the whole history.

        Raises:
            HistoryRequiredError: the service does not have what came before.
            InvalidInputError: too many or too few of something, or no such item.
            OverloadedError: there is no room; UnavailableError: there is no node, or two were lost with it.
        """
        self._check(start, events, candidates)
        self.check_room()
        arrival_s = time.perf_counter()
        skipped = self.users.unseen(start, len(events))
        seen = events[skipped:]
        rows = self._rows([*seen, *candidates])
        try:
            visit = self.users.visit(user, start, rows[: len(seen)], skipped)
        except NoPlaceLeftError as error:
            raise OverloadedError(str(error), 1.0) from error
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        asked = np.ascontiguousarray(rows[len(seen) :])
        errand = Errand(visit.place, visit.version, visit.length, visit.delta, asked, arrival_s, answer)
        self._send(errand)
        # Shielded: a client that leaves does not take the answer from a node that is at it.
        scores, cached, took_s = await asyncio.shield(answer)
        return Ranked(scores, visit.total, visit.length, cached, errand.node, took_s)

    def _check(self, start: int, events: Sequence[Id], candidates: Sequence[Id]) -> None:
        model = self.profile.model
        if not 1 <= len(candidates) <= model.max_candidates:
            raise InvalidInputError(
                f"{len(candidates)} candidates were sent; this model scores 1 to {model.max_candidates}."
            )
        if len(events) > MAX_EVENTS:
            raise InvalidInputError(f"{len(events)} events were sent; a request brings at most {MAX_EVENTS:,}.")
        if start + len(events) < 1:
            raise InvalidInputError("A user without any event cannot be ranked for; send at least one.")

    def check_room(self) -> None:
        """Raises OverloadedError or UnavailableError where no node can take a request now."""
        ready = self.fleet.ready
        if not ready:
            raise UnavailableError("No node is ready; try again in a few seconds.")
        if all(self.fleet.under_way(node) >= self.queue for node in ready):
            self.metrics.shed.inc()
            wait_s = 1e-3 * float(self.fleet.ahead_ms()[ready].min())
            raise OverloadedError(f"All {len(ready)} nodes have {self.queue} requests waiting.", max(1.0, wait_s))

    def _rows(self, ids: Sequence[Id]) -> NDArray[np.int32]:
        while True:
            try:
                return self.items.rows(ids)
            except NoRowLeftError as error:
                if not self.users.forget_oldest():
                    raise OverloadedError(str(error), 1.0) from error

    def _send(self, errand: Errand) -> None:
        """Sends a request to the node that the router chooses."""
        fleet = self.fleet
        ready = fleet.ready
        node = ready[0]
        if len(fleet) > 1:
            node, errand.expected_ms = self._router.choose(
                errand.place, errand.version, errand.length, errand.delta, errand.candidates,
                time.perf_counter(), fleet.ahead_ms(),
            )  # fmt: skip
            if fleet.under_way(node) >= self.queue:
                node = min(ready, key=fleet.under_way)
        fleet.send(node, errand)

    # --- what the fleet tells ---

    def node_up(self, node: int) -> None:
        self._router.up(node)
        self.metrics.ready.labels(node).set(1)

    def node_down(self, node: int, lost: list[Errand]) -> None:
        """What a lost node had is sent to another one, once."""
        self._router.down(node)
        self._lost[node] = self._lost.get(node, 0) + len(lost)
        self.metrics.ready.labels(node).set(0)
        self.metrics.restarts.labels(node).inc()
        for errand in lost:
            if errand.tries == 1 and self.fleet.ready and not errand.answer.done():
                self.metrics.retried.inc()
                self._send(errand)
                continue
            self.users.leave(errand.place)
            if not errand.answer.done():
                errand.answer.set_exception(
                    UnavailableError(
                        f"Node {node} was lost with this request, and no other could take it; send it again."
                    )
                )

    def answered(self, node: int, errand: Errand) -> None:
        self.users.leave(errand.place)

    def reported(self, report: Report) -> None:
        self.reports[report.node] = report
        self.metrics.note(report)
        if self._control is not None:
            errors, memory = self._lost.pop(report.node, 0), self.fleet.memory_bytes(report.node)
            self._control.report(report.node, report.row, report.requests, errors, memory)

    def published(self, node: int, cached: NDArray[np.int32]) -> None:
        speed = float(self.reports[node].row[AT.speed])  # it has reported before it published
        self._router.learn(node, cached, speed)
        for errand in self.fleet.errands(node):
            self._router.note(node, errand.place, errand.version, errand.length)

    def _follow(self, node: int, decision: Any, took_s: float) -> None:
        self.metrics.decided(node, decision, took_s)
        target = decision.target_alpha
        pool = self.profile.pool
        if pool.min_alpha <= target <= pool.max_alpha and target != self.fleet.alpha(node):
            self.fleet.set_target(node, float(target))

    def measured(self) -> bytes:
        """The metrics in Prometheus' form."""
        metrics, fleet = self.metrics, self.fleet
        for node in range(len(fleet)):
            metrics.under_way.labels(node).set(fleet.under_way(node))
        metrics.users.set(len(self.users))
        metrics.forgotten.inc(self.users.forgotten - self._told[0])
        metrics.spills.inc(self._router.spilled - self._told[1])
        self._told = self.users.forgotten, self._router.spilled
        if self._controller is not None:
            policy = self._controller.status()["policy"]
            metrics.policy.clear()
            metrics.policy.labels(policy["sha256"] or "", policy["name"]).set(1)
        return metrics.text()

    def status(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        fleet = self.fleet
        pids = fleet.pids()
        nodes = [
            {
                "node": node,
                "ready": fleet.is_ready(node),
                "pid": pids[node],
                "restarts": fleet.restarts(node),
                "requests_under_way": fleet.under_way(node),
                "target_alpha": fleet.alpha(node),
                **(self.reports[node].facts() if node in self.reports else {}),
            }
            for node in range(len(fleet))
        ]
        return {
            "profile": self.profile.name,
            "nodes": nodes,
            "users": len(self.users),
            "users_forgotten": self.users.forgotten,
            "items": len(self.items),
            "spilled": self._router.spilled,
        }
