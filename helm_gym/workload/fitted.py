"""The regime ``fitted:FILE``: parameters over time as they were in an interaction log, for any profile.

An episode starts at a place in the log that its seed draws, and goes round at the end. Between the middles of two
windows parameters are interpolated. Requests themselves are drawn as in every regime: the log gives their parameters.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from helm_gym import yaml_form
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.ranges import Text, Within, check_ranges
from helm_gym.tasks import Task
from helm_gym.workload.demand import rate_for_load
from helm_gym.workload.description import Description
from helm_gym.workload.state import INDEX, WorkloadPath, at_rest, bounds, poisson_gaps
from helm_gym.workload.traces import Trace

MAX_WINDOWS = 500
LOAD = 0.64  # of what a node at its best split can serve, as in the regimes trend and trace
LOADS = (0.05, 0.9)  # between which the load of a window lies, however quiet or busy it was
_FIELDS = ("hot_share", "hot_users", "turnover", "new_share", "mean_history", "delta_tokens", "item_zipf")
_RATE_EVERY, _RATES_A_WINDOW = 16, 4  # intervals between those whose service time is computed, at most; and how many


@dataclasses.dataclass(frozen=True)
class FittedWindow:
    """A window's parameters, as ``description.Window`` has them; ``rate`` is its arrival rate over the log's mean."""

    rate: Annotated[float, Within(0, 1e6)]
    hot_share: Annotated[float, Within(0, 1)]
    hot_users: Annotated[float, Within(0, 1e9)]
    turnover: Annotated[float, Within(0, 1)]
    new_share: Annotated[float, Within(0, 1)]
    mean_history: Annotated[float, Within(0, 1e9)]
    delta_tokens: Annotated[float, Within(0, 1e9)]
    item_zipf: Annotated[float, Within(0, 10)]


@dataclasses.dataclass(frozen=True)
class FittedRegime:
    """A regime that was fitted to a log.

    Attributes:
        log: name of the log.
        requests: mean number of a window.
        windows: in order of time, at least two.
        load: mean arrival rate over what a node at its best split can serve.
        window_intervals: control intervals of a window; 0: as many as its requests fill.
    """

    log: Annotated[str, Text(200)]
    requests: Annotated[float, Within(1, 1e12)]
    windows: tuple[FittedWindow, ...]
    load: Annotated[float, Within(0, 1, above=True)] = LOAD
    window_intervals: Annotated[int, Within(0, 1_000_000)] = 0

    def __post_init__(self) -> None:
        check_ranges(self, "A fitted regime")
        if not 2 <= len(self.windows) <= MAX_WINDOWS:
            raise InvalidInputError(f"A fitted regime has 2 to {MAX_WINDOWS} windows; {len(self.windows)} are given.")

    def intervals_a_window(self, profile: Profile) -> float:
        return self.window_intervals or max(1.0, self.requests / profile.interval.requests)

    def draw(self, profile: Profile, seeds: Sequence[int], intervals: int, trace: Trace | None) -> WorkloadPath:
        """One episode a seed (``regimes.make_path``); values are kept within what the profile's model allows."""
        size, windows = self.intervals_a_window(profile), len(self.windows)
        table = {name: np.array([getattr(window, name) for window in self.windows]) for name in (*_FIELDS, "rate")}
        table["turnover"] = 1.0 - (1.0 - table["turnover"]) ** (1.0 / size)  # of a window -> of an interval
        low, high = bounds(profile)
        high[INDEX["candidates"]] = profile.model.max_candidates
        high[INDEX["hot_users"]] = min(high[INDEX["hot_users"]], profile.population.users // 2)
        every = int(np.clip(size / _RATES_A_WINDOW, 1, _RATE_EVERY))
        values = np.tile(at_rest(profile), (intervals, len(seeds), 1))
        for lane, seed in enumerate(seeds):
            start = np.random.default_rng([seed, 0x46495454]).random() * windows
            at = start + np.arange(intervals) / size
            x = values[:, lane]
            for name in _FIELDS:
                x[:, INDEX[name]] = np.interp(at, np.arange(windows) + 0.5, table[name], period=windows)
            np.clip(x, low, high, out=x)
            load = self.load * np.interp(at, np.arange(windows) + 0.5, table["rate"], period=windows)
            x[:, INDEX["arrival_rate_rps"]] = _rates(profile, x, np.clip(load, *LOADS), every)
        return WorkloadPath(
            values=values.transpose(1, 0, 2),
            gaps_s=poisson_gaps(len(seeds), intervals, profile.interval.requests),
            segment=np.zeros((intervals, len(seeds)), np.int64).T,
            kind=np.full((len(seeds), 1), "fitted", object),
        )


def _rates(profile: Profile, values: NDArray[np.float64], load: NDArray[np.float64], every: int) -> NDArray[np.float64]:
    """Arrival rate of each interval, (intervals,), of one lane's values (intervals, parameters) and loads.

    What a node can serve is computed at every ``every``-th interval and interpolated.
    """
    t = np.arange(len(values))
    knots = np.unique(np.append(t[::every], t[-1]))
    return load * np.interp(t, knots, rate_for_load(profile, values[knots], np.ones(len(knots))))


def fit(
    described: Description, name: str, first: float = 0.0, last: float = 1.0, window_intervals: int = 0
) -> FittedRegime:
    """A regime of a log's description.

    Args:
        described: a log with users.
        name: of the log.
        first, last: which part of the log's time is used, such as 0 to 0.75 to hold the last quarter out.
        window_intervals: see ``FittedRegime``.

    Raises:
        InvalidInputError: the part has fewer than two windows, or the log does not tell a parameter.
    """
    count = len(described.windows)
    windows = described.windows[round(first * count) : round(last * count)]
    if not 0 <= first < last <= 1 or len(windows) < 2:
        raise InvalidInputError(
            f"The part from {first:g} to {last:g} of log '{name}' has {max(0, len(windows))} windows; give 2 or more."
        )
    columns = {field: np.array([getattr(window, field) for window in windows], np.float64) for field in _FIELDS}
    for field, column in columns.items():
        known = np.flatnonzero(~np.isnan(column))
        if not len(known):
            raise InvalidInputError(
                f"Log '{name}' does not tell {field}: it has no users or too few interactions; give another log, or "
                "fewer windows."
            )
        column[:] = np.interp(np.arange(len(column)), known, column[known])
    requests = np.array([window.requests for window in windows], np.float64)
    if not requests.any():
        raise InvalidInputError(
            f"Log '{name}' has no requests from {first:g} to {last:g} of its time; give more of it."
        )
    return FittedRegime(
        log=re.sub(r"[^\w.-]", "-", name)[:200],
        requests=float(requests.mean()),
        windows=tuple(
            FittedWindow(
                rate=float(f"{requests[k] / requests.mean():.6g}"),
                **{field: float(f"{column[k]:.6g}") for field, column in columns.items()},
            )
            for k in range(len(windows))
        ),
        window_intervals=window_intervals,
    )


def save(fitted: FittedRegime, path: pathlib.Path) -> None:
    yaml_form.save(fitted, path)


def load(path: str) -> FittedRegime:
    """The regime of a file that ``save`` wrote.

    Raises:
        UnknownNameError, InvalidInputError: it cannot be read; see ``yaml_form.read``.
    """
    try:
        stat = pathlib.Path(path).stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
    except (OSError, ValueError):  # said by who reads it
        stamp = (0, 0)
    return _load(path, stamp)


@functools.lru_cache(maxsize=8)  # an environment asks for it at each reset
def _load(path: str, stamp: tuple[int, int]) -> FittedRegime:
    fitted: FittedRegime = yaml_form.read(FittedRegime, pathlib.Path(path))
    return fitted


def fitted_task(path: str) -> Task:
    """The task ``fitted:FILE``: episodes of the regime in that file, as long as the other tasks'."""
    name = re.sub(r"[^a-z0-9]+", "-", load(path).log.lower()).strip("-")[:40] or "log"
    return Task(f"fitted-{name}-v0", f"fitted:{path}", f"parameters as in the log {load(path).log}")
