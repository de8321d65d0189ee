"""HSTU for inference: scores candidates from a user's cached and new history.

Production variant (Zhai et al., ICML 2024, as in Meta's ``modules/stu.py`` and MLPerf's DLRMv3):
``U, V, Q, K = LN(x) W_uvqk``, SiLU on U only; ``O = (SiLU(Q K^T / sqrt(d_qk)) / N) V``;
``y = x + [U, O, U * LN(O)] W_o``.

In the last layer only candidates go on: a history token is needed there for its K and V, and for nothing else.
A cached answer is exact because nothing of a history token depends on what comes after it: N is a constant of the
model, positions count from the start, and no token sees all of the history except candidates, which are never cached.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from helm_gym.profile import Model
from real_backend.hstu.attention import add_self, attend, candidate_group, history_group

EPS = 1e-6


def _draw(generator: torch.Generator, *shape: int, scale: float, mean: float = 0.0) -> nn.Parameter:
    return nn.Parameter(mean + scale * torch.randn(shape, generator=generator), requires_grad=False)


class Jagged:
    """A micro-batch as the model sees it: all requests' new history tokens, then all requests' candidates.

    Args:
        cached: history tokens of each request whose K and V are at hand.
        length: history tokens of each request, the new ones included.
        candidates: candidates of each request.
        position: int64 (new tokens,), each new history token's position in its history.
        row: int64 (new tokens,), its place in the K and V buffer, counted over (batch, places).
        like: a tensor of the model's device and dtype.
    """

    def __init__(
        self,
        cached: Sequence[int],
        length: Sequence[int],
        candidates: Sequence[int],
        position: torch.Tensor,
        row: torch.Tensor,
        like: torch.Tensor,
    ) -> None:
        self.batch, self.new = len(length), position.shape[0]
        self.position, self.row = position, row
        self.history = history_group(cached, length, like)
        self.candidates = candidate_group(candidates, length, like)


class Packed(NamedTuple):
    """A layer's weights as inference multiplies by them. A tuple, since nn.Module's attributes take 1 us each."""

    norm: torch.Tensor
    norm_bias: torch.Tensor
    uq: torch.Tensor  # (d, heads * (d_v + d_qk)), for tokens that go on; Q with 1 / sqrt(d_qk)
    uq_bias: torch.Tensor
    kv: torch.Tensor  # (d, heads * (d_qk + d_v)), for all tokens; V with 1 / N
    kv_bias: torch.Tensor
    out_norm: torch.Tensor
    out_norm_bias: torch.Tensor
    output: torch.Tensor


class KV(NamedTuple):
    """Three views of one layer's part of a buffer (batch, places, layers, heads * (d_qk + d_v))."""

    rows: torch.Tensor  # (batch * places, heads * (d_qk + d_v))
    keys: torch.Tensor  # (batch, heads, d_qk, places)
    values: torch.Tensor  # (batch, heads, places, d_v)


class Layer(nn.Module):
    """One HSTU layer. Parameters have the paper's layout; ``pack`` makes of them what inference multiplies by."""

    def __init__(self, model: Model, generator: torch.Generator) -> None:
        super().__init__()
        d, h = model.embedding_dim, model.heads
        self.heads = h
        self.sizes = (h * model.v_dim, h * model.v_dim, h * model.qk_dim, h * model.qk_dim)  # U, V, Q, K
        self.scales = (1.0, 1.0 / (model.max_history + model.max_candidates), model.qk_dim**-0.5, 1.0)

        draw = functools.partial(_draw, generator)
        self.norm_weight, self.norm_bias = draw(d, scale=0.1, mean=1.0), draw(d, scale=0.1)
        # sqrt(2 / d) and not sqrt(1 / d): attention scores of about +-2, so that SiLU is used where it bends.
        self.uvqk = draw(d, sum(self.sizes), scale=math.sqrt(2 / d))
        self.uvqk_bias = draw(sum(self.sizes), scale=0.1)
        self.out_norm_weight = draw(self.sizes[0], scale=0.1, mean=1.0)
        self.out_norm_bias = draw(self.sizes[0], scale=0.1)
        self.output = draw(3 * self.sizes[0], d, scale=math.sqrt(0.5 / (3 * self.sizes[0])))
        self.register_load_state_dict_post_hook(lambda layer, _: layer.pack())
        self.pack()

    def pack(self) -> None:
        """Rearranges and scales W_uvqk; the constants 1 / sqrt(d_qk) and 1 / N then cost nothing."""
        u, v, q, k = (w * s for w, s in zip(self.uvqk.split_with_sizes(self.sizes, 1), self.scales, strict=True))
        ub, vb, qb, kb = (w * s for w, s in zip(self.uvqk_bias.split_with_sizes(self.sizes), self.scales, strict=True))
        self.packed = Packed(
            self.norm_weight,
            self.norm_bias,
            torch.cat((u, q), 1),
            torch.cat((ub, qb)),
            torch.cat((k, v), 1),
            torch.cat((kb, vb)),
            self.out_norm_weight,
            self.out_norm_bias,
            self.output,
        )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Layer:
        super()._apply(fn, recurse)  # .to() and its kin
        self.pack()
        return self

    def forward(self, x: torch.Tensor, seq: Jagged, kv: KV, last: bool) -> torch.Tensor:
        """Advances tokens by one layer and puts the new history's K and V into ``kv``.

        Args:
            x: (tokens, d), changed in place.
            seq: what the tokens are.
            kv: this layer's K and V, with the cached history filled in.
            last: nothing reads what history tokens become in the last layer, so only candidates go on.

        Returns:
            (tokens, d); after the last layer, (candidates, d).
        """
        w, new, heads = self.packed, seq.new, self.heads
        u_dim, _, q_dim, k_dim = self.sizes
        normed = F.layer_norm(x, x.shape[1:], w.norm, w.norm_bias, EPS)
        fresh = torch.addmm(w.kv_bias, normed, w.kv)
        kv.rows.index_copy_(0, seq.row, fresh[:new])
        k, v = fresh[new:].split_with_sizes((k_dim, u_dim), 1)
        keys, values = kv.keys.flatten(0, 1), kv.values.flatten(0, 1)  # views for a batch of one

        if last:
            x, normed = x[new:], normed[new:]
        u, q = torch.addmm(w.uq_bias, normed, w.uq).split_with_sizes((u_dim, q_dim), 1)
        own = q if last else q[new:]
        o = attend(own, keys, values, seq.candidates, seq.batch)
        add_self(o, own, k, v, heads)
        if new and not last:
            o = torch.cat((attend(q[:new], keys, values, seq.history, seq.batch), o))
        u = F.silu(u)
        gated = F.layer_norm(o, o.shape[1:], w.out_norm, w.out_norm_bias, EPS).mul_(u)
        return x.addmm_(torch.cat((u, o, gated), 1), w.output)


class HSTU(nn.Module):
    """The whole model: token input, layers, and one score a candidate. Weights are a function of ``model.seed``."""

    def __init__(self, model: Model, device: str | torch.device = "cpu") -> None:
        super().__init__()
        self.model = model
        generator = torch.Generator().manual_seed(model.seed)
        d = model.embedding_dim

        draw = functools.partial(_draw, generator)
        self.position = draw(model.max_history, d, scale=0.3)
        self.candidate = draw(d, scale=0.3)
        self.layers = nn.ModuleList(Layer(model, generator) for _ in range(model.layers))
        self.norm_weight, self.norm_bias = draw(d, scale=0.1, mean=1.0), draw(d, scale=0.1)
        self.head, self.head_bias = draw(d, scale=d**-0.5), draw(1, scale=0.1)
        self.register_load_state_dict_post_hook(lambda hstu, _: hstu.pack())
        self.to(device=device, dtype=getattr(torch, model.dtype))

    def pack(self) -> None:
        """Keeps what makes scores of the last layer in float32."""
        end = (self.norm_weight, self.norm_bias, self.head, self.head_bias)
        self._end = tuple(weight.detach().float() for weight in end)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> HSTU:
        super()._apply(fn, recurse)
        self.pack()
        return self

    @torch.inference_mode()
    def forward(self, x: torch.Tensor, seq: Jagged, kv: torch.Tensor) -> torch.Tensor:
        """Scores every candidate, and completes ``kv`` with the new history's K and V.

        Args:
            x: (tokens, embedding_dim), embedding rows in the order of ``seq``; changed in place.
            kv: (batch, places, layers, heads * (qk_dim + v_dim)), K then V, with the cached history filled in. Places
                behind it may hold anything finite.

        Returns:
            float32 (candidates,).
        """
        x[: seq.new].add_(self.position.index_select(0, seq.position))
        x[seq.new :].add_(self.candidate)
        for i, (layer, views) in enumerate(zip(self.layers, self._views(kv), strict=True)):
            x = layer(x, seq, views, last=i == len(self.layers) - 1)
        # In float32 whatever the model's dtype: rounded to bfloat16, neighbouring scores are equal and have no order.
        norm, bias, head, head_bias = self._end
        return torch.mv(F.layer_norm(x.float(), x.shape[1:], norm, bias, EPS), head).add_(head_bias)

    def _views(self, kv: torch.Tensor) -> Iterator[KV]:
        """All layers' views, made together: on CPU every view takes about 1 us of a request."""
        h, qk, d_v = self.model.heads, self.model.qk_dim, self.model.v_dim
        keys = kv[..., : h * qk].view(*kv.shape[:3], h, qk).permute(2, 0, 3, 4, 1)
        values = kv[..., h * qk :].view(*kv.shape[:3], h, d_v).permute(2, 0, 3, 1, 4)
        return map(KV, kv.flatten(0, 1).unbind(1), keys.unbind(), values.unbind())
