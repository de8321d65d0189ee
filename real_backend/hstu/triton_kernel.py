"""Paged attention in Triton: what ``pages.reference`` computes, a block of queries of one head at a time.

Products are of the model's type, sums are float32. Imported where Triton is installed; with ``TRITON_INTERPRET=1``, set
before that, the same lines run on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

if TYPE_CHECKING:  # it is what imports this module
    from real_backend.hstu.pages import Layout

BLOCK_M, BLOCK_N = 64, 64  # queries and keys that are multiplied together


@triton.jit
def _product(a, b, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]  # compiled: Triton's own types
    if UPCAST:  # Triton's interpreter multiplies the bits of bfloat16 as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _silu(x):  # type: ignore[no-untyped-def]
    return x * tl.sigmoid(x)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    q,
    fresh,
    pool,
    pages,
    cached,
    starts,
    out,
    stride_fresh,
    stride_pool,
    stride_pages,
    first,  # segment of the first row of q
    batch,
    page_tokens,
    HEADS: tl.constexpr,
    QK: tl.constexpr,
    V: tl.constexpr,
    WIDE_QK: tl.constexpr,  # powers of 2, at least 16, that hold QK and V
    WIDE_V: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    UPCAST: tl.constexpr,
):
    head, segment = tl.program_id(1), first + tl.program_id(2)
    request, asked = segment % batch, segment >= batch
    begin, end = tl.load(starts + segment), tl.load(starts + segment + 1)
    top = tl.program_id(0) * M
    if top >= end - begin:
        return
    m = top + tl.arange(0, M)
    d, e = tl.arange(0, WIDE_QK), tl.arange(0, WIDE_V)
    there, in_k, in_v = m < end - begin, d < QK, e < V
    row = begin + m
    row_q = row - tl.load(starts + first)
    queries = tl.load(
        q + row_q[:, None] * (HEADS * QK) + head * QK + d[None, :], mask=there[:, None] & in_k[None, :], other=0.0
    )
    sums = tl.zeros([M, WIDE_V], dtype=tl.float32)
    of_k, of_v = head * QK, HEADS * QK + head * V  # where this head's K and V lie in a token's

    # What is cached. A key behind the end is 0, and SiLU(0) = 0: no mask.
    held = tl.load(cached + request)
    for start in range(0, held, N):
        n = start + tl.arange(0, N)
        seen = n < held
        page = tl.load(pages + request * stride_pages + n // page_tokens, mask=seen, other=0).to(tl.int64)
        place = (page * page_tokens + n % page_tokens) * stride_pool
        k = tl.load(pool + place[None, :] + of_k + d[:, None], mask=seen[None, :] & in_k[:, None], other=0.0)
        v = tl.load(pool + place[:, None] + of_v + e[None, :], mask=seen[:, None] & in_v[None, :], other=0.0)
        a = _silu(_product(queries, k, UPCAST))
        sums += _product(a.to(v.dtype), v, UPCAST)

    # The new history: causal for itself, all of it for a candidate.
    new_begin = tl.load(starts + request)
    new = tl.load(starts + request + 1) - new_begin
    stop = new if asked else tl.minimum(new, top + M)
    for start in range(0, stop, N):
        n = start + tl.arange(0, N)
        seen = n < new
        line = (new_begin + n) * stride_fresh
        k = tl.load(fresh + line[None, :] + of_k + d[:, None], mask=seen[None, :] & in_k[:, None], other=0.0)
        v = tl.load(fresh + line[:, None] + of_v + e[None, :], mask=seen[:, None] & in_v[None, :], other=0.0)
        a = _silu(_product(queries, k, UPCAST))
        a = tl.where((n[None, :] <= m[:, None]) | asked, a, 0.0)
        sums += _product(a.to(v.dtype), v, UPCAST)

    if asked:  # a candidate and itself
        line = row * stride_fresh
        k = tl.load(fresh + line[:, None] + of_k + d[None, :], mask=there[:, None] & in_k[None, :], other=0.0)
        v = tl.load(fresh + line[:, None] + of_v + e[None, :], mask=there[:, None] & in_v[None, :], other=0.0)
        own = _silu(tl.sum(queries.to(tl.float32) * k.to(tl.float32), 1))
        sums += own[:, None] * v.to(tl.float32)

    to = out + row_q[:, None] * (HEADS * V) + head * V + e[None, :]
    tl.store(to, sums, mask=there[:, None] & in_v[None, :])


def attend(q: torch.Tensor, fresh: torch.Tensor, pool: torch.Tensor, at: Layout, last: bool) -> torch.Tensor:
    """See ``pages.reference``."""
    batch = len(at.cached)
    out = torch.empty((q.shape[0], at.heads * at.v_dim), dtype=torch.float32, device=q.device)
    longest = at.longest[1] if last else max(at.longest)
    if longest:
        grid = (triton.cdiv(longest, BLOCK_M), at.heads, batch if last else 2 * batch)
        constants = constants_of(at)
        _attend[grid](
            q.to(fresh.dtype).contiguous(), fresh, pool, at.pages, at.cached, at.starts, out, fresh.stride(0),
            pool.stride(0), at.pages.stride(0), batch if last else 0, batch, at.page_tokens, **constants,
        )  # fmt: skip
    return out


def constants_of(at: Layout) -> dict[str, Any]:
    """What the kernel is compiled for."""
    wide_qk, wide_v = (max(16, triton.next_power_of_2(dim)) for dim in (at.qk_dim, at.v_dim))
    interpreted = isinstance(_attend, InterpretedFunction)
    sizes = {"HEADS": at.heads, "QK": at.qk_dim, "V": at.v_dim, "WIDE_QK": wide_qk, "WIDE_V": wide_v}
    return sizes | {"M": BLOCK_M, "N": BLOCK_N, "UPCAST": interpreted}
