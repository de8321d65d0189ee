"""The pages in a real browser, headless: on a desk and on a phone, without JavaScript."""

from __future__ import annotations

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
from tests.leaderboard import browsing
from tests.leaderboard.boards import HONEST, TASK, constant, make_board

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {missing()}")


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
    with browsing.browser() as opened:
        yield opened


@pytest.mark.parametrize("size", browsing.SIZES)
def test_pages_read_well_at_any_width_without_javascript(
    size: str, browser: Any, site: tuple[str, dict[str, str]]
) -> None:
    address, entries = site
    paths = {
        "index": "/",
        "task": f"/tasks/{TASK}.html",
        "entry": f"/entries/{entries['first']}.html",
        "refused": f"/entries/{entries['refused']}.html",
        "compare": f"/compare.html?first={entries['first']}&second={entries['second']}",
        "submit": "/submit.html",
        "rules": "/rules.html",
        "season": "/seasons/1/index.html",
    }
    browsing.take(browser, size, address, paths)


def test_a_newcomer_finds_the_way_from_the_board_to_an_entry_and_to_a_comparison(
    browser: Any, site: tuple[str, dict[str, str]]
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
