"""A newcomer's path, as commands: serve, check, submit, show, cancel, publish, verify; the server killed on the way."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from helm_gym.cli.main import app
from leaderboard.records import KINDS
from leaderboard.sandbox import missing
from leaderboard.submissions import STATES
from tests.leaderboard.boards import HONEST, TASK, constant, free_port

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {missing()}")


def start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "helm_gym.cli.main", "leaderboard", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT)


def helm(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["leaderboard", *arguments])
    assert done.exit_code == status, f"{arguments}: {done.output} {done.exception}"
    return str(done.stdout if status == 0 or "--json" in arguments else done.output)


class Server:
    """A small board that is served, and that can be killed and started again."""

    def __init__(self, folder: pathlib.Path):
        self.port = str(free_port())
        self.folder, self.url = folder, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        options = ("--task", TASK, "--hidden", "3", "--horizon", "4", "--no-references")
        self.process = start("serve", "--board", str(self.folder), "--port", self.port, *options)
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", int(self.port))) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the server did not start")

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("cli") / "board")
    yield started
    started.end(signal.SIGKILL)


def working(folder: pathlib.Path) -> set[str]:
    """Processes of a board's workers."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if b"leaderboard.worker" in command and str(folder).encode() in command:
            found.add(path.name)
    return found


def test_the_newcomer_s_path_and_a_server_that_is_killed_on_it(server: Server, tmp_path: pathlib.Path) -> None:
    policy, other = tmp_path / "policy.onnx", tmp_path / "other.onnx"
    policy.write_bytes(HONEST)
    other.write_bytes(constant(0.4))
    assert "passes: 3 nodes" in helm("check", str(policy))
    (tmp_path / "write-up.yaml").write_text("authors: [Ada, Bob]\nmethod: acts by the mean\n")
    waiting = start(
        *("submit", str(policy), "--name", "mine", "--url", server.url, "--wait"),
        *("--write-up", str(tmp_path / "write-up.yaml"), "--quiet"),
    )
    until = time.monotonic() + 120
    while not json.loads(_get(server, "entries")) and time.monotonic() < until:
        time.sleep(0.02)
    server.end(signal.SIGKILL)
    end = time.monotonic() + 20
    while working(server.folder) and time.monotonic() < end:
        time.sleep(0.05)
    assert not working(server.folder)  # nothing outlives its server
    server.start()
    assert waiting.wait(120) == 0  # the client waited for it
    told = helm("submit", str(other), "--name", "other", "--url", server.url, "--wait", "--quiet")
    assert "is verified" in told and "ranks (modelled rung)" in told
    table = json.loads(helm("show", "--task", TASK, "--url", server.url, "--json"))
    assert sorted(row["name"] for row in table["rows"]) == ["mine", "other"]
    assert "all tasks" in helm("show", "--url", server.url)
    best = tmp_path / "best.onnx"
    said = helm("show", "--best", "--task", TASK, "--url", server.url, "--out", str(best))
    assert said.strip() == str(best) and best.read_bytes() in (HONEST, constant(0.4))
    site = tmp_path / "site"
    assert "files." in helm("publish", str(site), "--board", str(server.folder))
    entry = table["rows"][0]["entry"]
    assert "are sound" in helm("verify", str(site))
    rows = json.loads(helm("verify", str(site), entry, "--json", "--quiet"))["rows"]
    assert [row["same"] for row in rows] == [True]
    assert "the log is sound" in helm("export", str(tmp_path / "log.jsonl"), "--board", str(server.folder))
    assert "is verified already" in helm("cancel", entry, "--url", server.url, status=2)


def _get(server: Server, path: str) -> str:
    with urllib.request.urlopen(f"{server.url}/api/v1/{path}") as answer:
        return str(answer.read().decode())


def test_a_refused_file_has_its_rule_and_exit_status_2(tmp_path: pathlib.Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x80\x04not a policy")
    assert "(rule format)" in helm("check", str(broken), status=2)
    told = json.loads(helm("check", str(broken), "--json", status=2))
    assert (told["passed"], told["rule"]) == (False, "format")
    told = json.loads(helm("check", str(tmp_path / "missing.onnx"), "--json", status=2))
    assert told["rule"] == "file"


def test_an_id_that_can_be_none_is_a_sentence() -> None:
    assert "give an entry's id" in helm("show", "runs/\x1b[31mred", status=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "--url", "http://127.0.0.1:9"), "No leaderboard answers"),
        (("show", "--best"), "--best is of a task"),
        (("serve", "--host", "0.0.0.0"), "add --tokens"),
        (("serve", "--task", "trace-v0"), "is on no board"),
        (("verify", "/nowhere"), "cannot be read"),
        (("token", "<b>"), "cannot be used"),
        (("publish", "/proc/nothing/site"), "cannot be"),
    ],
)
def test_mistakes_end_with_one_sentence(arguments: tuple[str, ...], said: str, tmp_path: pathlib.Path) -> None:
    board = ("--board", str(tmp_path / "board")) if arguments[0] in ("serve", "token", "publish") else ()
    assert said in helm(*arguments, *board, status=2)


def test_the_documents_have_the_states_and_kinds_that_there_are() -> None:
    text = (ROOT / "docs/leaderboard.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", text, re.MULTILINE))
    assert {name: rows[name] for name in STATES} == STATES
    assert set(rows) == set(STATES) | set(KINDS)
