"""A serving engine that is none of this project's, under its controller: in shadow first, then active.

    python examples/foreign_pool.py

The engine below is a stand-in: two LRU caches in one pool of pages, users who come back, rows that cross a slow link,
a queue, and a clock of its own. What a real engine has to bring is what it hands to ``Counters`` and ``Controller``
in ``Engine.run``: its counts of every request, what a little more or less of each cache would have been worth (from the
ghost list and the tail of each LRU), and a pool that takes a target split.
"""

from __future__ import annotations

import collections
import pathlib
import sys
from collections.abc import Hashable

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # where nothing is installed

from helm_gym import profile as profiles
from helm_gym.deploy import Controller, Counters

ROWS_A_PAGE, PAGES_A_USER, HISTORY, DELTA, CANDIDATES = 64, 13, 208, 8, 48
ROW_MS, TOKEN_MS, BASE_MS = 0.009, 0.006, 0.15  # of a row over the link, of a token computed, of a request
PAGES_A_MOVE, DEPTH = 50, 64  # pages that move in an interval, and that the ghost lists and tails stand for


class Lru:
    """An LRU cache that knows what it would gain and lose by ``depth`` places more or fewer."""

    def __init__(self, capacity: int, depth: int):
        self.depth = depth
        self._parts = [collections.OrderedDict[Hashable, None]() for _ in range(3)]  # front, tail, ghosts
        self.ghost_hits = self.tail_hits = 0
        self.resize(capacity)

    def resize(self, capacity: int) -> None:
        self._limits = (max(0, capacity - self.depth), min(capacity, self.depth), self.depth)
        self._settle()

    def _settle(self) -> None:
        for part, limit, below in zip(self._parts, self._limits, [*self._parts[1:], None], strict=True):
            while len(part) > limit:
                key, _ = part.popitem(last=False)
                if below is not None:
                    below[key] = None

    def look_up(self, key: Hashable) -> bool:
        """Whether it was there; it is from now on."""
        front, tail, ghosts = self._parts
        hit = key in front or key in tail
        if key in front:
            front.move_to_end(key)
            return True
        self.tail_hits += tail.pop(key, 0) is None
        self.ghost_hits += ghosts.pop(key, 0) is None
        front[key] = None
        self._settle()
        return hit


class Engine:
    """One server with a queue; its pool moves towards a target by so many pages an interval."""

    def __init__(self, seed: int = 0):
        self.profile = profiles.load("cpu-small")
        self.rng = np.random.default_rng(seed)
        self.pages = self.profile.pool.pages
        self.target = self.alpha = 0.7  # the best for the quiet time
        self.rows, self.users = Lru(0, DEPTH * ROWS_A_PAGE), Lru(0, DEPTH // PAGES_A_USER)
        self._share_out()
        self.counters = Counters(self.profile)
        self.marginals: collections.deque[list[float]] = collections.deque(maxlen=4)  # as long as the window
        self.clock = self.free_s = 0.0
        self.histories: dict[int, list[int]] = {}
        popularity = np.arange(1, 100_001) ** -0.8
        self._popular = np.cumsum(popularity / popularity.sum())
        self.sojourn_ms: list[float] = []

    def _share_out(self) -> None:
        """The cache that loses pages gives them up before the other one takes them."""
        emb = round(self.alpha * self.pages)
        sizes = ((self.rows, emb * ROWS_A_PAGE), (self.users, (self.pages - emb) // PAGES_A_USER))
        for cache, capacity in sorted(sizes, key=lambda pair: pair[0] is self.rows and emb > self._emb_pages()):
            cache.resize(capacity)

    def _emb_pages(self) -> int:
        return sum(self.rows._limits[:2]) // ROWS_A_PAGE

    def _items(self, count: int) -> list[int]:
        return np.searchsorted(self._popular, self.rng.random(count)).tolist()

    def serve(self, hot_share: float, hot_users: int, rate_rps: float) -> None:
        """One request: it arrives, waits, is served and counted."""
        self.clock += self.rng.exponential(1.0 / rate_rps)
        user = int(self.rng.integers(hot_users) if self.rng.random() < hot_share else self.rng.integers(1000, 10**6))
        history = self.histories.get(user) or self._items(HISTORY)
        history = [*history, *self._items(DELTA)][-HISTORY:]
        if user < 1000:
            self.histories[user] = history
        kv_hit = self.users.look_up(user)
        computed = history[-DELTA:] if kv_hit else history
        wanted = [*computed, *self._items(CANDIDATES)]
        misses = sum(not self.rows.look_up(item) for item in wanted)
        transfer_ms = misses * ROW_MS
        service_ms = BASE_MS + TOKEN_MS * len(wanted) + transfer_ms
        began_s = max(self.clock, self.free_s)
        self.free_s = began_s + service_ms * 1e-3
        sojourn_ms = (self.free_s - self.clock) * 1e3
        self.sojourn_ms.append(sojourn_ms)
        self.counters.add(
            arrival_s=self.clock,
            sojourn_ms=sojourn_ms,
            service_ms=service_ms,
            transfer_ms=transfer_ms,
            user=user,
            kv_hit=kv_hit,
            lookups=len(wanted),
            misses=misses,
            history=HISTORY,
            recomputed=0 if kv_hit else HISTORY - DELTA,
        )

    def telemetry(self) -> np.ndarray:
        """The interval's row, with what a little more or less of each cache is worth in ms a request."""
        saved = TOKEN_MS * (HISTORY - DELTA)
        self.marginals.append(
            [
                self.rows.ghost_hits * ROW_MS,
                self.rows.tail_hits * ROW_MS,
                self.users.ghost_hits * saved,
                self.users.tail_hits * saved,
            ]
        )
        for cache in (self.rows, self.users):
            cache.ghost_hits = cache.tail_hits = 0
        worth = np.mean(self.marginals, axis=0) / self.profile.interval.requests
        names = ("emb_gain_ms", "emb_loss_ms", "kv_gain_ms", "kv_loss_ms")
        return self.counters.close(
            alpha=self.alpha, target_alpha=self.target, **dict(zip(names, worth.tolist(), strict=True))
        )

    def move(self, target: float) -> None:
        """Takes a new target, and moves as many pages towards it as an interval allows."""
        self.target = target
        step = PAGES_A_MOVE / self.pages
        self.alpha = min(max(self.target, self.alpha - step), self.alpha + step)
        self._share_out()

    def run(self, controller: Controller, intervals: int, **demand: float) -> np.ndarray:
        """Serves; after every interval the controller decides. Returns the requests' sojourn times (ms)."""
        self.sojourn_ms = []
        for _ in range(intervals):
            while not self.counters.due:
                self.serve(**demand)  # type: ignore[arg-type]  # numbers by name
            requests = self.counters.requests
            decision = controller.decide(0, self.telemetry(), self.clock, requests=requests)
            self.move(decision.target_alpha)
        return np.array(self.sojourn_ms)


QUIET = {"hot_share": 0.15, "hot_users": 40, "rate_rps": 330.0}
CROWD = {"hot_share": 0.95, "hot_users": 130, "rate_rps": 520.0}  # many users come back, more than half the pool holds


def episode(
    policy: str, mode: str, intervals: tuple[int, int, int] = (30, 60, 90)
) -> tuple[Engine, Controller, dict[str, np.ndarray]]:
    """A quiet time, and then a crowd; caches warm up before."""
    engine, controller = Engine(), Controller("cpu-small", policy, mode=mode)
    engine.run(controller, intervals[0], **QUIET)
    times = {
        "quiet": engine.run(controller, intervals[1], **QUIET),
        "crowd": engine.run(controller, intervals[2], **CROWD),
    }
    return engine, controller, times


def main() -> None:
    policy = sys.argv[1] if len(sys.argv) > 1 else "pid"
    print("mode     alpha  quiet: mean, P99 (ms)   crowd: mean, P99 (ms)   interventions")
    for mode in ("off", "shadow", "active"):
        engine, controller, times = episode(policy, mode)
        told = "   ".join(f"{ms.mean():10.2f} {np.quantile(ms, 0.99):10.2f} " for ms in times.values())
        print(f"{mode:8s} {engine.alpha:5.2f} {told}  {controller.status()['interventions'] or 'none'}")
        if mode == "shadow":
            wished = [record.decision.shadow_alpha for record in controller.history(0)]
            print(
                f"         in shadow it would have asked for {wished[-91]:.2f} and then {wished[-1]:.2f}, a step away"
            )
        controller.close()


if __name__ == "__main__":
    main()
