"""Attention over a jagged micro-batch: who sees which keys, and the SiLU attention itself.

A query sees the keys 0 .. ``last`` of its own user's history, and that one number says the whole mask of the paper:
``last`` is a history token's own position (causal), and the newest history token for a candidate. What a candidate
gives to itself is added apart (``add_self``), because no other query sees a candidate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from real_backend import fbgemm

Ints = NDArray[np.integer[Any]]

# Queries in a block of the causal part: small enough to skip most keys that no query of the block sees, large enough
# for a matrix product to be worth its call.
BLOCK = {"cpu": 128, "cuda": 1024}


class Block(NamedTuple):
    """``count`` queries from ``start`` on: all see ``full`` keys, some see more, up to ``keys``, as in ``mask``."""

    start: int
    count: int
    full: int
    keys: int
    mask: torch.Tensor | None  # (batch, 1, queries or 1, keys - full), 1 where seen; None where full == keys


def _block(start: int, count: int, last: Ints, like: torch.Tensor) -> Block:
    """The block of queries whose last visible keys are ``last``, (batch, queries) or (batch, 1)."""
    full, keys = int(last.min()) + 1, int(last.max()) + 1
    if full == keys:
        return Block(start, count, full, keys, None)
    seen = np.arange(full, keys) <= last[:, None, :, None]
    return Block(start, count, full, keys, torch.from_numpy(seen).to(like.device, like.dtype, non_blocking=True))


class Group:
    """One kind of token (new history, or candidates) of every request of a micro-batch, request by request."""

    def __init__(self, lengths: Ints, blocks: list[Block], device: torch.device) -> None:
        self.blocks = blocks
        self._lengths = lengths
        self._total, self._width = int(lengths.sum()), int(lengths.max())
        # One request is its own padding: a view. This is the common case on CPU, where a copy would count.
        self._starts = fbgemm.offsets(lengths, device) if len(lengths) > 1 else None

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, d) -> as many rows for each request: viewable as (batch, width, d)."""
        return x if self._starts is None else fbgemm.pad(x, self._lengths, self._starts, self._width)

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """(batch * width, d) -> (tokens, d)."""
        if self._starts is None:
            return x
        return fbgemm.unpad(x.view(len(self._lengths), self._width, -1), self._starts, self._total)


def history_group(cached: Ints, length: Ints, like: torch.Tensor) -> Group:
    """New history tokens: positions ``cached`` .. ``length``-1 of each request, causal."""
    lengths = length - cached
    width, step = int(lengths.max()), BLOCK[like.device.type]
    last = np.minimum(cached[:, None] + np.arange(width), length[:, None] - 1)  # padding sees what is there anyway
    blocks = [
        _block(start, min(step, width - start), last[:, start : start + step], like) for start in range(0, width, step)
    ]
    return Group(lengths, blocks, like.device)


def candidate_group(candidates: Ints, length: Ints, like: torch.Tensor) -> Group:
    """Candidates: each sees the whole history."""
    return Group(candidates, [_block(0, int(candidates.max()), length[:, None] - 1, like)], like.device)


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
    heads = len(keys) // batch
    queries = group.pad(q).view(batch, -1, heads, keys.shape[1]).transpose(1, 2).flatten(0, 1)
    parts = []
    for start, count, full, end, mask in group.blocks:
        # SiLU(0) = 0, and all that a mask hides is finite: what is not seen is multiplied away.
        a = F.silu(torch.bmm(queries.narrow(1, start, count), keys.narrow(2, 0, end)), inplace=True)
        if mask is not None:
            a.view(batch, heads, count, end).narrow(3, full, end - full).mul_(mask)
        o = torch.bmm(a, values.narrow(1, 0, end))
        parts.append(o.view(batch, heads, count, -1).transpose(1, 2))
    o = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return group.unpad(o.reshape(-1, heads * values.shape[2]))


def add_self(o: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> None:
    """Adds to ``o`` (tokens, heads * d_v), in place, what each token gives to itself: ``SiLU(q . k) v``."""
    shape = (len(q), heads, -1)
    a = F.silu((q * k).view(shape).sum(-1, keepdim=True), inplace=True)
    o.view(shape).addcmul_(a, v.unflatten(1, (heads, -1)))
