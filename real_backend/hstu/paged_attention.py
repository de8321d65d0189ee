"""Compiled parts of HSTU on the CPU: gathers, norms, and attention over the pool's pages, for jagged micro-batches.

Attention takes one head's K and V in blocks that fit the first-level cache, from a user's pages and from the
micro-batch's own tokens, and lets four queries at a time go over a block: as fast as the matrix products of a library,
without a copy of K and V for the batch, and without padding but for the three queries that may be missing of four.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.kernels.jit import kernel
from real_backend.hstu.model import EPS

KEYS = 32  # in a block: their K and V, 8 KiB at 32 values a head, stay in the first-level cache
QUERIES = 4  # that share a pass over a block: more would not find registers
_FLAGS = {"contract", "reassoc", "nsz", "arcp"}  # sums may be vectorised; no liberties with NaN and infinity
Floats = NDArray[np.float32]


class Kernels(NamedTuple):
    """Compiled for one size of heads; see ``make_kernels``."""

    enter: Callable[..., int]
    attend: Callable[..., None]
    norm: Callable[..., None]
    leave: Callable[..., None]


_float = functools.partial(kernel, fastmath=_FLAGS)


@_float
def _silu(x, n):
    """``x[:n] = SiLU(x[:n])``, by Eigen's rational approximation of tanh: 13th over 6th degree, 1e-7 of |x| off."""
    for j in range(n):
        y = min(max(np.float32(0.5) * x[j], np.float32(-7.9053111)), np.float32(7.9053111))
        z = y * y
        p = np.float32(-2.76076847742355e-16) * z + np.float32(2.00018790482477e-13)
        p = p * z + np.float32(-8.60467152213735e-11)
        p = p * z + np.float32(5.12229709037114e-08)
        p = p * z + np.float32(1.48572235717979e-05)
        p = p * z + np.float32(6.37261928875436e-04)
        p = p * z + np.float32(4.89352455891786e-03)
        q = np.float32(1.19825839466702e-06) * z + np.float32(1.18534705686654e-04)
        q = q * z + np.float32(2.26843463243900e-03)
        q = q * z + np.float32(4.89352518554385e-03)
        x[j] = np.float32(0.5) * x[j] * (np.float32(1.0) + y * p / q)


@_float
def _normalise(x, weight, bias, out):
    """``out = LayerNorm(x)`` of one row."""
    n = x.shape[0]
    total = np.float32(0.0)
    for j in range(n):
        total += x[j]
    mean = total / np.float32(n)
    squares = np.float32(0.0)
    for j in range(n):
        squares += (x[j] - mean) * (x[j] - mean)
    scale = np.float32(1.0) / np.sqrt(squares / np.float32(n) + np.float32(EPS))
    for j in range(n):
        out[j] = (x[j] - mean) * scale * weight[j] + bias[j]


@_float
def _enter(rows, slots, cached, length, candidates, position, candidate, weight, bias, x, normed):
    """Fills ``x`` with all requests' new history tokens and then all their candidates, and ``normed`` with its norm.

    slots: request by request, its history tokens and then its candidates. Returns how many history tokens are new.
    """
    new = 0
    for i in range(length.shape[0]):
        new += length[i] - cached[i]
    read, at, behind = 0, 0, new
    for i in range(length.shape[0]):
        for p in range(cached[i], length[i]):
            row, own, to = rows[slots[read]], position[p], x[at]
            for j in range(to.shape[0]):
                to[j] = row[j] + own[j]
            _normalise(to, weight, bias, normed[at])
            read += 1
            at += 1
        for _ in range(candidates[i]):
            row, to = rows[slots[read]], x[behind]
            for j in range(to.shape[0]):
                to[j] = row[j] + candidate[j]
            _normalise(to, weight, bias, normed[behind])
            read += 1
            behind += 1
    return new


@_float
def _norm(x, weight, bias, normed):
    """LayerNorm of every row."""
    for r in range(x.shape[0]):
        _normalise(x[r], weight, bias, normed[r])


@_float
def _leave(x, weight, bias, head, head_bias, normed, scores):
    """Scores of the candidates ``x`` (candidates, d)."""
    for r in range(x.shape[0]):
        _normalise(x[r], weight, bias, normed[r])
        total = np.float32(0.0)
        for j in range(head.shape[0]):
            total += normed[r, j] * head[j]
        scores[r] = total + head_bias[0]


@functools.cache
def make_kernels(qk: int, dv: int) -> Kernels:
    """Kernels for heads of ``qk`` values in queries and keys, ``dv`` in values; constants, so that loops vectorise."""
    wide = padded(qk)  # rows of a block of keys; those behind ``qk`` stay 0

    @_float
    def load(tokens, layer, pages, page_tokens, cached, fresh, first, head, heads, start, stop, keys, values):
        """A block of one head's K, transposed, and V: from the user's pages, and from ``fresh`` for new tokens."""
        for j in range(stop - start):
            p = start + j
            if p < cached:
                row = tokens[pages[p // page_tokens] * page_tokens + p % page_tokens, layer]
            else:
                row = fresh[first + p - cached]
            k = row[head * qk : head * qk + qk]
            v = row[heads * qk + head * dv : heads * qk + head * dv + dv]
            for d in range(qk):
                keys[d * KEYS + j] = k[d]
            for d in range(dv):
                values[j * dv + d] = v[d]
        for j in range(stop - start, KEYS):  # SiLU(0) = 0: what no token stands for gives nothing
            for d in range(qk):
                keys[d * KEYS + j] = np.float32(0.0)

    @_float
    def score(q0, q1, q2, q3, keys, s):
        """``s = q . k`` of four queries with a block of keys."""
        for j in range(QUERIES * KEYS):
            s[j] = np.float32(0.0)
        for d in range(0, wide, 4):
            a0, a1, a2, a3 = q0[d], q0[d + 1], q0[d + 2], q0[d + 3]
            b0, b1, b2, b3 = q1[d], q1[d + 1], q1[d + 2], q1[d + 3]
            c0, c1, c2, c3 = q2[d], q2[d + 1], q2[d + 2], q2[d + 3]
            e0, e1, e2, e3 = q3[d], q3[d + 1], q3[d + 2], q3[d + 3]
            for j in range(KEYS):
                k0, k1 = keys[d * KEYS + j], keys[(d + 1) * KEYS + j]
                k2, k3 = keys[(d + 2) * KEYS + j], keys[(d + 3) * KEYS + j]
                s[j] += a0 * k0 + a1 * k1 + a2 * k2 + a3 * k3
                s[KEYS + j] += b0 * k0 + b1 * k1 + b2 * k2 + b3 * k3
                s[2 * KEYS + j] += c0 * k0 + c1 * k1 + c2 * k2 + c3 * k3
                s[3 * KEYS + j] += e0 * k0 + e1 * k1 + e2 * k2 + e3 * k3

    @_float
    def add_values(s, values, o):
        """``o += s V`` of four queries."""
        for k in range(0, KEYS, 4):
            a0, a1, a2, a3 = s[k], s[k + 1], s[k + 2], s[k + 3]
            b0, b1, b2, b3 = s[KEYS + k], s[KEYS + k + 1], s[KEYS + k + 2], s[KEYS + k + 3]
            c0, c1, c2, c3 = s[2 * KEYS + k], s[2 * KEYS + k + 1], s[2 * KEYS + k + 2], s[2 * KEYS + k + 3]
            e0, e1, e2, e3 = s[3 * KEYS + k], s[3 * KEYS + k + 1], s[3 * KEYS + k + 2], s[3 * KEYS + k + 3]
            for j in range(dv):
                v0, v1 = values[k * dv + j], values[(k + 1) * dv + j]
                v2, v3 = values[(k + 2) * dv + j], values[(k + 3) * dv + j]
                o[j] += a0 * v0 + a1 * v1 + a2 * v2 + a3 * v3
                o[dv + j] += b0 * v0 + b1 * v1 + b2 * v2 + b3 * v3
                o[2 * dv + j] += c0 * v0 + c1 * v1 + c2 * v2 + c3 * v3
                o[3 * dv + j] += e0 * v0 + e1 * v1 + e2 * v2 + e3 * v3

    @_float
    def four(uq, first, count, b, at, keys, s):
        """SiLU of four queries' scores, from row ``first + 4 b`` on; behind the last of ``count`` it comes again."""
        r0 = first + QUERIES * b
        last = first + count - 1
        r1, r2, r3 = min(r0 + 1, last), min(r0 + 2, last), min(r0 + 3, last)
        to = at + wide
        score(uq[r0, at:to], uq[r1, at:to], uq[r2, at:to], uq[r3, at:to], keys, s)
        _silu(s, QUERIES * KEYS)

    @_float
    def one_request(
        tokens, layer, pages, page_tokens, cached, length, fresh, first, uq, first_query, queries, asked, candidates,
        heads, keys, values, s, sums, cat,
    ):  # fmt: skip
        """O of a request's new history tokens (``queries`` rows from ``first_query``) and candidates (from ``asked``).

        first: row of ``fresh`` of the first new token.
        """
        width = heads * dv
        blocks, more = (queries + QUERIES - 1) // QUERIES, (candidates + QUERIES - 1) // QUERIES
        for head in range(heads):
            at = width + head * wide
            for j in range((blocks + more) * QUERIES * dv):
                sums[j] = np.float32(0.0)
            for start in range(0, length, KEYS):
                stop = min(start + KEYS, length)
                load(
                    tokens, layer, pages, page_tokens, cached, fresh, first, head, heads, start, stop, keys, values
                )  # fmt: skip
                for b in range(max(0, (start - cached) // QUERIES), blocks):  # those before see none of these keys
                    four(uq, first_query, queries, b, at, keys, s)
                    position = cached + QUERIES * b
                    if stop - 1 > position:
                        for k in range(QUERIES):
                            for j in range(max(0, position + k + 1 - start), KEYS):
                                s[k * KEYS + j] = np.float32(0.0)
                    add_values(s, values, sums[b * QUERIES * dv : (b + 1) * QUERIES * dv])
                for b in range(more):
                    four(uq, asked, candidates, b, at, keys, s)
                    o = blocks + b
                    add_values(s, values, sums[o * QUERIES * dv : (o + 1) * QUERIES * dv])
            for r in range(queries):
                to = cat[first_query + r, width + head * dv : width + (head + 1) * dv]
                for j in range(dv):
                    to[j] = sums[r * dv + j]
            for r in range(candidates):
                to = cat[asked + r, width + head * dv : width + (head + 1) * dv]
                for j in range(dv):
                    to[j] = sums[(blocks * QUERIES + r) * dv + j]

    @_float
    def add_self(fresh, uq, row, query, heads, cat):
        """What a candidate gives to itself, which no other query sees: ``SiLU(q . k) v``."""
        width = heads * dv
        for head in range(heads):
            q = uq[query, width + head * wide : width + head * wide + qk]
            k = fresh[row, head * qk : head * qk + qk]
            v = fresh[row, heads * qk + head * dv : heads * qk + (head + 1) * dv]
            o = cat[query, width + head * dv : width + (head + 1) * dv]
            a = np.float32(0.0)
            for d in range(qk):
                a += q[d] * k[d]
            a = a / (np.float32(1.0) + np.exp(-a))
            for j in range(dv):
                o[j] += a * v[j]

    @_float
    def attend(
        tokens, layer, last, pages, page_tokens, cached, stored, length, candidates, new, fresh, uq, weight, bias,
        scratch, cat,
    ):  # fmt: skip
        """Attention and gate of a layer, all requests'; the K and V of new tokens that are kept go to their pages.

        fresh: (tokens, heads * (qk + dv)), K and V of all tokens. uq: U and Q of those that go on, in the last layer
        candidates alone. Fills ``cat`` with ``[U, O, U * LN(O)]`` of these.
        """
        width = weight.shape[0]
        heads = width // dv
        keys, values, s, sums = scratch
        first, asked = 0, new
        behind = new if last else 0
        for i in range(length.shape[0]):
            count = length[i] - cached[i]
            for p in range(cached[i], stored[i]):
                to = tokens[pages[i, p // page_tokens] * page_tokens + p % page_tokens, layer]
                row = fresh[first + p - cached[i]]
                for j in range(row.shape[0]):
                    to[j] = row[j]
            one_request(
                tokens, layer, pages[i], page_tokens, cached[i], length[i], fresh, first, uq, first,
                0 if last else count, asked - behind, candidates[i], heads, keys, values, s, sums, cat,
            )  # fmt: skip
            for r in range(asked, asked + candidates[i]):
                add_self(fresh, uq, r, r - behind, heads, cat)
            first += count
            asked += candidates[i]
        for r in range(cat.shape[0]):
            u, o, gated = cat[r, :width], cat[r, width : 2 * width], cat[r, 2 * width :]
            for j in range(width):
                u[j] = uq[r, j]
            _silu(u, width)
            _normalise(o, weight, bias, gated)
            for j in range(width):
                gated[j] *= u[j]

    return Kernels(_enter, attend, _norm, _leave)


def padded(qk: int) -> int:
    """Values of a query as ``score`` takes them, four at a time."""
    return -(-qk // 4) * 4


def make_scratch(qk: int, dv: int, most: int) -> tuple[Floats, ...]:
    """A block of one head's K, V and scores, and O of ``most`` tokens; in separate arrays, so that loops vectorise."""
    sizes = (padded(qk) * KEYS, KEYS * dv, QUERIES * KEYS, (most + 2 * QUERIES) * dv)
    return tuple(np.zeros(size, np.float32) for size in sizes)
