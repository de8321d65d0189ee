"""However many ask for a page, it is made once, and what is seen of it is recent."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from leaderboard import page_cache
from leaderboard.page_cache import PageCache
from leaderboard.store import StoreError

EXECUTOR = ThreadPoolExecutor(2)


class Page:
    """Made as often as it is asked to be, once it may."""

    def __init__(self) -> None:
        self.count, self.may = 0, threading.Event()

    def start(self) -> Future[str]:
        return EXECUTOR.submit(self._make)

    def _make(self) -> str:
        assert self.may.wait(20)
        self.count += 1
        return f"version {self.count}"


def test_a_hundred_who_ask_at_once_get_one_page_that_is_made_once() -> None:
    page, cache = Page(), PageCache()

    async def ask() -> list[str]:
        asking = [asyncio.create_task(cache.get("/", page.start)) for _ in range(100)]
        await asyncio.sleep(0)
        asking[0].cancel()  # whoever leaves does not take the page from the others
        page.may.set()
        return await asyncio.gather(*asking[1:])

    assert asyncio.run(ask()) == ["version 1"] * 99 and page.count == 1


def test_nobody_waits_for_a_page_that_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    page, cache = Page(), PageCache()
    page.may.set()
    assert asyncio.run(cache.get("/", page.start)) == "version 1"
    monkeypatch.setattr(page_cache, "_FRESH_S", 0.0)
    page.may.clear()
    assert [asyncio.run(cache.get("/", page.start)) for _ in range(5)] == ["version 1"] * 5
    page.may.set()
    monkeypatch.setattr(page_cache, "_STALE_S", 0.0)  # and who comes to a quiet board gets it as it is
    assert asyncio.run(cache.get("/", page.start)) >= "version 2"
    assert asyncio.run(cache.get("/other", page.start)) == f"version {page.count}"


def test_an_error_is_told_and_not_kept() -> None:
    page, cache = Page(), PageCache()
    page.may.set()

    def fail() -> Future[str]:
        return EXECUTOR.submit(fault)

    def fault() -> str:
        raise StoreError("The database is away.")

    for _ in range(2):
        with pytest.raises(StoreError, match="away"):
            asyncio.run(cache.get("/", fail))
    assert asyncio.run(cache.get("/", page.start)) == "version 1"
