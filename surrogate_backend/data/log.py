"""The log: Parquet, a row a node and interval, an episode a file; written whole or not at all, checked when read.

Several collections may write to one folder at once. Whoever makes a file claims it first, by a lock on its unfinished
form: the kernel drops the lock with the process, however that ends, and the next one takes the file over.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import helm_gym
from helm_gym.backend import BackendSpec
from helm_gym.errors import InvalidInputError
from helm_gym.files import MIB, read_bytes, read_json
from helm_gym.profile import Profile
from helm_gym.provenance import describe_machine
from helm_gym.telemetry import FIELDS
from helm_gym.workload.state import PARAMETERS
from surrogate_backend.file_claims import Claim, first_line, sync, take, writing

FORMAT = 1
MANIFEST = "log.json"
RUNGS = ("measured", "modelled")
MAX_ROWS = 1_000_000  # of an episode: nodes times intervals
MAX_FILE_BYTES = 1024 * MIB
_SLACK = 1e-6  # of bounds: shares are quotients of sums
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


def constants_of(spec: BackendSpec, number: int, episode: Any, start: float, warmup: int) -> dict[str, Any]:
    """``CONSTANTS`` of an episode of a node's or of clusters' design, which starts at alpha ``start``."""
    return {
        "episode": number,
        "group": episode.group,
        "setting": episode.setting,
        "regime": episode.regime,
        "driver": episode.driver,
        "request_seed": episode.request_seed,
        "start_alpha": start,
        "warmup": warmup,
        "rung": spec.rung,
        "profile": spec.profile.name,
        "profile_fingerprint": spec.profile.fingerprint,
        "machine": describe_machine("cpu" if spec.rung == "modelled" else spec.profile.device),
        "code_version": helm_gym.__version__,
        "date": datetime.date.today().isoformat(),
    }


def list_type(width: int) -> pa.DataType:
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
            *((field.name, pa.float64() if field.width == 1 else list_type(field.width)) for field in FIELDS),
            ("request_service_ms", list_type(requests)),
            ("request_sojourn_ms", list_type(requests)),
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


def claim(folder: pathlib.Path, number: int) -> Claim | None:
    """Claims an episode; None where it is there already, or is another's.

    Raises:
        InvalidInputError: the folder cannot be written, or its file system has no locks.
    """
    path = episode_path(folder, number)
    mine = take(path)
    if mine is not None and path.exists():
        mine.release()
        return None
    return mine


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes what killed collections have left, and nothing that a living one is writing."""
    for left in folder.glob(f"episode-{'[0-9]' * 6}.tmp"):
        mine = take(left.with_suffix(".parquet"))
        if mine is not None:
            mine.release()


def write_manifest(folder: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Makes the folder, and says in it what the log is a log of; a collection goes on only under the same.

    Raises:
        InvalidInputError: the folder holds a log of something else, or cannot be written.
    """
    wanted = {"format": FORMAT, **content}
    with writing(folder):
        if not os.path.isdir(folder):
            folder.mkdir(parents=True, exist_ok=True)
            sync(folder.parent)
    mine = take(folder / MANIFEST, wait=True)
    assert mine is not None
    with mine:
        there = _manifest(folder)
        if there is None:
            if any(folder.glob("episode-*.parquet")):
                raise InvalidInputError(f"{folder} holds episodes and no {MANIFEST} of theirs; give another folder.")
            mine.write((json.dumps(wanted, indent=2) + "\n").encode())
            return
    differs = [f"{key} {there.get(key)!r} and not {wanted[key]!r}" for key in wanted if there.get(key) != wanted[key]]
    if differs:
        raise InvalidInputError(f"{folder} holds a log of {', '.join(differs)}; give another folder.")


def _manifest(folder: pathlib.Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    content = read_json(path, "Log", instead="take another folder")
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} is not what `helm-gym collect` writes; take another folder.")
    return content


def to_parquet(table: pa.Table) -> bytes:
    """An episode's file; its pages carry checksums, so that a reader notices a bit that has turned."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The episodes' files.

    Raises:
        InvalidInputError: no folder, or none in it.
    """
    if not os.path.isdir(folder):
        raise InvalidInputError(f"Log {folder} is no folder; give one that `helm-gym collect --out` wrote.")
    found = sorted(folder.glob("episode-*.parquet"))
    if not found:
        raise InvalidInputError(f"Log {folder} holds no episodes; run `helm-gym collect --out {folder}` first.")
    return found


def read_log(folder: pathlib.Path, profile: Profile, groups: tuple[str, ...] = ()) -> Iterator[LoggedEpisode]:
    """Yields the episodes of a log, in the order of their numbers, each of them checked.

    Args:
        folder: of Parquet files.
        profile: that the log must be of.
        groups: only these; all where empty.

    Raises:
        InvalidInputError: no log, another profile's, or a file that is not whole, lacks a column or an interval, or
            holds another type, a missing value, or one that is not finite or out of its bounds.
    """
    planned = planned_intervals(folder)
    for path, constants, table in read_tables(folder, profile, schema(profile), tuple(CONSTANTS), groups):
        yield _episode(path, constants, table, profile, planned)


def planned_intervals(folder: pathlib.Path) -> object:
    """How many intervals its manifest says that an episode has; None where there is no manifest.

    Raises:
        InvalidInputError: no folder, or no episode in it.
    """
    files(folder)
    return (_manifest(folder) or {}).get("intervals")


def is_of_clusters(folder: pathlib.Path) -> bool:
    """Whether a log is one of clusters (surrogate_backend/data/cluster_log.py)."""
    return os.path.isdir(folder) and bool((_manifest(folder) or {}).get("clusters"))


def read_tables(
    folder: pathlib.Path, profile: Profile, expected: pa.Schema, constants: tuple[str, ...], groups: tuple[str, ...]
) -> Iterator[tuple[pathlib.Path, dict[str, Any], pa.Table]]:
    """Yields each episode's file, its constants and the rest of its columns, in the order of their numbers.

    Raises:
        InvalidInputError: no log, another profile's, or a file that is not whole or lacks a column.
    """
    paths = files(folder)
    plan = _manifest(folder) or {"format": FORMAT, "profile_fingerprint": profile.fingerprint}
    if plan.get("format") != FORMAT:
        raise InvalidInputError(
            f"{folder / MANIFEST} is of format {plan.get('format')!r}, not {FORMAT}; collect it again with this one."
        )
    _check_profile(folder, plan.get("profile"), plan.get("profile_fingerprint"), profile)
    if is_of_clusters(folder) != ("nodes" in constants):
        kinds = "clusters", "single nodes"
        raise InvalidInputError(
            f"{folder} is a log of {kinds[not plan.get('clusters')]}, not of "
            f"{kinds['nodes' not in constants]}; give one of those."
        )
    for path in paths:
        try:
            content = read_bytes(path, "Log", MAX_FILE_BYTES, "remove the file, and `helm-gym collect` makes it again")
            with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
                found = _table(path, file, profile, expected, constants, groups)
        except (pa.ArrowException, OSError, ValueError) as error:
            refuse(path, f"cannot be read as Parquet ({first_line(error)})", error)
        if found is not None:
            yield path, *found


def refuse(path: pathlib.Path, what: str, cause: Exception | None = None) -> NoReturn:
    raise InvalidInputError(f"{path} {what}; remove the file, and `helm-gym collect` makes it again.") from cause


def _check_profile(where: pathlib.Path, name: object, fingerprint: object, profile: Profile) -> None:
    if fingerprint != profile.fingerprint:
        raise InvalidInputError(
            f"{where} was logged under another profile ('{name}', {fingerprint}) than '{profile.name}' "
            f"({profile.fingerprint}); give its own with --profile."
        )


def _table(
    path: pathlib.Path,
    file: pq.ParquetFile,
    profile: Profile,
    expected: pa.Schema,
    constant: tuple[str, ...],
    groups: tuple[str, ...],
) -> tuple[dict[str, Any], pa.Table] | None:
    """Constants and other columns of one file; None where its group is not asked for."""
    found = file.schema_arrow
    if file.metadata.num_rows > MAX_ROWS:
        refuse(path, f"has {file.metadata.num_rows:,} rows; an episode has at most {MAX_ROWS:,}")
    for name in expected.names:
        if found.names.count(name) != 1:
            refuse(path, f"lacks the column '{name}'" if name not in found.names else f"has the column '{name}' twice")
    _check_types(path, found, expected, [*constant])
    constants = _constants(path, file.read(columns=[*constant]), constant)
    _check_profile(path, constants["profile"], constants["profile_fingerprint"], profile)
    if episode_path(path.parent, constants["episode"]) != path:
        refuse(path, f"holds episode {constants['episode']} under another's name")
    if constants["rung"] not in RUNGS:
        refuse(path, f"is of the rung '{constants['rung']}', and not {' or '.join(RUNGS)}")
    if groups and constants["group"] not in groups:
        return None
    rest = [name for name in expected.names if name not in constant]
    _check_types(path, found, expected, rest)
    return constants, file.read(columns=rest)


def _episode(
    path: pathlib.Path, constants: dict[str, Any], table: pa.Table, profile: Profile, planned: object
) -> LoggedEpisode:
    requests = profile.interval.requests
    interval, node = (take_column(path, table, name) for name in ("interval", "node"))
    whole = planned if isinstance(planned, int) and constants["group"] != "sweep" else len(interval)
    if len(interval) != whole or not np.array_equal(interval, np.arange(whole)):
        refuse(path, f"lacks an interval, or has them out of order ({len(interval)} of {whole})")
    if node.any():
        refuse(path, "holds more nodes than node 0")
    return LoggedEpisode(
        constants=constants,
        workload=np.stack([take_column(path, table, f"w_{p.name}", 1, p.low, p.high) for p in PARAMETERS], axis=1),
        gaps_s=_gaps(path, table, requests),
        asked_alpha=take_column(path, table, "asked_alpha", 1, 0.0, 1.0),
        slo_ms=take_column(path, table, "slo_ms", 1, 0.0),
        telemetry={
            field.name: take_column(path, table, field.name, field.width, field.low, field.high) for field in FIELDS
        },
        service_ms=take_column(path, table, "request_service_ms", requests, 0.0),
        sojourn_ms=take_column(path, table, "request_sojourn_ms", requests, 0.0),
    )


def _check_types(path: pathlib.Path, found: pa.Schema, expected: pa.Schema, names: list[str]) -> None:
    for name in names:
        is_, should = found.field(name).type, expected.field(name).type
        if is_ != should:
            refuse(path, f"has the column '{name}' as {is_}, not {should}")


def _constants(path: pathlib.Path, table: pa.Table, names: tuple[str, ...]) -> dict[str, Any]:
    if table.num_rows == 0:
        refuse(path, "holds no interval")
    constants = {}
    for name in names:
        values = table[name].unique().to_pylist()
        if len(values) != 1 or values[0] is None or values[0] != values[0]:
            refuse(path, f"has the column '{name}' without one value that all of its rows share")
        constants[name] = values[0]
    return constants


def _gaps(path: pathlib.Path, table: pa.Table, requests: int) -> NDArray[np.float64]:
    column = table["gaps_s"].combine_chunks()
    if column.null_count == table.num_rows:
        return np.full((table.num_rows, requests), np.nan)
    if column.null_count or set(column.value_lengths().to_pylist()) != {requests}:
        refuse(path, f"has the column 'gaps_s' without {requests} gaps in each of its rows")
    return _numbers(path, "gaps_s", column.flatten(), requests, 0.0, np.inf)


def take_column(
    path: pathlib.Path, table: pa.Table, name: str, width: int = 1, low: float = -np.inf, high: float = np.inf
) -> NDArray[np.float64]:
    column = table[name].combine_chunks()
    if column.null_count:
        refuse(path, f"has no value in column '{name}', row {column.is_null().index(True).as_py()}")
    return _numbers(path, name, column if width == 1 else column.flatten(), width, low, high)


def _numbers(
    path: pathlib.Path, name: str, values: pa.Array, width: int, low: float, high: float
) -> NDArray[np.float64]:
    """(rows,), or (rows, width) where that is not 1; finite and within bounds."""
    x = values.to_numpy(zero_copy_only=False).astype(np.float64)
    wrong = ~((x >= low - _SLACK) & (x <= high + _SLACK) & np.isfinite(x))
    if wrong.any():
        at = int(wrong.argmax())
        refuse(
            path, f"has {x[at]:g} in column '{name}', row {at // width}; it must be finite, from {low:g} to {high:g}"
        )
    return x if width == 1 else x.reshape(-1, width)
