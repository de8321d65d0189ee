"""A published board is whole without its server, and whoever has it can recompute a row."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from helm_gym.cli.serve import best_from
from helm_gym.errors import HelmError, InvalidInputError
from leaderboard import records
from leaderboard.board import Board, RefusedSubmissionError
from leaderboard.publishing import LOG, publish
from leaderboard.sandbox import missing
from leaderboard.season_change import close_season
from leaderboard.verifying import read_published, verify
from leaderboard.worker import Worker
from tests.leaderboard.boards import HONEST, TASK, make_board

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {missing()}")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    made = make_board(tmp_path_factory.mktemp("board"))
    made.submit("ada", [HONEST], "mean")
    worker = Worker(made, references=False)
    while worker.step():
        pass
    yield made
    made.store.close()


@pytest.fixture
def entry(board: Board) -> str:
    return str(board.entries()[0]["id"])


@pytest.fixture(scope="module")
def site(board: Board, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("site")
    publish(board, folder)
    return folder


@pytest.fixture
def copy(site: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(site, tmp_path / "copy"))


def edit(folder: pathlib.Path, old: str, new: str) -> None:
    text = (folder / LOG).read_text()
    assert old in text
    (folder / LOG).write_text(text.replace(old, new, 1))


def test_every_link_of_the_site_leads_to_a_file_of_it(site: pathlib.Path) -> None:
    links = 0
    for page in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src|action)="([^"#?]+)', page.read_text(encoding="utf-8")):
            assert link == "data:," or (page.parent / link).is_file(), (page, link)
            links += 1
    assert links > 30


def test_its_best_policy_can_be_served(site: pathlib.Path, copy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "best.onnx"
    assert best_from(str(site), TASK, out) == str(out) and out.read_bytes() == HONEST
    with pytest.raises(InvalidInputError, match="no table of task"):
        best_from(str(site), "steady-v9", out)
    with pytest.raises(InvalidInputError, match="publish"):
        best_from(str(tmp_path), TASK, out)
    next((copy / "files").glob("*.onnx")).write_bytes(b"another")
    with pytest.raises(InvalidInputError, match="not the file that was submitted"):
        best_from(str(copy), TASK, out)


def test_no_hidden_score_and_no_key_is_published_while_the_season_is_open(board: Board, site: pathlib.Path) -> None:
    everything = b"".join(path.read_bytes() for path in site.rglob("*") if path.is_file())
    key = board.store.season_key(1)
    assert (
        key.hex().encode() not in everything
        and board.store.signing_key.private_bytes_raw().hex().encode() not in everything
    )
    for record in board.store.log():
        if record.kind == "scores" and record.body["split"] != "development":
            for episode in record.body["episodes"]:
                assert records.canonical(episode["mean_latency_ms"]).encode() not in everything


def test_a_row_is_recomputed_to_the_last_bit(site: pathlib.Path, entry: str) -> None:
    published = read_published(site)
    assert published.hidden == 3  # provisional, ranking, and confirmation
    rows = list(verify(published, entry))
    assert [(row.task, row.split, row.rung, row.same) for row in rows] == [(TASK, "development", "modelled", True)]
    with pytest.raises(InvalidInputError, match="no entry 'nobody'"):
        list(verify(published, "nobody"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"account":"ada"', '"account":"eve"', "was changed: its hash is another"),
        ('"signature":"', '"signature":"00', "not signed by the board's key"),
        ('"seq":', '"seq":9', "(broken at record|was changed)"),
    ],
)
def test_a_changed_log_is_found(copy: pathlib.Path, old: str, new: str, said: str) -> None:
    edit(copy, old, new)
    with pytest.raises(InvalidInputError, match=said):
        read_published(copy)


def test_a_record_that_was_left_out_or_another_board_is_found(copy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    lines = (copy / LOG).read_text().splitlines(keepends=True)
    (copy / LOG).write_text("".join(lines[:3] + lines[4:]))
    with pytest.raises(InvalidInputError, match="broken at record"):
        read_published(copy)
    (copy / LOG).write_text("".join(lines))
    with pytest.raises(InvalidInputError, match="not signed by the board's key"):
        read_published(copy, public_key="00" * 32)
    with pytest.raises(InvalidInputError, match="give a folder that `publish` wrote"):
        read_published(tmp_path / "nowhere")


def test_a_policy_or_a_score_that_was_exchanged_is_found(copy: pathlib.Path, entry: str, board: Board) -> None:
    (policy,) = (copy / "files").iterdir()
    policy.write_bytes(HONEST + b"\0")
    with pytest.raises(InvalidInputError, match="is not the file that was submitted"):
        list(verify(read_published(copy), entry))
    policy.write_bytes(HONEST)
    # The operator could sign what is not so: whoever recomputes it sees that.
    score = next(r for r in board.store.log() if r.kind == "scores" and r.body["split"] == "development")
    body = json.loads(json.dumps(score.body))
    body["episodes"][0]["mean_latency_ms"] *= 0.5
    previous = json.loads(score.text)["previous"]
    forged = records.make(score.seq, "scores", body, previous, board.store.signing_key, score.time)
    lines = (copy / LOG).read_text().splitlines(keepends=True)
    (copy / LOG).write_text("".join([*lines[: score.seq - 1], forged.line() + "\n"]))
    (row,) = verify(read_published(copy), entry)
    assert not row.same and row.largest > 0.1


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("submission", {"reference": "tests.leaderboard.test_publishing:strange"}, "Unknown reference entry"),
        ("submission", {"reference": "oracle"}, "Unknown reference entry"),
        ("submission", {"reference": "/etc/passwd"}, "Unknown reference entry"),
        ("submission", {"files": ["../../../etc/passwd"]}, "not by its SHA-256"),
        ("scores", {"task": "tests.leaderboard.test_publishing:strange"}, "which no board writes"),
        ("scores", {"rung": "tests.leaderboard.test_publishing:strange"}, "which no board writes"),
        ("scores", {"member": 7}, "which no board writes"),
        ("season", {"tasks": ["tests.leaderboard.test_publishing:strange"]}, "this version does not have"),
        ("season", {"hidden": 10**12}, "numbers that no season has"),
        ("season", {"horizon": "x"}, "numbers that no season has"),
        ("board", {"profile": "/etc/passwd.yaml"}, "this version does not have"),
        ("board", {"profile": ["x"]}, "."),
        ("scores", {"episodes": [{"mean_latency_ms": "x"}]}, "that no board writes"),
        ("scores", {"episodes": 3}, "that no board writes"),
        ("scores", {"where": []}, "that no board writes"),
        ("submission", {"files": 5}, "that no board writes"),
        ("season", {"tasks": [{}]}, "."),
    ],
)
def test_nothing_of_a_stranger_s_board_is_imported_or_read(
    kind: str, change: dict[str, Any], said: str, board: Board, entry: str, tmp_path: pathlib.Path
) -> None:
    """A board that a stranger signed, every hash of it right; names elsewhere may be ``module:attribute``."""
    key, lines, previous = Ed25519PrivateKey.generate(), [], records.GENESIS
    for record in board.store.log():
        body = dict(record.body) | ({"public_key": records.public_key_of(key)} if record.kind == "board" else {})
        body |= change if record.kind == kind else {}
        made = records.make(record.seq, record.kind, body, previous, key)
        lines.append(made.line())
        previous = made.digest
    (tmp_path / LOG).write_text("\n".join(lines))
    with pytest.raises(HelmError, match=said):
        list(verify(read_published(tmp_path), entry))
    assert not STRANGE


STRANGE: list[str] = []


def strange(*_: Any, **__: Any) -> None:
    STRANGE.append("called")


def test_a_closed_season_can_be_recomputed_whole(tmp_path: pathlib.Path) -> None:
    board = make_board(tmp_path / "board")
    entry = board.submit("ada", [HONEST], "mean")
    worker = Worker(board, references=False)
    while worker.step():
        pass
    key = close_season(board)
    with pytest.raises(InvalidInputError, match="closed already"):
        close_season(board)
    with pytest.raises(RefusedSubmissionError, match="hidden seeds are public"):
        board.submit("eve", [HONEST], "late")
    publish(board, tmp_path / "site")
    published = read_published(tmp_path / "site")
    assert published.hidden == 0 and published.seasons()[1][1] == bytes.fromhex(key)
    rows = list(verify(published, entry))
    assert {row.split for row in rows} == {"development", "hidden", "confirmation"} and all(row.same for row in rows)
    board.store.close()
