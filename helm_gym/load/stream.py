"""A task's requests as a service gets them: who asks, what he did since, what is to be ranked, and when."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from helm_gym.cluster.topology import Cluster, Node
from helm_gym.control_loop import draw_path
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.tasks import Task
from helm_gym.workload.sampling import make_requests, make_traffic, sample_intervals
from helm_gym.workload.state import WorkloadPath
from helm_gym.workload.traces import Trace

MAX_REQUESTS = 10_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        due_s: when it is to be sent, since the start.
        user: a text; another version of a user is another user.
        history: int32, all of the user's items so far, the oldest first.
        new: how many of the last ones the service has not been told.
        candidates: int32, items to rank.
    """

    due_s: float
    user: str
    history: NDArray[np.int32]
    new: int
    candidates: NDArray[np.int32]

    def body(self, whole: bool = False) -> bytes:
        """Of ``POST /v1/rank``; with ``whole`` all of the history, for who does not know what came before."""
        start = 0 if whole else len(self.history) - self.new
        return json.dumps(
            {
                "user": self.user,
                "start": start,
                "events": self.history[start:].tolist(),
                "candidates": self.candidates.tolist(),
            },
            separators=(",", ":"),
        ).encode()


class Stream:
    """The requests of a task's episode, at its own rate or at another; iterating draws them.

    A seed fixes users, items and arrivals, whatever the service does.

    Args:
        seconds: how long it lasts.
        rate: requests/s on average; where None the task's, which is made for the profile's own machine.
        trace: recorded arrivals, for the regime ``trace``.
        nodes: of the service; a cluster's stream has so many times the users and arrivals.

    Raises:
        InvalidInputError: a length or a rate that cannot be.
    """

    def __init__(
        self,
        task: Task,
        profile: Profile,
        seed: int,
        seconds: float,
        rate: float | None = None,
        trace: Trace | None = None,
        nodes: int = 1,
    ):
        if not (seconds > 0 and math.isfinite(seconds)) or (
            rate is not None and not (rate > 0 and math.isfinite(rate))
        ):
            raise InvalidInputError("A load lasts more than 0 seconds, at more than 0 requests a second.")
        self.seed, self.seconds = seed, seconds
        self._cluster = None if nodes == 1 else Cluster((Node(nodes),))
        self.profile = profile if self._cluster is None else self._cluster.widen(profile)
        self._nodes, per_interval = nodes, nodes * profile.interval.requests
        if rate is None:
            rate = self._own_rate(self._path(task, profile, task.horizon, trace))
        if rate * seconds > MAX_REQUESTS:
            raise InvalidInputError(f"{rate * seconds:,.0f} requests are more than {MAX_REQUESTS:,}; ask for less.")
        intervals = max(2, math.ceil(1.2 * rate * seconds / per_interval) + 1)
        self.rate, self._intervals = rate, intervals
        self._drawn = self._path(task, profile, intervals, trace)
        self._slower = self._own_rate(self._drawn) / rate

    def _path(self, task: Task, profile: Profile, intervals: int, trace: Trace | None) -> WorkloadPath:
        return draw_path(task, profile, [self.seed], intervals, trace, self._cluster)

    def _own_rate(self, path: WorkloadPath) -> float:
        """Requests a second of all nodes, over the whole of a path."""
        return self._nodes / float((1.0 / path.parameter("arrival_rate_rps")[0]).mean())

    @property
    def slowness(self) -> float:
        """By which arrivals are further apart than the task's own."""
        return self._slower

    def __len__(self) -> int:
        """How many there will be, about."""
        return round(self.rate * self.seconds)

    def __iter__(self) -> Iterator[Request]:
        cluster = self._cluster
        tastes = () if cluster is None else (self._nodes, cluster.interests, cluster.interest_share)
        path = self._drawn
        traffic = make_traffic(self.profile, path.at(0).values, np.array([self.seed]), *tastes)
        drawn = make_requests(self.profile, 1, self._nodes)
        known: set[tuple[int, int]] = set()
        now = 0.0
        for t in range(self._intervals):
            state = path.at(t)
            sample_intervals(traffic, state.values, state.gaps_s, drawn)
            for k in range(int(drawn.number[0, 0])):
                now += float(drawn.gap_s[0, k]) * self._slower
                if now > self.seconds:
                    return
                user, version, length = (int(of[0, k]) for of in (drawn.user, drawn.version, drawn.length))
                new = int(drawn.delta[0, k]) if (user, version) in known else length
                known.add((user, version))
                yield Request(
                    now,
                    f"{self.seed}-{user}-{version}",
                    traffic.items[0, user, :length].copy(),
                    new,
                    drawn.candidates[0, k, : int(drawn.candidate_count[0, k])].copy(),
                )
