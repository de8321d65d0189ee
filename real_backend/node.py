"""What one node of the measured rung does in an interval: it carries the manager's plans out and times them."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.profile import Profile
from helm_gym.workload.sampling import Requests
from real_backend.engine import Engine, MicroBatch
from real_backend.memory.layout import MOVES, REFILLS, TOKENS, Memory, Rules, make_plan
from real_backend.memory.ledger import Ledger
from real_backend.memory.pricing import batch_load
from real_backend.memory.serve import charge_moves, next_batch, open_interval, settle

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


class Node:
    """A node: the engine that holds its pool, and the plan that the manager writes for it.

    Args:
        device: see Engine.

    Attributes:
        samples, moves: where they are lists, every micro-batch served, and the rows and time (ms) of every interval's
            move, are added to them (calibration).
    """

    def __init__(self, profile: Profile, device: str | None = None):
        self.profile, self.engine = profile, Engine(profile, device)
        self.samples: list[Sample] | None = None
        self.moves: list[tuple[int, float]] | None = None
        self.probe_plan = make_plan(profile)
        self.probe_plan.slots[:] = self.probe_plan.cached[:] = self.probe_plan.stored[:] = 0
        self._plan = make_plan(profile)

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
        profile, plan, engine, service_ms, self._managed_s = self.profile, self._plan, self.engine, 0.0, 0.0
        with _no_garbage_collection():
            budget, most = profile.pool.page_moves_per_interval, profile.max_batch
            place = self._manage(open_interval, memory, 0, target, budget, requests, plan, ledger, rules)
            sums, moved_ms = ledger.sums[0, place], engine.move(plan)
            if self.moves is not None:
                self.moves.append((int(plan.counts[MOVES]), moved_ms))
            self._manage(charge_moves, requests, 0, plan, moved_ms, profile.link.modelled, ledger, sums, rules)
            while size := self._manage(next_batch, memory, items, requests, 0, most, plan, ledger, sums, rules):
                users = requests.user[0, plan.request[:size]]
                batch = MicroBatch(plan.stop[:size], plan.asked[:size], memory.user_pages[users])
                _, computed, waits = engine.timed_execute(plan, batch)
                waited = () if profile.link.modelled else tuple(waits)
                service_ms += self._manage(
                    settle, memory, requests, 0, size, plan, computed, waited, ledger, sums, rules
                )
                if self.samples is not None:
                    tokens, pairs, context = batch_load(rules, size, plan.cached, plan.stop, plan.asked)
                    attended = engine.attended(plan, batch)
                    self.samples.append(Sample(size, tokens, pairs, context, computed, attended))
                if plan.counts[REFILLS]:
                    engine.refill(plan)
            ledger.interval[0, 0] += 1
        return Spent(1e3 * self._managed_s, service_ms)

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
        self._managed_s += time.thread_time() - started
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
