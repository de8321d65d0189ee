"""Routing of a cluster's requests: the rules there are, the weights of a score, and routers opened by name.

A router decides once an interval, like a policy; its action is the weights. Which node a request goes to is then
decided request by request, by real_backend/router.py.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from helm_gym.errors import InvalidInputError, UnknownNameError

Floats = NDArray[np.float32]

WEIGHTS = ("kv", "emb", "load")
RULES = ("score", "random", "round-robin", "least-loaded", "consistent-hash")


@dataclasses.dataclass(frozen=True)
class Routing:
    """How the requests of one interval are routed.

    Attributes:
        rule: one of ``RULES``.
        weights: float64 (lanes, 3), in the order of ``WEIGHTS``; each multiplies a cost in ms. Rule ``score`` alone
            looks at them.
        bound: ``score`` and ``consistent-hash`` pass over a node with more work ahead of it than ``bound`` times the
            mean of all nodes, and room for the request itself (Mirrokni et al., SODA 2018).
    """

    rule: str
    weights: NDArray[np.float64]
    bound: float = 1.25


def check_routing(routing: Routing, lanes: int) -> None:
    """Raises where requests cannot be routed so.

    Raises:
        UnknownNameError: no such rule; the nearest is given.
        InvalidInputError: weights of another shape, negative or not finite; a bound below 1.
    """
    if routing.rule not in RULES:
        raise UnknownNameError("routing rule", routing.rule, RULES)
    weights = np.asarray(routing.weights)
    if weights.shape != (lanes, len(WEIGHTS)):
        raise InvalidInputError(
            f"Routing weights have shape {weights.shape}; {(lanes, len(WEIGHTS))} is needed, of {', '.join(WEIGHTS)}."
        )
    wrong = ~np.isfinite(weights) | (weights < 0)
    if wrong.any():
        lane, k = np.argwhere(wrong)[0]
        raise InvalidInputError(
            f"Routing weight '{WEIGHTS[k]}' of lane {lane} is {weights[lane, k]}; it must be finite and at least 0."
        )
    if not routing.bound >= 1:
        raise InvalidInputError(f"The bound of a node's load is {routing.bound}; it must be at least 1.")


def check_alive(alive: NDArray[np.bool_], lanes: int, nodes: int) -> None:
    """Raises InvalidInputError unless ``alive`` is (lanes, nodes) and each lane has a node to route to."""
    if alive.shape != (lanes, nodes):
        raise InvalidInputError(f"Nodes alive have shape {alive.shape}; {(lanes, nodes)} (lanes, nodes) is needed.")
    if not alive.any(axis=1).all():
        lane = int(np.argmin(alive.any(axis=1)))
        raise InvalidInputError(f"Lane {lane} has no node alive; its requests need at least one of the {nodes}.")


def weights_of(action: ArrayLike) -> NDArray[np.float64]:
    """The weights (lanes, 3) of a router's action (lanes, 3) in [-1, 1], clipped to it: (1 + a) squared.

    -1 switches a term off, 0 leaves it at its cost in ms, 1 makes it four times as dear.

    Raises:
        InvalidInputError: a wrong shape or a value that is not finite.
    """
    a = np.asarray(action, np.float64)
    if a.ndim != 2 or a.shape[1] != len(WEIGHTS):
        raise InvalidInputError(f"A router's action has shape {a.shape}; (lanes, {len(WEIGHTS)}) is needed.")
    if not np.isfinite(a).all():
        lane, k = np.argwhere(~np.isfinite(a))[0]
        raise InvalidInputError(f"A router's action '{WEIGHTS[k]}' of lane {lane} is {a[lane, k]}; it must be finite.")
    return np.asarray((1.0 + np.clip(a, -1.0, 1.0)) ** 2)


@runtime_checkable
class Router(Protocol):
    """Decides the weights of an interval's routing; rows are lanes.

    Attributes:
        rule: one of ``RULES``, held; the action matters to ``score`` only.
    """

    @property
    def name(self) -> str: ...

    @property
    def rule(self) -> str: ...

    def initial_state(self, lanes: int) -> Floats:
        """State before the first decision, (lanes, S); S may be 0."""
        ...

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        """observation (lanes, D), state (lanes, S) -> action (lanes, 3) in [-1, 1], the next state (lanes, S)."""
        ...
