"""Trace readers: what is read, round trips, and that a fault is named by its line."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helm_gym.errors import InvalidInputError
from helm_gym.workload import traces
from helm_gym.workload.readers import text_blocks
from helm_gym.workload.readers.text_blocks import MAX_LINE_BYTES
from helm_gym.workload.readers.trace_lines import MAX_TOKENS
from helm_gym.workload.traces import Trace, read_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
AZURE = [HEADER, "2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109", "2023-11-16 18:15:51,9,1"]
AZURE_BYTES = [line.encode() for line in AZURE]
TRACES = pathlib.Path(
    os.environ.get("HELM_GYM_TRACES") or pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "traces"
)


def mooncake_line(timestamp: object = 0, tokens: object = 6758, output: object = 500, blocks: object = (0, 1)) -> str:
    return json.dumps({"timestamp": timestamp, "input_length": tokens, "output_length": output, "hash_ids": blocks})


MOONCAKE = [mooncake_line(0, blocks=(0, 1)), mooncake_line(0, blocks=(0, 2)), mooncake_line(1500, blocks=(0, 1, 3))]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A path to write to; its ending says nothing about the format."""
    return tmp_path_factory.mktemp("traces") / "sample.trace"


def read_lines(file: pathlib.Path, lines: list[str] | list[bytes], end: bytes = b"\n") -> Trace:
    raw = [line.encode() if isinstance(line, str) else line for line in lines]
    file.write_bytes(end.join(raw) + end)
    return read_trace(file)


def fault(file: pathlib.Path, lines: list[str] | list[bytes]) -> str:
    with pytest.raises(InvalidInputError) as caught:
        read_lines(file, lines)
    return str(caught.value)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_azure(file: pathlib.Path, end: bytes) -> None:
    trace = read_lines(file, ["\ufeff" + AZURE[0], *AZURE[1:]], end)
    assert trace.name == "sample"
    assert trace.arrival_s.tolist() == [0.0, 4.314579, 4.31941]
    assert trace.tokens.tolist() == [374, 396, 9]
    assert trace.returning is None
    assert [trace.arrival_s.dtype.name, trace.tokens.dtype.name] == ["float64", "int64"]


def test_azure_offsets_name_the_same_clock(file: pathlib.Path) -> None:
    trace = read_lines(file, [HEADER, "2024-05-10 23:30:00.5+00:00,1,1", "2024-05-11 01:30:01+02:00,1,1"])
    assert trace.arrival_s.tolist() == [0.0, 0.5]


def test_mooncake_returning_leaves_the_common_block_out(file: pathlib.Path) -> None:
    trace = read_lines(file, MOONCAKE)
    assert trace.arrival_s.tolist() == [0.0, 0.0, 1.5]
    assert trace.returning is not None
    assert trace.returning.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("name", "requests", "span_s", "returning"),
    [("azure_llm_conv_2023.csv", 19_366, 3501.721937, None), ("mooncake_conversation.jsonl", 12_031, 3536.999, 0.3872)],
)
def test_published_traces(name: str, requests: int, span_s: float, returning: float | None) -> None:
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"{path} is absent, others' and not copied here; set HELM_GYM_TRACES to the folder that holds it")
    trace = read_trace(path)
    assert trace.arrival_s.shape == trace.tokens.shape == (requests,)
    assert trace.arrival_s[0] == 0.0
    assert trace.arrival_s[-1] == pytest.approx(span_s)
    assert np.all(np.diff(trace.arrival_s) >= 0)
    share = None if trace.returning is None else pytest.approx(float(trace.returning.mean()), abs=1e-4)
    assert share == returning


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("2023-11-16 18:15:50.9951690,396", "2 column"),
        ("2023-11-16 18:15:50.9951690,396,109,7", "4 column"),
        ("", "0 column"),
        ('2023-11-16 18:15:50.9951690,"396,109', "not CSV"),
        ("2023-11-16 18:15:50.9951690,many,109", "ContextTokens is 'many'"),
        ("2023-11-16 18:15:50.9951690,-3,109", "ContextTokens is '-3'"),
        ("2023-11-16 18:15:50.9951690,396,nan", "GeneratedTokens is 'nan'"),
        ("2023-11-16 18:15:50.9951690,3.5,109", "ContextTokens is '3.5'"),
        ("2023-11-16 18:15:50.9951690,1_000,109", "ContextTokens is '1_000'"),
        ("2023-11-16 18:15:50.9951690,\u0663,109", "ContextTokens"),
        (f"2023-11-16 18:15:50.9951690,{MAX_TOKENS + 1},109", "ContextTokens"),
        ("2023-13-16 18:15:50.9951690,396,109", "TIMESTAMP"),
        ("2023-11-16 24:15:50.9951690,396,109", "TIMESTAMP"),
        ("16/11/2023 18:15,396,109", "TIMESTAMP"),
        ("1700158550,396,109", "TIMESTAMP"),
        ("2023-11-16 18:15:46.0000000,396,109", "earlier than the line above"),
        (b"2023-11-16 18:15:50.9951690,\xff,109", "not UTF-8"),
        ("7" * (MAX_LINE_BYTES + 1), "exceeds"),
        ("7" * (MAX_LINE_BYTES - 1), "not CSV"),
    ],
)
def test_azure_fault_names_its_line(file: pathlib.Path, line: str | bytes, says: str) -> None:
    raw = line.encode() if isinstance(line, str) else line
    message = fault(file, [AZURE[0].encode(), AZURE[1].encode(), raw, AZURE[3].encode()])
    assert f"{file}, line 3: " in message
    assert says in message
    assert len(message) < len(str(file)) + 300


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1, 2]", "not a JSON object"),
        ("", "not JSON"),
        ('{"timestamp": 0, ', "not JSON"),
        ('{"timestamp": 0, "input_length": 1}', "lacks the key(s) output_length, hash_ids"),
        (mooncake_line(-1), "timestamp is -1"),
        (mooncake_line(float("nan")), "timestamp is nan"),
        (mooncake_line(float("inf")), "timestamp is inf"),
        (mooncake_line("0"), "timestamp is '0'"),
        (mooncake_line(True), "timestamp is True"),
        (mooncake_line(10**400), "timestamp is 1000"),
        (mooncake_line(tokens=-1), "input_length is -1"),
        (mooncake_line(tokens=1.0), "input_length is 1.0"),
        (mooncake_line(output=None), "output_length is None"),
        (mooncake_line(blocks="0,1"), "hash_ids is '0,1'"),
        (mooncake_line(blocks=[0, "1"]), "hash_ids"),
        ('{"timestamp": ' + "9" * 5000 + "}", "number too long"),
        ("[" * 200_000, "brackets too deep"),
    ],
)
def test_mooncake_fault_names_its_line(file: pathlib.Path, line: str, says: str) -> None:
    message = fault(file, [MOONCAKE[0], line, MOONCAKE[2]])
    assert f"{file}, line 2: " in message
    assert says in message
    assert len(message) < len(str(file)) + 300


def test_mooncake_going_back_in_time_is_a_fault(file: pathlib.Path) -> None:
    assert "line 2: is earlier" in fault(file, [mooncake_line(5), mooncake_line(4), mooncake_line(6)])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "line 1: is empty"),
        (b"\n", "line 1: is empty"),
        (b"user,item\n1,2\n", "no known trace format"),
        (b"[]\n", "no known trace format"),
        (b"\xff\n", "line 1: is not UTF-8"),
        (b"7" * (MAX_LINE_BYTES + 1) + b"\n", "line 1: exceeds"),
        (b"7" * (3 * MAX_LINE_BYTES), "line 1: exceeds"),
        (b"\x1f\x8b\x08\x00\xff", "is a damaged gzip file"),
        (gzip.compress(b"\n".join(AZURE_BYTES))[:-6], "is a damaged gzip file"),
        (b"PK\x03\x04rest", "is a Zip archive (as .xlsx files are, too); unpack it"),
        (b"\x28\xb5\x2f\xfdrest", "packed by Zstandard; unpack it, or pack it with gzip"),
        (b"\xfd7zXZ\x00rest", "packed by xz"),
        (b"BZh91AY", "packed by bzip2"),
        (b"PAR1rest", "is a Parquet file; save it as CSV"),
        ("TIMESTAMP".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4b\n", "fetch that with `git lfs pull`"),
        (HEADER.encode(), "holds 0 request"),
        (MOONCAKE[0].encode(), "holds 1 request"),
        ("\n".join(MOONCAKE[:2]).encode(), "arrive at once"),
    ],
)
def test_file_that_is_no_trace(file: pathlib.Path, text: bytes, says: str) -> None:
    file.write_bytes(text)
    with pytest.raises(InvalidInputError, match=re.escape(says)):
        read_trace(file)


@pytest.mark.parametrize("path", ["absent.csv", ".", "nul\0byte", "pipe", "/dev/zero"])
def test_file_that_cannot_be_read(tmp_path: pathlib.Path, path: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInputError, match="Cannot read "):
        read_trace(tmp_path / path)


@pytest.mark.parametrize("lines", [AZURE, MOONCAKE])
def test_gzip_reads_the_same(file: pathlib.Path, lines: list[str]) -> None:
    plain = read_lines(file, lines)
    text = "\n".join(lines).encode()
    file.write_bytes(gzip.compress(text[:50]) + gzip.compress(text[50:]))  # as `cat a.gz b.gz` makes them
    packed = read_trace(file)
    for name in ("arrival_s", "tokens", "returning"):
        assert np.array_equal(getattr(packed, name), getattr(plain, name))
    assert packed.summary == plain.summary


def test_gzip_that_expands_without_end(file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(gzip.compress(b"0" * 10_000_000))
    with pytest.raises(InvalidInputError, match="line 1: exceeds"):
        read_trace(file)
    monkeypatch.setattr(text_blocks, "EXPANSION_FROM", 1 << 20)
    file.write_bytes(gzip.compress("\n".join([*AZURE, *AZURE[-1:] * 500_000]).encode()))
    with pytest.raises(InvalidInputError, match="expands over 200 times, as no recording does"):
        read_trace(file)


def azure_at(*times: str) -> list[str]:
    return [HEADER, *(f"{time},9,1" for time in times)]


def test_requests_of_whole_seconds_are_spread_over_them(file: pathlib.Path) -> None:
    seconds = [f"2023-11-16 18:15:{second:02d}" for second in (46, 46, 46, 46, 47, 49, 49)]
    trace = read_lines(file, azure_at(*seconds))
    assert trace.arrival_s.tolist() == [0, 0.25, 0.5, 0.75, 1, 3, 3.5]
    assert "whole seconds, spread evenly over each" in trace.summary
    finer = read_lines(file, azure_at(*seconds, "2023-11-16 18:15:49.5"))
    assert finer.arrival_s.tolist() == [0, 0, 0, 0, 1, 3, 3, 3.5]
    assert "whole seconds" not in finer.summary
    apart = read_lines(file, azure_at("2023-11-16 18:15:46", "2023-11-16 18:16:00", "2023-11-16 18:17:00"))
    assert apart.arrival_s.tolist() == [0, 14, 74]
    batches = read_lines(file, azure_at(*(f"2023-11-16 18:15:{second:02d}" for second in (46, 46, 49, 49, 49, 55))))
    assert batches.arrival_s.tolist() == [0, 0, 3, 3, 3, 9]
    assert "in steps of 3 s, kept as they are" in batches.summary
    minutes = fault(file, azure_at("2023-11-16 18:15:00", "2023-11-16 18:15:00", "2023-11-16 18:16:00"))
    assert "has times of whole minutes alone, and several requests in one" in minutes


@pytest.mark.parametrize(
    ("times", "says"),
    [
        (["2023-11-16 18:15:46", "2023-11-20 09:00:00"], "line 3: comes 3.6 days after the line above it, as where"),
        (["2023-11-16 18:15:46", "2024-11-16 18:15:46"], "line 3: comes 366 days after the line above it"),
        (["1970-01-01 00:00:00", "2023-11-16 18:15:46"], "line 2: its time is 1970 or zero, and the next line's"),
        (["2023-11-16 18:15:46", "1970-01-01 00:00:00"], "line 3: is earlier than the line above it"),
    ],
)
def test_recordings_that_were_joined(file: pathlib.Path, times: list[str], says: str) -> None:
    message = fault(file, azure_at(*times, "2024-11-16 18:15:47"))
    assert f"{file}, {says}" in message


def test_zero_before_a_clock_in_milliseconds(file: pathlib.Path) -> None:
    lines = [mooncake_line(time) for time in (0, 1_700_158_550_123, 1_700_158_550_124)]
    assert "line 1: its time is 1970 or zero" in fault(file, lines)
    assert read_lines(file, lines[1:]).arrival_s.tolist() == [0.0, 0.001]  # to the last digit


def test_rates_beyond_what_can_be(file: pathlib.Path) -> None:
    lines = [f"{time}" for time in range(200)]
    assert "has 200 requests in 0.000199 s, over 100,000 a second" in fault(file, ["arrival_us", *lines])
    assert read_lines(file, ["arrival_ms", *lines]).arrival_s[-1] == 0.199


def test_requests_without_tokens(file: pathlib.Path) -> None:
    assert "ContextTokens is 0 in every request" in fault(
        file, [HEADER, *(line.replace("374", "0") for line in AZURE[1:2]), "2023-11-16 18:15:51,0,1"]
    )


def test_more_than_can_be_held(file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MAX_REQUESTS", 2)
    assert "holds over 2 requests; give a part of it" in fault(file, AZURE)
    monkeypatch.setattr(traces, "MAX_REQUESTS", 3)
    monkeypatch.setattr(traces, "MAX_IDS", 6)
    assert "holds over 6 ids of blocks" in fault(file, MOONCAKE)


def test_summary() -> None:
    arrivals = np.arange(12_032.0) * (3540 / 12_031)
    assert Trace("x", arrivals, None, None, "Mooncake JSONL").summary == (
        "Mooncake JSONL, 12,032 requests over 59 min, 3.4 requests/s"
    )


TOKENS = st.integers(0, MAX_TOKENS)
STARTS = st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2100, 1, 1))


@given(start=STARTS, requests=st.lists(st.tuples(st.integers(0, 10**12), TOKENS), min_size=1, max_size=30))
def test_azure_round_trip(file: pathlib.Path, start: datetime.datetime, requests: list[tuple[int, int]]) -> None:
    ticks = [start.microsecond * 10, *np.cumsum([gap + 1 for gap, _ in requests]) + start.microsecond * 10]  # of 100 ns
    tokens = [7, *(tokens for _, tokens in requests)]
    whole = start.replace(microsecond=0)
    times = [(whole + datetime.timedelta(seconds=int(t) // 10**7), int(t) % 10**7) for t in ticks]
    lines = [f"{t:%Y-%m-%d %H:%M:%S}.{f:07d},{n},1" for (t, f), n in zip(times, tokens, strict=True)]
    trace = read_lines(file, [HEADER, *lines])
    assert trace.arrival_s.tolist() == [(int(t) - ticks[0]) / 10**7 for t in ticks]
    assert trace.tokens.tolist() == tokens


@given(st.lists(st.tuples(st.integers(0, 10**6), TOKENS, st.lists(st.integers(0, 20), max_size=4)), min_size=1))
def test_mooncake_round_trip(file: pathlib.Path, requests: list[tuple[int, int, list[int]]]) -> None:
    requests = [(0, 1, []), *((gap + 1, tokens, blocks) for gap, tokens, blocks in requests)]
    times = np.cumsum([gap for gap, _, _ in requests])
    trace = read_lines(file, [mooncake_line(int(t), n, 1, b) for t, (_, n, b) in zip(times, requests, strict=True)])
    assert trace.arrival_s.tolist() == [int(t) / 1000 for t in times]
    assert trace.tokens.tolist() == [n for _, n, _ in requests]
    held = [set(blocks) for _, _, blocks in requests]
    common = {block for block in range(21) if sum(block in ids for ids in held) >= 0.9 * len(held)}
    expected = [bool((ids - common) & set().union(*held[:i])) for i, ids in enumerate(held)]
    assert trace.returning is not None
    assert trace.returning.tolist() == expected


@given(data=st.data(), lines=st.sampled_from([AZURE, MOONCAKE]))
def test_corrupted_line_is_named(file: pathlib.Path, data: st.DataObject, lines: list[str]) -> None:
    at = data.draw(st.integers(0, len(lines) - 1), label="line")
    raw = [line.encode() for line in lines]
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(raw[at]))] * 2), label="replaced"))
    junk = data.draw(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), label="by")
    raw[at] = raw[at][:first] + junk + raw[at][last:]
    try:
        read_lines(file, raw)
    except InvalidInputError as error:
        named = re.search(r", line (\d+): ", str(error))
        # A changed time may still be a time: it is then the line after it that is earlier, or all arrive at once.
        assert named is None or int(named[1]) in {at + 1, at + 2}, str(error)
        if named is None or int(named[1]) == at + 2:
            assert re.search("is earlier than the line above|arrive at once", str(error))
