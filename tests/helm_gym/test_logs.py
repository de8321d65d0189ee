"""Readers of interaction logs: each format is told and read, what logs contain is counted, a fault names its line."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
import random

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from helm_gym.errors import InvalidInputError
from helm_gym.registry import register
from helm_gym.workload.logs import Log, LogReader, read_log
from helm_gym.workload.readers import log_blocks
from helm_gym.workload.readers.log_formats import LOG_FORMATS, LogFormat, detect_log
from helm_gym.workload.readers.log_ids import Numbering, hash_texts, objects_by_line
from helm_gym.workload.readers.text_blocks import Lines

T = 1_511_600_000  # seconds
DATE = "2019-11-24 00:00:{:02d}.004101+00:00"

# Of each text format, its first line if it has one, and a row of (user, item, second).
TEXTS = {
    "Amazon Reviews 2023 CSV": (
        "user_id,parent_asin,rating,timestamp",
        lambda user, item, s: f"AG{user},B0{item},5.0,{(T + s) * 1000}",
    ),
    "Amazon Reviews 2023 JSONL": (
        "",
        lambda user, item, s: json.dumps(
            {
                "rating": 5.0,
                "title": 'said "so"\\',
                "text": "{[}<br />\u2028é",
                "images": [{"small_image_url": "https://x/y.jpg"}],
                "asin": f"A{item}",
                "parent_asin": f"B0{item}",
                "user_id": f"AG{user}",
                "timestamp": (T + s) * 1000,
                "verified_purchase": True,
            }
        ),
    ),
    "Taobao UserBehavior CSV": ("", lambda user, item, s: f"{user},{item},2520377,pv,{T + s}"),
    "KuaiRand CSV": (
        "user_id,video_id,date,hourmin,time_ms,is_click,tab",
        lambda user, item, s: f"{user},{item},20220421,1100,{(T + s) * 1000},1,1",
    ),
    "MovieLens u.data": ("", lambda user, item, s: f"{user}\t{item}\t3\t{T + s}"),
    "MovieLens ratings.csv": ("userId,movieId,rating,timestamp", lambda user, item, s: f"{user},{item},4.5,{T + s}"),
    "RecBole atomic file": (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        lambda user, item, s: f"{user}\t{item}\t3\t{T + s}.0",
    ),
    "Open Bandit CSV": (
        ",timestamp,item_id,position,click,propensity_score,user_feature_0",
        lambda user, item, s: f"{s},{DATE.format(s)},{item},2,0,0.08,81ce",
    ),
    "interactions, times in ms": (
        "timestamp,user_id,item_id",
        lambda user, item, s: f"{(T + s) * 1000},u{user},{item}",
    ),
    "interactions, parted by tabs, times in date": (
        "user_id\titem_id\ttimestamp",
        lambda user, item, s: f'{user}"\t{item}\t{DATE.format(s)[:19]}',
    ),
    "interactions JSONL, times in s": (
        "",
        lambda user, item, s: json.dumps({"user_id": f"u{user}", "item_id": f"i{item}", "timestamp": T + s}),
    ),
}
ROWS = [(1, 7, 0), (2, 8, 1), (1, 9, 3), (3, 7, 4)]


def text_of(name: str, rows: list[tuple[int, int, int]] = ROWS) -> str:
    header, row = TEXTS[name]
    return "".join(f"{line}\n" for line in [*filter(None, [header]), *(row(*values) for values in rows)])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A path to write to; its ending says nothing about the format."""
    return tmp_path_factory.mktemp("logs") / "sample.log"


def read_text(file: pathlib.Path, text: str | bytes, skip_bad: bool = False) -> Log:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_log(file, skip_bad)


def fault(file: pathlib.Path, text: str | bytes) -> str:
    with pytest.raises(InvalidInputError) as caught:
        read_text(file, text)
    return str(caught.value)


def holds_the_rows(log: Log, users: bool = True) -> None:
    np.testing.assert_array_equal(log.time_ns - log.time_ns[0], np.array([0, 1, 3, 4]) * 10**9)
    np.testing.assert_array_equal(log.item, [0, 1, 2, 0])
    assert log.items == 3 and log.users == (3 if users else 0)
    if users:
        assert log.user is not None
        np.testing.assert_array_equal(log.user, [0, 1, 0, 2])


def test_the_table_is_tested_whole() -> None:
    told = {name.partition(", times")[0] for name in TEXTS}
    assert told | {"Yambda Parquet", "interactions Parquet"} == {form.name for form in LOG_FORMATS}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("how", ["plain", "gzip", "windows"])
def test_text_formats_are_told_and_read(file: pathlib.Path, name: str, how: str) -> None:
    content = text_of(name).encode()
    if how == "windows":
        content = b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")
    log = read_text(file, gzip.compress(content) if how == "gzip" else content)
    assert log.format == name and log.name == "sample"
    holds_the_rows(log, users=name != "Open Bandit CSV")
    assert dataclasses.replace(log.findings, users_of_one=0) == type(log.findings)(rows=4)
    assert log.findings.users_of_one == (2 if log.user is not None else 0)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        (
            "Yambda Parquet",
            {
                "uid": np.array([1, 2, 1, 3], np.uint32),
                "timestamp": np.array([0, 1, 3, 4], np.uint32),
                "item_id": np.array([7, 8, 9, 7], np.uint32),
                "is_organic": np.array([1, 0, 0, 0], np.uint8),
            },
        ),
        (
            "interactions Parquet",
            {
                "user_id": ["a", "b", "a", "c"],
                "item_id": [7, 8, 9, 7],
                "timestamp": pyarrow.array(np.array([T, T + 1, T + 3, T + 4], "datetime64[s]")),
            },
        ),
    ],
)
def test_parquet_is_told_and_read(file: pathlib.Path, name: str, columns: dict[str, object]) -> None:
    parquet.write_table(pyarrow.table(columns), file)
    log = read_log(file)
    assert log.format == name
    holds_the_rows(log)


def test_parquet_with_nulls_names_the_row_and_skips_it(file: pathlib.Path) -> None:
    columns = {"uid": [1, None, 2, 1], "item_id": [7, 8, 7, 9], "timestamp": [0, 1, 3, None]}
    parquet.write_table(pyarrow.table(columns), file)
    with pytest.raises(InvalidInputError, match=r"row 2: has no uid; correct or remove it, or .* --skip-bad"):
        read_log(file)
    log = read_log(file, skip_bad=True)
    assert log.findings.bad_rows == [(2, "has no uid"), (4, "has no timestamp")] and log.findings.rows == 2
    parquet.write_table(pyarrow.table({"uid": [1], "item_id": [[7, 8]], "timestamp": [[0, 1]]}), file)
    with pytest.raises(InvalidInputError, match=r"item_id holds list<.*of Yambda, give a flat file"):
        read_log(file)
    file.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(InvalidInputError, match="damaged Parquet file"):
        read_log(file)


def test_what_logs_contain_is_counted_and_kept(file: pathlib.Path) -> None:
    rows = [f"1,7,1,pv,{T + 5}", f"2,7,1,buy,{T}", f"2,7,1,pv,{T}", f"1,8,1,pv,{(T + 9) * 1000}", f"3,8,1,fav,{T + 9}"]
    log = read_text(file, "\n".join(rows))
    found = log.findings
    assert (found.rows, found.out_of_order, found.duplicates, found.other_unit, found.users_of_one) == (5, 1, 1, 1, 1)
    np.testing.assert_array_equal((log.time_ns - log.time_ns[0]) // 10**9, [0, 0, 5, 9, 9])
    told = " ".join(found.told())
    assert "1 rows are earlier" in told and "1 rows repeat" in told and "1 times are in another unit" in told


BAD_ROWS = {
    "1,7,1,pv,0": "time is '0': zero",
    "1,7,1,pv,-5": "time is '-5': negative",
    "1,7,1,pv,86400": "time is '86400', in no unit of time between 1990 and 2200",
    "1,7,1,pv,soon": "time is 'soon', not a number",
    "1,7,1,pv": "has 4 columns, not 5",
    f",7,1,pv,{T}": "has no user",
    "": "is empty",
    f'1,"7,1,pv,{T}': "has 0 columns, not 5",
}


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.items())
@pytest.mark.parametrize("above", [1, 3000])
def test_a_bad_row_is_named_by_its_line_or_left_out_and_listed(
    file: pathlib.Path, row: str, reason: str, above: int
) -> None:
    good = [f"{k},7,1,pv,{T + k}" for k in range(above)]
    text = "\n".join([*good, row, *good, f"1,7,1,pv,{T + 5000}"]) + "\n"
    assert f"{file}, line {above + 1}: {reason}; correct or remove it" in fault(file, text)
    found = read_text(file, text, skip_bad=True).findings
    assert (found.rows, found.bad) == (2 * above + 1, 1)
    ((line, told),) = found.bad_rows
    assert line == above + 1 and reason in told


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"user_id": "a", "parent_asin": "b", "rating": 1}', "has no timestamp"),
        ('{"user_id": ["a"], "parent_asin": "b", "rating": 1, "timestamp": 1511600000000}', "not a text"),
        ('{"user_id": "a", "parent_asin": "b", "rating": 1, "timestamp": 1511600000000} {}', "is no JSON"),
        ("null{}", "is no JSON"),  # which crashes Arrow's reader
        ("[1]", "not a JSON object"),
        ('{"user_id": "a"', "is no JSON"),
        ("", "is empty"),
    ],
)
def test_a_bad_object_is_named_by_its_line(file: pathlib.Path, row: str, reason: str) -> None:
    good = text_of("Amazon Reviews 2023 JSONL")
    told = fault(file, good + row + "\n" + good)
    assert f"{file}, line 5: " in told and reason in told
    assert read_text(file, good + row + "\n" + good, skip_bad=True).findings.bad == 1


def test_bytes_that_are_no_utf8_are_a_bad_row(file: pathlib.Path) -> None:
    good = text_of("Taobao UserBehavior CSV").encode()
    text = good + f"9,caf\xe9,1,pv,{T}\n".encode("latin-1") + good
    assert "line 5: is not UTF-8 text" in fault(file, text)
    assert read_text(file, text, skip_bad=True).findings.bad_rows[0][0] == 5


def test_a_truncated_gzip_file_is_an_error_or_used_up_to_there_and_said(file: pathlib.Path) -> None:
    random.seed(0)
    rows = [(random.randrange(10**9), random.randrange(10**9), k) for k in range(300_000)]
    packed = gzip.compress(text_of("Taobao UserBehavior CSV", rows).encode())[:-1000]
    assert "is a damaged gzip file" in fault(file, packed)
    found = read_text(file, packed, skip_bad=True).findings
    assert "is a damaged gzip file" in found.damaged and 0 < found.rows < 300_000
    assert found.damaged in found.told()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: is empty"),
        ("a,b,c\n1,2,3\n", "starts no known format of logs; give it the header user_id,item_id,timestamp"),
        ('{"a": 1}\n', "starts no known format of logs; give each object the keys"),
        ("user_id,user_id,item_id,timestamp\n1,2,3,4\n", "names the column user_id twice"),
        ("user_id,item_id,timestamp\n1,2,77\n", "line 2: '77' does not say its unit of time"),
        (f"1,7,1,pv,{T}\n", "holds 1 interaction(s)"),
        (f"1,7,1,pv,{T}\n" * 2, "all 2 interactions have one time"),
    ],
)
def test_what_is_no_log_is_refused(file: pathlib.Path, text: str, told: str) -> None:
    assert told in fault(file, text)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: pathlib.Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InvalidInputError, match="give the path of a readable file"):
            read_log(path)


# What rows are made of, and what the two readers could take differently.
_PIECES = st.sampled_from(
    [
        "1",
        "22",
        "pv",
        ",",
        ",",
        ",",
        '"',
        "\t",
        " ",
        "",
        str(T),
        f"{T}000",
        f"{T}.5",
        "1e9",
        "1.5e9",
        "-1",
        "nan",
        "é",
        "\r",
    ]
)


@given(st.lists(st.lists(_PIECES, max_size=11).map("".join), min_size=1, max_size=4), st.sampled_from([*TEXTS]))
def test_a_block_is_read_as_its_rows_are_one_by_one(rows: list[str], name: str) -> None:
    header, row = TEXTS[name]
    layout = detect_log("x", [line for line in (header, row(1, 2, 3)) if line])
    good = [row(k, k + 1, k) for k in range(2)]
    raw = [line.encode() for line in [*good, *rows, *good]]
    block = Lines(1, len(raw), b"".join(line + b"\n" for line in raw))
    at_once = log_blocks._at_once(block, layout)
    if at_once is None:
        return
    faults: list[tuple[int, str]] = []
    one_by_one = log_blocks._one_by_one(block, layout, lambda line, reason: faults.append((line, reason)))
    assert not faults
    for ours, theirs in zip(at_once, one_by_one, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@given(st.lists(st.text(max_size=3), max_size=30))
def test_ids_are_numbered_in_order_of_appearance(ids: list[str]) -> None:
    first: dict[str, int] = {}
    expected = [first.setdefault(text, len(first)) for text in ids]
    numbering = Numbering()
    half = len(ids) // 2
    columns = [pyarrow.array(part, pyarrow.string()) for part in (ids[:half], ids[half:])]
    numbers = [number for column in columns for number in numbering.number(hash_texts(column))]
    assert numbers == expected and len(numbering) == len(first)


def test_a_table_of_ids_grows() -> None:
    keys = hash_texts(pyarrow.array([str(k) for k in range(200_000)]))
    numbering = Numbering()
    np.testing.assert_array_equal(numbering.number(keys), np.arange(200_000))
    np.testing.assert_array_equal(numbering.number(keys[::-1].copy()), np.arange(200_000)[::-1])


@pytest.mark.parametrize(
    ("line", "good"),
    [
        (b'{"a": "}{\\"]"}\n', True),
        (b'{"a": [{"b": 1}]}\r\n', True),
        (b"null{}\n", False),
        (b"{}{}\n", False),
        (b"{} \n", False),
        (b"{\n", False),
        (b'{"a\n', False),
        (b"\n", False),
        (b"[{}]\n", False),
        (b"}{\n", False),
    ],
)
def test_arrow_is_given_objects_alone(line: bytes, good: bool) -> None:
    assert objects_by_line(b"{}\n" + line, 2) is good


def test_a_log_is_gone_through_in_batches(file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helm_gym.workload.readers import text_blocks

    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 1 << 10)
    file.write_text(text_of("Taobao UserBehavior CSV", [(k % 50, k % 7, k) for k in range(1000)]), encoding="utf-8")
    reader = LogReader(file)
    batches = list(reader)
    assert len(batches) > 5 and sum(len(batch.item) for batch in batches) == reader.findings.rows == 1000
    np.testing.assert_array_equal(np.concatenate([batch.user for batch in batches]), np.arange(1000) % 50)
    assert (reader.users, reader.items) == (50, 7)


def test_a_format_of_ones_own_has_a_name(file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helm_gym import registry

    monkeypatch.setitem(registry._registered, "log-format", [])
    register("log-format", "shop", LogFormat("shop log", "csv", "customer", "article", "ms", "ms", delimiter=";"))
    log = read_text(file, f"article;customer;ms\n7;1;{T}000\n8;2;{T}500\n")
    assert log.format == "shop log" and log.span_s == 0.5
    register("log-format", "wrong", 5)
    assert "is no LogFormat" in fault(file, "a;b\n")
