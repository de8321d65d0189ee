"""The log as its reader meets it: what was served comes back whole, and what is broken is refused with a sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import pickle
import shutil
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helm_gym import profile as profiles
from helm_gym.backend import open_backend
from helm_gym.control_loop import start_warm
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Interval, Profile
from helm_gym.tasks import Task
from helm_gym.telemetry import FIELDS
from helm_gym.workload.state import WorkloadPath
from helm_gym.workload.traces import Trace
from surrogate_backend.data.collect import Plan, collect
from surrogate_backend.data.log import LoggedEpisode, read_log, schema

EPISODES, INTERVALS = 18, 4  # up to one of each regime, the trace too


@pytest.fixture(scope="module")
def small() -> Profile:
    """cpu-small with short intervals and few users."""
    profile = profiles.load("cpu-small")
    population = dataclasses.replace(profile.population, users=1000, items=20_000)
    return dataclasses.replace(profile, name="small", interval=Interval(10, 20), population=population)


@pytest.fixture(scope="module")
def log(small: Profile, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A modelled log with every regime, not to be written to."""
    trace = Trace("made-up", np.cumsum(np.tile([0.0, 0.001, 0.1], 100)), np.arange(300) + 100, None)
    folder = tmp_path_factory.mktemp("logs") / "train"
    assert collect(Plan(small, "modelled", "train", INTERVALS, 0, trace), folder, EPISODES) == EPISODES
    return folder


@pytest.fixture(scope="module")
def episodes(log: pathlib.Path, small: Profile) -> list[LoggedEpisode]:
    return list(read_log(log, small))


@pytest.fixture
def copy(log: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A log of one episode, to be broken."""
    (tmp_path / "log").mkdir()
    shutil.copy(log / "log.json", tmp_path / "log")
    shutil.copy(log / "episode-000000.parquet", tmp_path / "log")
    return tmp_path / "log"


def equal(one: LoggedEpisode, other: LoggedEpisode) -> bool:
    arrays = ("workload", "gaps_s", "asked_alpha", "slo_ms", "service_ms", "sojourn_ms")
    return (
        one.constants == other.constants
        and all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in arrays)
        and all(np.array_equal(one.telemetry[field.name], other.telemetry[field.name]) for field in FIELDS)
    )


def refusal(folder: pathlib.Path, profile: Profile) -> str:
    with pytest.raises(InvalidInputError) as caught:
        list(read_log(folder, profile))
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and ";" in text, "one sentence, and what to do"
    assert str(folder) in text, "where"
    return text


def test_a_log_holds_what_was_served_and_can_be_served_again(episodes: list[LoggedEpisode], small: Profile) -> None:
    """Workload, gaps between arrivals and splits alone give the same telemetry, bit by bit."""
    assert [e.constants["episode"] for e in episodes] == list(range(EPISODES))
    assert {e.constants["regime"] for e in episodes} == {"excite", "burst", "mixed", "trend", "steady", "trace"}
    assert [np.isfinite(e.gaps_s).all() for e in episodes] == [e.constants["regime"] == "trace" for e in episodes]
    backend = open_backend("modelled", small)
    for e in episodes:
        nothing = np.zeros((1, e.intervals), np.int64)
        path = WorkloadPath(e.workload[None], e.gaps_s[None], nothing, (("logged",),))
        task = Task("replay", "steady", "", start_alpha=e.constants["start_alpha"], warmup=e.constants["warmup"])
        start_warm(backend, task, path, [e.constants["request_seed"]], np.full((1, 1), task.start_alpha))
        for t in range(e.intervals):
            telemetry = backend.step(e.asked_alpha[t].reshape(1, 1), path.at(t))
            for name, values in telemetry.items():
                if name == "predicted_ms":  # kept as float32
                    assert np.array_equal(values[0, 0].astype(np.float32), e.telemetry[name][t])
                else:
                    assert values[0, 0] == e.telemetry[name][t], name
            assert telemetry.service_ms is not None and telemetry.sojourn_ms is not None
            assert np.array_equal(telemetry.service_ms[0, 0].astype(np.float32), e.service_ms[t])
            assert np.array_equal(telemetry.sojourn_ms[0, 0].astype(np.float32), e.sojourn_ms[t])
            assert backend.slo_ms == e.slo_ms[t]


def test_groups_are_picked(log: pathlib.Path, small: Profile) -> None:
    assert len(list(read_log(log, small, ("train", "repeat")))) == EPISODES
    assert not list(read_log(log, small, ("repeat",)))


def replaced(name: str, change: Callable[[list], list], type_: pa.DataType | None = None) -> Callable:
    """Changes one column's values, or its type."""

    def mutate(table: pa.Table) -> pa.Table:
        at, field = table.column_names.index(name), table.schema.field(name)
        return table.set_column(at, name, pa.array(change(table[name].to_pylist()), type_ or field.type))

    return mutate


def first(value: object) -> Callable[[list], list]:
    return lambda values: [value, *values[1:]]


BROKEN = {
    "column missing": (lambda t: t.drop(["kv_hit_rate"]), "lacks the column 'kv_hit_rate'"),
    "no columns": (lambda t: t.select([]), "lacks the column 'episode'"),
    "column twice": (lambda t: t.append_column("slo_ms", t["slo_ms"]), "has the column 'slo_ms' twice"),
    "text for a number": (
        replaced("kv_hit_rate", lambda v: list(map(str, v)), pa.string()),
        "'kv_hit_rate' as string, not double",
    ),
    "number for a text": (replaced("regime", lambda v: [1] * len(v), pa.int32()), "'regime' as int32, not string"),
    "wrong width": (
        replaced("request_service_ms", lambda v: [x[:3] for x in v], pa.list_(pa.float32(), 3)),
        "'request_service_ms'",
    ),
    "NaN": (replaced("kv_hit_rate", first(float("nan"))), "has nan in column 'kv_hit_rate', row 0"),
    "infinite": (replaced("sojourn_p99_ms", first(float("inf"))), "has inf in column 'sojourn_p99_ms', row 0"),
    "NaN of a request": (
        replaced("request_sojourn_ms", lambda v: [*v[:2], [float("nan")] * 10, *v[3:]]),
        "has nan in column 'request_sojourn_ms', row 2",
    ),
    "out of bounds": (replaced("kv_hit_rate", first(1.5)), "has 1.5 in column 'kv_hit_rate', row 0; it must be finite"),
    "negative time": (replaced("request_service_ms", first([-1.0] * 10)), "has -1 in column 'request_service_ms'"),
    "value missing": (replaced("asked_alpha", first(None)), "has no value in column 'asked_alpha', row 0"),
    "requests missing": (replaced("request_service_ms", first(None)), "no value in column 'request_service_ms'"),
    "no rows": (lambda t: t.slice(0, 0), "holds no interval"),
    "first interval missing": (lambda t: t.slice(1), "lacks an interval"),
    "interval missing": (lambda t: t.filter(pc.not_equal(t["interval"], 2)), "lacks an interval"),
    "last interval missing": (lambda t: t.slice(0, INTERVALS - 1), f"({INTERVALS - 1} of {INTERVALS})"),
    "out of order": (lambda t: t.take([1, 0, 2, 3]), "out of order"),
    "interval twice": (lambda t: t.take([0, 1, 1, 2]), "lacks an interval"),
    "two episodes in one": (replaced("episode", first(7)), "the column 'episode' without one value"),
    "driver missing": (replaced("driver", lambda v: [None] * len(v)), "the column 'driver' without one value"),
    "start not a number": (replaced("start_alpha", lambda v: [float("nan")] * len(v)), "the column 'start_alpha'"),
    "another's name": (replaced("episode", lambda v: [7] * len(v)), "holds episode 7 under another's name"),
    "a surrogate's": (replaced("rung", lambda v: ["surrogate"] * len(v)), "is of the rung 'surrogate'"),
    "another node": (replaced("node", first(1)), "more nodes"),
    "some gaps": (replaced("gaps_s", first([0.1] * 10)), "the column 'gaps_s' without 10 gaps"),
    "few gaps": (replaced("gaps_s", lambda v: [[0.1] * 9] * len(v)), "the column 'gaps_s' without 10 gaps"),
    "gap missing": (replaced("gaps_s", lambda v: [[None] + [0.1] * 9] * len(v)), "has nan in column 'gaps_s', row 0"),
    "another profile": (
        replaced("profile_fingerprint", lambda v: ["0123456789abcdef"] * len(v)),
        "was logged under another profile ('small', 0123456789abcdef)",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_refused(name: str, copy: pathlib.Path, small: Profile) -> None:
    mutate, sentence = BROKEN[name]
    path = copy / "episode-000000.parquet"
    pq.write_table(mutate(pq.ParquetFile(path).read()), path)
    text = refusal(copy, small)
    assert str(path) in text and sentence in text


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"no Parquet at all" * 100, pickle.dumps({"episode": 0})],
    ids=["empty", "start alone", "text", "pickle"],
)
def test_what_is_not_parquet_is_refused(content: bytes, copy: pathlib.Path, small: Profile) -> None:
    (copy / "episode-000000.parquet").write_bytes(content)
    assert "cannot be read as Parquet" in refusal(copy, small)


def test_a_folder_in_place_of_a_file_is_refused(copy: pathlib.Path, small: Profile) -> None:
    (copy / "episode-000001.parquet").mkdir()
    assert "is no regular file but a folder" in refusal(copy, small)
    (copy / "episode-000001.parquet").rmdir()
    os.mkfifo(copy / "episode-000001.parquet")
    assert "is no regular file but a pipe" in refusal(copy, small)


@given(data=st.data())
def test_a_file_that_was_cut_or_has_a_turned_bit_is_refused_or_whole(
    data: st.DataObject,
    log: pathlib.Path,
    episodes: list[LoggedEpisode],
    small: Profile,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    whole = (log / "episode-000003.parquet").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        broken = whole[:at]
    else:
        broken = whole[:at] + bytes([whole[at] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[at + 1 :]
    folder = tmp_path_factory.getbasetemp() / "turned"
    folder.mkdir(exist_ok=True)
    (folder / "episode-000003.parquet").write_bytes(broken)
    try:
        (found,) = read_log(folder, small)
    except InvalidInputError as error:
        assert "episode-000003.parquet" in str(error) and "\n" not in str(error)
    else:
        assert equal(found, episodes[3])


class Harm:
    """What must not be unpickled."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return pathlib.Path.touch, (self.path,)


def test_a_log_is_never_unpickled(copy: pathlib.Path, small: Profile, tmp_path: pathlib.Path) -> None:
    """Old releases of Arrow unpickled the type that a column says it has."""
    path, harmed = copy / "episode-000000.parquet", tmp_path / "harmed"
    payload = pickle.dumps(Harm(harmed))
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload}
    table = pq.ParquetFile(path).read()
    fields = [field.with_metadata(metadata) if field.name == "slo_ms" else field for field in table.schema]
    pq.write_table(table.cast(pa.schema(fields, {b"pandas": payload})), path)
    with contextlib.suppress(InvalidInputError):
        list(read_log(copy, small))
    assert not harmed.exists()
    pickle.loads(payload)
    assert harmed.exists(), "the payload is live"


def test_folders_that_are_no_log_are_refused(tmp_path: pathlib.Path, copy: pathlib.Path, small: Profile) -> None:
    assert "is no folder" in refusal(tmp_path / "nowhere", small)
    assert "is no folder" in refusal(copy / "log.json", small)
    (tmp_path / "empty").mkdir()
    assert "holds no episodes" in refusal(tmp_path / "empty", small)
    told = {"{": "is not JSON", "[" * 100_000: "nested", "[]": "is not what", '{"format": 2}': "is of format 2"}
    for content, sentence in told.items():
        (copy / "log.json").write_text(content, encoding="utf-8")
        assert sentence in refusal(copy, small)


def test_another_profiles_log_is_refused(log: pathlib.Path, small: Profile) -> None:
    other = dataclasses.replace(small, name="other", max_step=0.2)
    assert f"another profile ('small', {small.fingerprint}) than 'other'" in refusal(log, other)


def test_a_plan_that_was_lost_is_not_needed_to_read(copy: pathlib.Path, small: Profile) -> None:
    (copy / "log.json").unlink()
    assert len(list(read_log(copy, small))) == 1


def test_columns_are_those_of_the_format(log: pathlib.Path, small: Profile) -> None:
    """Logs that took days are in it: another set of columns is another format."""
    found = pq.ParquetFile(log / "episode-000000.parquet").schema_arrow
    assert found.equals(schema(small))
    assert json.loads((log / "log.json").read_text(encoding="utf-8"))["format"] == 1
    assert set(found.names) >= {field.name for field in FIELDS}
