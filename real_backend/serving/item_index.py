"""From item ids of any kind to rows of the item table."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.text import shown
from real_backend.serving.mixing import mixed

Id = int | str  # a 64-bit number or a text; 1 and "1" are two


class NoRowLeftError(HelmError):
    """Every row is of an item that somebody's history has."""


class ItemIndex:
    """Which row each item has.

    Rows of a table that was trained are the items' own: an id is a row's number, and nothing else is an item. Rows of a
    drawn table belong to nobody. Each id gets one on first sight, the row of its own number where it is one and free.
    Where all are taken, the item that was asked for least recently gives its row up, unless a remembered history
    has it: what was computed of that history would speak of another item.

    Args:
        rows: of the table.
        trained: whether ids are rows.
    """

    def __init__(self, rows: int, trained: bool):
        self.count, self.trained = rows, trained
        self._row_of: dict[Id, int] = {}
        self._id_of: dict[int, Id] = {}
        # Rows that no history has, the least recent first: whoever must give one up is found without a search.
        self._loose: collections.OrderedDict[int, None] = collections.OrderedDict()
        self._held = np.zeros(0 if trained else rows, np.int32)  # how often histories have each row
        self._stamp = np.zeros(0 if trained else rows, np.int64)  # the last call that named each row
        self._call = 0
        self._next_free = 0

    def __len__(self) -> int:
        return len(self._row_of)

    def rows(self, ids: Sequence[Id]) -> NDArray[np.int32]:
        """The ids' rows, int32 (ids,); the same id has the same row, and two ids of a call never share one.

        Raises:
            InvalidInputError: the table is trained and has no such row.
            NoRowLeftError: no row can be given up.
        """
        if self.trained:
            return self._numbered(ids)
        self._call += 1
        found = np.empty(len(ids), np.int32)
        known, loose, stamp, call = self._row_of, self._loose, self._stamp, self._call
        for k, item in enumerate(ids):
            row = known.get(item)
            if row is None:
                row = self._give(item)
            elif row in loose:
                loose.move_to_end(row)
            stamp[row] = call
            found[k] = row
        return found

    def hold(self, rows: NDArray[np.int32]) -> None:
        """A history has these rows from now on."""
        if not self.trained:
            for row in rows[self._held[rows] == 0].tolist():
                self._loose.pop(row, None)
            np.add.at(self._held, rows, 1)

    def let_go(self, rows: NDArray[np.int32]) -> None:
        """A history has them no more."""
        if not self.trained:
            np.subtract.at(self._held, rows, 1)
            for row in rows[self._held[rows] == 0].tolist():
                self._loose[row] = None

    def _numbered(self, ids: Sequence[Id]) -> NDArray[np.int32]:
        for item in ids:
            if not isinstance(item, int) or not 0 <= item < self.count:
                raise InvalidInputError(
                    f"There is no item {shown(item)}: this model's table was trained, and its items are the numbers "
                    f"0 to {self.count - 1:,}."
                )
        return np.array(ids, np.int32)

    def _give(self, item: Id) -> int:
        row = self._preferred(item)
        if row in self._id_of:
            row = self._free_row() if len(self._row_of) < self.count else self._give_up()
        self._row_of[item] = row
        self._id_of[row] = item
        self._loose[row] = None
        return row

    def _preferred(self, item: Id) -> int:
        if isinstance(item, int) and 0 <= item < self.count:
            return item
        return mixed(item) % self.count

    def _free_row(self) -> int:
        while self._next_free in self._id_of:
            self._next_free = (self._next_free + 1) % self.count
        return self._next_free

    def _give_up(self) -> int:
        """The row of the least recent item that no history and no other id of this call needs."""
        for row in self._loose:  # those of this call are the most recent
            if self._stamp[row] == self._call:
                break
            del self._loose[row]
            del self._row_of[self._id_of.pop(row)]
            return row
        raise NoRowLeftError(f"All {self.count:,} rows of the item table are of items in somebody's history.")
