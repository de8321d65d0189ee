"""Recorded traces: a file of arrivals in one of the formats of ``readers.trace_formats``, read and checked.

All of them record requests in order of arrival, and the published files are in order throughout, so a line that goes
back in time is an error and not something to sort: it says that the file was joined or edited wrongly.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.workload.readers.reuse import returning
from helm_gym.workload.readers.text_blocks import first_lines, line_blocks
from helm_gym.workload.readers.trace_blocks import Columns, LineError, read_blocks
from helm_gym.workload.readers.trace_formats import Layout, detect

MAX_REQUESTS = 50_000_000  # 2 GB while they are read; the largest published recording has 27,303,999
MAX_IDS = 100_000_000  # of blocks, 2 GB while they are read
MAX_GAP_S = 2 * 86_400
MAX_RATE_RPS, RATE_FROM = 100_000, 100  # mean rate, of so many requests at least

_S = 10**9  # nanoseconds


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """A recorded sequence of n requests, n >= 2, that spans some time.

    Attributes:
        name: The file's name without its ending.
        arrival_s: (n,) float64, seconds since the first request; starts at 0 and never decreases.
        tokens: (n,) int64, input tokens of each request; None where the format has none (arrival times alone).
        returning: (n,) bool, whether an earlier request left part of this one's input to reuse; None where the
            format does not tell (all but Mooncake's and Qwen-Bailian's).
        format: What was read, and how, where that is not plain.
    """

    name: str
    arrival_s: NDArray[np.float64]
    tokens: NDArray[np.int64] | None
    returning: NDArray[np.bool_] | None
    format: str = "made in memory"

    @property
    def summary(self) -> str:
        """Format, number of requests, span and mean rate, for people."""
        n, span_s = len(self.arrival_s), float(self.arrival_s[-1])
        rate = (n - 1) / span_s
        return f"{self.format}, {n:,} requests over {_span(span_s)}, {rate:,.{0 if rate >= 100 else 1}f} requests/s"


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Reads a trace, plain or packed by gzip, its format told by its first lines (docs/traces.md).

    Output lengths are checked and not kept, for a recommender generates nothing. Further columns of a CSV file and
    keys of a JSON object are not looked at. Dates and whole numbers are kept to the nanosecond. Where all times are
    whole seconds and some are equal, those of one second are spread evenly over it, in order.

    Args:
        path: The file; its ending does not matter.

    Raises:
        InvalidInputError: The file cannot be read, is in none of the formats, has a malformed line or one that goes
            back in time or lies days behind the line above it, is larger than can be held, or holds fewer than two
            requests, no time between them, or more of them a second than can be.
    """
    path = pathlib.Path(path)
    blocks = line_blocks(path)
    head = next(blocks, None)
    layout = detect(str(path), [] if head is None else first_lines(path, head))
    recording = _Recording(path, layout)
    rest = head if head is None or layout.first == 1 else head.after_first()
    try:
        for part in read_blocks(itertools.chain([rest] if rest and rest.count else [], blocks), layout):
            recording.add(part)
    except LineError as error:
        raise InvalidInputError(f"{path}, line {error.line}: {error}.") from error
    return recording.finish()


class _Recording:
    """What has been read of a file, checked as a sequence."""

    def __init__(self, path: pathlib.Path, layout: Layout):
        self.path, self.layout = path, layout
        self.parts: list[Columns] = []
        self.requests = self.ids = 0

    def add(self, part: Columns) -> None:
        """Adds requests; raises InvalidInputError where they do not go on from those before, or are too many."""
        before = self.parts[-1].time_ns[-1] if self.parts else part.time_ns[0]
        steps = np.diff(part.time_ns, prepend=before)
        wrong = np.flatnonzero((steps < 0) | (steps > MAX_GAP_S * _S))
        if len(wrong):
            raise InvalidInputError(f"{self.path}, line {self._fault(part, int(wrong[0]), int(steps[wrong[0]]))}")
        self.requests += len(part.time_ns)
        self.ids += len(part.ids)
        if self.requests > MAX_REQUESTS or self.ids > MAX_IDS:
            what = f"{MAX_REQUESTS:,} requests" if self.requests > MAX_REQUESTS else f"{MAX_IDS:,} ids of blocks"
            raise InvalidInputError(f"{self.path}: holds over {what}; give a part of it, such as its first lines.")
        self.parts.append(part)

    def _fault(self, part: Columns, at: int, step_ns: int) -> str:
        line = part.line + at
        if step_ns < 0:
            return f"{line}: is earlier than the line above it; sort the file by time, or part it where it was joined."
        first_ns = int((self.parts[0] if self.parts else part).time_ns[0])
        if self.requests + at == 1 and first_ns < MAX_GAP_S * _S < step_ns // 1000:
            return (
                f"{line - 1}: its time is 1970 or zero, and the next line's decades later; correct or remove the line."
            )
        return (
            f"{line}: comes {_span(step_ns / _S)} after the line above it, as where recordings were joined; part the "
            "file there, or correct the unit of time."
        )

    def finish(self) -> Trace:
        n = self.requests
        if n < 2:
            raise InvalidInputError(f"{self.path}: holds {n} request(s); give a trace with at least 2.")
        form = self.layout.format
        time_ns = np.concatenate([part.time_ns for part in self.parts])
        span_s = int(time_ns[-1] - time_ns[0]) / _S
        if span_s == 0:
            raise InvalidInputError(f"{self.path}: all {n} requests arrive at once; give a trace that spans some time.")
        if n >= RATE_FROM and n > MAX_RATE_RPS * span_s:
            raise InvalidInputError(
                f"{self.path}: has {n:,} requests in {_span(span_s)}, over {MAX_RATE_RPS:,} a second, as no service "
                "has; correct the unit of time."
            )
        time_ns, how = _apart(self.path, time_ns)
        tokens = reuse = None
        if form.tokens:
            tokens = np.concatenate([part.tokens for part in self.parts]).astype(np.int64)
            if not tokens.any():
                raise InvalidInputError(f"{self.path}: {form.tokens} is 0 in every request; give what was recorded.")
        if form.blocks:
            reuse = returning([(part.ids, part.counts) for part in self.parts])
        return Trace(
            name=pathlib.PurePath(self.path.name.removesuffix(".gz")).stem,
            arrival_s=(time_ns - time_ns[0]) / _S,
            tokens=tokens,
            returning=reuse,
            format=self.layout.name + how,
        )


def _apart(path: pathlib.Path, time_ns: NDArray[np.int64]) -> tuple[NDArray[np.int64], str]:
    """Times of a clock that counts seconds, spread over them, and what was done about them.

    Such a clock says that all requests of a second came at its beginning, in a burst that there was not. Evenly is the
    least that can be said: k requests of one second are put 1/k s apart.
    """
    since = time_ns - time_ns[0]
    shared = (since[1:] == since[:-1]).any()
    if not shared or (since[:1000] % _S).any() or (since % _S).any():
        return time_ns, ""
    step_s = int(np.gcd.reduce(since // _S))
    if step_s % 60 == 0:
        raise InvalidInputError(
            f"{path}: has times of whole minutes alone, and several requests in one; give a recording with seconds."
        )
    if step_s > 1:  # no clock's unit: what recorded them wrote them in batches, as Mooncake's did
        return time_ns, f" (in steps of {step_s} s, kept as they are)"
    first = np.concatenate([[0], np.flatnonzero(np.diff(time_ns)) + 1])
    count = np.diff(first, append=len(time_ns))
    rank = np.arange(len(time_ns)) - np.repeat(first, count)
    return time_ns + rank * _S // np.repeat(count, count), " (whole seconds, spread evenly over each)"


def _span(seconds: float) -> str:
    """A stretch of time as people say it."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{seconds:.3g} s"
