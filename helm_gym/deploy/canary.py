"""Whether a policy on trial does worse than what the other nodes run: paired windows, looked at one after another.

In every window of the telemetry the nodes on trial and the others are compared once: P99, share of errors, memory. A
window counts against the trial where its figure exceeds the others' by more than a margin. If the trial is no worse,
windows go against it with probability of at most one half each, whatever went before, and then

    E = 2 int_{1/2}^{1} (2p)^k (2 - 2p)^(n - k) dp        k of n windows against it

is at most 1 in expectation, at every n (a test martingale, averaged over how bad it may be). By Ville's inequality it
ever exceeds 3 / level with probability of at most level / 3; there are three figures. So a trial that is no worse is
rolled back with probability of at most ``level`` over all its time. At a level of .05 one whose windows all go against
it is rolled back after nine. Nodes that differed before the trial (more load on one, say) are compared by how the ratio
of their P99 changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special

from helm_gym.deploy.node import Node
from helm_gym.deploy.settings import ControlSettings

FIGURES = ("p99", "errors", "memory")
SETTLING = 2  # windows that do not count: caches warm up at the new split
_LEAST_ERRORS = 0.001  # share of requests that is no difference
_FURTHEST = math.log(4.0)  # to which an earlier difference of nodes is allowed for


class Evidence:
    """Windows that were looked at, and how many went against the trial."""

    def __init__(self) -> None:
        self.windows = self.against = 0

    def add(self, against: bool) -> None:
        self.windows += 1
        self.against += against

    @property
    def value(self) -> float:
        """E; 1 where nothing was seen."""
        k, n = self.against, self.windows
        log = (n + 1) * math.log(2.0) + float(scipy.special.betaln(k + 1, n - k + 1))
        tail = float(scipy.special.betaincc(k + 1, n - k + 1, 0.5))
        return math.exp(min(log, 700.0)) * tail


class Trial:
    """A policy on trial on some nodes.

    Args:
        nodes: all of them, by number.
        canaries: which are on trial.
        window: decisions in a window of the telemetry.
    """

    def __init__(self, nodes: Sequence[Node], canaries: Sequence[int], settings: ControlSettings, window: int):
        self.canaries = tuple(canaries)
        self.others = tuple(k for k in range(len(nodes)) if k not in canaries)
        self._nodes, self._settings, self._window = nodes, settings, window
        self.evidence = {name: Evidence() for name in FIGURES}
        self._skipped = 0
        self._since = [node.heard for node in nodes]
        self._errors, self._requests = np.zeros(len(nodes)), np.zeros(len(nodes))
        self._memory = np.full(len(nodes), np.nan)
        self._usual = self._usual_difference()

    def _usual_difference(self) -> float:
        """Mean log ratio of the P99 of both sides before the trial; 0 where too little is known."""
        sides = []
        for side in (self.canaries, self.others):
            seen = [list(self._nodes[k].p99_ms)[-1 :: -self._window] for k in side]
            count = min((len(windows) for windows in seen), default=0)
            sides.append([float(np.mean([windows[w] for windows in seen])) for w in range(count)])
        pairs = [(a, b) for a, b in zip(*sides, strict=False) if a > 0 and b > 0]
        if len(pairs) < 4:
            return 0.0
        usual = float(np.median([math.log(a / b) for a, b in pairs]))
        return min(max(usual, -_FURTHEST), _FURTHEST)

    def add(self, node: int, requests: int, errors: int, memory_bytes: float | None) -> str | None:
        """Takes a node's decision in; the figure in which the trial is found to be worse, if it is.

        Args:
            requests, errors: of the node's interval.
            memory_bytes: that it takes; None where it does not say.
        """
        self._requests[node] += requests
        self._errors[node] += errors
        if memory_bytes is not None:
            self._memory[node] = memory_bytes
        ready = [self._nodes[k].heard - self._since[k] >= self._window for k in range(len(self._nodes))]
        others = [k for k in self.others if ready[k]]
        if not others or not all(ready[k] for k in self.canaries):
            return None
        return self._compare(others)

    def _compare(self, others: list[int]) -> str | None:
        both = (list(self.canaries), others)
        against: dict[str, bool | None] = dict.fromkeys(FIGURES)
        margin = self._settings.canary_margin
        mine, theirs = (
            np.mean([self._nodes[k].p99_ms[-1] for k in side if self._nodes[k].p99_ms] or [0.0]) for side in both
        )
        if mine > 0 and theirs > 0:
            against["p99"] = math.log(mine / theirs) - self._usual > math.log1p(margin)
        errors = [self._errors[side].sum() / max(1.0, self._requests[side].sum()) for side in both]
        if any(errors):
            against["errors"] = errors[0] > errors[1] * (1.0 + margin) + _LEAST_ERRORS
        memory = [self._memory[side] for side in both]
        if all(np.isfinite(side).all() for side in memory):
            against["memory"] = memory[0].mean() > memory[1].mean() * (1.0 + margin)
        for k in (*self.canaries, *others):
            self._since[k] = self._nodes[k].heard
            self._errors[k] = self._requests[k] = 0.0
        if self._skipped < SETTLING:
            self._skipped += 1
            return None
        for name, is_against in against.items():
            if is_against is not None:
                self.evidence[name].add(is_against)
        limit = len(FIGURES) / self._settings.canary_level
        return next((name for name in FIGURES if self.evidence[name].value >= limit), None)

    def facts(self) -> Mapping[str, Any]:
        """As a status shows it."""
        return {
            "canaries": list(self.canaries),
            "others": list(self.others),
            "limit": len(FIGURES) / self._settings.canary_level,
            "figures": {
                name: {"windows": e.windows, "against": e.against, "evidence": e.value}
                for name, e in self.evidence.items()
            },
        }
