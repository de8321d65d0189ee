"""What is read by the block is what is read line by line: the same files are refused, and the same values found."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helm_gym.errors import InvalidInputError
from helm_gym.workload.readers import text_blocks, trace_blocks
from helm_gym.workload.readers.reuse import returning
from helm_gym.workload.readers.text_blocks import Lines
from helm_gym.workload.readers.trace_blocks import Columns
from helm_gym.workload.readers.trace_formats import Layout, detect
from helm_gym.workload.readers.trace_lines import MAX_ID, parse_line
from helm_gym.workload.traces import read_trace

AZURE, BURST = "TIMESTAMP,ContextTokens,GeneratedTokens", "Timestamp,Model,Request tokens,Response tokens,Log Type"
MOONCAKE = '{"timestamp": 3000, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 18446744073709551615]}'
QWEN = '{"chat_id":1,"timestamp":61.114,"input_length":5,"output_length":1,"type":"text","turn":1,"hash_ids":[7]}'
# Header, if any, and lines that are valid, the first of which says the unit of time.
FILES: list[tuple[str | None, list[str]]] = [
    (AZURE, ["2023-11-16 18:15:46.6805900,374,44", "2023-11-16T18:15:46,9,1", '"2023-11-16 18:15:46.1","3","4"']),
    (AZURE, ["2024-05-10 00:00:00.009930+00:00,2162,5", "2024-05-10 02:00:01Z,2162,5"]),
    (BURST, ["5,ChatGPT,472,18,API log", '19440110.0,"GPT-4, new",0,0,""']),
    ("arrival_s", ["0.5", "1", "1.e3", '"2"', "5e-05"]),
    ("timestamp", ["1700158550123", "1700158550124"]),
    (None, [MOONCAKE, MOONCAKE.replace(" ", ""), MOONCAKE.replace("3000", "3.0e3").replace("}", ', "x": {"y": [1]}}')]),
    (None, [QWEN, QWEN.replace('"text"', '"}{"'), QWEN.replace("61.114", "61")]),
]
# What text of both kinds is made of, and what the two readers could take differently.
PIECES = [
    *'",\r\n \t-+09.eE[]{}:\\\0',
    *(
        "\r\n",
        "\ufeff",
        "}\n{",
        "}{",
        "{}",
        '""',
        '",',
        ',"x":[]',
        ',"x":1',
        '"x":NaN,',
        "//",
        "\x0b",
        "\x1f",
        "\\u0041",
    ),
    *("null", "true", "NaN", "Inf", "Infinity", "-0", "1e400", "0x1", "00", "60", "1_0", "٣", "9" * 30),
    *("+00:00", "2024-02-30"),
]


def layout_of(header: str | None, first: str) -> Layout:
    return detect("sample", [first] if header is None else [header, first])


@st.composite
def damaged(draw: st.DrawFn) -> tuple[Layout, bytes]:
    """Lines of a format, changed at a few places."""
    header, valid = draw(st.sampled_from(FILES))
    end = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    text = "".join(line + end for line in draw(st.lists(st.sampled_from(valid), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(st.sampled_from(["", *PIECES])) + text[start + draw(st.integers(0, 2)) :]
    raw = text.encode() if draw(st.integers(0, 9)) else text.encode("latin-1", "replace")
    return layout_of(header, valid[0]), raw if raw.endswith(b"\n") else raw + b"\n"


def one_by_one(raw: bytes, layout: Layout) -> Columns | None:
    try:
        requests = [parse_line(line + b"\n", layout) for line in raw.split(b"\n")[:-1]]
    except ValueError:
        return None
    return trace_blocks._columns(requests, 1, layout)


def assert_equal(left: Columns, right: Columns) -> None:
    for name in ("time_ns", "tokens", "ids", "counts"):
        assert getattr(left, name).tolist() == getattr(right, name).tolist(), name


@settings(max_examples=600)
@given(damaged())
def test_a_block_is_what_its_lines_are(file: tuple[Layout, bytes]) -> None:
    layout, raw = file
    at_once = trace_blocks._read_at_once(Lines(1, raw.count(b"\n"), raw), layout)
    if at_once is not None:
        alone = one_by_one(raw, layout)
        assert alone is not None, "a line is refused by itself"
        assert_equal(at_once, alone)


@pytest.mark.long
@settings(max_examples=10_000)
@given(damaged())
def test_a_block_is_what_its_lines_are_at_length(file: tuple[Layout, bytes]) -> None:
    test_a_block_is_what_its_lines_are.hypothesis.inner_test(file)


@pytest.mark.parametrize(("header", "lines"), FILES)
def test_lines_of_the_usual_shape_are_read_at_once(header: str | None, lines: list[str]) -> None:
    layout = layout_of(header, lines[0])
    for end in ("\n", "\r\n"):
        raw = (lines[0] + end).encode() * 3
        at_once, alone = trace_blocks._read_at_once(Lines(1, 3, raw), layout), one_by_one(raw, layout)
        assert at_once is not None and alone is not None
        assert_equal(at_once, alone)


AZURE_LINE, BURST_LINE = "2023-11-16 18:15:46,3,4\n", "5,ChatGPT,472,18,API log\n"


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (AZURE, AZURE_LINE.replace("3,", '"3"96,')),
        (AZURE, AZURE_LINE.replace("3,", '"3"",')),
        (BURST, BURST_LINE + BURST_LINE.replace("API", '"API')),  # quotes that do not end
        (BURST, BURST_LINE.replace("ChatGPT", '"Chat\nGPT"').replace("\n5", "\r5") + "\r"),
        (BURST, BURST_LINE.replace("ChatGPT", '"Chat\nGPT"')[:-1] + "\r" + BURST_LINE),  # two rows in two lines
        (BURST, BURST_LINE.replace("ChatGPT", '"Chat\nGPT"')),
        (AZURE, "\ufeff" + AZURE_LINE),
        (AZURE, AZURE_LINE.replace("3,", " 3,")),
        (AZURE, AZURE_LINE + "\n"),
        (BURST, BURST_LINE.replace("API", "A" * 200_000)),  # more than Python's reader takes
        (None, "null" + MOONCAKE + "\n"),  # Arrow 26 crashes on it
        (None, MOONCAKE + "null" + MOONCAKE + "\n\n"),
        (None, MOONCAKE + MOONCAKE + "\n\n"),
        (None, MOONCAKE.replace("}", ', "x": Inf}') + "\n"),
        (None, MOONCAKE.replace("}", ', "x": ' + "9" * 5000 + "}") + "\n"),
        (None, MOONCAKE.replace("}", ', "x": ' + "[" * 2000 + "]" * 2000 + "}") + "\n"),
        (None, "\ufeff" + MOONCAKE + "\n"),
        (None, MOONCAKE + "\0\n"),
        (None, MOONCAKE.replace("[0", "[-1") + "\n"),
        (None, MOONCAKE.replace("[0", f"[{MAX_ID + 1}") + "\n"),
        (None, MOONCAKE.replace("[0", "[null") + "\n"),
        (None, MOONCAKE.replace("[0, 1, 18446744073709551615]", "null") + "\n"),
        (None, MOONCAKE.replace('"output_length": 500, ', "") + "\n"),
        (None, MOONCAKE.replace("6758", "null") + "\n"),
        (None, MOONCAKE.replace("6758", "2147483648") + "\n"),
        (None, MOONCAKE.replace("500", "-1") + "\n"),
        (None, MOONCAKE.replace("3000", "NaN") + "\n"),
    ],
)
def test_what_arrow_takes_and_a_line_is_not(header: str | None, text: str) -> None:
    layout = layout_of(header, MOONCAKE if header is None else {AZURE: AZURE_LINE, BURST: BURST_LINE}[header])
    raw = text.encode()
    assert one_by_one(raw, layout) is None
    assert trace_blocks._read_at_once(Lines(1, raw.count(b"\n"), raw), layout) is None


@pytest.mark.parametrize("fault", [5, 77, 500, 999])
def test_a_fault_is_named_by_its_line_wherever_blocks_end(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    lines = [AZURE, *(f"2023-11-16 18:{i // 60:02d}:{i % 60:02d}.5,{i},1" for i in range(1000))]
    lines[101] = lines[101].replace(" ", "T")  # valid, and like no other
    path = tmp_path / "sample"
    for size in (64, 1000, 1 << 20):
        monkeypatch.setattr(text_blocks, "BLOCK_BYTES", size)
        path.write_text("\n".join(lines), encoding="utf-8")
        assert read_trace(path).tokens.tolist() == list(range(1000))
        for wrong, says in (
            ("x", "has 1 column"),
            ("2023-11-16 18:00:00,1,1", "is earlier"),
            ("", "has 0 column"),
            ("9" * (1 << 20), "exceeds"),
        ):
            path.write_text("\n".join([*lines[:fault], wrong, *lines[fault:], "later,fault"]), encoding="utf-8")
            with pytest.raises(InvalidInputError, match=f", line {fault + 1}: {says}"):
                read_trace(path)


@given(
    st.lists(st.lists(st.integers(0, 12), max_size=5), min_size=1, max_size=30),
    st.sampled_from([1, 2**40]),
    st.integers(1, 30),
)
def test_returning_in_parts(requests: list[list[int]], scale: int, size: int) -> None:
    """Ids that count up and ids that are hashes, however the requests are parted."""
    held = [set(ids) for ids in requests]
    common = {block for block in range(13) if sum(block in ids for ids in held) >= 0.9 * len(held)}
    expected = [bool((ids - common) & set().union(*held[:i])) for i, ids in enumerate(held)]
    parts = [
        (
            np.array([block * scale for ids in part for block in ids], np.uint64),
            np.array([len(ids) for ids in part], np.int32),
        )
        for part in (requests[start : start + size] for start in range(0, len(requests), size))
    ]
    assert returning(parts).tolist() == expected


def test_json_keys_that_nobody_looks_at_may_be_anything(tmp_path: pathlib.Path) -> None:
    lines = [
        json.dumps(json.loads(MOONCAKE) | {"timestamp": t, "x": {"deep": [[t]], "text": "}{\n"}}) for t in (1, 2, 3)
    ]
    (tmp_path / "sample").write_text("\n".join(lines), encoding="utf-8")
    assert read_trace(tmp_path / "sample").arrival_s.tolist() == [0, 0.001, 0.002]
