"""A device of numpy arrays that carries plans out to the letter, and the pool's invariants, for tests of the manager.

What lies in the pool is not numbers but names: which row a slot holds, which user's which token a place holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from helm_gym.profile import Profile, load
from helm_gym.workload.sampling import make_requests, make_traffic, sample_interval
from helm_gym.workload.state import INDEX, at_rest
from real_backend.memory.layout import (
    BATCH,
    EMB,
    FILL,
    FILLS,
    KV,
    MOVES,
    N_EMB,
    N_FRESH,
    N_KV_FREE,
    N_PAGES,
    NEWER,
    OFFLOADS,
    OLDER,
    REFILLS,
    SAMPLING,
    SIM_ALPHAS,
    STAGED,
    Memory,
    Plan,
    make_memory,
    make_plan,
    make_rules,
)
from real_backend.memory.layout import LENGTH as SIM_LENGTH
from real_backend.memory.ledger import SUMS, make_ledger
from real_backend.memory.scheduler import LOOKAHEAD, choose
from real_backend.memory.serve import account, open_interval, plan_batch, plan_refill


@contextlib.contextmanager
def ends(seconds: float = 120.0) -> Iterator[None]:
    """Ends the process with a traceback where compiled code does not return: no exception reaches it.

    The time is for what must be compiled, on a machine with other work.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def tiny_profile(
    pages: int = 24,
    max_batch: int = 3,
    host_users: int = 0,
    tokens_per_page: int = 4,
    budget: int = 5,
    chunk_tokens: int = 0,
) -> Profile:
    """A pool in which everything is scarce: histories of up to 32 tokens, 300 items, 24 users."""
    base = load("cpu-small")
    token_bytes = base.kv_bytes_per_token
    return dataclasses.replace(
        base,
        name="tiny",
        model=dataclasses.replace(base.model, max_history=32, max_candidates=6),
        pool=dataclasses.replace(
            base.pool,
            pages=pages,
            page_bytes=token_bytes * tokens_per_page,
            min_alpha=0.05,
            max_alpha=0.6,
            page_moves_per_interval=budget,
            shadow_pages=2,
        ),
        kv_miss=dataclasses.replace(base.kv_miss, policy="copy" if host_users else "recompute", host_users=host_users),
        population=dataclasses.replace(
            base.population, users=24, items=300, hot_users=6, mean_history=14.0, delta_tokens=3.0, candidates=5
        ),
        interval=dataclasses.replace(base.interval, requests=10, window=40),
        max_batch=max_batch,
        chunk_tokens=chunk_tokens,
    )


class NumpyDevice:
    """Pool and host tier of names; raises AssertionError where a plan would serve something that is not there."""

    def __init__(self, profile: Profile):
        slots = profile.pool.pages * profile.rows_per_page
        staging = profile.max_batch * (profile.model.max_history + profile.model.max_candidates)
        self.rows = np.full(slots + staging, -1)
        self.tokens = np.full((profile.pool.pages, profile.tokens_per_page, 3), -1)  # user, version, position
        self.host = np.full((profile.kv_miss.host_users, profile.pages_per_user, profile.tokens_per_page, 3), -1)
        self.rows_per_page, self.tokens_per_page = profile.rows_per_page, profile.tokens_per_page

    def _page_written(self, page: int, kind: str) -> None:
        """A page is bytes: what one cache writes the other can no longer read."""
        if kind == "rows":
            self.tokens[page] = -2
        else:
            self.rows[page * self.rows_per_page : (page + 1) * self.rows_per_page] = -2

    def _write_row(self, slot: int, row: int) -> None:
        self.rows[slot] = row
        if slot // self.rows_per_page < len(self.tokens):
            self._page_written(slot // self.rows_per_page, "rows")

    def move(self, plan: Plan) -> None:
        for k in range(plan.counts[OFFLOADS]):
            pages = plan.offload_pages[k][plan.offload_pages[k] >= 0]
            self.host[plan.offload_place[k], : len(pages)] = self.tokens[pages]
        n = plan.counts[MOVES]
        targets = plan.move_to[:n].tolist()
        assert len(set(targets)) == n, "two rows are moved to one slot"
        for slot, row in zip(targets, self.rows[plan.move_from[:n]].tolist(), strict=True):
            self._write_row(slot, row)

    def serve(self, plan: Plan, memory: Memory, requests: list[tuple[int, int, int, np.ndarray]]) -> None:
        """requests: (user, version, length, rows of its new tokens and candidates)."""
        self.move(plan)
        for b, (user, _, _, _) in enumerate(requests):
            if plan.upload_place[b] >= 0:
                pages = -(-plan.cached[b] // self.tokens_per_page)
                for p in range(pages):
                    self._page_written(memory.user_pages[user, p], "tokens")
                    self.tokens[memory.user_pages[user, p]] = self.host[plan.upload_place[b], p]
        for row, slot in zip(plan.fill_row[: plan.counts[FILLS]], plan.fill_slot[: plan.counts[FILLS]], strict=True):
            self._write_row(slot, row)
        read = 0
        for b, (user, version, length, rows) in enumerate(requests):
            found = self.rows[plan.slots[read : read + len(rows)]]
            assert (found == rows).all(), "a slot holds another row than the one that was asked for"
            read += len(rows)
            for position in range(plan.cached[b]):
                place = self.tokens[memory.user_pages[user, position // self.tokens_per_page]]
                held = place[position % self.tokens_per_page].tolist()
                assert held == [user, version, position], "KV of another user, version or position"
            assert plan.cached[b] + len(rows) >= length
        for b, (user, version, _, _) in enumerate(requests):
            for position in range(plan.cached[b], plan.stored[b]):
                page = memory.user_pages[user, position // self.tokens_per_page]
                assert memory.owner[page] == KV, "KV is written into a page that KV does not own"
                self._page_written(page, "tokens")
                self.tokens[page, position % self.tokens_per_page] = (user, version, position)

    def refill(self, plan: Plan) -> None:
        for row, slot in zip(plan.refill_row[: plan.counts[REFILLS]], plan.refill_slot, strict=False):
            self._write_row(slot, row)


class Batch(NamedTuple):
    """What one micro-batch asked for and got."""

    number: int
    requests: list[int]  # places in the interval, in the order in which they were admitted
    cached: list[int]  # history tokens of each that were cached
    missed: int  # rows that it fetched


class Node:
    """One unit of the memory manager, driven request by request, with its plans carried out and checked."""

    def __init__(self, profile: Profile, seed: int = 0, alpha: float = 0.5):
        self.profile, self.rules, self.plan = profile, make_rules(profile), make_plan(profile)
        values = at_rest(profile)[None]
        values[:, INDEX["arrival_rate_rps"]] = 500.0
        self.values = values[0]
        self.traffic = make_traffic(profile, values, np.array([seed]))
        self.requests = make_requests(profile, 1)
        self.ledger = make_ledger(profile, 1)
        whole = make_memory(profile, np.array([round(alpha * profile.pool.pages)]))
        self.memory = Memory._make(array[0] for array in whole)
        self.device = NumpyDevice(profile)
        self.gaps = np.full(profile.interval.requests, np.nan)
        self.staged = self.rows_moved = self.chunks = self.passed = 0
        self.batches = list[Batch]()  # of the last interval

    def interval(self, target_pages: int, sizes: list[int]) -> int:
        """One interval, its requests in micro-batches of ``sizes`` in turn. Returns the pages moved."""
        sample_interval(self.traffic, 0, self.values, self.gaps, self.requests)
        return self.serve(target_pages, sizes)

    def ask(self, asked: Sequence[tuple[int, int, int, int]], rng: np.random.Generator) -> None:
        """The next interval's requests: (user, version, history, candidates), the rows at random.

        A version's history grows, and older requests of it may come later; another version is another history.
        """
        q, t = self.requests, self.traffic
        for r, (user, version, length, candidates) in enumerate(asked):
            known = int(t.length[0, user]) if t.version[0, user] == version else 0
            new = max(0, length - known)
            t.items[0, user, known : known + new] = rng.integers(0, self.profile.population.items, new)
            t.version[0, user], t.length[0, user] = version, known + new
            q.user[0, r], q.version[0, r], q.length[0, r] = user, version, length
            q.delta[0, r], q.candidate_count[0, r], q.gap_s[0, r] = rng.integers(0, length + 1), candidates, 1e-3
            q.candidates[0, r] = rng.integers(0, self.profile.population.items, q.candidates.shape[2])
        q.number[0, 0] = len(asked)

    def serve(self, target_pages: int, sizes: list[int]) -> int:
        """Serves ``requests`` as ``interval`` does."""
        m, before = self.memory, int(self.memory.n[N_EMB])
        resident = set(np.flatnonzero(m.row_slot >= 0))
        budget = self.profile.pool.page_moves_per_interval
        open_interval(m, 0, target_pages, budget, self.requests, self.plan, self.ledger, self.rules)
        moved = int(m.n[N_EMB]) - before
        assert not (set(np.flatnonzero(m.row_slot >= 0)) - resident), "a move alone makes rows resident"
        assert abs(moved) <= budget, "a move exceeds its budget"
        assert abs(target_pages - before) - abs(target_pages - m.n[N_EMB]) == abs(moved), "a move goes the wrong way"
        assert self.plan.counts[FILLS] == 0, "a move alone fetches rows"
        self.rows_moved += int(self.plan.counts[MOVES])
        self.device.move(self.plan)
        self.check()
        turn, answered = 0, list[int]()
        self.batches = []
        while size := choose(m, self.requests, 0, self.ledger, sizes[turn % len(sizes)], self.plan, self.rules):
            assert size <= sizes[turn % len(sizes)]
            answered += self._batch(size)
            turn += 1
        count = int(self.requests.number[0, 0])
        assert sorted(answered) == list(range(count)), "a request is answered twice, or never"
        for at, r in enumerate(answered):
            passed = sum(later > r for later in answered[:at])
            assert passed < LOOKAHEAD * max(sizes), "a request is passed by more than the rule says"
            self.passed += passed
        for user in set(self.requests.user[0, :count].tolist()):
            own = [r for r in answered if self.requests.user[0, r] == user]
            assert own == sorted(own), "a user's requests are answered out of order"
        self.ledger.interval[0, 0] += 1
        check(m, self.profile)
        return moved

    def _batch(self, size: int) -> list[int]:
        """Serves the requests that the plan names; returns those that are answered."""
        q, items, sums, plan = self.requests, self.traffic.items[0], np.zeros(SUMS), self.plan
        plan_batch(self.memory, items, q, 0, size, plan, self.ledger, sums, self.rules)
        self.staged += int(self.memory.n[STAGED])
        self.batches.append(
            Batch(
                int(self.memory.n[BATCH]),
                plan.request[:size].tolist(),
                plan.cached[:size].tolist(),
                int(plan.counts[FILLS]),
            )
        )
        served, answered = [], []
        for b, r in enumerate(plan.request[:size].tolist()):
            user, length, stop = q.user[0, r], q.length[0, r], plan.stop[b]
            assert plan.asked[b] == (q.candidate_count[0, r] if stop == length else 0)
            assert plan.cached[b] <= stop <= length and plan.stored[b] <= stop
            if stop < length:
                assert size > 1, "a history is cut and nobody rides along"
                assert b == 0 and stop - plan.cached[b] == self.profile.chunk_tokens, "a chunk of another size"
                self.chunks += 1
            else:
                answered.append(r)
            rows = np.concatenate([items[user, plan.cached[b] : stop], q.candidates[0, r, : plan.asked[b]]])
            served.append((int(user), int(q.version[0, r]), int(stop), rows))
        assert (sums >= 0).all() and np.isfinite(sums).all(), "a sum of the ledger or of a simulation is no amount"
        self.device.serve(plan, self.memory, served)
        self.check()
        account(q, 0, size, plan, 5.0, 0.0, self.ledger, sums)
        plan_refill(self.memory, plan, 5.0, self.ledger, 0, sums, self.rules)
        self.device.refill(plan)
        self.check()
        return answered

    def check(self) -> None:
        _check_caches(self.memory, self.profile)


def check(m: Memory, profile: Profile) -> None:
    """The invariants of one unit's memory and of its simulations."""
    _check_caches(m, profile)
    for s in range(len(SIM_ALPHAS)):
        _check_simulation(m, s, profile)


def _ring(newer: np.ndarray, older: np.ndarray) -> list[int]:
    """Users by recency, the oldest first; the last entry is the sentinel."""
    ring, sentinel = [], len(newer) - 1
    at = int(newer[sentinel])
    while at != sentinel:
        assert newer[older[at]] == at and len(ring) < sentinel, "the ring of recency is torn"
        ring.append(at)
        at = int(newer[at])
    return ring


def _check_simulation(m: Memory, s: int, profile: Profile) -> None:
    length = m.sim_user[:-1, s, SIM_LENGTH]
    held = np.flatnonzero(length)
    assert sorted(_ring(m.sim_user[:, s, NEWER], m.sim_user[:, s, OLDER])) == held.tolist()
    occupied = (-(-length[held] // profile.tokens_per_page)).sum()
    assert m.sim_free[s] + occupied == m.n[N_PAGES] - round(SIM_ALPHAS[s] * m.n[N_PAGES])
    resident = np.flatnonzero(m.sim_row[:, s] >= 0)
    slots = m.sim_row[resident, s] // 2
    assert (m.sim_slot_row[s, slots] == resident).all() and (m.sim_slot_row[s] >= 0).sum() == len(resident)
    assert len(resident) <= m.sim_slots[s] and 0 <= m.sim_hand[s] < m.sim_slots[s]
    assert (resident < -(-profile.population.items // SAMPLING)).all()


def _check_caches(m: Memory, profile: Profile) -> None:
    """A page has one owner, everything adds up, and both directions of every map agree."""
    pages, rows, tokens = int(m.n[N_PAGES]), profile.rows_per_page, profile.tokens_per_page
    emb = m.emb_pages[: m.n[N_EMB]]
    free = m.kv_free[: m.n[N_KV_FREE]]
    cached = np.flatnonzero(m.cached_length)
    occupied = [p for u in cached for p in m.user_pages[u, : -(-m.cached_length[u] // tokens)]]
    everything = np.concatenate([emb, free, np.array(occupied, int)])
    assert sorted(everything.tolist()) == list(range(pages)), "a page is lost or has two owners"
    assert (m.owner[emb] == EMB).all()
    assert (m.owner[free] == KV).all()
    assert (m.owner[np.array(occupied, int)] == KV).all()
    assert (m.page_place[emb] == np.arange(len(emb))).all()
    resident = np.flatnonzero(m.row_slot >= 0)
    slots = m.row_slot[resident]
    assert (m.slot_row[slots] == resident).all()
    assert (m.slot_row >= 0).sum() == len(resident), "a slot holds a row that is not resident"
    assert (m.owner[slots // rows] == EMB).all(), "a row lies in a page that changed hands"
    empty = np.concatenate(
        [np.arange(p * rows, (p + 1) * rows) for p in m.fresh[: m.n[N_FRESH]]] + [np.empty(0, int)]
    ).astype(int)
    if m.n[N_FRESH]:
        top = m.fresh[m.n[N_FRESH] - 1]
        empty = np.setdiff1d(empty, np.arange(top * rows, top * rows + m.n[FILL]))
    assert (m.slot_row[empty] == -1).all()
    assert len(resident) + len(empty) <= len(emb) * rows
    assert sorted(_ring(m.newer, m.older)) == cached.tolist(), "the ring of recency is not the set of cached users"
