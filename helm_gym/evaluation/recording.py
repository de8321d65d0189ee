"""What is kept of episodes while they are played: each scored interval, and the time of decisions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.control_loop import Step
from helm_gym.errors import HelmError
from helm_gym.evaluation.results import ACCOUNT_FIELDS, NODE_FIELDS, TRAFFIC, Episodes
from helm_gym.play import Entrant
from helm_gym.policy import Floats, Policy

_TIMED_EVERY = 4  # decisions


class Watched:
    """A policy whose decisions are checked and, some of them, timed.

    Args:
        settle: intervals before the first decision that may be timed.
        seeds: of the lanes; first: the number of the first of them, for messages.
        nodes: rows are lanes x nodes.

    Attributes:
        decision_us: time of one node's decision, which a batch's share would flatter.
    """

    def __init__(self, policy: Policy, settle: int, seeds: Sequence[int], first: int, nodes: int):
        self.name, self.decision_us = policy.name, list[float]()
        self._policy, self._settle, self._seeds, self._first, self._nodes = policy, settle, seeds, first, nodes
        self._t = 0

    def initial_state(self, rows: int) -> Floats:
        return self._policy.initial_state(rows)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        """See ``Policy``.

        Raises:
            HelmError: an action or a state of a wrong shape or not finite; it names the policy, the interval, the lane
                and what was observed.
        """
        scored = self._t - self._settle
        if scored >= 0 and scored % _TIMED_EVERY == 0:
            self._time_one(observation, state)
        action, following = (np.asarray(given) for given in self._policy.act(observation, state))
        rows, when = len(observation), f"interval {self._t}"
        for what, given, shape in (("actions", action, (rows, 1)), ("a state", following, state.shape)):
            if given.shape != shape:
                raise HelmError(
                    f"Policy '{self.name}' returned {what} of shape {given.shape} at {when} for {len(self._seeds)} "
                    f"lanes from lane {self._first} (seed {self._seeds[0]}) on; {shape} is needed. Observed in that "
                    f"lane: {_text(observation[0])}."
                )
            bad = np.argwhere(~np.isfinite(given))
            if len(bad):
                row = int(bad[0, 0])
                lane = row // self._nodes
                node = f", node {row % self._nodes}" if self._nodes > 1 else ""
                raise HelmError(
                    f"Policy '{self.name}' returned {what} of {given[tuple(bad[0])]} at {when} in lane "
                    f"{self._first + lane} (seed {self._seeds[lane]}){node}; they must be finite. Observed: "
                    f"{_text(observation[row])}."
                )
        self._t += 1
        return action, following

    def _time_one(self, observation: Floats, state: Floats) -> None:
        """Its result is dropped: ``act`` is pure."""
        observation, state = observation[:1].copy(), state[:1].copy()
        start = time.perf_counter_ns()
        self._policy.act(observation, state)
        self.decision_us.append((time.perf_counter_ns() - start) / 1e3)


def _text(observation: Floats) -> str:
    return np.array2string(observation, precision=4, separator=", ", max_line_width=10_000)


class Recording:
    """The scored intervals of one block of an entrant's episodes."""

    def __init__(self, entrant: Entrant, backend: str):
        self.entrant, self._backend = entrant, backend
        self.decision_us: list[float] = []
        self._sojourn_ms: list[NDArray[np.float32]] = []
        self._kept: list[dict[str, NDArray[Any]]] = []

    def keep(self, step: Step) -> None:
        """Raises HelmError where the backend reports no single requests."""
        telemetry, traffic = step.telemetry, step.telemetry.traffic
        if telemetry.sojourn_ms is None:
            raise HelmError(
                f"Backend '{self._backend}' reports no single requests, so P99 is unknown; evaluate on 'modelled' or "
                "'real'."
            )
        lanes, nodes, requests = telemetry.sojourn_ms.shape
        kept: dict[str, NDArray[Any]] = {name: telemetry[name].copy() for name in NODE_FIELDS}
        accounts = telemetry.accounts
        for name in ACCOUNT_FIELDS:
            kept[name] = np.full((lanes, nodes), np.nan) if accounts is None else accounts[name].copy()
        if traffic is None:
            kept |= {"requests": np.full((lanes, nodes), requests), "alive": np.ones((lanes, nodes), bool)}
            kept |= {name: np.zeros(lanes, np.int64) for name in TRAFFIC}
        else:
            kept |= {"requests": traffic.requests.copy(), "alive": traffic.alive.copy()}
            kept |= {name: getattr(traffic, name).copy() for name in TRAFFIC}
        self._kept.append(kept | {"cost": -step.reward})
        self._sojourn_ms.append(_to_the_left(telemetry.sojourn_ms.reshape(lanes, -1).astype(np.float32)))

    def episodes(self) -> Episodes:
        def series(name: str) -> NDArray[Any]:
            return np.stack([interval[name] for interval in self._kept], axis=1)

        return Episodes(
            self.entrant.name,
            sojourn_ms=_stack(self._sojourn_ms),
            nodes={name: series(name) for name in (*NODE_FIELDS, *ACCOUNT_FIELDS)},
            requests=series("requests"),
            alive=series("alive"),
            traffic={name: series(name) for name in TRAFFIC},
            cost=series("cost"),
            decision_us=np.array(self.decision_us),
        )


def _to_the_left(sojourn_ms: NDArray[np.float32]) -> NDArray[np.float32]:
    """The answers of each lane (lanes, places) without the places that are not finite between them, NaN behind."""
    there = np.isfinite(sojourn_ms)
    if there.all():
        return sojourn_ms
    order = np.argsort(~there, axis=1, kind="stable")[:, : there.sum(axis=1).max()]
    moved = np.take_along_axis(sojourn_ms, order, axis=1)
    return np.where(np.isfinite(moved), moved, np.float32(np.nan))


def _stack(intervals: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """(lanes, T, answers) of T arrays (lanes, answers), padded to the longest with NaN."""
    most = max(answers.shape[1] for answers in intervals)
    return np.stack([_padded(answers, most) for answers in intervals], axis=1)


def _padded(answers: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    pad = [(0, 0)] * (answers.ndim - 1) + [(0, most - answers.shape[-1])]
    return answers if answers.shape[-1] == most else np.pad(answers, pad, constant_values=np.nan)


def join(parts: Sequence[Episodes]) -> Episodes:
    """The episodes of all blocks of seeds."""
    if len(parts) == 1:
        return parts[0]
    most = max(part.sojourn_ms.shape[2] for part in parts)
    return Episodes(
        parts[0].policy,
        sojourn_ms=np.concatenate([_padded(part.sojourn_ms, most) for part in parts]),
        nodes={name: np.concatenate([part.nodes[name] for part in parts]) for name in parts[0].nodes},
        requests=np.concatenate([part.requests for part in parts]),
        alive=np.concatenate([part.alive for part in parts]),
        traffic={name: np.concatenate([part.traffic[name] for part in parts]) for name in TRAFFIC},
        cost=np.concatenate([part.cost for part in parts]),
        decision_us=np.concatenate([part.decision_us for part in parts]),
    )
