"""What one node does, on the measured rung and in service: it carries the manager's plans out and times them."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from helm_gym.profile import Profile
from helm_gym.workload.sampling import Requests
from real_backend.engine import Engine, MicroBatch
from real_backend.memory.layout import MOVES, REFILLS, TOKENS, Memory, Rules, make_plan
from real_backend.memory.ledger import FREE_AT_S, Ledger
from real_backend.memory.pricing import batch_load, batch_ms
from real_backend.memory.serve import charge_moves, move_pages, next_batch, open_interval, settle, take_in

PROBES = 4  # an interval; they take a few per cent of its time


class Sample(NamedTuple):
    """One micro-batch as it was served: what the cost model sees of it, and its time."""

    requests: int
    new_tokens: int
    pairs: int  # sum over requests of new tokens x history; where the engine pads, of the padded micro-batch
    context: int  # sum over requests of history; likewise
    compute_ms: float
    attended: int  # new tokens that attention computed, padding included


class Spent(NamedTuple):
    """What an interval took: CPU time of the memory manager, and service time (ms)."""

    bookkeeping_ms: float
    service_ms: float


class Served(NamedTuple):
    """A micro-batch that was served.

    Attributes:
        requests: how many are in it; ``Node.plan`` says which, and how much of each.
        scores: float32 (candidates,), end to end.
        compute_ms, modelled_ms: what computing it took, and what the rules expect of it.
        service_ms: with what it waits for.
    """

    requests: int
    scores: torch.Tensor
    compute_ms: float
    modelled_ms: float
    service_ms: float


class Node:
    """A node: the engine that holds its pool, and the plan that the manager writes for it.

    Args:
        device: see Engine.

    Attributes:
        samples, moves: where they are lists, every micro-batch served, and the rows and time (ms) of every interval's
            move, are added to them (calibration).
        plan: of the last micro-batch or move.
        managed_s: CPU time of the memory manager so far.
    """

    def __init__(self, profile: Profile, device: str | None = None):
        self.profile, self.engine = profile, Engine(profile, device)
        self.samples: list[Sample] | None = None
        self.moves: list[tuple[int, float]] | None = None
        self.probe_plan = make_plan(profile)
        self.probe_plan.slots[:] = self.probe_plan.cached[:] = self.probe_plan.stored[:] = 0
        self.plan = make_plan(profile)
        self.managed_s = 0.0

    def serve(
        self,
        memory: Memory,
        items: NDArray[np.int32],
        requests: Requests,
        ledger: Ledger,
        target: np.int64,
        rules: Rules,
    ) -> Spent:
        """Serves the node's inbox while its EMB moves towards ``target`` pages; memory and ledger are moved on.

        Args:
            memory: of this unit, without the axis of units.
            items: (users, max_history), the users' histories.
            requests, ledger: of this unit, their first axis of length 1.
        """
        managed_s, service_ms = self.managed_s, 0.0
        if self.profile.pool.prefilled and ledger.interval[0, 0] == 0:
            self.engine.load(memory.slot_row)
        with _no_garbage_collection():
            self.open(memory, requests, ledger, target, rules, self.profile.pool.page_moves_per_interval)
            while served := self.serve_batch(memory, items, requests, ledger, rules):
                service_ms += served.service_ms
            ledger.interval[0, 0] += 1
        return Spent(1e3 * (self.managed_s - managed_s), service_ms)

    def open(
        self, memory: Memory, requests: Requests, ledger: Ledger, target: np.int64, rules: Rules, budget: int
    ) -> None:
        """Opens an interval: the requests that there are come in, and at most ``budget`` pages move."""
        self._place = self._manage(open_interval, memory, 0, target, budget, requests, self.plan, ledger, rules)
        self._carry_out_move(requests, ledger, rules)

    def move(
        self, memory: Memory, requests: Requests, ledger: Ledger, target: np.int64, rules: Rules, budget: int
    ) -> int:
        """Moves at most ``budget`` pages more within the interval. Returns how many, positive towards EMB."""
        sums = ledger.sums[0, self._place]
        moved = int(self._manage(move_pages, memory, target, budget, self.plan, sums, rules))
        self._carry_out_move(requests, ledger, rules)
        return moved

    def _carry_out_move(self, requests: Requests, ledger: Ledger, rules: Rules) -> None:
        plan, sums, link_modelled = self.plan, ledger.sums[0, self._place], self.profile.link.modelled
        moved_ms = self.engine.move(plan)
        if self.moves is not None:
            self.moves.append((int(plan.counts[MOVES]), moved_ms))
        self._manage(charge_moves, requests, 0, plan, moved_ms, link_modelled, ledger, sums, rules)

    def take_in(self, requests: Requests, ledger: Ledger, r: int) -> None:
        """Request ``r`` of the interval that is open comes in."""
        self._manage(take_in, requests, 0, r, ledger, ledger.sums[0, self._place])

    def serve_batch(
        self,
        memory: Memory,
        items: NDArray[np.int32],
        requests: Requests,
        ledger: Ledger,
        rules: Rules,
        clock: Callable[[], float] | None = None,
    ) -> Served | None:
        """Serves the next micro-batch of those that have come in; None where all are answered.

        Args:
            clock: in seconds, that the node's time is told by in place of the virtual one: the micro-batch starts now,
                and all that passes until it is computed is its own.
        """
        plan, engine, link_modelled = self.plan, self.engine, self.profile.link.modelled
        sums, started_s = ledger.sums[0, self._place], 0.0
        if clock is not None:
            started_s = ledger.clock[0, FREE_AT_S] = clock()
        size = self._manage(next_batch, memory, items, requests, 0, self.profile.max_batch, plan, ledger, sums, rules)
        if not size:
            return None
        users = requests.user[0, plan.request[:size]]
        batch = MicroBatch(plan.stop[:size], plan.asked[:size], memory.user_pages[users])
        scores, computed, waits = engine.timed_execute(plan, batch)
        waited = () if link_modelled else tuple(waits)
        if clock is not None:
            computed = max(0.0, 1e3 * (clock() - started_s) - sum(waited))
        service_ms = self._manage(settle, memory, requests, 0, size, plan, computed, waited, ledger, sums, rules)
        tokens, pairs, context = batch_load(rules, size, plan.cached, plan.stop, plan.asked)
        if self.samples is not None:
            self.samples.append(Sample(size, tokens, pairs, context, computed, engine.attended(plan, batch)))
        if plan.counts[REFILLS]:
            engine.refill(plan)
        return Served(size, scores, computed, batch_ms(rules, size, tokens, pairs, context), service_ms)

    def probe(self) -> float:
        """Time (ms) of a request that misses everything and keeps nothing: the mean of a few, as queues see it."""
        profile = self.profile
        new, _, context = probe_size(profile)
        length, candidates = np.full(1, context, np.int32), np.full(1, new - context, np.int32)
        batch = MicroBatch(length, candidates, np.full((1, profile.pages_per_user), -1, np.int32))
        self.probe_plan.counts[TOKENS] = new
        return sum(self.engine.timed_execute(self.probe_plan, batch)[1] for _ in range(PROBES)) / PROBES

    def _manage(self, kernel, *arguments):  # type: ignore[no-untyped-def]  # whatever the kernel takes and returns
        """Calls a kernel of the memory manager on its own clock."""
        started = time.thread_time()
        result = kernel(*arguments)
        self.managed_s += time.thread_time() - started
        return result


def probe_size(profile: Profile) -> tuple[int, int, int]:
    """New tokens, their product with the history, and history of the request that probes the machine's speed."""
    length = profile.model.max_history // 4
    new = length + profile.model.max_candidates
    return new, new * length, length


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Python collects between intervals, as a server would, and not in the middle of a request's time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
