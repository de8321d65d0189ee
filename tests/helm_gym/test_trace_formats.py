"""Formats of recorded arrivals: the table, what a first line says, arrival times alone, and what is said otherwise."""

from __future__ import annotations

import gzip
import pathlib

import numpy as np
import pytest

from helm_gym.errors import InvalidInputError
from helm_gym.workload.readers.trace_formats import FORMATS, UNITS, Format
from helm_gym.workload.traces import Trace, read_trace

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "traces.md"
DATES, NS = "arrival times in dates", "arrival times in nanoseconds"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
BURST_3 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
QWEN = (
    '{{"chat_id": {0}, "parent_chat_id": -1, "timestamp": {1}, "input_length": 521, "output_length": 132, '
    '"type": "text", "turn": 1, "hash_ids": [{0}, 7]}}'
)


def read(tmp_path: pathlib.Path, *lines: str, name: str = "sample.csv") -> Trace:
    path = tmp_path / name
    text = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return read_trace(path)


def fault(tmp_path: pathlib.Path, *lines: str) -> str:
    with pytest.raises(InvalidInputError) as caught:
        read(tmp_path, *lines)
    assert len(str(caught.value)) < 500
    return str(caught.value).removeprefix(str(tmp_path / "sample.csv"))


def documented(form: Format) -> str:
    unit = UNITS[form.unit][0] if form.unit in UNITS else {"date": "dates", "either": "by the first row"}[form.unit]
    used = ["times", *(["input tokens"] if form.tokens else []), *(["block ids"] if form.blocks else [])]
    columns = ", ".join(f"`{name}`" for name in form.columns)
    cells = (form.name, columns + (", no other" if form.alone else ""), unit, ", ".join(used), form.source)
    return f"| {' | '.join(cells)} |"


def test_the_documented_table_is_the_codes() -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    start = lines.index("|---|---|---|---|---|") + 1
    assert lines[start : lines.index("", start)] == [documented(form) for form in FORMATS]


def test_published_formats(tmp_path: pathlib.Path) -> None:
    azure_2024 = read(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2024-05-10 00:00:00.009930+00:00,2162,5",
        "2024-05-10 00:00:01+00:00,2399,6",
    )
    assert azure_2024.arrival_s.tolist() == [0.0, 0.99007]
    burst = read(tmp_path, BURST, "5,ChatGPT,472,18,490,Conversation log", '45,"GPT-4",0,0,0,API log')
    assert (burst.arrival_s.tolist(), burst.tokens.tolist()) == ([0.0, 40.0], [472, 0])
    burst_3 = read(
        tmp_path,
        BURST_3,
        "19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log",
        "19440161.0,,2,ChatGPT,36,29,65,API log",
    )
    assert (burst_3.arrival_s.tolist(), burst_3.format) == ([0.0, 51.0], "BurstGPT CSV")
    servegen = read(
        tmp_path, "request_id,timestamp,input_tokens,output_tokens,reason_ratio", "0,5e-05,10,20,.5", "1,1.25,15,25,.5"
    )
    assert (servegen.arrival_s.tolist(), servegen.format) == ([0.0, 1.24995], "ServeGen CSV")
    images = read(
        tmp_path,
        "request_id,timestamp,text_tokens,output_tokens,image_tokens",
        '0,0.5,10,20,"[3, 4]"',
        "1,1.5,15,25,[]",
    )
    assert (images.arrival_s.tolist(), images.format) == ([0.0, 1.0], "ServeGen multimodal CSV")
    qwen = read(tmp_path, QWEN.format(1, "0.5"), QWEN.format(2, "61.614"), QWEN.format(1, "62.5"))
    assert (qwen.arrival_s.tolist(), qwen.format) == ([0.0, 61.114, 62.0], "Qwen-Bailian JSONL")
    assert qwen.returning is not None and qwen.returning.tolist() == [False, False, True]


def test_seconds_under_mooncakes_keys_are_refused(tmp_path: pathlib.Path) -> None:
    line = '{{"timestamp": {}, "input_length": 1, "output_length": 1, "hash_ids": []}}'
    assert ", line 2: timestamp is 61.114, not a whole number of milliseconds" in fault(
        tmp_path, line.format(0), line.format(61.114)
    )
    assert ", line 2: lacks the key(s) chat_id" in fault(tmp_path, QWEN.format(1, 0), line.format(1))


@pytest.mark.parametrize("name", ["times.csv", "times.csv.gz"])
@pytest.mark.parametrize(
    ("lines", "format"),
    [
        (["arrival_s", "0.5", "1", "2.5e0"], "arrival times in seconds"),
        (["arrival_ms", "500", "1000.0", "2500"], "arrival times in milliseconds"),
        (['"arrival_us"', '"500000"', "1000000", "2.5e+06"], "arrival times in microseconds"),
        (["\ufeffarrival_ns", "500000000", "1000000000", "2500000000"], NS),
        (["2023-11-16 18:15:46.5", "2023-11-16T18:15:47", "2023-11-16 18:15:48.500000000"], DATES),
        (["timestamp", "2023-11-16T18:15:46.5Z", "2023-11-16T20:15:47+02:00", "2023-11-16 18:15:48.5Z"], DATES),
        (["1700158550.5", "1700158551", "1700158552.5"], "arrival times in seconds since 1970"),
        (["timestamp", "1700158550500", "1700158551000", "1700158552500"], "arrival times in milliseconds since 1970"),
        (["1700158550500000", "1700158551000000", "1700158552500000"], "arrival times in microseconds since 1970"),
        (["1700158550500000000", "1700158551000000000", "1700158552500000000"], f"{NS} since 1970"),
    ],
)  # fmt: skip
def test_one_column_of_times(tmp_path: pathlib.Path, lines: list[str], format: str, name: str) -> None:
    trace = read(tmp_path, *lines, name=name)
    assert trace.arrival_s.tolist() == [0.0, 0.5, 2.0]
    assert (trace.name, trace.tokens, trace.returning, trace.format) == ("times", None, None, format)
    assert trace.summary == f"{format}, 3 requests over 2 s, 1.0 requests/s"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["0", "0.5"], ", line 1: '0' does not say its unit of time; write it as the file's first line: arrival_s,"),
        (["timestamp", "12.5", "13"], ", line 2: '12.5' does not say its unit"),
        (["timestamp", "0", "1700158550"], ", line 2: '0' does not say its unit"),
        (["seconds", "0", "1"], ", line 1: 'seconds' starts no known trace format; name its column by the unit"),
        (["arrival_s", "0", "1,5"], ", line 3: has 2 column(s) and not the 1 of the header"),
        (["arrival_s,user", "0,1"], "starts no known trace format"),
        (["0,5", "1,5"], "it has no header; add the format's, and write decimals with a point"),
        (["arrival_s", "0", "nan"], ", line 3: arrival_s is 'nan', not a number of seconds from 0 to the year 2200"),
        (["arrival_s", "0", "inf"], "arrival_s is 'inf'"),
        (["arrival_s", "0", "1e99"], "arrival_s is '1e99'"),
        (["arrival_s", "0", "1e308"], "arrival_s is '1e308'"),
        (["arrival_s", "-1", "1"], ", line 2: arrival_s is '-1'"),
        (["arrival_s", "0", "", "1"], ", line 3: has 0 column(s)"),
        (["arrival_s", "0", " 1"], "arrival_s is ' 1'"),
        (["arrival_s", "7", "7", "7"], ": all 3 requests arrive at once"),
        (["arrival_s", "7"], ": holds 1 request(s)"),
        (["arrival_s", "2", "1"], ", line 3: is earlier than the line above it"),
        (["arrival_s", "0", "2023-11-16 18:15:46"], "arrival_s is '2023-11-16 18:15:46', not a number of seconds"),
        (["2023-11-16 18:15:46", "1700158550"], "timestamp is '1700158550', not a time such as '2023-11-16"),
        (["2023-11-16 18:15:46", "2023-11-16 18:15:47Z"], ", line 2: timestamp is '2023-11-16 18:15:47Z' and names an"),
        (["2023-11-16 18:15:46Z", "2023-11-16 18:15:47"], "and names no offset from UTC, unlike the file's first row"),
        (["2023-11-16 18:15:46", "2023-11-16 18:15:60"], "'2023-11-16 18:15:60', not a time such as"),  # a leap second
        (["2023-11-16 18:15:46", "2023-02-29 18:15:46"], "'2023-02-29 18:15:46', not a date from 1970 to 2200"),
        (["0001-01-01 00:00:00", "0001-01-01 00:00:01"], ", line 1: timestamp is '0001-01-01 00:00:00', not a date"),
        (["2023-11-16 18:15:46", "9999-12-31 23:59:59"], "'9999-12-31 23:59:59', not a date from 1970 to 2200"),
        (["[", '{"timestamp": 0}', "]"], "write JSON as one object a line, without brackets around them"),
        (["arrival_s", "0", '"1,000"'], "arrival_s is '1,000', not a number of seconds"),
        (["TIMESTAMP;ContextTokens;GeneratedTokens"], "write commas between its columns in place of ';'"),
        (["TIMESTAMP\tContextTokens\tGeneratedTokens"], "write commas between its columns in place of tabs"),
        (["0,1.3,8.59,Weibull,0.37,0.39"], "it holds ServeGen's rates, and no arrivals; write those with its save_"),
        (["TIMESTAMP,ContextTokens,ContextTokens,GeneratedTokens"], "names the column ContextTokens twice"),
        (["a," * 2000 + ",".join(FORMATS[0].columns)], "starts no known trace format"),
        (["\x1b[31m" * 100], "starts no known trace format"),
    ],
)  # fmt: skip
def test_what_is_no_trace_is_said_with_what_to_do(tmp_path: pathlib.Path, lines: list[str], says: str) -> None:
    assert says in fault(tmp_path, *lines)


def test_times_of_one_column_are_exact(tmp_path: pathlib.Path) -> None:
    ticks = np.cumsum(np.random.default_rng(0).integers(1, 10**9, 1000))
    trace = read(tmp_path, "arrival_us", *(str(tick) for tick in ticks))
    assert np.array_equal(trace.arrival_s, (ticks - ticks[0]) / 10**6)
    floats = ticks / 10**6
    trace = read(tmp_path, "arrival_s", *(repr(float(time)) for time in floats))
    assert np.allclose(trace.arrival_s, floats - floats[0], rtol=0, atol=1e-9)
