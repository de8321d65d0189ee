"""Which requests of a recording have something to reuse, by the ids of their blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

COMMON_SHARE = 0.9  # of the requests; a block that more of them hold is the service's prompt, not a user's history

Ints: TypeAlias = NDArray[np.integer[Any]]


def returning(parts: Sequence[tuple[Ints, Ints]]) -> NDArray[np.bool_]:
    """Whether each request holds a block of an earlier one, blocks that nearly every request holds apart.

    In Mooncake's conversation trace block 0, the service's prompt, leads all 12,031 requests, and the next most
    common block is in 43 (0.4%): any threshold between the two gives the same answer, 38.7% returning. A trace of a
    handful of requests by one user shows nothing but common blocks and nobody returning.

    Args:
        parts: the n requests in order, in parts: the ids of their blocks, one request's after another's, and how
            many of them each request has.

    Returns:
        (n,)
    """
    counts = [count for _, count in parts]
    n = sum(map(len, counts))
    codes, size = _codes([ids for ids, _ in parts])
    first = np.full(size, n, dtype=np.int32)
    for code, holder in reversed(list(zip(codes, _holders(counts), strict=True))):
        first[code[::-1]] = holder[::-1]  # of several requests that hold a block, the last assigned stays
    first[_common(codes, counts, size, n)] = n
    found = np.zeros(n, dtype=np.bool_)
    for code, holder in zip(codes, _holders(counts), strict=True):
        found[holder[first[code] < holder]] = True
    return found


def _holders(counts: Sequence[Ints]) -> Iterator[NDArray[np.int32]]:
    """For each part, the number of the request that holds each of its ids."""
    start = 0
    for count in counts:
        yield np.repeat(np.arange(start, start + len(count), dtype=np.int32), count)
        start += len(count)


def _codes(ids: Sequence[Ints]) -> tuple[list[Ints], int]:
    """Small numbers for the ids, and how many: the ids themselves where they count up, as in the published files."""
    largest = max((int(part.max(initial=0)) for part in ids), default=0)
    if largest < 4 * sum(map(len, ids)) + 1024:
        return [part.astype(np.uint32, copy=False) for part in ids], largest + 1
    import pyarrow

    encoded = pyarrow.chunked_array([pyarrow.array(part.astype(np.uint64, copy=False)) for part in ids])
    chunks = encoded.dictionary_encode().unify_dictionaries().chunks
    return [chunk.indices.to_numpy() for chunk in chunks], len(chunks[0].dictionary)


def _common(codes: Sequence[Ints], counts: Sequence[Ints], size: int, n: int) -> Ints:
    """The blocks that so many of the n requests hold that they are the service's; a request counts once."""
    # Missing from a tenth of all requests at most, they are in half of the first fifth: few are counted to the end.
    until, seen = 0, 0
    while seen < n / 5:
        seen += len(counts[until])
        until += 1
    often = np.bincount(np.concatenate(codes[:until]), minlength=size) >= np.floor(COMMON_SHARE * n) - (n - seen)
    blocks = np.flatnonzero(often)
    total = np.zeros(len(blocks), dtype=np.int64)
    for code, holder in zip(codes, _holders(counts), strict=True):
        at = np.flatnonzero(often[code])
        pairs = np.unique(holder[at] * np.int64(len(blocks)) + np.searchsorted(blocks, code[at]))
        total += np.bincount(pairs % max(1, len(blocks)), minlength=len(blocks))
    return blocks[total >= COMMON_SHARE * n]
