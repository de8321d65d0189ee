"""A cluster: its nodes, its users' interests, its load, and which nodes are lost when."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from helm_gym import yaml_form
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.ranges import Within, check_ranges
from helm_gym.workload.state import INDEX, WorkloadPath, bounds, poisson_gaps

MAX_NODES = 1024
_OUTAGE = (40, 120)  # intervals, the shortest and the longest that are drawn


@dataclasses.dataclass(frozen=True)
class Node:
    """One kind of node, relative to the profile's.

    Attributes:
        count: how many there are of it.
        memory: its pool over the profile's.
        speed: how many times as fast it computes; the host link stays as it is.
    """

    count: Annotated[int, Within(1, MAX_NODES)] = 1
    memory: Annotated[float, Within(0, 1, above=True)] = 1.0
    speed: Annotated[float, Within(0, 16, above=True)] = 1.0


@dataclasses.dataclass(frozen=True)
class Outage:
    """Node ``node`` is lost for ``intervals`` from interval ``start`` on, and comes back with cold caches."""

    node: Annotated[int, Within(0, MAX_NODES - 1)]
    start: Annotated[int, Within(0, 1_000_000)]
    intervals: Annotated[int, Within(1, 1_000_000)]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What a cluster is beside its nodes' profile.

    Attributes:
        nodes: kinds of node, in the order of their numbers.
        catalogue: items over the profile's; a node sees them all unless requests are routed by what it holds.
        interests: groups of users, each with a popularity of items of its own.
        interest_share: share of a user's items that is drawn by his interest's popularity and not by the common one.
        load: arrival rate over the regime's, which is made for a node that serves users of its own.
        outages: losses that happen in every episode.
        losses: further ones an episode, drawn by its seed.
    """

    nodes: tuple[Node, ...]
    catalogue: Annotated[float, Within(0, 64, above=True)] = 4.0
    interests: Annotated[int, Within(1, 1_000_000)] = 32
    interest_share: Annotated[float, Within(0, 1)] = 0.9
    load: Annotated[float, Within(0, 4, above=True)] = 0.55
    outages: tuple[Outage, ...] = ()
    losses: Annotated[int, Within(0, 1000)] = 0

    def __post_init__(self) -> None:
        check_ranges(self, "A cluster")
        if not 1 <= self.size <= MAX_NODES:
            raise InvalidInputError(
                f"A cluster needs 1 to {MAX_NODES:,} nodes; the kinds of this one add up to {self.size:,}."
            )
        for outage in self.outages:
            if not (0 <= outage.node < self.size and outage.start >= 0 and outage.intervals >= 1):
                raise InvalidInputError(
                    f"{outage} is not of one of the {self.size} nodes or not a stretch of intervals."
                )

    @property
    def size(self) -> int:
        return sum(kind.count for kind in self.nodes)

    @property
    def speed(self) -> NDArray[np.float64]:
        """Of each node, (nodes,)."""
        return np.repeat([kind.speed for kind in self.nodes], [kind.count for kind in self.nodes])

    def widen(self, profile: Profile) -> Profile:
        """The profile with the cluster's population: its nodes' users together, and its catalogue."""
        own = profile.population
        wide = dataclasses.replace(own, users=self.size * own.users, items=round(self.catalogue * own.items))
        return dataclasses.replace(profile, population=wide)

    def pages(self, profile: Profile) -> NDArray[np.int64]:
        """Pages of each node's pool, (nodes,).

        Raises:
            InvalidInputError: a node's pool cannot hold one user beside EMB.
        """
        memory = np.repeat([kind.memory for kind in self.nodes], [kind.count for kind in self.nodes])
        pages = np.rint(memory * profile.pool.pages).astype(np.int64)
        if ((1 - profile.pool.max_alpha) * pages < profile.pages_per_user).any():
            raise InvalidInputError(
                f"A node with {pages.min()} pages cannot hold a user of {profile.pages_per_user} pages at alpha "
                f"{profile.pool.max_alpha:g}; give it more memory."
            )
        return pages


def find_cluster(text: str) -> Cluster:
    """A cluster by its number of nodes, ``8``, or by the path of a YAML file with the fields of ``Cluster``.

    Raises:
        InvalidInputError: neither, or values that do not fit each other.
        UnknownNameError: a key that a cluster does not have.
    """
    if re.fullmatch("[0-9]{1,9}", text):
        return Cluster((Node(int(text)),))
    path = pathlib.Path(text)
    if path.suffix not in (".yaml", ".yml"):
        raise InvalidInputError(f"Cluster '{text}' is neither a number of nodes nor a YAML file; write 8 or a path.")
    cluster: Cluster = yaml_form.read(Cluster, path)
    return cluster


def in_cluster(path: WorkloadPath, cluster: Cluster, profile: Profile, seeds: Sequence[int]) -> WorkloadPath:
    """The path of a node as the path of a cluster: its load, and who is lost when.

    Args:
        path: of recorded arrivals, as many intervals for each of the cluster's as it has nodes: an interval of the
            cluster takes the requests of as many, so that the recording's order stays.

    Raises:
        InvalidInputError: recorded arrivals of another number of intervals, or an interval in which no node is left.
    """
    size, pace = cluster.size, cluster.load * cluster.speed.mean()
    if np.isnan(path.gaps_s[:1, :1]).all():
        gaps_s = poisson_gaps(len(seeds), path.intervals, size * profile.interval.requests)
        values = path.values.copy(order="K")  # an interval's stay contiguous, which kernels are compiled for
    else:
        path = _fold(path, size)
        gaps_s, values = path.gaps_s / (size * pace), path.values
    rate, high = values[:, :, INDEX["arrival_rate_rps"]], bounds(profile)[1][INDEX["arrival_rate_rps"]]
    np.minimum(rate * pace, high, out=rate)
    alive = _alive(cluster, path.intervals, seeds) if cluster.outages or cluster.losses else None
    return dataclasses.replace(path, values=values, gaps_s=gaps_s, alive=alive)


def _fold(path: WorkloadPath, size: int) -> WorkloadPath:
    """Recorded arrivals with ``size`` intervals made one: its parameters their mean, its gaps those of all in turn."""
    lanes, intervals, requests = path.gaps_s.shape
    if intervals % size:
        raise InvalidInputError(
            f"A cluster of {size} nodes makes one interval of {size} of recorded arrivals; {intervals} are no multiple."
        )
    values = path.values.transpose(1, 0, 2).reshape(-1, size, lanes, path.values.shape[2]).mean(axis=1)
    in_turn = path.gaps_s.transpose(1, 0, 2).reshape(-1, size, lanes, requests).transpose(0, 2, 1, 3)
    gaps_s = in_turn.reshape(-1, lanes, size * requests)
    values[:, :, INDEX["arrival_rate_rps"]] = 1.0 / np.maximum(gaps_s.mean(axis=2), 1e-9)
    by_lane = (values.transpose(1, 0, 2), gaps_s.transpose(1, 0, 2), path.segment[:, ::size])
    return WorkloadPath(*by_lane, kind=path.kind)


def _alive(cluster: Cluster, intervals: int, seeds: Sequence[int]) -> NDArray[np.bool_]:
    """(lanes, intervals, nodes); drawn losses begin in the middle half of the episode."""
    alive = np.ones((len(seeds), intervals, cluster.size), bool)
    for outage in cluster.outages:
        alive[:, outage.start : outage.start + outage.intervals, outage.node] = False
    for lane, seed in enumerate(seeds):
        random = np.random.default_rng([seed, 0x4C4F5353])
        for _ in range(cluster.losses):
            node, start = int(random.integers(cluster.size)), int(random.uniform(0.25, 0.75) * intervals)
            length = int(random.integers(*_OUTAGE))
            kept = alive[lane].copy()
            kept[start : start + length, node] = False
            if kept.any(axis=1).all():  # never the last one
                alive[lane] = kept
    if not alive.any(axis=2).all():
        raise InvalidInputError("The outages leave no node alive in some interval; let one stay.")
    return alive
