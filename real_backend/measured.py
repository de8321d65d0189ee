"""The measured rung: HSTU really runs, out of the real pool, and each micro-batch is timed.

Requests, caches and plans are the modelled rung's own. What differs is the time of a micro-batch: the engine carries
its plan out and reports how long that took. Queueing runs on a virtual clock, so an interval costs its service time.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.backend import Rung
from helm_gym.cluster import Cluster
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.workload.state import WorkloadState
from real_backend.base import ManagedBackend
from real_backend.engine import Engine, MicroBatch
from real_backend.memory.layout import REFILLS, TOKENS, Memory, Rules, make_plan
from real_backend.memory.pricing import batch_ms, transfer_ms
from real_backend.memory.serve import account, batch_end, open_interval, plan_batch, plan_refill

PROBES = 4  # an interval; they take a few per cent of its time
PROBE_SMOOTHING = 0.4  # of one interval; a shared machine changes its speed within seconds


class Sample(NamedTuple):
    """One micro-batch as it was served: what the cost model sees of it, and its time."""

    new_tokens: int
    pairs: int  # sum over requests of new tokens x history
    context: int  # sum over requests of history
    compute_ms: float


class MeasuredBackend(ManagedBackend):
    """One lane on one device, a cluster's nodes in turn; not deterministic, because time is not.

    The link and the arrivals of a profile belong to the machine that its cost model was fitted on. A probe, the same
    request again and again, says after each interval how much slower this machine computes now than that one did
    (``CostModel.probe_ms``); link, arrivals and SLO are scaled by that ``speed``, so that the problem keeps its shape
    whatever the neighbours on a shared machine do. What a policy does to the caches does not reach it. Measured times
    themselves are never scaled.

    Attributes:
        engines: one a node: pool, table and model.
        probed_ms: what the last interval's probe took.
        bookkeeping_ms, service_ms: CPU time of the memory manager and service time, since the last reset.
        samples: where it is a list, every micro-batch served is added to it (calibration).
    """

    name: ClassVar[str] = "real"
    rung: ClassVar[Rung] = "measured"
    snapshots: ClassVar[bool] = False  # the pool's contents are not copied

    def __init__(self, profile: Profile, lanes: int = 1, cluster: Cluster | None = None, device: str | None = None):
        if lanes != 1:
            raise InvalidInputError(f"Backend 'real' runs one episode at a time, not {lanes}; ask for one lane.")
        if cluster is not None and (cluster.speed != 1.0).any():
            raise InvalidInputError("Backend 'real' has nodes of one speed, this machine's; leave their speed at 1.")
        super().__init__(profile, lanes, cluster)
        self.engines = [Engine(self.profile, device) for _ in range(self.spec.nodes)]
        self._fitted = self.rules
        self._probe_plan = make_plan(profile)
        self._probe_plan.slots[:] = self._probe_plan.cached[:] = self._probe_plan.stored[:] = 0
        self.samples: list[Sample] | None = None
        self._standard_ms = profile.cost.probe_ms or batch_ms(self._fitted, *_probe_size(profile))
        self._probe_ms = self.probed_ms = self._standard_ms
        self.bookkeeping_ms = self.service_ms = 0.0

    def reset(self, state: WorkloadState, seeds: NDArray[np.int64], alpha: NDArray[np.float64]) -> None:
        """See helm_gym.backend.Backend."""
        self._probe()  # the first calls of a while are slow
        self._probe_ms = self.probed_ms = self._probe()
        self._follow_speed()
        super().reset(state, seeds, alpha)
        self.bookkeeping_ms = self.service_ms = 0.0

    def snapshot(self) -> Any:
        """Not offered: the pool's contents would have to be copied too."""
        raise InvalidInputError("Backend 'real' takes no snapshots; replay the same seed on 'modelled' instead.")

    def _serve(self, targets: NDArray[np.int64]) -> None:
        with _no_garbage_collection():
            for node in range(self.spec.nodes):
                self._serve_node(node, targets[node])
        self.probed_ms = self._probe()
        self._probe_ms += PROBE_SMOOTHING * (self.probed_ms - self._probe_ms)
        self._follow_speed()

    def _serve_node(self, node: int, target: np.int64) -> None:
        profile, requests, plan, ledger, rules = self.profile, self._requests, self._plan, self._ledger, self.rules
        unit, engine = Memory._make(array[node] for array in self._memory), self.engines[node]
        items, budget = self._traffic.items[0], profile.pool.page_moves_per_interval
        place = self._manage(open_interval, unit, node, target, budget, plan, ledger, rules)
        engine.move(plan)
        sums = ledger.sums[node, place]
        first, count = 0, int(requests.number[node, 0])
        while first < count:
            end = self._manage(batch_end, requests, node, first, ledger, profile.max_batch)
            self._manage(plan_batch, unit, items, requests, node, first, end, plan, ledger, sums, rules)
            length = requests.length[node, first:end]
            batch = MicroBatch(
                length, requests.candidate_count[node, first:end], unit.user_pages[requests.user[node, first:end]]
            )
            _, computed, waited = engine.timed_execute(plan, batch)
            if profile.link.modelled:
                waited = transfer_ms(plan, rules)
            self.service_ms += computed + waited
            self._manage(account, requests, node, first, end, computed, waited, ledger, sums)
            self._manage(plan_refill, unit, plan, computed + waited, ledger, node, sums, rules)
            if plan.counts[REFILLS]:
                engine.refill(plan)
            if self.samples is not None:
                new = (length - plan.cached[: end - first] + batch.candidates).astype(np.int64)
                self.samples.append(Sample(int(new.sum()), int(new @ length), int(length.sum()), computed))
            first = end
        ledger.interval[node, 0] += 1

    def _probe(self) -> float:
        """Time (ms) of a request that misses everything and keeps nothing: the mean of a few, as queues see it."""
        profile = self.profile
        new, _, context = _probe_size(profile)
        length, candidates = np.full(1, context, np.int32), np.full(1, new - context, np.int32)
        batch = MicroBatch(length, candidates, np.full((1, profile.pages_per_user), -1, np.int32))
        self._probe_plan.counts[TOKENS] = new
        return sum(self.engines[0].timed_execute(self._probe_plan, batch)[1] for _ in range(PROBES)) / PROBES

    def _follow_speed(self) -> None:
        self.speed = self._probe_ms / self._standard_ms
        self._set_rules(_scaled(self._fitted, self.speed, link=self.profile.link.modelled))

    def _manage(self, kernel, *arguments):  # type: ignore[no-untyped-def]  # whatever the kernel takes and returns
        """Calls a kernel of the memory manager on its own clock."""
        started = time.thread_time()
        result = kernel(*arguments)
        self.bookkeeping_ms += 1e3 * (time.thread_time() - started)
        return result


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


def _probe_size(profile: Profile) -> tuple[int, int, int]:
    """New tokens, their product with the history, and history of the request that probes the machine's speed."""
    length = profile.model.max_history // 4
    new = length + profile.model.max_candidates
    return new, new * length, length


def _scaled(rules: Rules, speed: float, link: bool) -> Rules:
    """The rules of a machine that computes ``speed`` times slower; ``link``: whether its link is slower with it."""
    names = [name for name in Rules._fields if name.endswith("_ms")]
    if not link:
        names = [name for name in names if name not in ("row_ms", "kv_token_ms", "latency_ms")]
    changes = {name: getattr(rules, name) * speed for name in names}
    if link:
        changes["background_rows_per_ms"] = rules.background_rows_per_ms / speed
    return rules._replace(**changes)
