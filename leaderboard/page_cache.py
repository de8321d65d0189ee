"""Pages kept for a moment: however many ask for one at a time, it is made once, and hardly anybody waits for it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_FRESH_S, _STALE_S = 1.0, 3.0
_MOST = 400  # pages that are kept
_THREADS = 2  # more would only share the interpreter's lock, and make everybody's page late


class PageCache:
    """Rendered pages by address.

    A page is given as it is for ``_FRESH_S`` seconds. Up to ``_STALE_S`` it is given as it is too, and made again in
    the background. Whoever comes later waits for it, so that the first to look at a quiet board sees it as it is now.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "pages")
        self._kept: dict[str, tuple[float, str]] = {}
        self._making: dict[str, Future[str]] = {}

    async def get(self, address: str, make: Callable[[], str]) -> str:
        """The page; raises what ``make`` raises where there is none to give meanwhile."""
        made, text = self._kept.get(address, (-math.inf, ""))
        age = time.monotonic() - made
        if age < _FRESH_S:
            return text
        making = self._making.get(address)
        if making is None:
            making = self._making[address] = self._threads.submit(self._make, address, make)
            making.add_done_callback(lambda _: self._making.pop(address, None))
        if age < _STALE_S:
            return text
        return await asyncio.shield(asyncio.wrap_future(making))  # others wait for it too

    def _make(self, address: str, make: Callable[[], str]) -> str:
        text = make()
        if len(self._kept) >= _MOST:
            self._kept.clear()
        self._kept[address] = time.monotonic(), text
        return text
