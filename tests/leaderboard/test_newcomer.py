"""A newcomer's whole path, on commands alone, from an empty disk to a row that somebody else has recomputed."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from leaderboard.sandbox import missing
from tests.leaderboard import browsing
from tests.leaderboard.boards import TASK, free_port

ROOT = pathlib.Path(__file__).parents[2]
LONGEST_S = 600.0
BOARD = ("--task", TASK, "--hidden", "8", "--horizon", "24")

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {missing()}")]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "helm_gym.cli.main", *map(str, arguments)]


def environment(checkout: pathlib.Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def helm(folder: pathlib.Path, *arguments: object, checkout: pathlib.Path = ROOT) -> str:
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(checkout),
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout


def wait_for(what: Callable[[], Any]) -> Any:
    """What it returns, once that is something."""
    until = time.monotonic() + LONGEST_S
    while time.monotonic() < until:
        try:
            if found := what():
                return found
        except OSError:  # nobody listens yet
            pass
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come")


def test_from_an_empty_disk_to_a_row_recomputed_in_a_fresh_clone(tmp_path: pathlib.Path) -> None:
    port = free_port()
    url, api = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/api/v1"

    def get(path: str) -> Any:
        with urllib.request.urlopen(f"{api}/{path}") as answer:
            return json.load(answer)

    serving = subprocess.Popen(
        command("leaderboard", "serve", "--board", "board", "--port", port, *BOARD),
        cwd=tmp_path,
        env=environment(ROOT),
        stdout=subprocess.DEVNULL,
    )
    try:
        helm(tmp_path, "train", "ppo", "--task", TASK, "--steps", "64", "--out", "runs/mine", "--quiet")
        helm(tmp_path, "export", "runs/mine", "--out", "policy.onnx")
        assert "passes" in helm(tmp_path, "leaderboard", "check", "policy.onnx")
        wait_for(lambda: get("board"))
        told = helm(tmp_path, "leaderboard", "submit", "policy.onnx", "--name", "mine", "--url", url, "--wait", "-q")
        assert "is verified" in told and "ranks (modelled rung)" in told

        def ranked() -> dict[str, Any] | None:
            """Its row and another's, once scores have a scale and the board's own entries are there."""
            rows = {row["name"]: row for row in get(f"tasks/{TASK}")["rows"]}
            scored = {"mine", "pid", "static:0.5"} <= set(rows) and rows["mine"]["latency"]["low"] is not None
            return rows if scored and get(f"tasks/{TASK}")["scale"] else None

        rows = wait_for(ranked)
        mine, other = rows["mine"], rows["pid"]
        assert 1 <= mine["best"] <= mine["worst"] <= len(rows)
        assert mine["latency"]["low"] <= mine["latency"]["value"] <= mine["latency"]["high"]
        (compared,) = get(f"compare/{mine['entry']}/{other['entry']}")
        assert compared["episodes"] == 8 and 0 <= compared["p"] <= 1
        assert "mine" in helm(tmp_path, "leaderboard", "show", "--task", TASK, "--url", url)
        picture(url, mine["entry"], other["entry"])
    finally:
        serving.send_signal(signal.SIGINT)
        serving.wait(60)
    helm(tmp_path, "leaderboard", "publish", "site", "--board", "board")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, timeout=LONGEST_S)
    for entry in (mine["entry"], other["entry"]):
        told = helm(clone, "leaderboard", "verify", tmp_path / "site", entry, "--json", "-q", checkout=clone)
        places = [(row["task"], row["split"], row["same"]) for row in json.loads(told)["rows"]]
        assert places == [(TASK, "development", True)]


def picture(url: str, entry: str, other: str) -> None:
    """What the newcomer saw; nothing where there is no browser."""
    paths = {
        "board": "/",
        "task": f"/tasks/{TASK}.html",
        "entry": f"/entries/{entry}.html",
        "compare": f"/compare.html?first={entry}&second={other}",
    }
    try:
        with browsing.browser() as opened:
            for size in browsing.SIZES:
                browsing.take(opened, size, url, paths, prefix="newcomer-")
    except pytest.skip.Exception as reason:
        print(f"no pictures: {reason}")
