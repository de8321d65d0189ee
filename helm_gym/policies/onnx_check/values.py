"""What is known of a value before its graph runs: its type and shape, which axis the lanes are, and small constants.

The number of lanes is a symbol. A tensor has it along one axis at most, and whatever stands at a lane's place depends
on that lane alone: operators that would break this are refused. So a graph that passes decides for each row by itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from helm_gym.policies.onnx_check.rules import MAX_AXIS, MAX_RANK, refuse

DTYPES: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.INT32: np.dtype("<i4"),
    TensorProto.INT64: np.dtype("<i8"),
    TensorProto.BOOL: np.dtype("?"),
}
INTEGERS = (TensorProto.INT32, TensorProto.INT64)
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
_ACROSS = "joins values of different lanes"


@dataclasses.dataclass(frozen=True, eq=False)
class Lanes:
    """A length of ``times`` for each lane, as it stands among the numbers of a shape."""

    times: int

    def __mul__(self, other: Any) -> Any:
        return self._entering() if isinstance(other, Lanes) else Lanes(self.times * int(other)) if other else 0

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        if isinstance(other, Lanes):
            return self.times // other.times if self.times % other.times == 0 else self._entering()
        return Lanes(self.times // int(other)) if other > 0 and self.times % other == 0 else self._entering()

    def __mod__(self, other: Any) -> Any:
        whole = not isinstance(other, Lanes) and other > 0 and self.times % other == 0
        return 0 if whole else self._entering()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Lanes):
            return other.times == self.times
        return bool(isinstance(other, int) and other > 0 and self._entering())

    def _entering(self, *_: Any) -> Any:
        refuse("lane-count", "The graph computes with the number of lanes; it may shape tensors only.")

    __add__ = __radd__ = __sub__ = __rsub__ = __rfloordiv__ = __rmod__ = __neg__ = _entering
    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __float__ = __int__ = _entering
    __hash__ = None  # type: ignore[assignment] # a length is compared and never looked up


Length = int | Lanes
Axis = tuple[int, int]  # its length, and ``Value.outer`` where it is the lanes', 0 elsewhere


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor of a graph.

    Attributes:
        dtype: one of ``DTYPES``.
        shape: the length of each axis; of axis ``lane``, how much of it belongs to each lane.
        lane: the axis along which the lanes are; None for what is the same whatever the lanes hold.
        outer: how often all lanes follow one another along that axis: 1 where each lane's part is in one piece.
        data: the values themselves where they follow from the file; of dtype object where ``Lanes`` are among them.
    """

    dtype: int
    shape: tuple[int, ...]
    lane: int | None = None
    outer: int = 1
    data: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if len(self.shape) > MAX_RANK:
            refuse("shape", f"A tensor of {len(self.shape)} axes is more than a policy needs; {MAX_RANK} are allowed.")
        if any(not 0 <= length <= MAX_AXIS for length in self.shape):
            refuse("shape", f"A tensor of shape {self.text()} cannot be; an axis has 0 to {MAX_AXIS}.")

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Elements; of each lane, where there are lanes."""
        return math.prod(self.shape)

    @property
    def counts_lanes(self) -> bool:
        return self.data is not None and self.data.dtype == object

    def lengths(self) -> list[Length]:
        return [Lanes(length) if axis == self.lane else length for axis, length in enumerate(self.shape)]

    def text(self) -> str:
        """The shape as it is shown."""
        names = [str(length) for length in self.shape]
        if self.lane is not None:
            times = self.shape[self.lane]
            names[self.lane] = "lanes" if times == 1 else f"{times} lanes"
        return f"[{', '.join(names)}]"

    def axis(self, number: int, extra: int = 0) -> int:
        """An axis as the standard numbers it, from the end where it is negative."""
        rank = self.rank + extra
        if not -rank <= number < rank:
            refuse("shape", f"Axis {number} of a tensor of shape {self.text()} does not exist.")
        return number % rank

    def off_lanes(self, *axes: int) -> None:
        """Refuses an operation along ``axes`` where the lanes are among them."""
        if self.lane is not None and self.lane in axes:
            refuse("across-lanes", f"An operator along axis {self.lane} of {self.text()} {_ACROSS}.")

    def axes(self) -> list[Axis]:
        return [(length, self.outer if axis == self.lane else 0) for axis, length in enumerate(self.shape)]

    def with_axes(self, axes: Sequence[Axis], dtype: int | None = None) -> Value:
        """A tensor of these axes, unknown inside."""
        lanes = [(number, outer) for number, (_, outer) in enumerate(axes) if outer]
        shape = tuple(length for length, _ in axes)
        lane, outer = lanes[0] if lanes else (None, 1)
        return Value(self.dtype if dtype is None else dtype, shape, lane, outer)

    def like(self, dtype: int | None = None) -> Value:
        """Another tensor of this shape, unknown inside."""
        return self.with_axes(self.axes(), dtype)


def broadcast(*values: Value) -> list[Axis]:
    """The axes of the values side by side, as numpy aligns them."""
    rank = max(value.rank for value in values)
    lanes = {rank - v.rank + v.lane for v in values if v.lane is not None}
    together = " and ".join(value.text() for value in values[:4])
    if len(lanes) > 1:
        refuse("across-lanes", f"Broadcasting {together} {_ACROSS}.")
    lane = lanes.pop() if lanes else None
    axes = []
    for axis in range(rank):
        met = {v.axes()[axis - rank] for v in values if axis >= rank - v.rank}
        if axis == lane:
            fixed = {length for length, outer in met if not outer} - {1}
            if fixed:
                refuse("fixed-batch", f"Broadcasting {together} needs {fixed.pop()} lanes and no other number.")
            met = {(length, outer) for length, outer in met if outer}
            if len(met) > 1:
                refuse("across-lanes", f"Broadcasting {together} {_ACROSS}.")
        else:
            met -= {(1, 0)}
            if len(met) > 1:
                refuse("shape", f"Shapes {together} do not go together.")
        axes.append(met.pop() if met else (1, 0))
    return axes


def reshaped(value: Value, lengths: Sequence[Length]) -> Value:
    """``value`` in another shape, where each lane keeps what belongs to it.

    In memory a tensor is a number of blocks, each of all lanes one after the other; that number must remain.
    """
    places = [place for place, length in enumerate(lengths) if isinstance(length, Lanes)]
    shape = tuple(length.times if isinstance(length, Lanes) else length for length in lengths)
    target = f"[{', '.join('lanes' if isinstance(n, Lanes) else str(n) for n in lengths[: MAX_RANK + 1])}]"
    if len(places) > 1 or (places and value.lane is None):
        refuse(
            "lane-count", f"The graph makes a tensor of shape {target}; the number of lanes may be one axis of rows."
        )
    if value.lane is not None and not places:
        refuse("fixed-batch", f"Reshaping {value.text()} to {target} fixes the number of lanes; use -1 for their axis.")
    outer = 1
    if value.lane is not None and value.size:
        blocks, before = math.prod(value.shape[: value.lane]) * value.outer, math.prod(shape[: places[0]])
        outer = blocks // before if before > 0 else 0
        if not outer or outer * before != blocks or shape[places[0]] % outer:
            refuse("across-lanes", f"Reshaping {value.text()} to {target} {_ACROSS}.")
    found = Value(value.dtype, shape, places[0] if places else None, outer)
    if found.size != value.size:
        refuse("shape", f"{value.text()} cannot be reshaped to {found.text()}.")
    return found
