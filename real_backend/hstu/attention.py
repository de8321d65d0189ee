"""Attention over a jagged micro-batch: who sees which keys, and the SiLU attention itself.

A query sees the keys 0 .. ``last`` of its own user's history, and that one number says the whole mask of the paper:
``last`` is a history token's own position (causal), and the newest history token for a candidate. What a candidate
gives to itself is added apart (``add_self``), because no other query sees a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from real_backend import fbgemm

# Queries in a block of the causal part: small enough to skip most keys that no query of the block sees, large enough
# for a matrix product to be worth its call.
BLOCK = {"cpu": 128, "cuda": 1024}


class Block(NamedTuple):
    """``size`` queries from ``start`` on: all see ``full`` keys, some see more, up to ``keys``, as in ``mask``."""

    start: int
    size: int
    full: int
    keys: int
    mask: torch.Tensor | None  # (batch, 1, queries or 1, keys - full), 1 where seen; None where full == keys


class Group:
    """One kind of token (new history, or candidates) of every request of a micro-batch, request by request.

    Args:
        lengths: tokens of each request.
        blocks: the queries that are multiplied together; they cover the longest request.
        device: where the tokens are.
    """

    def __init__(self, lengths: Sequence[int], blocks: list[Block], device: torch.device) -> None:
        self.blocks = blocks
        self._lengths = lengths
        self._total, self.width = sum(lengths), max(lengths)
        # One request is its own padding: a view. This is the common case on CPU, where a copy would count.
        self._starts = fbgemm.offsets(lengths, device) if len(lengths) > 1 else None

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, d) -> as many rows for each request: viewable as (batch, width, d)."""
        return x if self._starts is None else fbgemm.pad(x, self._lengths, self._starts, self.width)

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """(batch * width, d) -> (tokens, d)."""
        if self._starts is None:
            return x
        return fbgemm.unpad(x.view(len(self._lengths), self.width, x.shape[1]), self._starts, self._total)


def history_group(cached: Sequence[int], length: Sequence[int], like: torch.Tensor) -> Group:
    """New history tokens: positions ``cached`` .. ``length``-1 of each request, causal; on the device of ``like``."""
    lengths = [end - start for start, end in zip(cached, length, strict=True)]
    width, step, blocks = max(lengths), BLOCK[like.device.type], []
    for start in range(0, width, step):
        stop = min(start + step, width)
        full = min(min(c + start + 1, n) for c, n in zip(cached, length, strict=True))
        keys = max(min(c + stop, n) for c, n in zip(cached, length, strict=True))
        mask = _mask(np.add.outer(cached, np.arange(start, stop)), full, keys, like)
        blocks.append(Block(start, stop - start, full, keys, mask))
    return Group(lengths, blocks, like.device)


def candidate_group(candidates: Sequence[int], length: Sequence[int], like: torch.Tensor) -> Group:
    """Candidates: each sees the whole history."""
    full, keys = min(length), max(length)
    mask = _mask(np.subtract(length, 1)[:, None], full, keys, like)
    return Group(candidates, [Block(0, max(candidates), full, keys, mask)], like.device)


def _mask(last: NDArray[np.int64], full: int, keys: int, like: torch.Tensor) -> torch.Tensor | None:
    """1 where a query with the last visible key ``last``, (batch, queries or 1), sees keys ``full`` .. ``keys``-1."""
    if full == keys:
        return None
    # Made on the device: a block of long histories has tens of millions of places.
    ends = torch.from_numpy(last).to(like.device, non_blocking=True)
    return (ends[:, None, :, None] >= torch.arange(full, keys, device=like.device)).to(like.dtype)


def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: Group, batch: int) -> torch.Tensor:
    """``SiLU(Q K^T) V`` under the group's mask; scales are the caller's, inside Q and V.

    Args:
        q: (tokens, heads * d_qk), jagged.
        keys: (batch * heads, d_qk, at least the longest history).
        values: (batch * heads, as many, d_v).
        group: what the tokens of ``q`` are.
        batch: requests.

    Returns:
        (tokens, heads * d_v), jagged.
    """
    heads, d_v = keys.shape[0] // batch, values.shape[2]
    queries = group.pad(q).view(batch, group.width, heads, keys.shape[1]).transpose(1, 2).flatten(0, 1)
    parts = []
    for start, size, full, end, mask in group.blocks:
        # SiLU(0) = 0, and all that a mask hides is finite: what is not seen is multiplied away.
        a = F.silu(torch.bmm(queries.narrow(1, start, size), keys.narrow(2, 0, end)), inplace=True)
        if mask is not None:
            a.view(batch, heads, size, end).narrow(3, full, end - full).mul_(mask)
        o = torch.bmm(a, values.narrow(1, 0, end))
        parts.append(o.view(batch, heads, size, d_v).transpose(1, 2))
    o = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return group.unpad(o.reshape(-1, heads * d_v))


def add_self(o: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> None:
    """Adds to ``o`` (tokens, heads * d_v), in place, what each token gives to itself: ``SiLU(q . k) v``."""
    n = q.shape[0]
    a = F.silu((q * k).view(n, heads, q.shape[1] // heads).sum(-1, keepdim=True), inplace=True)
    o.view(n, heads, o.shape[1] // heads).addcmul_(a, v.view(n, heads, v.shape[1] // heads))
