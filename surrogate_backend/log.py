"""The log: Parquet, a row a node and interval, an episode a file; written whole or not at all, checked when read."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.telemetry import FIELDS
from helm_gym.workload.state import PARAMETERS

FORMAT = 1
MANIFEST = "log.json"
CONSTANTS = {  # of an episode
    "episode": pa.int32(),
    "group": pa.string(),
    "setting": pa.int32(),
    "regime": pa.string(),
    "driver": pa.string(),
    "request_seed": pa.int64(),
    "start_alpha": pa.float64(),
    "warmup": pa.int32(),
    "rung": pa.string(),
    "profile": pa.string(),
    "profile_fingerprint": pa.string(),
    "machine": pa.string(),
    "code_version": pa.string(),
    "date": pa.string(),
}


def _list(width: int) -> pa.DataType:
    return pa.list_(pa.float32(), width)


def schema(profile: Profile) -> pa.Schema:
    """Columns of a log of ``profile``: constants, ``w_...`` workload, ``asked_alpha``, telemetry, each request."""
    requests = profile.interval.requests
    return pa.schema(
        [
            *CONSTANTS.items(),
            ("node", pa.int32()),
            ("interval", pa.int32()),
            *((f"w_{parameter.name}", pa.float64()) for parameter in PARAMETERS),
            ("gaps_s", pa.list_(pa.float64())),  # recorded arrivals; null where they are Poisson
            ("asked_alpha", pa.float64()),
            ("slo_ms", pa.float64()),
            *((field.name, pa.float64() if field.width == 1 else _list(field.width)) for field in FIELDS),
            ("request_service_ms", _list(requests)),
            ("request_sojourn_ms", _list(requests)),
        ]
    )


@dataclasses.dataclass(frozen=True)
class LoggedEpisode:
    """One episode as it was read; arrays lead with its intervals.

    Attributes:
        constants: by the names of ``CONSTANTS``.
        workload: (T, parameters).
        telemetry: by field, (T,) or (T, width).
        service_ms, sojourn_ms: (T, requests).
        gaps_s: (T, requests), NaN where arrivals are Poisson.
    """

    constants: Mapping[str, Any]
    workload: NDArray[np.float64]
    gaps_s: NDArray[np.float64]
    asked_alpha: NDArray[np.float64]
    slo_ms: NDArray[np.float64]
    telemetry: Mapping[str, NDArray[np.float64]]
    service_ms: NDArray[np.float64]
    sojourn_ms: NDArray[np.float64]

    @property
    def intervals(self) -> int:
        return len(self.workload)


def episode_path(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"episode-{number:06d}.parquet"


def write_episode(folder: pathlib.Path, number: int, table: pa.Table) -> None:
    """Writes one episode durably: after a kill it is there whole or not at all."""
    path = episode_path(folder, number)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The episodes' files.

    Raises:
        InvalidInputError: no folder, or none in it.
    """
    if not folder.is_dir():
        raise InvalidInputError(f"Log {folder} is no folder; give one that `helm-gym collect --out` wrote.")
    found = sorted(folder.glob("episode-*.parquet"))
    if not found:
        raise InvalidInputError(f"Log {folder} holds no episodes; run `helm-gym collect --out {folder}` first.")
    return found


def read_log(folder: pathlib.Path, profile: Profile, groups: tuple[str, ...] = ()) -> Iterator[LoggedEpisode]:
    """Yields the episodes of a log, each checked: columns, profile, finite values, no interval missing.

    Args:
        folder: of Parquet files.
        profile: that the log must be of.
        groups: only these; all where empty.

    Raises:
        InvalidInputError: not Parquet, other columns, another profile, an interval missing, a value not finite.
    """
    for path in files(folder):
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise InvalidInputError(f"{path} cannot be read as Parquet ({_first_line(error)}); collect it again.") from error
        episode = _episode(path, table, profile)
        if not groups or episode.constants["group"] in groups:
            yield episode


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _episode(path: pathlib.Path, table: pa.Table, profile: Profile) -> LoggedEpisode:
    expected = schema(profile)
    missing = [name for name in expected.names if name not in table.column_names]
    if missing:
        raise InvalidInputError(f"{path} lacks the column '{missing[0]}'; collect it again with this version.")
    for name in ("profile_fingerprint", "request_service_ms", "predicted_ms"):
        if name == "profile_fingerprint":
            found = set(table[name].to_pylist())
            if found != {profile.fingerprint}:
                logged = table["profile"][0].as_py() if table.num_rows else "nothing"
                raise InvalidInputError(
                    f"{path} was logged under another profile ('{logged}', {', '.join(sorted(map(str, found)))}) than "
                    f"'{profile.name}' ({profile.fingerprint}); give its own with --profile."
                )
        elif table[name].type != expected.field(name).type:
            raise InvalidInputError(f"{path}: column '{name}' is {table[name].type}, not {expected.field(name).type}.")
    constants = {name: table[name][0].as_py() for name in CONSTANTS}
    telemetry = {field.name: _column(path, table, field.name, field.width) for field in FIELDS}
    requests = profile.interval.requests
    intervals = table["interval"].to_numpy()
    if not np.array_equal(intervals, np.arange(len(intervals))):
        raise InvalidInputError(f"{path}: an interval is missing or out of order; collect it again.")
    gaps = np.full((table.num_rows, requests), np.nan)
    if table["gaps_s"].null_count == 0:
        gaps = np.array(table["gaps_s"].to_pylist(), np.float64).reshape(-1, requests)
    return LoggedEpisode(
        constants=constants,
        workload=np.stack([_column(path, table, f"w_{parameter.name}") for parameter in PARAMETERS], axis=1),
        gaps_s=gaps,
        asked_alpha=_column(path, table, "asked_alpha"),
        slo_ms=_column(path, table, "slo_ms"),
        telemetry=telemetry,
        service_ms=_column(path, table, "request_service_ms", requests),
        sojourn_ms=_column(path, table, "request_sojourn_ms", requests),
    )


def _column(path: pathlib.Path, table: pa.Table, name: str, width: int = 1) -> NDArray[np.float64]:
    column = table[name].combine_chunks()
    try:
        values = (column if width == 1 else column.flatten()).to_numpy(zero_copy_only=False).astype(np.float64)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"{path}: column '{name}' holds what is not a number.") from error
    if len(values) != table.num_rows * width or not np.isfinite(values).all():
        row = int(np.argmax(~np.isfinite(values))) // width
        raise InvalidInputError(f"{path}: column '{name}' has a value that is missing or not finite (row {row}).")
    return values if width == 1 else values.reshape(-1, width)


def write_manifest(folder: pathlib.Path, content: Mapping[str, Any]) -> None:
    """What the log is a log of; a collection goes on only under the same.

    Raises:
        InvalidInputError: the folder holds a log of something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, wanted = folder / MANIFEST, {"format": FORMAT, **content}
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InvalidInputError(f"{path} is not JSON; give another folder.") from error
        differs = [key for key in wanted if there.get(key) != wanted[key]]
        if differs:
            key = differs[0]
            raise InvalidInputError(
                f"{folder} holds a log with {key} {there.get(key)!r}, not {wanted[key]!r}; give another folder."
            )
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
