"""The measured rung: HSTU really runs, out of the real pool, and each micro-batch is timed.

Requests, caches and plans are the modelled rung's own. What differs is the time of a micro-batch: the engine carries
its plan out and reports how long that took. Queueing runs on a virtual clock, so an interval costs its service time.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from helm_gym.backend import Rung
from helm_gym.cluster.topology import Cluster
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.workload.sampling import Requests
from helm_gym.workload.state import WorkloadState
from real_backend.base import ManagedBackend
from real_backend.memory.layout import Memory, Rules, make_rules
from real_backend.memory.ledger import Ledger
from real_backend.memory.pricing import batch_ms
from real_backend.node import Node, Spent, probe_size

PROBE_SMOOTHING = 0.4  # of one interval; a shared machine changes its speed within seconds


class MeasuredBackend(ManagedBackend):
    """One lane on one device, a cluster's nodes in turn; not deterministic, because time is not.

    The link and the arrivals of a profile belong to the machine that its cost model was fitted on. A probe, the same
    request again and again, says after each interval how much slower this machine computes now than that one did
    (``CostModel.probe_ms``); link, arrivals and SLO are scaled by that ``speed``, so that the problem keeps its shape
    whatever the neighbours on a shared machine do. What a policy does to the caches does not reach it. Measured times
    themselves are never scaled.

    Attributes:
        nodes: what each node's time is measured on; a subclass may have them elsewhere.
        probed_ms: what the last interval's probe took.
        bookkeeping_ms, service_ms: CPU time of the memory manager and service time, since the last reset.
    """

    name: ClassVar[str] = "real"
    rung: ClassVar[Rung] = "measured"
    snapshots: ClassVar[bool] = False  # the pool's contents are not copied

    def __init__(self, profile: Profile, lanes: int = 1, cluster: Cluster | None = None, device: str | None = None):
        if lanes != 1:
            raise InvalidInputError(f"Backend '{self.name}' runs one episode at a time, not {lanes}; ask for one lane.")
        if cluster is not None and (cluster.speed != 1.0).any():
            raise InvalidInputError(f"Backend '{self.name}' has nodes of the machines' own speed; leave theirs at 1.")
        super().__init__(profile, lanes, cluster)
        self.nodes: list[Node] = []
        self._open_nodes(device)
        if device is not None:  # the engine there may pad where the profile's does not
            self._set_rules(make_rules(dataclasses.replace(profile, device="cpu" if device == "cpu" else "cuda")))
        self._fitted = self.rules
        self._standard_ms = profile.cost.probe_ms or batch_ms(self._fitted, 1, *probe_size(profile))
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
        raise InvalidInputError(
            f"Backend '{self.name}' takes no snapshots; replay the same seed on 'modelled' instead."
        )

    def _serve(self, targets: NDArray[np.int64]) -> None:
        for spent in self._serve_nodes(targets):
            self.bookkeeping_ms += spent.bookkeeping_ms
            self.service_ms += spent.service_ms
        self.probed_ms = self._probe()
        self._probe_ms += PROBE_SMOOTHING * (self.probed_ms - self._probe_ms)
        self._follow_speed()

    def _open_nodes(self, device: str | None) -> None:
        self.nodes = [Node(self.profile, device) for _ in range(self.spec.nodes)]

    def _serve_nodes(self, targets: NDArray[np.int64]) -> list[Spent]:
        """Serves the interval of every node, in turn."""
        items, rules = self._traffic.items[0], self.rules
        served = []
        for node, target in zip(range(self.spec.nodes), targets, strict=True):
            memory, requests, ledger = self._unit(node)
            served.append(self.nodes[node].serve(memory, items, requests, ledger, target, rules))
        return served

    def _unit(self, node: int) -> tuple[Memory, Requests, Ledger]:
        """What ``Node.serve`` takes, as views."""
        here = slice(node, node + 1)
        return (
            Memory._make(array[node] for array in self._memory),
            Requests._make(array[here] for array in self._requests),
            Ledger._make(array[here] for array in self._ledger),
        )

    def _probe(self) -> float:
        return self.nodes[0].probe()

    def _follow_speed(self) -> None:
        self.speed = self._probe_ms / self._standard_ms
        self._set_rules(_scaled(self._fitted, self.speed, link=self.profile.link.modelled))


def _scaled(rules: Rules, speed: float, link: bool) -> Rules:
    """The rules of a machine that computes ``speed`` times slower; ``link``: whether its link is slower with it."""
    names = [name for name in Rules._fields if name.endswith("_ms")]
    if not link:
        names = [name for name in names if name not in ("row_ms", "kv_token_ms", "latency_ms")]
    changes = {name: getattr(rules, name) * speed for name in names}
    if link:
        changes["background_rows_per_ms"] = rules.background_rows_per_ms / speed
    return rules._replace(**changes)
