"""An interaction log as a stream of requests: a visit of a user is a request, and histories grow as in the log."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.workload.logs import Log
from helm_gym.workload.traces import Trace

SESSION_S = 1800.0  # without an interaction, and a visit is over: the half hour that web analytics settled on
POPULAR_AMONG = 10_000  # interactions before a request, from which its candidates are drawn


@dataclasses.dataclass(frozen=True, eq=False)
class Visits:
    """v requests in order of arrival.

    Attributes:
        log: the interactions that they consist of.
        arrival_s: (v,) float64, seconds since the first; starts at 0 and never decreases.
        position: (v,) int64, of the visit's first interaction in the log.
        user: (v,) int32; None where the log has no users: then each interaction is a request.
        length: (v,) int32, interactions in the user's history, the visit's own included; None without users.
        delta: (v,) int32, the visit's own interactions.
        items_by_user: (n,) int32, the log's items user by user, in order of time; ``begin``: (users,), where each
            user's begin. None without users.
    """

    log: Log
    arrival_s: NDArray[np.float64]
    position: NDArray[np.int64]
    user: NDArray[np.int32] | None
    length: NDArray[np.int32] | None
    delta: NDArray[np.int32]
    items_by_user: NDArray[np.int32] | None
    begin: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.arrival_s)

    def history(self, number: int) -> NDArray[np.int32]:
        """Items of the history of the ``number``-th request, oldest first, its own last; empty without users."""
        if self.user is None or self.length is None or self.items_by_user is None or self.begin is None:
            return np.empty(0, np.int32)
        start = int(self.begin[self.user[number]])
        return self.items_by_user[start : start + int(self.length[number])]

    def candidates(self, numbers: NDArray[np.integer], count: int, rng: np.random.Generator) -> NDArray[np.int32]:
        """Items to score, (len(numbers), count): drawn from the interactions of all users just before each request.

        So an item is a candidate as often as it was popular then. The first request of a log has nothing before it:
        its candidates are its own first item.
        """
        before = self.position[numbers][:, None]
        back = 1 + (rng.random((len(numbers), count)) * np.clip(before, 1, POPULAR_AMONG)).astype(np.int64)
        return self.log.item[np.maximum(before - back, 0)]

    def arriving_as(self, trace: Trace) -> Visits:
        """The same requests at the arrivals of a recording, which goes round at its end as often as is needed."""
        n = len(trace.arrival_s)
        rounds, place = np.divmod(np.arange(len(self)), n)
        round_s = trace.arrival_s[-1] * n / (n - 1)  # a mean gap between the last arrival and the first
        return dataclasses.replace(self, arrival_s=rounds * round_s + trace.arrival_s[place])

    def as_trace(self) -> Trace:
        """Arrivals, lengths of histories and who returns, as the regime ``trace`` takes them.

        Raises:
            InvalidInputError: fewer than two requests, or no time between them.
        """
        if len(self) < 2 or self.arrival_s[-1] <= 0:
            raise InvalidInputError(f"Log '{self.log.name}' has one visit; give a longer log, or a shorter session.")
        if self.user is None or self.length is None:
            return Trace(self.log.name, self.arrival_s, None, None, self.log.format)
        returning = self.length > self.delta
        return Trace(self.log.name, self.arrival_s, self.length.astype(np.int64), returning, self.log.format)


def visits_of(log: Log, session_s: float = SESSION_S) -> Visits:
    """Parts each user's interactions into visits, where more than ``session_s`` seconds lie between two of them.

    Raises:
        InvalidInputError: ``session_s`` is negative.
    """
    if not session_s >= 0:
        raise InvalidInputError(f"A session of {session_s:g} s cannot be; give 0 or more seconds.")
    n = len(log.item)
    if log.user is None:
        everything = np.arange(n, dtype=np.int64)
        arrival_s = (log.time_ns - log.time_ns[0]) / 1e9
        return Visits(log, arrival_s, everything, None, None, np.ones(n, np.int32), None, None)
    order = np.argsort(log.user, kind="stable")  # by user, and by time within
    user, time_ns = log.user[order], log.time_ns[order]
    new_user = np.diff(user, prepend=-1) != 0
    starts = np.flatnonzero(new_user | (np.diff(time_ns, prepend=time_ns[0]) > session_s * 1e9))
    delta = np.diff(starts, append=n)
    begin = np.flatnonzero(new_user)  # numbers of users are dense
    whose = user[starts]
    length = starts + delta - begin[whose]
    position = order[starts]
    by_time = np.argsort(position, kind="stable")
    position = position[by_time]
    return Visits(
        log=log,
        arrival_s=(log.time_ns[position] - log.time_ns[0]) / 1e9,
        position=position,
        user=whose[by_time],
        length=length[by_time].astype(np.int32),
        delta=delta[by_time].astype(np.int32),
        items_by_user=log.item[order],
        begin=begin,
    )
