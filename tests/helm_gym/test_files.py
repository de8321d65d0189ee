"""Files of users and strangers: read if they are files and so far as they may be long, written whole or not at all."""

from __future__ import annotations

import json
import os
import pathlib

import pytest

from helm_gym.errors import InvalidInputError
from helm_gym.files import MAX_DEPTH, parse_json, read_bytes, read_json, unfinished, write


def test_a_file_is_read_up_to_its_limit(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(path, "Thing", 100) == read_bytes(tmp_path / "link", "Thing", 100) == b"x" * 100
    with pytest.raises(InvalidInputError, match=r"^Thing .*/file is larger than 99 bytes; take less\.$"):
        read_bytes(path, "Thing", 99, "take less")


def test_a_size_that_is_not_told_counts_all_the_same() -> None:
    assert os.stat("/proc/self/status").st_size == 0 and read_bytes(pathlib.Path("/proc/self/status"), "Status", 10**6)
    with pytest.raises(InvalidInputError, match="larger than 10 bytes"):
        read_bytes(pathlib.Path("/proc/self/status"), "Status", 10)


def test_what_is_no_file_is_refused_at_once(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    before = len(os.listdir("/proc/self/fd"))
    for name, told in (
        ("pipe", "is no regular file but a pipe"),
        ("zero", "is no regular file but a device"),
        (".", "is no regular file but a folder"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("none", "cannot be read: No such file or directory"),
        ("x" * 300, "cannot be read: File name too long"),
        ("a\0b", "cannot be read: embedded null byte"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            read_bytes(tmp_path / name, "Thing", 100)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff", "is no text in UTF-8 (byte 0)"),
        (b"{", "is not JSON (Expecting property name"),
        (b"", "is not JSON"),
        (b"1" * 5000, "is not JSON (Exceeds the limit"),
        (b"[" * 100_000, f"is JSON nested more than {MAX_DEPTH} deep"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, f"is JSON nested more than {MAX_DEPTH} deep"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path: pathlib.Path, content: bytes, told: str) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(InvalidInputError) as refused:
        read_json(tmp_path / "file.json", "Thing", instead="make it again")
    assert told in str(refused.value) and str(refused.value).endswith("; make it again.")


def test_json_is_read_to_its_depth() -> None:
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(deepest, "x") == json.loads(deepest)
    assert parse_json(b'{"a": [1, {}], "b": null}', "x") == {"a": [1, {}], "b": None}
    assert parse_json("null", "x") is None


def test_writing_is_whole_or_not_at_all(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    write(path, "first")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "replace", full)
    with pytest.raises(InvalidInputError, match="cannot be written: No space left on device"):
        write(path, "second")
    assert path.read_text() == "first" and unfinished(path).is_file()


def test_places_that_cannot_be_written_are_named(tmp_path: pathlib.Path) -> None:
    for place in ("/dev/null/x", tmp_path, tmp_path / ("x" * 255), tmp_path / "a\0b"):
        with pytest.raises(InvalidInputError, match="cannot be written"):
            write(pathlib.Path(place), "text")
    write(tmp_path / "named", "\udcff")
    assert (tmp_path / "named").read_text() == r"\udcff"
