"""Hits of both caches against libCacheSim, a cache simulator from outside, on the same requests.

Where the rule is the same, each request hits in both or in none:

- KV is LRU over users, sizes in pages. libCacheSim keeps an object's size on a hit and admits none that is larger. So
  a user whose pages or version changed is taken out and put in again with his new size (a hit if the version is the
  same), a history larger than KV with the size of KV, as its first part is stored. An empty one is not admitted.
- EMB is a clock over rows, one reference bit, set when a row is put in (``init_freq`` 1) and when it is hit.

Where the rule differs, the reference is written here from the rule in docs/memory_manager.md:

- Users and rows of the present micro-batch are pinned. A user who finds too few pages stores the first part of his
  history; a row that finds no slot is staged, not kept, and misses again if it is asked for again.
- At the start the clock's hand is at the first page while slots are filled from the last page on.
- A slot tells 127 micro-batches apart: a row used exactly 127 ago, or a multiple of it, reads as pinned when the hand
  comes by, and stays for one more round.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import pytest

from helm_gym.profile import Profile
from helm_gym.workload.state import INDEX
from real_backend.memory.kv_cache import COLD_HIT
from real_backend.memory.layout import N_EMB
from tests.real_backend.machine import Node, tiny_profile

INTERVALS = 40


def _profile(pages: int, max_batch: int, tokens_per_page: int = 4) -> Profile:
    """Rows and users enough that both caches miss and hit."""
    base = tiny_profile(pages, max_batch, tokens_per_page=tokens_per_page)
    return dataclasses.replace(base, population=dataclasses.replace(base.population, users=60, items=2000))


def _serve(node: Node, sizes: list[int]) -> Iterator[None]:
    """Intervals of the profile's workload, whose mix changes halfway; alpha stays."""
    for k in range(INTERVALS):
        if k == INTERVALS // 2:
            node.values[INDEX["hot_share"]], node.values[INDEX["item_zipf"]] = 0.3, 0.8
        node.interval(int(node.memory.n[N_EMB]), sizes)
        yield


def _kv_hits(node: Node) -> list[bool]:
    return (node.ledger.outcome[0, : node.requests.number[0, 0]] <= COLD_HIT).tolist()


@pytest.mark.parametrize(("pages", "tokens_per_page", "alpha"), [(60, 4, 0.4), (200, 1, 0.5), (20, 4, 0.8)])
def test_kv_hits_are_those_of_an_lru_over_users(pages, tokens_per_page, alpha):
    simulator = pytest.importorskip("libcachesim", reason="libcachesim is not installed (extra dev)")
    node = Node(_profile(pages, 1, tokens_per_page), seed=pages, alpha=alpha)
    room = pages - int(node.memory.n[N_EMB])
    lru = simulator.LRU(room, hashpower=10)
    version, size = dict[int, int](), dict[int, int]()
    seen = list[bool]()
    for _ in _serve(node, [1]):
        q, expected = node.requests, list[bool]()
        for r in range(int(q.number[0, 0])):
            user, length = int(q.user[0, r]), int(q.length[0, r])
            wanted = min(room, -(-length // tokens_per_page))
            request = simulator.Request()
            request.obj_id, request.obj_size = user + 1, wanted
            held = lru.find(request, False) is not None
            hit = held and version[user] == int(q.version[0, r])
            if hit:
                request.obj_size = max(wanted, size[user])
            kept = hit and request.obj_size == size[user]
            if held and not kept:
                lru.remove(user + 1)
            expected.append(hit)
            if request.obj_size > 0:
                assert lru.get(request) == kept
            version[user], size[user] = int(q.version[0, r]), request.obj_size
        assert _kv_hits(node) == expected
        assert int((node.memory.cached_length > 0).sum()) == lru.get_n_obj()
        seen += expected
    assert 0 < sum(seen) < len(seen)


def test_kv_hits_of_histories_that_do_not_grow_are_those_of_an_lru():
    """Nobody is taken out of libCacheSim's cache but by its own evictions."""
    simulator = pytest.importorskip("libcachesim", reason="libcachesim is not installed (extra dev)")
    node, rng = Node(_profile(60, 1), seed=1, alpha=0.4), np.random.default_rng(1)
    emb, tokens_per_page = int(node.memory.n[N_EMB]), node.profile.tokens_per_page
    lru, lengths = simulator.LRU(60 - emb, hashpower=10), rng.integers(1, 33, 60)
    hits, expected = list[bool](), list[bool]()
    for _ in range(INTERVALS):
        users = np.minimum(rng.zipf(1.3, 10) - 1, 59).tolist()
        node.ask([(user, 0, int(lengths[user]), 1) for user in users], rng)
        node.serve(emb, [1])
        hits += _kv_hits(node)
        for user in users:
            request = simulator.Request()
            request.obj_id, request.obj_size = user + 1, -(-int(lengths[user]) // tokens_per_page)
            expected.append(lru.get(request))
    assert hits == expected
    assert 0 < sum(hits) < len(hits)


class _PinnedClock:
    """EMB by its rule: a ring of slots, each with the number of the micro-batch that used its row, or 0 (cold)."""

    def __init__(self, pages: int, rows_per_page: int):
        self.row: list[int | None] = [None] * (pages * rows_per_page)
        self.used = [0] * len(self.row)
        self.slot, self.hand = dict[int, int](), 0
        self.empty = [p * rows_per_page + k for p in reversed(range(pages)) for k in range(rows_per_page)]

    def _claim(self, tag: int) -> int | None:
        if self.empty:
            return self.empty.pop(0)
        if all(used == tag for used in self.used):
            return None
        while True:
            slot = self.hand
            self.hand = (slot + 1) % len(self.row)
            if self.used[slot] == 0:
                return slot
            if self.used[slot] != tag:
                self.used[slot] = 0

    def look_up(self, row: int, batch: int) -> bool:
        tag, slot = 1 + batch, self.slot.get(row)
        hit = slot is not None
        if slot is None:
            slot = self._claim(tag)
            if slot is None:
                return False
            old = self.row[slot]
            if old is not None:
                del self.slot[old]
            self.row[slot], self.slot[row] = row, slot
        self.used[slot] = tag
        return hit


@pytest.mark.parametrize("alpha", [0.1, 0.3])  # the hand comes round sooner, and later, than numbers of batches do
def test_emb_hits_are_those_of_a_clock_over_rows(alpha):
    """One row a micro-batch, so that nothing but the clock decides: each lookup is as in libCacheSim."""
    simulator = pytest.importorskip("libcachesim", reason="libcachesim is not installed (extra dev)")
    node = Node(_profile(24, 1), seed=24, alpha=alpha)
    emb, rows_per_page = int(node.memory.n[N_EMB]), node.profile.rows_per_page
    slots = emb * rows_per_page
    rng = np.random.default_rng(24)
    popular = rng.permutation(2000)

    def ask(rows: np.ndarray) -> tuple[list[bool], list[int]]:
        """Each row a request of its own: a user without history, one candidate. Hits and numbers of micro-batches."""
        hits, numbers = list[bool](), list[int]()
        for k in range(0, len(rows), 10):
            some = rows[k : k + 10]
            node.ask([(user, 0, 0, 1) for user in range(len(some))], rng)
            node.requests.candidates[0, : len(some), 0] = some
            node.serve(emb, [1])
            hits += [batch.missed == 0 for batch in node.batches]
            numbers += [batch.number for batch in node.batches]
        return hits, numbers

    def simulated(row: int) -> bool:
        request = simulator.Request()
        request.obj_id, request.obj_size = int(row) + 1, 1
        return clock.get(request)

    # All are filled with the same rows, libCacheSim in the order in which the hand comes by.
    filled, begun = ask(popular[:slots])
    clock = simulator.Clock(slots, hashpower=12, init_freq=1)
    expected = [simulated(row) for row in node.memory.slot_row[:slots]]
    assert not any(filled) and not any(expected)
    stream = popular[np.minimum(rng.zipf(1.2, 1500) - 1, 1999)]
    hits, numbers = ask(stream)
    expected = [simulated(row) for row in stream]
    assert hits == expected
    reference = _PinnedClock(emb, rows_per_page)
    for row, number in zip(popular[:slots], begun, strict=True):
        reference.look_up(int(row), number)
    assert hits == [reference.look_up(int(row), n) for row, n in zip(stream, numbers, strict=True)]
    assert 0.1 < np.mean(hits) < 0.95


class _PinnedLru:
    """KV by its rule: users by recency, those of the micro-batch pinned."""

    def __init__(self, room: int, tokens_per_page: int):
        self.room, self.tokens_per_page = room, tokens_per_page
        self.users = OrderedDict[int, tuple[int, int]]()  # version, tokens; the least recently used first

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.tokens_per_page)

    def admit(self, user: int, version: int, length: int, pinned: set[int]) -> int:
        """History tokens that were cached."""
        was, held = self.users.pop(user, (version, 0))
        held = held if was == version else 0
        stored = max(held, length)
        occupied = sum(self._pages(tokens) for _, tokens in self.users.values())
        for other in [u for u in self.users if u not in pinned]:
            if occupied + self._pages(stored) <= self.room:
                break
            occupied -= self._pages(self.users.pop(other)[1])
        stored = max(held, min(stored, (self.room - occupied) * self.tokens_per_page))
        if stored > 0:
            self.users[user] = version, stored
        return min(held, length)


@pytest.mark.parametrize(("pages", "max_batch", "alpha"), [(24, 3, 0.1), (60, 3, 0.1), (20, 4, 0.8), (60, 4, 0.4)])
def test_hits_of_micro_batches_are_those_of_the_rule_with_pins(pages, max_batch, alpha):
    node = Node(_profile(pages, max_batch), seed=max_batch, alpha=alpha)
    emb, t = int(node.memory.n[N_EMB]), node.profile.tokens_per_page
    kv, rows = _PinnedLru(pages - emb, t), _PinnedClock(emb, node.profile.rows_per_page)
    lookups, misses, hits, requests, riding = 0, 0, 0, 0, 0
    for _ in _serve(node, [max_batch]):
        q, items = node.requests, node.traffic.items[0]
        for batch in node.batches:
            pinned = {int(q.user[0, r]) for r in batch.requests}
            cached, missed = list[int](), 0
            for r in batch.requests:
                user, length = int(q.user[0, r]), int(q.length[0, r])
                cached.append(kv.admit(user, int(q.version[0, r]), length, pinned))
                asked = [*items[user, cached[-1] : length], *q.candidates[0, r, : q.candidate_count[0, r]]]
                missed += sum(not rows.look_up(int(row), batch.number) for row in asked)
                lookups += len(asked)
            assert batch.cached == cached, "KV"
            assert batch.missed == missed, "EMB"
            misses += missed
            hits += sum(c > 0 for c in cached)
            requests += len(cached)
            riding += len(cached) > 1
    assert 0 < hits < requests and 0 < misses < lookups and riding > 0
