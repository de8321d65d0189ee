"""The pages in a real browser, headless: on a desk and on a phone, without JavaScript.

HELM_GYM_SCREENSHOTS names a folder that their pictures are kept in.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from leaderboard.app import make_app
from leaderboard.sandbox import missing
from leaderboard.worker import Worker
from tests.leaderboard.boards import HONEST, TASK, constant, make_board

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SIZES = {"desk": (1280, 900), "phone": (390, 844)}

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)"),
    pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {missing()}"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A board's address, and its entries."""
    board = make_board(tmp_path_factory.mktemp("board"))
    entries = {
        "first": board.submit("ada", [HONEST], "first", write_up={"method": "acts by the mean of what it sees"}),
        "second": board.submit("bob", [constant(0.5)], "second with a name that is rather long (v2)"),
        "refused": board.submit("bob", [b"\x80\x04not a policy"], "refused"),
    }
    worker = Worker(board, references=False)
    while worker.step():
        pass
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(board), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", entries
    server.should_exit = True
    thread.join(20)
    board.store.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("size", SIZES)
def test_pages_read_well_at_any_width_without_javascript(
    size: str, site: tuple[str, dict[str, str]], browser: Any, tmp_path: pathlib.Path
) -> None:
    address, entries = site
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, java_script_enabled=False)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    folder = pathlib.Path(os.environ.get("HELM_GYM_SCREENSHOTS") or tmp_path)
    paths = {
        "index": "/",
        "task": f"/tasks/{TASK}.html",
        "entry": f"/entries/{entries['first']}.html",
        "refused": f"/entries/{entries['refused']}.html",
        "compare": f"/compare.html?first={entries['first']}&second={entries['second']}",
        "submit": "/submit.html",
        "rules": "/rules.html",
    }
    for name, path in paths.items():
        assert page.goto(address + path).status == 200
        page.screenshot(path=folder / f"{name}-{size}.png", full_page=True)
        # Wide tables scroll within their frame; the page itself does not.
        assert page.locator("main").bounding_box()["width"] <= width
        assert page.locator("header.top").bounding_box()["width"] <= width
        for box in page.locator("main > *").all():
            assert (box.bounding_box() or {"width": 0})["width"] <= width, (name, box)
    assert complaints == []
    context.close()


def test_a_newcomer_finds_the_way_from_the_board_to_an_entry_and_to_a_comparison(
    site: tuple[str, dict[str, str]], browser: Any
) -> None:
    address, _ = site
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    page.get_by_role("link", name=TASK).first.click()
    assert page.get_by_role("heading", level=1).inner_text() == TASK
    page.get_by_role("button", name="compare").click()
    assert " and " in page.get_by_role("heading", level=1).inner_text()
    assert page.get_by_role("row").count() == 2
    page.goto(address)
    page.get_by_role("link", name="first").first.click()
    assert "verified" in page.get_by_role("heading", level=1).inner_text()
    assert page.locator("figure svg").count() == 1
    assert page.get_by_text("acts by the mean of what it sees").is_visible()
    context.close()
