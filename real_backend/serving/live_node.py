"""A node on the wall clock: the rungs' memory manager, engine and telemetry, with requests that come one by one.

An interval is open from the end of the one before it until its requests have all come and been answered, or none has
come for a while. Whoever holds the node calls ``admit`` when a request comes, ``step`` while any waits, ``idle`` while
none does, and ``end_interval`` when ``ended`` says so.

Pages move while nobody waits: when the node is idle, and while a micro-batch waits for a link that is modelled. Where
neither leaves time for it, one page moves behind each micro-batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.telemetry import AT
from helm_gym.workload.sampling import make_requests
from real_backend.memory.layout import N_EMB, Memory, make_memory, make_rules, with_speed
from real_backend.memory.ledger import ANSWERED, FREE_AT_S, NOW_S, SPAN_S, make_ledger
from real_backend.memory.report import telemetry_of
from real_backend.node import Node
from real_backend.router_beliefs import list_cached

IDLE_S = 2.0  # without a request, after which an interval ends with those that it has
SLICE = 4  # pages that move at a time while nobody waits: a request that comes by then waits for no more
_SMOOTHING = 0.4  # of one interval's speed, and of one move's; a shared machine changes its speed within seconds
_OVERSLEPT_S = 60e-6  # what a sleep lasts longer than it was told to


def sleep_until(until_s: float) -> None:
    """By ``time.perf_counter``."""
    left_s = until_s - time.perf_counter()
    if left_s > _OVERSLEPT_S:
        time.sleep(left_s - _OVERSLEPT_S)


class Ask(NamedTuple):
    """A request, in the numbers of the memory manager.

    Attributes:
        user: the row of ``LiveNode.items`` that has the history.
        version: of that history; another one is of another user, or counts positions from another start.
        length: history tokens, the ``delta`` new ones included.
        candidates: int32 (candidates,), rows of the item table.
    """

    user: int
    version: int
    length: int
    delta: int
    candidates: NDArray[np.int32]


class Answer(NamedTuple):
    """The answer to a request.

    Attributes:
        number: as ``admit`` was given it.
        scores: float32 (candidates,).
        cached: history tokens that the last micro-batch with it found in the pool.
        arrival_s: as ``admit`` was given it.
    """

    number: int
    scores: NDArray[np.float32]
    cached: int
    arrival_s: float


class LiveNode:
    """A node that serves in real time.

    Args:
        profile: its population's users are the rows of ``items``.
        items: int32 (users, max_history), the users' histories, which somebody else writes: up to a request's length
            before it is admitted, and nowhere below it until it is answered.
        alpha: EMB's share at the start.
        clock: seconds; wait_until: sleeps until it says so. Tests hand a clock of their own in.
        slice_pages: see ``SLICE``.

    Attributes:
        memory, ledger: as on the rungs, of one unit.
        last_sums: (SUMS,), what the last interval added up (real_backend/memory/ledger.py).
        speed: this machine's compute time over the cost model's.
        move_s: time that moves took, and how much of it passed between micro-batches while requests waited.
    """

    def __init__(
        self,
        profile: Profile,
        items: NDArray[np.int32],
        alpha: float,
        clock: Callable[[], float] = time.perf_counter,
        wait_until: Callable[[float], None] = sleep_until,
        device: str | None = None,
        slice_pages: int = SLICE,
        idle_s: float = IDLE_S,
    ):
        users = profile.population.users
        if items.shape != (users, profile.model.max_history):
            raise InvalidInputError(f"Histories of shape {items.shape} were given for {users} users.")
        self.profile, self.items, self.clock, self._wait_until = profile, items, clock, wait_until
        self.node = Node(profile, device)
        self._slice, self._idle_s = slice_pages, idle_s
        self._numbers = [0] * profile.interval.requests
        self._fitted = make_rules(profile)
        self._start(0.5)
        self._warm_up()
        self._start(alpha)

    def _start(self, alpha: float) -> None:
        """Empty caches, at this split."""
        profile = self.profile
        self.target = round(alpha * profile.pool.pages)
        self.memory = make_memory(profile, np.array([self.target]))
        self._unit = Memory._make(array[0] for array in self.memory)
        self.ledger, self._requests = make_ledger(profile, 1), make_requests(profile, 1)
        self.last_sums = self.ledger.sums[0, 0]
        self._rules, self.speed = self._fitted, 1.0
        self._compute_ms = self._modelled_ms = 0.0
        self.move_s, self._page_s = [0.0, 0.0], 0.0
        self._answered, self._open = 0, False
        self._begun_s = self.ledger.clock[0, NOW_S] = self.clock()

    def _warm_up(self) -> None:
        """Has every kernel compiled, or read from the disk, before the first request."""
        self.idle()
        self.cached()
        self.admit(0, Ask(0, 0, 1, 1, np.zeros(1, np.int32)), self.clock())
        self.step()
        self.target += 1
        self.idle()
        self.end_interval()

    @property
    def waiting(self) -> int:
        """Requests that have come in and are not answered."""
        return int(self._requests.number[0, 0]) - self._answered

    @property
    def full(self) -> bool:
        """Whether the interval has all its requests: the next one is for the next."""
        return int(self._requests.number[0, 0]) == self.profile.interval.requests

    @property
    def ended(self) -> bool:
        """Whether the interval can be ended: it has had all its requests, or none for a while."""
        return not self.waiting and (self.full or self.ends_in_s == 0.0)

    @property
    def ends_in_s(self) -> float:
        """How long until the interval ends if nothing comes."""
        last_s = max(self._begun_s, float(self.ledger.clock[0, NOW_S]))
        return max(0.0, last_s + self._idle_s - self.clock())

    @property
    def alpha(self) -> float:
        return float(self.memory.n[0, N_EMB]) / self.profile.pool.pages

    @property
    def moves_due(self) -> bool:
        """Whether ``idle`` has pages to move."""
        return int(self.memory.n[0, N_EMB]) != self.target and (not self._open or self._left > 0)

    def cached(self) -> NDArray[np.int32]:
        """Whose KV lies in the pool: (users, 3), each one's row of ``items``, version and tokens; the oldest first."""
        memory, listed = self._unit, np.empty((self.profile.pool.pages, 3), np.int32)
        return listed[: list_cached(memory.newer, memory.cached_version, memory.cached_length, listed)]

    def set_target(self, alpha: float) -> None:
        """The split that EMB moves towards from now on.

        Raises:
            InvalidInputError: outside of the profile's bounds.
        """
        pool = self.profile.pool
        if not pool.min_alpha <= alpha <= pool.max_alpha:
            raise InvalidInputError(f"Alpha {alpha} is not within {pool.min_alpha} to {pool.max_alpha}.")
        self.target = round(alpha * pool.pages)

    def admit(self, number: int, ask: Ask, arrival_s: float) -> None:
        """Takes a request in; the interval must not be full.

        Args:
            number: the answer's.
            arrival_s: by the node's clock; never before the last one's.
        """
        if not self._open:
            self._open_interval(0)
        requests, r = self._requests, int(self._requests.number[0, 0])
        count = len(ask.candidates)
        requests.user[0, r], requests.version[0, r], requests.length[0, r] = ask.user, ask.version, ask.length
        requests.delta[0, r], requests.candidate_count[0, r] = ask.delta, count
        requests.candidates[0, r, :count] = ask.candidates
        requests.gap_s[0, r] = max(0.0, arrival_s - self.ledger.clock[0, NOW_S])
        requests.number[0, 0] = r + 1
        self._numbers[r] = number
        self.node.take_in(requests, self.ledger, r)

    def step(self) -> list[Answer]:
        """Serves a micro-batch, and waits as long as its transfers take on a link that is modelled."""
        served = self.node.serve_batch(
            self._unit, self.items, self._requests, self.ledger, self._rules, clock=self.clock
        )
        if served is None:
            return []
        self._compute_ms += served.compute_ms
        self._modelled_ms += served.modelled_ms
        answers, scores, at = [], served.scores.numpy(), 0
        plan = self.node.plan
        for b in range(served.requests):
            r, asked = plan.request[b], plan.asked[b]
            if self.ledger.progress[0, r] == ANSWERED:
                arrival_s = float(self.ledger.arrival_s[0, r])
                answers.append(Answer(self._numbers[r], scores[at : at + asked].copy(), int(plan.cached[b]), arrival_s))
            at += asked
        self._answered += len(answers)
        self._wait_for_link(float(self.ledger.clock[0, FREE_AT_S]))
        return answers

    def idle(self) -> bool:
        """Moves a few pages where the split is not what it should be; False where there is nothing to do."""
        if not self._open:
            self._open_interval(self._slice)
            return True
        return self._move(self._slice, waited_for=False)

    def end_interval(self) -> NDArray[np.float64]:
        """The interval's telemetry, (WIDTH,); requests that come from now on are of the next one.

        An interval without a request is as defined as any: rates of none, and shares of the window's.
        """
        if not self._open:
            self._open_interval(0)
        ledger, now_s = self.ledger, self.clock()
        if not self.full:  # the time in which nothing came belongs to it
            sums = ledger.sums[0, int(ledger.interval[0, 0]) % ledger.sums.shape[1]]
            sums[SPAN_S] += max(0.0, now_s - ledger.clock[0, NOW_S])
            ledger.clock[0, NOW_S] = max(now_s, ledger.clock[0, NOW_S])
        self.last_sums = ledger.sums[0, int(ledger.interval[0, 0]) % ledger.sums.shape[1]]
        ledger.interval[0, 0] += 1
        table = np.array([self._rules], np.float64)
        row: NDArray[np.float64] = telemetry_of(self.memory, ledger, np.array([self.target]), table, self.profile)[0]
        row[AT.speed] = self.speed
        self._requests.number[0, 0] = self._answered = 0
        self._open, self._begun_s = False, now_s
        self._follow_speed()
        return row

    def _open_interval(self, pages: int) -> None:
        budget = min(pages, self.profile.pool.page_moves_per_interval)
        before, started = int(self.memory.n[0, N_EMB]), self.clock()
        self.node.open(self._unit, self._requests, self.ledger, np.int64(self.target), self._rules, budget)
        self._left = self.profile.pool.page_moves_per_interval - abs(int(self.memory.n[0, N_EMB]) - before)
        self.move_s[0] += self.clock() - started
        self._open = True

    def _move(self, pages: int, waited_for: bool) -> bool:
        pages = min(pages, self._left)
        if pages == 0 or self.memory.n[0, N_EMB] == self.target:
            return False
        started = self.clock()
        moved = self.node.move(self._unit, self._requests, self.ledger, np.int64(self.target), self._rules, pages)
        self._left = self._left - abs(moved) if moved else 0  # where no page can go, none is tried again
        spent = self.clock() - started
        self.move_s[0] += spent
        self.move_s[1] += spent * waited_for
        self._page_s += _SMOOTHING * (spent / pages - self._page_s)
        return moved != 0

    def _wait_for_link(self, until_s: float) -> None:
        """Until the micro-batch's transfers have come; pages move in the meantime."""
        moved = False
        while self.clock() + self._page_s < until_s and self._move(1, waited_for=False):
            moved = True
        if not moved and self.waiting:
            self._move(1, waited_for=True)
        self._wait_until(until_s)

    def _follow_speed(self) -> None:
        """From here on costs are priced at the speed at which this machine computes now."""
        if self._modelled_ms > 0.0:
            now = self.speed * self._compute_ms / self._modelled_ms
            self.speed += _SMOOTHING * (now - self.speed)
            self._rules = with_speed(self._fitted, 1.0 / self.speed)
            self._compute_ms = self._modelled_ms = 0.0
