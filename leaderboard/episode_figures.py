"""Every entry's figures by episode, read from the database once: scores never change, there are only more of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import sqlalchemy as sa
from pydantic_core import from_json

from leaderboard.evaluating import RANKED_BY
from leaderboard.intervals import Values
from leaderboard.season import DEVELOPMENT
from leaderboard.submissions import METHOD, POLICY, REFERENCE
from leaderboard.tables import SCORES, SEASON_ENTRIES, STATES, SUBMISSIONS

TAIL = "p99_ms"
_KEPT = (RANKED_BY, TAIL)
_RANKED_STATES = ("queued", "running", "verified")  # whose scores count, as far as they are there
_MOVES = ("queued", "superseded", "cancelled", "failed")  # with which an entry comes to a board or leaves it


@dataclasses.dataclass(frozen=True)
class Place:
    """Which scores: those of one season, task, split and rung."""

    season: int
    task: str
    split: str
    rung: str


class EpisodeFigures:
    """Figures by episode of all entries; ``update`` first, within the transaction that entries are asked for in."""

    def __init__(self) -> None:
        self._last, self._last_move = 0, 0
        self._scores: dict[Place, dict[str, dict[int, Values]]] = {}
        self._changed: dict[tuple[int, str], int] = {}

    def update(self, connection: sa.Connection) -> None:
        """Reads what has come since the last time."""
        newest = connection.execute(sa.select(sa.func.coalesce(sa.func.max(STATES.c.seq), 0))).scalar_one()
        moves = sa.select(STATES.c.seq, STATES.c.submission).where(
            STATES.c.seq > (self._last_move or newest), STATES.c.state.in_(_MOVES)
        )
        for row in connection.execute(moves.order_by(STATES.c.seq)):
            for place, scores in self._scores.items():
                if row.submission in scores:
                    self._changed[place.season, place.task] = row.seq
        self._last_move = newest
        asked = sa.select(SCORES).where(SCORES.c.seq > self._last, SCORES.c.split != DEVELOPMENT)
        for row in connection.execute(asked.order_by(SCORES.c.seq).execution_options(yield_per=1000)):
            episodes = from_json(row.body)["episodes"]
            figures = np.array([[episode[metric] for episode in episodes] for metric in _KEPT], np.float64)
            place = Place(row.season, row.task, row.split, row.rung)
            self._scores.setdefault(place, {}).setdefault(row.submission, {})[row.member] = figures
            self._last = self._changed[row.season, row.task] = row.seq

    def changed(self, season: int, task: str) -> int:
        """Number of the newest record that changes who stands on a task's board, or with what; 0 for none."""
        return self._changed.get((season, task), 0)

    def of(self, place: Place, entries: Sequence[tuple[str, int]], metric: str = RANKED_BY) -> dict[str, Values]:
        """A figure of each entry, (members, episodes), of those all of whose members' scores are there.

        Args:
            entries: ids, and how many members each has.
        """
        scores, number = self._scores.get(place, {}), _KEPT.index(metric)
        return {
            name: parts[0][number : number + 1] if members == 1 else _stacked(parts, number)
            for name, members in entries
            if len(parts := scores.get(name, {})) == members
        }


def _stacked(parts: dict[int, Values], number: int) -> Values:
    return np.stack([parts[member][number] for member in sorted(parts)])


def entries_of(connection: sa.Connection, season: int, closed: bool, track: str) -> list[tuple[str, int]]:
    """Who takes part in a season's boards: ids, and how many members each has, the oldest first.

    The tracks ``policy`` and ``reference`` share their boards. Those of a closed season are who was verified by then.
    """
    tracks = (METHOD,) if track == METHOD else (POLICY, REFERENCE)
    stood = sa.select(SEASON_ENTRIES.c.submission).where(SEASON_ENTRIES.c.season == season)
    there = SUBMISSIONS.c.id.in_(stood) if closed else SUBMISSIONS.c.state.in_(_RANKED_STATES)
    columns = (SUBMISSIONS.c.id, SUBMISSIONS.c.body) if track == METHOD else (SUBMISSIONS.c.id,)
    asked = sa.select(*columns).where(SUBMISSIONS.c.track.in_(tracks), there).order_by(SUBMISSIONS.c.seq)
    rows = connection.execute(asked)
    return [(row.id, len(from_json(row.body)["files"]) if track == METHOD else 1) for row in rows]
