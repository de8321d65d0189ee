"""Pages kept for a moment: however many ask for one at a time, it is made once, and hardly anybody waits for it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import Future

_FRESH_S, _STALE_S = 1.0, 10.0
_MOST = 400  # pages that are kept


class PageCache:
    """Rendered pages by address.

    A page is given as it is for ``_FRESH_S`` seconds. Up to ``_STALE_S`` it is given as it is too, and made again in
    the background. Whoever comes later waits for it, so that the first to look at a quiet board sees it as it is now.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, str]] = {}
        self._making: dict[str, Future[str]] = {}

    async def get(self, address: str, start: Callable[[], Future[str]]) -> str:
        """The page; raises what making it raises where there is none to give meanwhile.

        Args:
            start: begins to make it, elsewhere.
        """
        made, text = self._kept.get(address, (-math.inf, ""))
        age = time.monotonic() - made
        if age < _FRESH_S:
            return text
        making = self._making.get(address)
        if making is None:
            making = self._making[address] = start()
            making.add_done_callback(lambda done: self._keep(address, done))
        if age < _STALE_S:
            return text
        return await asyncio.shield(asyncio.wrap_future(making))  # others wait for it too

    def _keep(self, address: str, done: Future[str]) -> None:
        self._making.pop(address, None)
        if done.cancelled() or done.exception() is not None:
            return
        if len(self._kept) >= _MOST:
            self._kept.clear()
        self._kept[address] = time.monotonic(), done.result()
