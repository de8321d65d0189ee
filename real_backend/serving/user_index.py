"""From user ids to places, and the histories that lie there.

A place is a row of the memory manager's tables of users. There is a bounded number of them; where all are taken, the
user who was there least recently is forgotten. A place that another user takes, or another history, has another version
from then on, so whatever was cached of the former one is worthless. No place changes below what a request that is not
answered yet reads: a history that must be written anew meanwhile is written to another place.

**Where a long history begins.** The model sees at most ``max_history`` events, and positions count from the first that
it sees, so each move of that first one makes what was cached worthless. It moves by half of ``max_history`` at a time,
and where it is follows from the number of events alone (``first_seen``): a score depends on a history and on the
candidates, and not on how the history came in.
"""

from __future__ import annotations

import collections
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import HelmError
from real_backend.serving.item_index import Id, ItemIndex


class HistoryRequiredError(HelmError):
    """The service does not have what a request builds on; the whole history must be sent.

    Attributes:
        have: how many of the user's events it has; 0 of one that it does not know.
    """

    def __init__(self, have: int, start: int):
        what = f"of which it has {have}" if have else "whom it does not know"
        super().__init__(
            f"The request's events follow {start} earlier ones of a user {what}; send the whole history, with start 0."
        )
        self.have = have


class NoPlaceLeftError(HelmError):
    """Requests of every user remembered are being answered."""


class Visit(NamedTuple):
    """A request's history, in the memory manager's numbers.

    Attributes:
        place, version: of the user's history; the place is kept until ``leave``.
        length: events that the model sees.
        delta: of these, those that are new to the service.
        total: events of the user so far.
    """

    place: int
    version: int
    length: int
    delta: int
    total: int


def first_seen(total: int, most: int) -> int:
    """The first of ``total`` events that a model of at most ``most`` sees."""
    if total <= most:
        return 0
    half = max(1, most // 2)
    return half * -(-(total - most) // half)


class UserIndex:
    """Who is remembered, and each one's history.

    Args:
        histories: int32 (places, max_history), which nodes read.
        items: whose rows the histories hold.
    """

    def __init__(self, histories: NDArray[np.int32], items: ItemIndex):
        places, self._most = histories.shape
        self.histories, self._items = histories, items
        self._place_of: collections.OrderedDict[Id, int] = collections.OrderedDict()  # the least recent first
        self._free = list(range(places - 1, -1, -1))
        self._version = np.full(places, -1, np.int32)
        self._total, self._first = np.zeros(places, np.int64), np.zeros(places, np.int64)
        self._reading = np.zeros(places, np.int32)  # requests that are not answered
        self._left: set[int] = set()  # places that are free as soon as nobody reads them
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._place_of)

    def total(self, user: Id) -> int:
        """How many events of the user there have been; 0 of one that is not known."""
        place = self._place_of.get(user)
        return 0 if place is None else int(self._total[place])

    def unseen(self, start: int, count: int) -> int:
        """How many of ``count`` events behind ``start`` the model will not see: the first ones of a long history."""
        return min(count, max(0, first_seen(start + count, self._most) - start))

    def visit(self, user: Id, start: int, rows: NDArray[np.int32], skipped: int = 0) -> Visit:
        """A request of ``user`` that brings events; what is new of them becomes part of his history.

        Args:
            start: how many events came before the request's; 0: it has the whole history.
            skipped: how many of its first events ``rows`` leaves out, at most those that are ``unseen``.

        Raises:
            HistoryRequiredError: what came before is not known, or is not what the request says; nothing has changed.
            NoPlaceLeftError: nobody can be forgotten now.
        """
        place, begin = self._place_of.get(user), start + skipped
        total = begin + len(rows)
        have = self.total(user)
        if start > have:
            raise HistoryRequiredError(have, start)
        if place is None or begin > have:  # all that the model sees is here
            return self._write(user, place, rows, total, begin)
        first, seen = int(self._first[place]), first_seen(total, self._most)
        if not self._agrees(place, begin, rows) or (total <= have and seen != first):
            if start > 0:
                raise HistoryRequiredError(have, start)
            return self._write(user, place, rows, total, begin)
        if total <= have:  # again, or late
            return self._enter(user, place, total, delta=0)
        if seen == first:
            new = rows[have - begin :]
            self.histories[place, have - first : total - first] = new
            self._items.hold(new)
            self._total[place] = total
            return self._enter(user, place, total, delta=len(new))
        whole = np.concatenate([self.histories[place, : have - first], rows[have - begin :]])
        return self._write(user, place, whole, total, first)

    def leave(self, place: int) -> None:
        """A request that was at ``place`` is answered, or given up."""
        self._reading[place] -= 1
        if self._reading[place] == 0 and place in self._left:
            self._left.remove(place)
            self._free.append(place)

    def forget_oldest(self) -> bool:
        """Forgets the user who was there least recently, of those without a request under way; False: there is none."""
        for user, place in self._place_of.items():
            if self._reading[place] == 0:
                self._clear(place)
                del self._place_of[user]
                self._free.append(place)
                self.forgotten += 1
                return True
        return False

    def _agrees(self, place: int, start: int, rows: NDArray[np.int32]) -> bool:
        """Whether the events that both have, of those remembered, are the same."""
        first, have = int(self._first[place]), int(self._total[place])
        low, high = max(start, first), min(start + len(rows), have)
        if low >= high:
            return True
        return bool(np.array_equal(self.histories[place, low - first : high - first], rows[low - start : high - start]))

    def _write(self, user: Id, place: int | None, rows: NDArray[np.int32], total: int, before: int) -> Visit:
        """Writes a history anew; ``rows`` begin behind ``before`` events. Its place may be another from then on."""
        if place is None or self._reading[place] > 0:
            if not self._free and not self.forget_oldest():
                raise NoPlaceLeftError("Every user remembered has a request under way; try again.")
            if place is not None:
                self._clear(place)
                self._left.add(place)
            place = self._free.pop()
        else:
            self._clear(place)
        first = first_seen(total, self._most)
        seen = rows[first - before :]
        self.histories[place, : len(seen)] = seen
        self._items.hold(seen)
        self._version[place] += 1
        self._total[place], self._first[place] = total, first
        self._place_of[user] = place
        return self._enter(user, place, total, delta=len(seen))

    def _clear(self, place: int) -> None:
        self._items.let_go(self.histories[place, : int(self._total[place] - self._first[place])])
        self._total[place] = self._first[place] = 0

    def _enter(self, user: Id, place: int, total: int, delta: int) -> Visit:
        self._place_of.move_to_end(user)
        self._reading[place] += 1
        return Visit(place, int(self._version[place]), total - int(self._first[place]), delta, total)
