"""Attention that reads cached keys and values where they lie, in the pool's pages: no copy, no padding.

A query sees the cached history of its user (through the page table), the new history up to itself, and, if it is a
candidate, all of the new history and itself. That is the paper's mask: a candidate never sees another one.

``attend`` is the Triton kernel (real_backend/hstu/triton_kernel.py) on CUDA, and ``reference`` elsewhere, which says
the same in torch, one request at a time.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray


class Layout(NamedTuple):
    """Where a micro-batch's tokens and its cached history are.

    Tokens lie in segments: each request's new history, and then each request's candidates.
    """

    pages: torch.Tensor  # int32 (batch, pages a user), -1 where there is none
    cached: torch.Tensor  # int32 (batch,), history tokens that are read from the pages
    starts: torch.Tensor  # int32 (2 * batch + 1,), of the segments, and the end
    page_tokens: int
    longest: tuple[int, int]  # tokens of the longest new history, and of the longest list of candidates
    heads: int
    qk_dim: int
    v_dim: int


def reference(q: torch.Tensor, fresh: torch.Tensor, pool: torch.Tensor, at: Layout, last: bool) -> torch.Tensor:
    """``SiLU(Q K^T) V``; scales are inside Q and V.

    Args:
        q: (tokens, heads * qk_dim); where ``last``, of the candidates alone.
        fresh: (tokens, heads * (qk_dim + v_dim)), K then V of all tokens.
        pool: (places, heads * (qk_dim + v_dim)), of one layer.
        at: where the tokens are.
        last: whether only candidates ask.

    Returns:
        float32 (rows of q, heads * v_dim).
    """
    batch, starts = len(at.cached), at.starts.tolist()
    wide = at.heads * at.qk_dim
    parts = []
    for segment in range(batch * last, 2 * batch):
        request, asked = segment % batch, segment >= batch
        place = torch.arange(int(at.cached[request]), device=pool.device)
        place = at.pages[request, place // at.page_tokens].long() * at.page_tokens + place % at.page_tokens
        kv = torch.cat((pool[place], fresh[starts[request] : starts[request + 1]])).float()
        keys = kv[:, :wide].unflatten(1, (at.heads, at.qk_dim))
        values = kv[:, wide:].unflatten(1, (at.heads, at.v_dim))
        first, count = starts[segment] - starts[batch] * last, starts[segment + 1] - starts[segment]
        queries = q[first : first + count].float().unflatten(1, (at.heads, at.qk_dim))
        a = F.silu(torch.einsum("xha,yha->hxy", queries, keys))
        if not asked:
            a = a.tril(len(place))  # new history is causal behind what is cached
        o = torch.einsum("hxy,yhv->xhv", a.to(fresh.dtype).float(), values)
        if asked:
            own = fresh[starts[segment] : starts[segment + 1]].float()
            weight = F.silu((queries * own[:, :wide].view_as(queries)).sum(-1, keepdim=True))
            o = o + weight * own[:, wide:].view_as(o)
        parts.append(o.flatten(1))
    return torch.cat(parts)


@functools.cache
def kernel() -> Any | None:
    """The Triton kernel's launcher; None where Triton is not installed."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:  # a folder of that name is no package
        return None
    from real_backend.hstu import triton_kernel  # takes seconds, and a machine without a GPU need not have Triton

    return triton_kernel.attend


def attend(q: torch.Tensor, fresh: torch.Tensor, pool: torch.Tensor, at: Layout, last: bool) -> torch.Tensor:
    """See ``reference``. The kernel runs on CUDA, and on the CPU where Triton interprets (TRITON_INTERPRET=1)."""
    launch = kernel() if q.is_cuda or os.environ.get("TRITON_INTERPRET") == "1" else None
    result: torch.Tensor = (launch or reference)(q, fresh, pool, at, last)
    return result


class Paged:
    """A micro-batch and its cached history, as the model sees them: ``Jagged`` and its K and V buffer in one.

    Args:
        pool: (places, layers, heads * (qk_dim + v_dim)), K then V; completed with the new history's.
        position: int64 (new tokens,), of each new history token.
        token, place: int64 (kept,), new history tokens that are kept, and where.
    """

    def __init__(
        self, pool: torch.Tensor, at: Layout, position: torch.Tensor, token: torch.Tensor, place: torch.Tensor
    ):
        self.pool, self.at, self.position, self.token, self.place = pool, at, position, token, place
        self.new = position.shape[0]

    def layers(self) -> Iterator[PagedLayer]:
        return (PagedLayer(layer, self) for layer in self.pool.unbind(1))


class PagedLayer(NamedTuple):
    """One layer's K and V."""

    pool: torch.Tensor  # (places, heads * (qk_dim + v_dim))
    batch: Paged

    def attend(self, q: torch.Tensor, fresh: torch.Tensor, seq: Any, last: bool) -> torch.Tensor:
        """See ``KV.attend``."""
        batch = self.batch
        o = attend(q, fresh, self.pool, batch.at, last)
        if len(batch.token):
            self.pool.index_copy_(0, batch.place, fresh.index_select(0, batch.token))
        return o


class Places(NamedTuple):
    """``Layout`` and what ``Paged`` takes, in host memory."""

    starts: NDArray[np.int32]
    position: NDArray[np.int64]
    token: NDArray[np.int64]
    place: NDArray[np.int64]


def places(
    cached: NDArray[np.int32],
    stored: NDArray[np.int32],
    length: NDArray[np.int32],
    candidates: NDArray[np.int32],
    pages: NDArray[np.int32],
    page_tokens: int,
) -> Places:
    """Segments, positions, and what is kept of a micro-batch; the arguments have an entry a request.

    Args:
        stored: history tokens whose K and V are in the pages afterwards.
        pages: (batch, pages a user).
    """
    starts = np.zeros(2 * len(length) + 1, np.int32)
    np.cumsum(np.concatenate((length - cached, candidates)), out=starts[1:])
    position = [np.arange(a, b) for a, b in zip(cached, length, strict=True)]
    kept = [p[p < limit] for p, limit in zip(position, stored, strict=True)]
    token = [start + np.arange(len(k)) for start, k in zip(starts, kept, strict=False)]
    place = [
        row[k // page_tokens].astype(np.int64) * page_tokens + k % page_tokens
        for row, k in zip(pages, kept, strict=True)
    ]
    return Places(starts, *(np.concatenate(part).astype(np.int64) for part in (position, token, place)))
