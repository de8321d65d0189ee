"""The API and the pages: what they answer to honest, careless and hostile requests."""

from __future__ import annotations

import asyncio
import base64
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from helm_gym.policies.onnx_check import RULES
from leaderboard import guards
from leaderboard.app import make_app
from leaderboard.board import Board
from leaderboard.guards import Guards
from leaderboard.sandbox import missing
from leaderboard.standings import DIGITS
from leaderboard.worker import Worker
from tests.leaderboard.boards import HONEST, TASK, constant, make_board

HOST = "http://127.0.0.1"
SCRIPT = "<script>alert(1)</script>"

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {missing()}")


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def given(name: str = "mine", content: bytes = HONEST, **more: Any) -> dict[str, Any]:
    return {"name": name, "files": [encoded(content)], **more}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Board, TestClient, dict[str, str]]]:
    """A board with two verified entries and one that was refused."""
    board = make_board(tmp_path_factory.mktemp("filled"))
    entries = {
        "first": board.submit("ada", [HONEST], "first", write_up={"method": f"{SCRIPT} & more"}),
        "second": board.submit("bob", [constant(0.5)], "second"),
        "refused": board.submit("bob", [b"\x80\x04not a policy"], "refused"),
    }
    worker = Worker(board, references=False)
    while worker.step():
        pass
    yield board, TestClient(make_app(board), base_url=HOST), entries
    board.store.close()


@pytest.fixture
def board(tmp_path: pathlib.Path) -> Iterator[Board]:
    made = make_board(tmp_path)
    yield made
    made.store.close()


def test_a_task_s_table_has_ranks_with_intervals(filled: tuple[Board, TestClient, dict[str, str]]) -> None:
    _, client, entries = filled
    table = client.get(f"/api/v1/tasks/{TASK}").json()
    assert {row["entry"] for row in table["rows"]} == {entries["first"], entries["second"]}
    for row in table["rows"]:
        assert 1 <= row["best"] <= row["worst"] <= 2 and row["latency"]["low"] <= row["latency"]["value"]
        assert row["latency"]["value"] == float(f"{row['latency']['value']:.{DIGITS}g}")
    assert client.get("/api/v1/board").json()["tasks"] == [TASK]


def test_hidden_episodes_are_told_as_aggregates_and_development_ones_each(
    filled: tuple[Board, TestClient, dict[str, str]],
) -> None:
    _, client, entries = filled
    for row in client.get(f"/api/v1/entries/{entries['first']}/scores").json()["scores"]:
        assert ("episodes" in row) == (row["split"] == "development")
    log = client.get("/log.jsonl").text
    assert '"split":"development"' in log and '"split":"hidden"' not in log and '"split":"confirmation"' not in log


def test_pages_escape_what_users_wrote_and_need_no_script(filled: tuple[Board, TestClient, dict[str, str]]) -> None:
    _, client, entries = filled
    paths = ["/", "/submit.html", "/rules.html", f"/tasks/{TASK}.html", f"/methods/{TASK}.html"]
    paths += [f"/entries/{entry}.html" for entry in entries.values()]
    paths += [f"/compare.html?first={entries['first']}&second={entries['second']}"]
    for path in paths:
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert "<script" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "width=device-width" in answer.text
    page = client.get(f"/entries/{entries['first']}.html").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page and "<svg" in page
    refused = client.get(f"/entries/{entries['refused']}.html").text
    assert "format" in refused and "fault of the policy" in refused
    assert all(rule in client.get("/submit.html").text for rule in RULES)


def test_a_submission_is_taken_once_and_can_be_called_off(board: Board) -> None:
    client = TestClient(make_app(board), base_url=HOST)
    taken = client.post("/api/v1/entries", json=given())
    assert taken.status_code == 201 and taken.json()["state"] == "received"
    again = client.post("/api/v1/entries", json=given())
    assert again.json() == taken.json()
    entry = taken.json()["entry"]
    assert client.get(f"/api/v1/entries/{entry}").json()["work"]["place"] == 1
    digest = client.get(f"/api/v1/entries/{entry}").json()["files"][0]
    assert client.get(f"/api/v1/files/{digest}").content == HONEST
    assert client.delete(f"/api/v1/entries/{entry}").json()["state"] == "cancelled"
    assert client.delete(f"/api/v1/entries/{entry}").status_code == 409


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (given(name=SCRIPT), 422, "cannot be used"),
        (given(name="'; DROP TABLE records;--"), 422, "cannot be used"),
        (given(name="x" * 100), 422, "name"),
        (given(track="reference"), 422, "track"),
        (given(tasks=["' OR 1=1 --"]), 422, "task of this board"),
        (given(write_up={"method": "\x1b[2J"}), 422, "printable"),
        (given(unknown=1), 422, "unknown"),
        ({"name": "mine", "files": ["***"]}, 422, "not base64"),
        ({"name": "mine", "files": []}, 422, "files"),
        ({"name": "mine", "files": ["A" * (12 * 2**20)]}, 413, "8 MiB"),
        ({"name": "mine"}, 422, "files"),
        ([], 422, "body"),
    ],
)
def test_what_is_no_submission_is_refused_with_a_reason(body: Any, status: int, said: str, board: Board) -> None:
    answer = TestClient(make_app(board), base_url=HOST).post("/api/v1/entries", json=body)
    assert answer.status_code == status, answer.text
    told = answer.json()["error"]
    assert said in told["sentence"] and told["sentence"].isprintable() and "Traceback" not in answer.text
    assert board.entries() == [] and board.store.check() == 2


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/entries/0123456789abcdef",
        "/api/v1/entries/0123456789abcdef/scores",
        "/api/v1/tasks/burst-v9",
        f"/api/v1/files/{'0' * 64}",
        "/entries/0123456789abcdef.html",
        "/tasks/burst-v9.html",
        "/nothing",
        "/files/..%2f..%2fkeys%2fsigning.key",
        "/api/v1/files/..%2fkeys",
        "/api/v1/entries/' OR 1=1 --",
    ],
)
def test_what_is_not_there_is_not_found(path: str, board: Board) -> None:
    assert TestClient(make_app(board), base_url=HOST).get(path).status_code in (404, 422)


def test_files_of_the_store_that_nobody_submitted_are_not_given_out(board: Board) -> None:
    name = board.store.put(b"a log")
    assert TestClient(make_app(board), base_url=HOST).get(f"/api/v1/files/{name}").status_code == 404


def test_tokens_say_who_it_is(board: Board) -> None:
    client = TestClient(make_app(board, tokens=True), base_url=HOST)
    token, other = board.issue_token("ada"), board.issue_token("bob")

    def submit(header: str | None) -> Any:
        return client.post("/api/v1/entries", json=given(), headers={"Authorization": header} if header else {})

    forged = f"Bearer {token[:-1]}{'a' if token[-1] != 'a' else 'b'}"
    for header in (None, "Bearer", "Bearer x", "Basic YTpi", forged, token, "Bearer " + "x" * 5000):
        assert submit(header).status_code == 401, header
    entry = submit(f"Bearer {token}").json()["entry"]
    assert board.entry(entry)["account"] == "ada"
    stranger = {"Authorization": f"Bearer {other}"}
    assert client.delete(f"/api/v1/entries/{entry}", headers=stranger).status_code == 404
    board.revoke_tokens("ada")
    assert client.delete(f"/api/v1/entries/{entry}", headers={"Authorization": f"Bearer {token}"}).status_code == 401
    assert board.entry(entry)["state"] == "received"


def test_quotas_are_told_with_their_reason(tmp_path: pathlib.Path) -> None:
    client = TestClient(make_app(make_board(tmp_path, a_day=9, waiting=1)), base_url=HOST)
    assert client.post("/api/v1/entries", json=given()).status_code == 201
    answer = client.post("/api/v1/entries", json=given("other", constant(0.1)))
    assert answer.status_code == 429 and answer.json()["error"]["reason"] == "queue"


def test_another_site_s_page_cannot_reach_a_local_board(board: Board) -> None:
    app = make_app(board)
    assert TestClient(app, base_url="http://evil.example").get("/api/v1/board").status_code == 400
    plain = TestClient(app, base_url=HOST).post(
        "/api/v1/entries", content='{"name":"x","files":["AA"]}', headers={"Content-Type": "text/plain"}
    )
    assert plain.status_code == 422 and board.entries() == []  # what a form can send without a preflight


def test_an_oversized_body_is_cut_off(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "MAX_BODY_BYTES", 1000)
    answer = TestClient(make_app(board), base_url=HOST).post("/api/v1/entries", json=given("x" * 2000))
    assert answer.status_code == 413 and answer.json()["error"]["reason"] == "body"


def test_a_slow_body_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "BODY_S", 0.05)
    sent: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.03)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(asyncio.wait_for(Guards(application)({"type": "http"}, receive, send), 20))
    assert sent[0]["status"] == 408


def test_a_full_disk_is_told_as_such(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    answer = TestClient(make_app(board), base_url=HOST).post("/api/v1/entries", json=given())
    assert answer.status_code == 507 and answer.json()["error"]["reason"] == "storage"
    assert board.entries() == []
