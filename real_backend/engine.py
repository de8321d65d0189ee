"""Carries out a memory manager's plan on a device: copies, gathers, HSTU, and what is written back into the pool.

On CUDA the bytes that come up from the host travel on a stream of their own, and those that go down on another.
Background refills and offloads overlap with compute; what a micro-batch misses is waited for before its first layer. On
CPU the same lines are plain copies.

float32 on the CPU is scored over the pool's pages by compiled kernels (``hstu.paged``), and on CUDA over them by a
kernel of Triton's (``hstu.pages``). All else goes through torch (``hstu.model``), over a buffer of the micro-batch's K
and V in which requests are padded to the longest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.kernels.jit import kernel
from helm_gym.machine_memory import require
from helm_gym.profile import Profile
from real_backend import fbgemm
from real_backend.checks import check_batch, check_profile
from real_backend.hstu import pages as paging
from real_backend.hstu.attention import BLOCK
from real_backend.hstu.model import HSTU, Jagged
from real_backend.hstu.paged import PagedHSTU
from real_backend.hstu.paged_attention import QUERIES
from real_backend.hstu.weights import open_table, put, read_weights
from real_backend.memory.layout import FILLS, MOVES, OFFLOADS, REFILLS, TOKENS, Plan, make_plan
from real_backend.staging import BUFFERS, Staging


class MicroBatch(NamedTuple):
    """The requests of a micro-batch, as far as a plan does not say it."""

    length: NDArray[np.int32]  # (batch,), history tokens, the new ones included
    candidates: NDArray[np.int32]  # (batch,)
    pages: NDArray[np.int32]  # (batch, pages a user), contiguous, page table of each request's user, -1: no page


class Waits(NamedTuple):
    """What kept a micro-batch waiting (ms), on a link that is not modelled."""

    rows: float
    uploads: float
    offloads: float
    delayed: float  # by refills still under way


@kernel
def _locate(plan_slots, cached, stored, length, candidates, pages, page_tokens, places, out):
    """Where each token's row, K and V are. Fills the rows of ``out``; returns the numbers of new and of kept tokens.

    ``slot`` lists all requests' new history tokens and then all their candidates; ``position`` and ``row`` (place in
    the K and V buffer of ``places`` tokens a request) are the new tokens'; ``source`` and ``place`` (in the buffer and
    in the pool) those of the new tokens that are kept.
    """
    slot, position, row, source, place = out[0], out[1], out[2], out[3], out[4]
    new = 0
    for i in range(len(length)):
        new += length[i] - cached[i]
    read = n = kept = 0
    candidate = new
    for i in range(len(length)):
        for p in range(cached[i], length[i]):
            slot[n], position[n], row[n] = plan_slots[read], p, i * places + p
            if p < stored[i]:
                source[kept] = i * places + p
                place[kept] = pages[i, p // page_tokens] * page_tokens + p % page_tokens
                kept += 1
            read += 1
            n += 1
        for _ in range(candidates[i]):
            slot[candidate] = plan_slots[read]
            read += 1
            candidate += 1
    return new, kept


def memory_bytes(profile: Profile, block: int = BLOCK["cuda"]) -> tuple[int, int]:
    """What an engine takes of the host's memory and of the device's, a full micro-batch's intermediate values included.

    Args:
        block: queries that attention takes at once on the device.
    """
    model, pool, batch = profile.model, profile.pool, profile.max_batch
    tokens = batch * (model.max_history + model.max_candidates)
    wide, width = model.heads * (model.qk_dim + model.v_dim), model.heads * model.v_dim
    user_bytes = profile.pages_per_user * pool.page_bytes
    table = 0 if model.table else profile.population.items * profile.row_bytes  # one of a file is mapped
    host = table + profile.kv_miss.host_users * user_bytes + 5 * tokens * 8 + BUFFERS * tokens * profile.row_bytes
    caches = sum(profile.memory_account.values())
    weights = 4 * model.embedding_dim * (model.layers * (4 * wide + 3 * width) + model.max_history)
    layer = tokens * (3 * model.embedding_dim + 2 * wide + 6 * width)
    attention = model.max_history * model.v_dim  # O of one head of a request
    if profile.pads:
        attention = 2 * batch * model.heads * min(block, model.max_history) * model.max_history
    return host, caches + weights + 4 * (layer + attention)  # sums are float32


class Engine:
    """The device's side of one node: pool, full embedding table, host tier for KV, and the model.

    Args:
        profile: machine and model.
        device: ``cpu`` or ``cuda``; the profile's own where it is not given. On CPU torch is set to one thread,
            because only the calling thread's time is measured.
        paged: whether attention reads cached K and V in the pool's pages, or from a padded copy of them; by itself on
            CUDA, where Triton is installed.

    Raises:
        InvalidInputError: the profile's pages are not filled exactly by rows and by tokens, or there is no such device,
            or it or the host has too little memory.
    """

    def __init__(self, profile: Profile, device: str | None = None, paged: bool | None = None) -> None:
        check_profile(profile)
        self.device = torch.device(device or profile.device)
        self._cuda = self.device.type == "cuda"
        self.profile = profile = dataclasses.replace(profile, device="cuda" if self._cuda else "cpu")
        if self._cuda and not torch.cuda.is_available():
            raise InvalidInputError(f"Profile '{profile.name}' asks for cuda, which this machine lacks; choose cpu.")
        if not self._cuda:
            torch.set_num_threads(1)
        self.paged = self._cuda and paging.kernel() is not None if paged is None else paged
        self._require_memory()
        model, pool, batch = profile.model, profile.pool, profile.max_batch
        dtype = getattr(torch, model.dtype)
        tokens = batch * (model.max_history + model.max_candidates)
        staging = profile.staging_pages
        kv = (model.layers, model.heads * (model.qk_dim + model.v_dim))

        # Zeros and not uninitialised memory: a masked key is multiplied by 0, which only a finite number survives.
        self.pool = torch.zeros((pool.pages + staging) * pool.page_bytes, dtype=torch.uint8, device=self.device)
        values = self.pool.view(dtype)
        self.rows = values.view(-1, model.embedding_dim)  # (slots, embedding_dim), staging behind the pool
        self.pages = values.view(pool.pages + staging, -1)  # (pages, elements)
        self.tokens = self.pages[: pool.pages].view(-1, *kv)  # (places, layers, heads * (qk_dim + v_dim)), K then V

        self.table = _make_table(profile, dtype, pin=self._cuda)
        places = (profile.kv_miss.host_users, profile.pages_per_user, self.pages.shape[1])
        self.host = torch.zeros(places, dtype=dtype, pin_memory=self._cuda and profile.kv_miss.host_users > 0)

        self._staging = Staging(tokens, model.embedding_dim, dtype, self.device)
        self.hstu = HSTU(model, self.device)
        if model.weights:
            path = pathlib.Path(model.weights)
            put(read_weights(path).parameters, self.hstu, path)
        self._compiled: PagedHSTU | None = None
        if paged is None and not self._cuda and not profile.pads:
            pool_arrays = self.rows.numpy(), self.tokens.numpy()
            self._compiled = PagedHSTU(self.hstu, *pool_arrays, profile.tokens_per_page, tokens)
        elif not self.paged:
            room = (batch * profile.pages_per_user, self.pages.shape[1])
            self._kv = torch.zeros(room, dtype=dtype, device=self.device)
            index = torch.zeros((5, tokens), dtype=torch.int64, pin_memory=self._cuda)
            self._index, self._index_array = index.unbind(), index.numpy()
        # Up and down, each in its own order; events order them against the compute stream (wait_stream).
        self._copies, self._downs = (torch.cuda.Stream(self.device) if self._cuda else None for _ in range(2))
        self._warm_up()

    def execute(self, plan: Plan, batch: MicroBatch) -> torch.Tensor:
        """Scores of all requests' candidates, end to end: float32 (candidates,), in host memory.

        Raises:
            InvalidInputError: a request is longer than the model, or plan and batch contradict each other.
        """
        return self.timed_execute(plan, batch)[0]

    def timed_execute(self, plan: Plan, batch: MicroBatch) -> tuple[torch.Tensor, float, Waits]:
        """``execute`` with its time: (scores, compute_ms, what it waited for).

        Compute is HSTU, gathers, moves of rows and what is written into the pool. On CPU both are this thread's CPU
        time, and where the profile models the link nothing is waited for.
        """
        check_batch(self.profile, plan, *batch)
        marks = [self._mark()]
        self._join()
        marks.append(self._mark())
        self._offload(plan)
        marks.append(self._mark())
        self._move(plan)
        marks.append(self._mark())
        with self._on(self._copies):
            self._upload(plan, batch)
            marks.append(self._mark())
            self._fill(plan.fill_row[: plan.counts[FILLS]], plan.fill_slot[: plan.counts[FILLS]])
        self._join()
        marks.append(self._mark())
        scores = self._score(plan, batch)
        marks.append(self._mark())
        scores = scores.cpu()  # on CUDA this waits for the device, so that the next call may reuse every buffer
        delayed, down, moved, up, rows, scored = (self._ms(a, b) for a, b in itertools.pairwise(marks))
        waits = Waits(rows, up, down, delayed)
        return scores, moved + scored, Waits(0.0, 0.0, 0.0, 0.0) if self._link_modelled else waits

    def move(self, plan: Plan) -> float:
        """A move between micro-batches: users offloaded and rows moved. Returns the time that it took here (ms).

        Where the link is modelled, what goes down does not count.
        """
        self._join()
        marks = [self._mark()]
        self._offload(plan)
        marks.append(self._mark())
        self._move(plan)
        marks.append(self._mark())
        down, moved = (self._ms(a, b) for a, b in itertools.pairwise(marks))
        return moved if self._link_modelled else down + moved

    @property
    def _link_modelled(self) -> bool:
        return not self._cuda and self.profile.link.modelled

    def refill(self, plan: Plan) -> None:
        """Background traffic: rows of the table into the slots that the plan chose. The next micro-batch finds them."""
        n = plan.counts[REFILLS]
        with self._on(self._copies):
            self._fill(plan.refill_row[:n], plan.refill_slot[:n])

    def load(self, slot_row: NDArray[np.int32]) -> None:
        """Brings the rows of a warm cache up, before anything is served: ``slot_row`` (slots,), -1 where none is."""
        slots = np.flatnonzero(slot_row >= 0).astype(np.int32)
        self._fill(slot_row[slots], slots)

    def _require_memory(self) -> None:
        """Raises InvalidInputError where host or device have less than all of it takes."""
        profile = self.profile
        host, device = memory_bytes(profile, BLOCK[self.device.type])
        if self._cuda and not self.paged:  # without Triton, K and V of a micro-batch are copied
            device += profile.max_batch * profile.pages_per_user * profile.pool.page_bytes
        what, less = (
            f"HSTU on profile '{self.profile.name}'",
            "lower pool.pages, population.items or kv_miss.host_users",
        )
        require(host if self._cuda else host + device, what, less)
        if self._cuda:
            require(device, f"{what}, on the device,", less, torch.cuda.mem_get_info(self.device)[0])

    def _warm_up(self) -> None:
        """Compiles the index kernel and lets the libraries set themselves up, off the first request's clock."""
        plan, one = make_plan(self.profile), np.ones(1, np.int32)
        plan.cached[0] = plan.stored[0] = plan.slots[0] = plan.slots[1] = 0
        plan.counts[TOKENS] = 2
        self.execute(plan, MicroBatch(one, one, np.full((1, self.profile.pages_per_user), -1, np.int32)))

    def _offload(self, plan: Plan) -> None:
        n = int(plan.counts[OFFLOADS])
        # One by one, since a later one may overwrite the place of an earlier one.
        for place, pages in zip(plan.offload_place[:n], plan.offload_pages[:n], strict=True):
            pages = pages[pages >= 0]
            leaving = self.pages.index_select(0, self._send(pages))
            # Gathered on the compute stream, before the pages are written again; on its way down beside what follows.
            with self._on(self._downs):
                self.host[place, : len(pages)].copy_(leaving, non_blocking=True)
                if self._downs is not None:
                    leaving.record_stream(self._downs)

    def _move(self, plan: Plan) -> None:
        if n := plan.counts[MOVES]:
            moving = self.rows.index_select(0, self._send(plan.move_from[:n]))
            self.rows.index_copy_(0, self._send(plan.move_to[:n]), moving)

    def _upload(self, plan: Plan, batch: MicroBatch) -> None:
        """On the copy stream; a user who is still on his way down is waited for."""
        if self._downs is not None and (plan.upload_place[: len(batch.length)] >= 0).any():
            torch.cuda.current_stream(self.device).wait_stream(self._downs)
        for i in np.flatnonzero(plan.upload_place[: len(batch.length)] >= 0):
            n = -(-int(plan.cached[i]) // self.profile.tokens_per_page)
            pages = self.host[plan.upload_place[i], :n].to(self.device, non_blocking=True)
            self.pages.index_copy_(0, self._send(batch.pages[i, :n]), pages)

    def _fill(self, row: NDArray[np.int32], slot: NDArray[np.int32]) -> None:
        for start in range(0, len(row), self._staging.rows):
            part = slice(start, start + self._staging.rows)
            index = torch.from_numpy(row[part])
            rows = self._staging.take()[: len(index)]
            if self.table.dtype == self.rows.dtype:
                torch.index_select(self.table, 0, index, out=rows)
            else:  # a file's table keeps its type
                rows.copy_(self.table.index_select(0, index))
            self.rows.index_copy_(0, self._send(slot[part]), rows.to(self.device, non_blocking=True))
            self._staging.sent()

    def _score_paged(self, plan: Plan, batch: MicroBatch) -> torch.Tensor:
        """Scores over K and V where they lie. New ones go into the pool layer by layer."""
        size, model, page_tokens = len(batch.length), self.profile.model, self.profile.tokens_per_page
        cached = plan.cached[:size]
        at = paging.places(cached, plan.stored[:size], batch.length, batch.candidates, batch.pages, page_tokens)
        position, token, place = map(self._sent, (at.position, at.token, at.place))
        pages, held, starts = map(self._sent, (batch.pages, cached, at.starts))
        longest = (int((batch.length - cached).max()), int(batch.candidates.max()))
        layout = paging.Layout(pages, held, starts, page_tokens, longest, model.heads, model.qk_dim, model.v_dim)
        x = fbgemm.rows(self.rows, self._send(self._in_order(plan, at.starts)))
        scores: torch.Tensor = self.hstu(x, paging.Paged(self.tokens, layout, position, token, place))
        return scores

    @staticmethod
    def _in_order(plan: Plan, starts: NDArray[np.int32]) -> NDArray[np.int32]:
        """The plan's slots, request by request, in the order of ``Layout.starts``."""
        counts, size = np.diff(starts), len(starts) // 2
        ends = np.cumsum(counts.reshape(2, size).T.ravel())
        parts = np.split(plan.slots[: ends[-1]], ends[:-1])
        return np.concatenate(parts[::2] + parts[1::2])

    def attended(self, plan: Plan, batch: MicroBatch) -> int:
        """Tokens that attention computes for a micro-batch, padding included."""
        size = len(batch.length)
        kinds = batch.length - plan.cached[:size], batch.candidates
        if self._compiled is not None:
            return int(sum((-(-kind // QUERIES) * QUERIES).sum() for kind in kinds))
        if self.paged:
            return int(sum(kind.sum() for kind in kinds))
        return size * int(sum(kind.max() for kind in kinds))

    def _score(self, plan: Plan, batch: MicroBatch) -> torch.Tensor:
        if self._compiled is not None:
            tokens, size = plan.counts[TOKENS], len(batch.length)
            return self._compiled.score(plan.slots[:tokens], plan.cached[:size], plan.stored[:size], *batch)
        return self._score_paged(plan, batch) if self.paged else self._score_padded(plan, batch)

    def _score_padded(self, plan: Plan, batch: MicroBatch) -> torch.Tensor:
        size, page_tokens = len(batch.length), self.profile.tokens_per_page
        cached, length = plan.cached[:size].tolist(), batch.length.tolist()
        pages = -(-max(length) // page_tokens)
        places = pages * page_tokens
        new, kept = _locate(plan.slots, plan.cached, plan.stored, *batch, page_tokens, places, self._index_array)
        counts = (int(plan.counts[TOKENS]), new, new, kept, kept)
        slot, position, row, source, place = (
            index.narrow(0, 0, n).to(self.device, non_blocking=True)
            for index, n in zip(self._index, counts, strict=True)
        )
        buffer = self._kv[: size * pages]
        if any(cached):
            wanted = np.maximum(batch.pages[:, :pages], 0).ravel()  # no page: anything finite will do
            torch.index_select(self.pages, 0, self._send(wanted), out=buffer)
        kv = buffer.view(size, places, *self.tokens.shape[1:])
        x = fbgemm.rows(self.rows, slot)
        scores: torch.Tensor = self.hstu(x, Jagged(cached, length, batch.candidates.tolist(), position, row, x), kv)
        if kept:
            self.tokens.index_copy_(0, place, kv.flatten(0, 1).index_select(0, source))
        return scores

    def _send(self, index: NDArray[np.int32]) -> torch.Tensor:
        return self._sent(index.astype(np.int64))

    def _sent(self, array: NDArray[Any]) -> torch.Tensor:
        """Small arrays on the device; pinned, so that the host need not wait for a copy to arrive."""
        sent = torch.from_numpy(array)
        return sent.pin_memory().to(self.device, non_blocking=True) if self._cuda else sent

    @contextlib.contextmanager
    def _on(self, stream: torch.cuda.Stream | None) -> Iterator[None]:
        """Work in the block runs behind all that the compute stream was given, and beside what it is given next."""
        if stream is None:
            yield
            return
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            yield

    def _join(self) -> None:
        if self._copies is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._copies)

    def _mark(self) -> Any:
        if not self._cuda:
            return time.thread_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _ms(self, start: Any, end: Any) -> float:
        if not self._cuda:
            return 1e3 * float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end))


def _make_table(profile: Profile, dtype: torch.dtype, pin: bool) -> torch.Tensor:
    """All embedding rows, in host memory: drawn, or a file's, which is mapped."""
    model, items = profile.model, profile.population.items
    if model.table:
        return open_table(pathlib.Path(model.table), model.embedding_dim, items)
    table = torch.empty((items, model.embedding_dim), dtype=dtype, pin_memory=pin)
    return table.normal_(generator=torch.Generator().manual_seed(model.seed))
