"""The log cannot be changed unseen, and every table is made from it."""

from __future__ import annotations

import json
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from helm_gym import files
from helm_gym.errors import InvalidInputError
from leaderboard import records, store
from leaderboard.records import Record
from leaderboard.store import Store, StoreError
from leaderboard.tables import SUBMISSIONS
from tests import postgres

KEY = Ed25519PrivateKey.generate()


def submission(name: str, **changed: Any) -> dict[str, Any]:
    return {
        "submission": name,
        "account": "ada",
        "name": f"policy {name}",
        "track": "policy",
        "files": ["0" * 64],
        "reference": "",
        "tasks": ["burst-v0"],
        "write_up": {},
    } | changed


def state(name: str, to: str, reason: str = "", fault: str = "") -> dict[str, Any]:
    return {"submission": name, "state": to, "reason": reason, "fault": fault, "detail": ""}


def season(number: int, key_hash: str) -> dict[str, Any]:
    return {
        "season": number,
        "key_hash": key_hash,
        "tasks": ["burst-v0"],
        "development": 2,
        "hidden": 2,
        "confirmation": 2,
        "horizon": None,
        "versions": {},
    }


def filled(folder: pathlib.Path, url: str | None = None) -> Store:
    kept = Store(folder, url)
    kept.open_board("board", "cpu-small", season)
    kept.append([("submission", submission(f"s{k}")) for k in range(3)])
    kept.append([("state", state("s1", "running")), ("state", state("s1", "failed", "time", "policy"))])
    return kept


def chained(count: int = 5) -> list[Record]:
    first = {"format": 1, "name": "b", "public_key": records.public_key_of(KEY), "profile": "cpu-small"}
    made = [records.make(1, "board", first, records.GENESIS, KEY)]
    for number in range(2, count + 1):
        made.append(records.make(number, "submission", submission(f"s{number}"), made[-1].digest, KEY))
    return made


def published(log: list[Record]) -> bytes:
    return "\n".join(record.line() for record in log).encode()


def read(content: bytes) -> Iterator[Record]:
    for number, line in enumerate(content.splitlines(), 1):
        yield records.from_line(files.parse_json(line, "log"), f"line {number}")


def test_a_log_that_was_written_and_read_is_sound() -> None:
    log = chained()
    assert list(records.check_chain(read(published(log)))) == log


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda log: [*log[:2], *log[3:]], "broken at record 3"),
        (lambda log: [log[0], log[2], log[1], *log[3:]], "broken at record 2"),
        (lambda log: [*log, log[-1]], "broken at record 6"),
        (lambda log: log[1:], "does not start with the board's own record"),
        (lambda log: [*log[:4], records.make(5, "submission", submission("x"), log[3].digest,
                                             Ed25519PrivateKey.generate())], "not signed by the board's key"),
    ],
)  # fmt: skip
def test_a_record_that_is_dropped_moved_added_or_forged_is_found(change: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        list(records.check_chain(change(chained())))


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_no_byte_of_a_published_log_can_be_changed_unseen(place: int, by: int) -> None:
    content = bytearray(published(chained(3)))
    content[place % len(content)] ^= by
    try:
        seen = list(records.check_chain(read(bytes(content)), records.public_key_of(KEY)))
    except InvalidInputError:
        return
    assert seen == chained(3)[: len(seen)] or [json.loads(r.text)["body"] for r in seen] == [
        json.loads(r.text)["body"] for r in chained(3)
    ]  # white space, or the case of a hexadecimal digit


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Any:
    if request.param == "sqlite":
        yield None
        return
    with postgres.serve() as server:
        yield server.url


def test_tables_are_what_the_log_says_and_can_be_made_again(tmp_path: pathlib.Path, url: str | None) -> None:
    kept = filled(tmp_path / "board", url)
    assert kept.check() == 7
    with kept.reading() as connection:
        found = {row.id: row for row in connection.execute(sa.select(SUBMISSIONS))}
    assert found["s1"].state == "failed" and found["s1"].runs == 1 and found["s1"].fault == "policy"
    assert found["s0"].state == "received"
    with kept.writing() as connection:
        connection.execute(SUBMISSIONS.update().values(state="verified"))
    with pytest.raises(InvalidInputError, match="Table submissions is not what the log says"):
        kept.check()
    assert kept.rebuild() == kept.check() == 7
    kept.close()
    again = Store(tmp_path / "board", url)
    again.open_board("board", "cpu-small", season)
    assert again.check() == 7  # nothing is opened twice
    again.close()


def test_what_a_guard_refuses_leaves_neither_a_record_nor_a_row(tmp_path: pathlib.Path) -> None:
    kept = filled(tmp_path)

    def refuse(connection: sa.Connection) -> None:
        kept.append_within(connection, [("submission", submission("never"))])
        raise InvalidInputError("no")

    with pytest.raises(InvalidInputError, match="no"):
        kept.append([], guard=refuse)
    with pytest.raises(StoreError, match=r"database fails: UNIQUE .*nothing was written"):
        kept.append([("state", state("s0", "queued")), ("submission", submission("s0"))])
    assert kept.check() == 7


def test_keys_are_for_their_owner_alone_and_a_board_keeps_to_its_own(tmp_path: pathlib.Path) -> None:
    kept = filled(tmp_path)
    key = kept.season_key(1)
    for path in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert len(key) == 32 and kept.season_key(1) == key
    text = "".join(record.text for record in kept.log())
    assert key.hex() not in text
    kept.close()
    os.remove(tmp_path / "keys/signing.key")
    with pytest.raises(InvalidInputError, match="signed by another key"):
        Store(tmp_path)


def test_files_are_found_by_what_they_hold_and_a_changed_one_is_not_given_out(tmp_path: pathlib.Path) -> None:
    kept = Store(tmp_path)
    name = kept.put(b"policy")
    assert kept.put(b"policy") == name and kept.get(name) == b"policy"
    kept.path_of(name).write_bytes(b"other")
    with pytest.raises(InvalidInputError, match="was changed"):
        kept.get(name)
    for strange in ("../../etc/passwd", "A" * 64, "", "0" * 63):
        with pytest.raises(InvalidInputError, match="64 hexadecimal digits"):
            kept.get(strange)


def test_a_full_disk_is_an_error_that_says_so_and_loses_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = filled(tmp_path)
    with kept.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreError, match=r"disk is full; nothing was written"):
        for number in range(100):
            kept.append([("submission", submission(f"t{number}", write_up={"method": "x" * 4000}))])
    kept.check()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(StoreError, match="No space left on device"):
        kept.put(b"policy")


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlserver://a"])
def test_a_database_that_no_board_can_have_is_refused(url: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidInputError):
        Store(tmp_path, url)
    assert store.DATABASE not in {path.name for path in tmp_path.iterdir()}
