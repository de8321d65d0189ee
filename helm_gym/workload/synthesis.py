"""Interaction logs with known parameters, written in each published format: to try out what reads them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import pathlib
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from helm_gym import files
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.ranges import Within, check_ranges
from helm_gym.workload.logs import MAX_ROWS
from helm_gym.workload.readers.log_formats import LOG_FORMATS

FIRST_S = 1_511_600_000  # the first interaction's time since 1970
STEP_S = 2  # between the interactions of a visit


@dataclasses.dataclass(frozen=True)
class Synthesis:
    """What is known of a synthesised log; names as in ``description.Window``.

    Attributes:
        requests: visits.
        arrival_rate_rps: of visits; they arrive at random.
        windows: parts of the time, at whose beginnings hot users are replaced.
        hot_share: share of visits by hot users.
        hot_users: of a window; Zipf .5 among them.
        turnover: share of hot users who are replaced at the beginning of a window.
        new_share: share of the other visits that are a user's first; the rest come from users whose first it was.
        delta_tokens: mean interactions of a visit, at least 1.
        items: in the catalogue.
        item_zipf: exponent of their popularity.
    """

    requests: Annotated[int, Within(2, 10_000_000)] = 20_000
    arrival_rate_rps: Annotated[float, Within(1e-6, 1e6)] = 0.01
    windows: Annotated[int, Within(1, 1000)] = 12
    hot_share: Annotated[float, Within(0, 1)] = 0.6
    hot_users: Annotated[int, Within(1, 1_000_000)] = 64
    turnover: Annotated[float, Within(0, 1)] = 0.25
    new_share: Annotated[float, Within(0, 1)] = 0.5
    delta_tokens: Annotated[float, Within(1, 10_000)] = 4.0
    items: Annotated[int, Within(1, 10_000_000)] = 5_000
    item_zipf: Annotated[float, Within(0, 4)] = 0.9

    def __post_init__(self) -> None:
        check_ranges(self, "A synthesised log")
        if self.requests * self.delta_tokens > MAX_ROWS or self.windows * self.hot_users > MAX_ROWS:
            raise InvalidInputError(
                f"A synthesised log has at most {MAX_ROWS:,} interactions, and as many hot users over all windows; "
                "give fewer requests, interactions of a visit, windows or hot users."
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
    """n interactions in order of time: (n,) int64 each, time in seconds since the first."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time_s: NDArray[np.int64]


def synthesize(known: Synthesis, rng: np.random.Generator) -> Interactions:
    """Draws a log; its visits span exactly ``requests / arrival_rate_rps`` seconds."""
    n, span_s = known.requests, known.requests / known.arrival_rate_rps
    arrival = np.sort(rng.random(n)) * span_s
    arrival[0], arrival[-1] = 0.0, span_s
    window = np.minimum((arrival / span_s * known.windows).astype(np.int64), known.windows - 1)
    hot = np.arange(known.hot_users)
    next_hot = known.hot_users
    hot_of = np.empty((known.windows, known.hot_users), np.int64)
    for k in range(known.windows):
        if k:
            leaving = rng.random(known.hot_users) < known.turnover
            hot = np.where(leaving, next_hot + np.cumsum(leaving) - 1, hot)
            next_hot += int(leaving.sum())
        hot_of[k] = hot
    slot = (known.hot_users * rng.random(n) ** 2).astype(np.int64)  # Zipf with exponent .5
    is_hot = rng.random(n) < known.hot_share
    new = ~is_hot & (rng.random(n) < known.new_share)
    seen = np.cumsum(new)  # users who are not hot, up to each visit
    cold = np.where(new | (seen == 0), seen, 1 + (rng.random(n) * seen).astype(np.int64))
    user = np.where(is_hot, hot_of[window, slot], next_hot + cold)
    delta = 1 + rng.poisson(known.delta_tokens - 1.0, n)
    visit = np.repeat(np.arange(n), delta)
    place = np.arange(len(visit)) - np.repeat(np.cumsum(delta) - delta, delta)
    time_s = arrival[visit].astype(np.int64) + STEP_S * place
    weights = np.arange(1, known.items + 1) ** -known.item_zipf
    rank = rng.choice(known.items, len(visit), p=weights / weights.sum())
    item = rng.permutation(known.items)[rank]
    order = np.argsort(time_s, kind="stable")
    return Interactions(user[visit][order], item[order], time_s[order])


def _texts(prefix: str, numbers: NDArray[np.int64]) -> Any:
    return np.char.add(prefix, np.char.zfill(numbers.astype(str), 9))


def _dates(seconds: NDArray[np.int64]) -> Any:
    return np.char.add(np.char.replace(np.datetime_as_string(seconds.astype("datetime64[s]")), "T", " "), "+00:00")


def _amazon(log: Interactions, at: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "user_id": _texts("AG", log.user),
        "parent_asin": _texts("B", log.item),
        "rating": np.full(len(at), 5.0),
        "timestamp": at * 1000,
    }


def _same(log: Interactions, value: Any) -> Any:
    return np.full(len(log.user), value)


# Name on the command line -> the format of the table of formats, and its columns in the file's order.
WRITERS: dict[str, tuple[str, Callable[[Interactions, NDArray[np.int64]], dict[str, Any]]]] = {
    "amazon-csv": ("Amazon Reviews 2023 CSV", _amazon),
    "amazon-jsonl": ("Amazon Reviews 2023 JSONL", lambda log, at: _amazon(log, at) | {"text": _same(log, "Good. {[")}),
    "taobao": (
        "Taobao UserBehavior CSV",
        lambda log, at: {"u": log.user, "i": log.item, "c": log.item % 97, "b": _same(log, "pv"), "t": at},
    ),
    "kuairand": (
        "KuaiRand CSV",
        lambda log, at: {
            "user_id": log.user,
            "video_id": log.item,
            "date": np.char.replace(np.datetime_as_string(at.astype("datetime64[D]")), "-", ""),
            "hourmin": at // 3600 % 24 * 100,
            "time_ms": at * 1000,
            "is_click": _same(log, 1),
        },
    ),
    "movielens-data": (
        "MovieLens u.data",
        lambda log, at: {"u": log.user, "i": log.item, "r": _same(log, 4), "t": at},
    ),
    "movielens-csv": (
        "MovieLens ratings.csv",
        lambda log, at: {"userId": log.user, "movieId": log.item, "rating": _same(log, 4.5), "timestamp": at},
    ),
    "recbole": (
        "RecBole atomic file",
        lambda log, at: {
            "user_id:token": log.user,
            "item_id:token": log.item,
            "rating:float": _same(log, 4.0),
            "timestamp:float": at,
        },
    ),
    "open-bandit": (
        "Open Bandit CSV",
        lambda log, at: {
            "": np.arange(len(at)),
            "timestamp": _dates(at),
            "item_id": log.item,
            "position": _same(log, 1),
            "click": _same(log, 0),
            "propensity_score": _same(log, 0.1),
        },
    ),
    "yambda": (
        "Yambda Parquet",
        lambda log, at: {
            "uid": log.user.astype(np.uint32),
            "timestamp": (at - at[0]).astype(np.uint32),
            "item_id": log.item.astype(np.uint32),
            "is_organic": _same(log, 1).astype(np.uint8),
        },
    ),
    "csv": ("interactions", lambda log, at: {"user_id": log.user, "item_id": log.item, "timestamp": at}),
}


def write_log(log: Interactions, path: str | os.PathLike[str], how: str) -> None:
    """Writes a log in one of the formats ``WRITERS``, whole or not at all; ``.gz`` at the name's end packs it.

    Raises:
        UnknownNameError: no such format.
    """
    import pyarrow
    from pyarrow import csv, parquet

    if how not in WRITERS:
        raise UnknownNameError("log format", how, WRITERS)
    name, columns = WRITERS[how]
    form = next(form for form in LOG_FORMATS if form.name == name)
    table = pyarrow.table({key: pyarrow.array(values) for key, values in columns(log, FIRST_S + log.time_s).items()})
    path = pathlib.Path(path)
    part = files.unfinished(path)
    try:
        if form.kind == "parquet":
            parquet.write_table(table, part)
        else:
            with gzip.GzipFile(part, "wb", mtime=0) if path.suffix == ".gz" else part.open("wb") as file:
                if form.kind == "jsonl":
                    for batch in table.to_batches(1 << 14):
                        file.write("".join(json.dumps(row) + "\n" for row in batch.to_pylist()).encode())
                else:
                    options = csv.WriteOptions(
                        include_header=not form.header,
                        delimiter=form.delimiter,
                        quoting_style="none",
                        quoting_header="none",
                    )
                    csv.write_csv(table, file, options)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
