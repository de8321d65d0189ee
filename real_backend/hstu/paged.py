"""HSTU on the CPU over the pool's pages: a jagged micro-batch without padding, K and V read where they lie.

``model.HSTU`` says in torch what is computed, and a test holds the two against each other. Here the matrix products are
torch's and all between them is compiled (``paged_attention``).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from real_backend.hstu.model import HSTU, Layer
from real_backend.hstu.paged_attention import Floats, make_kernels, make_scratch, padded

Ints = NDArray[np.int32]


class _Layer(NamedTuple):
    """One layer's weights, as torch multiplies by them and as the kernels read them."""

    uq: torch.Tensor  # (d, heads * (d_v + padded d_qk))
    uq_bias: torch.Tensor
    kv: torch.Tensor
    kv_bias: torch.Tensor
    output: torch.Tensor
    norm: tuple[Floats, Floats]
    out_norm: tuple[Floats, Floats]


class PagedHSTU:
    """``HSTU`` for float32 on the CPU, over a pool.

    Args:
        hstu: the model; its weights are copied.
        rows: (slots, embedding_dim), embedding rows in the pool and behind it.
        tokens: (places, layers, heads * (qk_dim + v_dim)), the pool's KV.
        page_tokens: tokens of a page.
        most: tokens of a micro-batch, at most.
    """

    def __init__(self, hstu: HSTU, rows: Floats, tokens: Floats, page_tokens: int, most: int) -> None:
        model = hstu.model
        self._rows, self._tokens, self._page_tokens = rows, tokens, page_tokens
        self._kernels = make_kernels(model.qk_dim, model.v_dim)
        self._layers = [_unpack(cast(Layer, layer), model.heads, model.qk_dim) for layer in hstu.layers]
        self._position, self._candidate = _array(hstu.position), _array(hstu.candidate)
        self._end = tuple(map(_array, (hstu.norm_weight, hstu.norm_bias, hstu.head, hstu.head_bias)))
        widths = (
            model.embedding_dim,
            model.embedding_dim,
            tokens.shape[2],
            self._layers[0].uq.shape[1],
            3 * model.heads * model.v_dim,
        )
        self._buffers = [torch.zeros(most, width) for width in widths]
        self._arrays = [buffer.numpy() for buffer in self._buffers]
        self._scratch = make_scratch(model.qk_dim, model.v_dim, most)

    def score(
        self, slots: Ints, cached: Ints, stored: Ints, length: Ints, candidates: Ints, pages: Ints
    ) -> torch.Tensor:
        """Scores every candidate, and writes the K and V of new history tokens into their pages.

        Args:
            slots: (tokens,), of each new history token's and candidate's row, request by request.
            cached, stored, length, candidates: (batch,), see ``Plan`` and ``MicroBatch``.
            pages: (batch, pages a user), page tables.

        Returns:
            float32 (candidates,).
        """
        kernels, layers, tokens = self._kernels, self._layers, len(slots)
        x, normed, fresh, uq, cat = (buffer[:tokens] for buffer in self._buffers)
        x_, normed_, fresh_, uq_, cat_ = (array[:tokens] for array in self._arrays)
        new = kernels.enter(
            self._rows, slots, cached, length, candidates, self._position, self._candidate, *layers[0].norm, x_, normed_
        )
        for i, layer in enumerate(layers):
            last = i == len(layers) - 1
            torch.addmm(layer.kv_bias, normed, layer.kv, out=fresh)
            if last:
                x, normed, uq, cat = x[new:], normed[new:], uq[new:], cat[new:]
                uq_, cat_ = uq_[new:], cat_[new:]
            torch.addmm(layer.uq_bias, normed, layer.uq, out=uq)
            kernels.attend(
                self._tokens, i, last, pages, self._page_tokens, cached, stored, length, candidates, new, fresh_, uq_,
                *layer.out_norm, self._scratch, cat_,
            )  # fmt: skip
            x.addmm_(cat, layer.output)
            if not last:
                kernels.norm(x_, *layers[i + 1].norm, normed_)
        scores = torch.empty(tokens - new)
        kernels.leave(x_[new:], *self._end, normed_[new:], scores.numpy())
        return scores


def _array(parameter: torch.Tensor) -> Floats:
    array: Floats = parameter.detach().numpy()
    return array


def _unpack(layer: Layer, heads: int, qk: int) -> _Layer:
    """A layer's packed weights with each head's queries padded by zeros."""
    w, width = layer.packed, layer.sizes[0]

    def widen(columns: torch.Tensor) -> torch.Tensor:
        u, q = columns[..., :width], columns[..., width:].unflatten(-1, (heads, qk))
        q = F.pad(q, (0, padded(qk) - qk))
        return torch.cat((u, q.flatten(-2)), -1).contiguous()

    norm, out_norm = (_array(w.norm), _array(w.norm_bias)), (_array(w.out_norm), _array(w.out_norm_bias))
    return _Layer(widen(w.uq), widen(w.uq_bias), w.kv, w.kv_bias, w.output, norm, out_norm)
