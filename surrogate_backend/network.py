"""The networks of the surrogate, in torch: what they read and what they say.

They are two small gated linear recurrences (minGRU: Feng et al., "Were RNNs All We Needed?", 2024), whose gates
depend on the inputs alone. The users' network sees the workload and nothing that depends on alpha; the caches' network
sees the split and the users' hidden state besides. Neither is fed its own outputs: what an interval reported does not
change the next one. Both correct the fluid's estimates (fluid.py) by factors and odds.

kernels/networks.py and kernels/fields.py say the same in compiled form; a test holds the two together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from surrogate_backend.kernels import fluid
from surrogate_backend.kernels.inputs import CACHES, USERS
from surrogate_backend.layout import (
    BACKLOG_ROWS,
    CACHE_FIELDS,
    CACHE_OUTPUTS,
    CACHE_SPREADS,
    CURVE,
    GAIN_MS,
    INTERPOLATE,
    KNOT_WEIGHT,
    KNOTS,
    LEAST_SPREAD,
    REFILL_ROWS,
    RUNGS,
    USER_OUTPUTS,
    USER_SPREADS,
    Sizes,
)


class _Scan(torch.autograd.Function):
    """h[t] = keep[t] h[t-1] + new[t] from h = 0, along the first axis; the recurrence without a graph of its steps."""

    @staticmethod
    def forward(ctx: Any, keep: Tensor, new: Tensor) -> Tensor:
        h, state = torch.empty_like(new), torch.zeros_like(new[0])
        for t in range(len(new)):
            state = torch.addcmul(new[t], keep[t], state)
            h[t] = state
        ctx.save_for_backward(keep, h)
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        keep, h = ctx.saved_tensors
        gradient = gradients[0]
        of_new, carried = torch.empty_like(gradient), torch.zeros_like(gradient[0])
        for t in range(len(gradient) - 1, -1, -1):
            carried = gradient[t] + carried
            of_new[t] = carried
            carried = carried * keep[t]
        of_keep = torch.zeros_like(gradient)
        of_keep[1:] = of_new[1:] * h[:-1]
        return of_keep, of_new


def softsign(x: Tensor) -> Tensor:
    return x / (1.0 + x.abs())


def growth(x: Tensor) -> Tensor:
    """As functions.growth of the kernels."""
    y = x.clamp(-8.0, 8.0) / 8.0
    p = 1.0 + y * (1.0 + y * (0.5 + y / 6.0))
    p = p * p
    p = p * p
    return p * p


class _Linear(nn.Module):
    """A linear layer, its weights as the kernels have them: (rows, width in) -> (rows, width out)."""

    def __init__(self, width: int, out: int, gain: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, out) * gain / np.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class _Recurrence(nn.Module):
    """Encoder and minGRU: inputs (T * lanes, width) -> encoding, hidden state."""

    def __init__(self, width: int, encoder: int, hidden: int):
        super().__init__()
        self.hidden = hidden
        self.encode = _Linear(width, encoder, 1.5)
        self.gate = _Linear(encoder, 2 * hidden)
        with torch.no_grad():  # memories from one interval to some hundred
            self.gate.bias[:hidden] = -torch.linspace(0.0, 12.0, hidden)

    def forward(self, x: Tensor, intervals: int, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """kept: (T, lanes, 1), 0 where the hidden state is forgotten before an interval, else 1."""
        encoded = softsign(self.encode(x))
        both = self.gate(encoded)
        z = 0.5 + 0.5 * softsign(both[..., : self.hidden])
        shape = (intervals, len(x) // intervals, self.hidden)
        keep = (1.0 - z).view(shape)
        if kept is not None:
            keep = keep * kept
        h = _Scan.apply(keep, (z * both[..., self.hidden :]).view(shape))
        return encoded, softsign(h.view(len(x), self.hidden))


class Raw(NamedTuple):
    """What the networks say before it is applied to the estimates: (T, lanes, USER_ or CACHE_OUTPUTS)."""

    users: Tensor
    caches: Tensor


class Networks(nn.Module):
    """Both of them.

    Args:
        users, caches, caches_out: inputs of either network (the users' come first), and the caches' outputs.
    """

    def __init__(
        self,
        sizes: Sizes = Sizes(),  # noqa: B008  # frozen
        users: int = USERS,
        caches: int = CACHES,
        caches_out: int = CACHE_OUTPUTS,
    ):
        super().__init__()
        self._users = users
        s = self.sizes = sizes
        self.users = _Recurrence(users, s.layer, s.user_hidden)
        self.users_head = _Linear(s.layer + s.user_hidden, s.layer)
        self.users_out = _Linear(s.layer, USER_OUTPUTS, 0.3)
        self.caches = _Recurrence(caches + s.user_hidden, s.layer, s.hidden)
        self.caches_head = _Linear(s.layer + s.hidden, s.layer)
        self.caches_out = _Linear(s.layer, caches_out, 0.3)
        # What a rung has of its own: a shift of the last layer, and a change of the outputs' weights.
        self.rung = nn.Parameter(torch.zeros(len(RUNGS), s.layer))
        self.rung_out = nn.Parameter(torch.zeros(len(RUNGS), s.layer + 1, caches_out))

    def forward(self, x: Tensor, rung: Tensor, kept: Tensor | None = None) -> Raw:
        """x: (T, lanes, inputs); rung: (lanes,), index into RUNGS; kept: see ``_Recurrence``."""
        intervals, lanes, _ = x.shape
        flat = x.reshape(intervals * lanes, -1)
        encoded, hidden = self.users(flat[..., : self._users], intervals, kept)
        users = self.users_out(softsign(self.users_head(torch.cat([encoded, hidden], -1))))
        encoded, own = self.caches(torch.cat([flat, hidden], -1), intervals, kept)
        of_rung = self.rung[rung].repeat(intervals, 1)
        head = softsign(self.caches_head(torch.cat([encoded, own], -1)) + of_rung)
        caches = self.caches_out(head)
        for k in range(len(RUNGS)):
            is_rung = (rung == k).float().repeat(intervals)[:, None]
            caches = caches + is_rung * torch.addmm(self.rung_out[k, -1:], head, self.rung_out[k, :-1])
        shape = (intervals, lanes, -1)
        return Raw(users.view(shape), caches.view(shape))


def outputs(raw: Raw, estimates: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Means of an interval's fields, their spreads, and the quantiles of its service times.

    Args:
        raw: of the networks.
        estimates: (T, lanes, ESTIMATES) of the fluid.

    Returns:
        means by field, (T, lanes) or with the grid behind: ms, tokens, rows, rates; spreads, absolute; and
        quantiles over their mean, (T, lanes, KNOTS).
    """
    f, users, caches = estimates, raw.users, raw.caches
    curve = torch.stack([f[..., fluid.PER_SPLIT + k * fluid.SPLIT_WIDTH] for k in range(1, fluid.SPLITS)], -1)
    own = fluid.PER_SPLIT

    def odds(p: Tensor, x: Tensor) -> Tensor:
        up = p * growth(x)
        return up / (up + (1.0 - p))

    c = dict(zip(CACHE_FIELDS, caches.unbind(-1), strict=False))
    means = {
        "history": f[..., fluid.HISTORY] * growth(0.25 * users[..., 0]),
        "unique": odds(torch.full_like(f[..., 0], 0.5), users[..., 1]),
        "returning": odds(torch.full_like(f[..., 0], 0.5), users[..., 2]),
        "predicted": curve @ torch.as_tensor(INTERPOLATE, dtype=f.dtype) * growth(0.25 * users[..., 3 : 3 + CURVE]),
        "service": f[..., own + fluid.SERVICE_MS] * growth(0.25 * c["service"]),
        "kv_hit": odds(f[..., own + fluid.KV_HIT].clamp(0.005, 0.995), c["kv_hit"]),
        "emb_hit": odds((1.0 - f[..., own + fluid.MISSES] / f[..., fluid.TOKENS]).clamp(0.01, 0.998), c["emb_hit"]),
        "recomputed": (f[..., own + fluid.RECOMPUTED] + 5.0) * growth(0.5 * c["recomputed"]),
        **{name: GAIN_MS * growth(c[name]) for name in ("emb_gain", "emb_loss", "kv_gain", "kv_loss")},
        "emb_empty": odds((1.0 - f[..., own + fluid.EMB_FILLED]).clamp(0.01, 0.97), 2.0 * c["emb_empty"]),
        "kv_empty": odds((1.0 - f[..., own + fluid.KV_FILLED]).clamp(0.01, 0.97), 2.0 * c["kv_empty"]),
        "backlog": BACKLOG_ROWS * growth(c["backlog"] - 1.0),
        "refilled": REFILL_ROWS * growth(c["refilled"] - 1.0),
    }
    first = len(CACHE_FIELDS)
    knots = f[..., fluid.SHAPE :] * growth(0.25 * caches[..., first : first + KNOTS])
    knots = knots / (knots * torch.as_tensor(KNOT_WEIGHT, dtype=f.dtype)).sum(-1, keepdim=True)
    spread = {name: growth(users[..., 3 + CURVE + k] - 2.0) for k, name in enumerate(USER_SPREADS)} | {
        name: growth(caches[..., first + KNOTS + k] - 2.0) for k, name in enumerate(CACHE_SPREADS)
    }
    for name in ("unique", "returning", "kv_hit", "emb_hit"):
        spread[name] = spread[name] + LEAST_SPREAD
    for name in ("emb_gain", "emb_loss", "kv_gain", "kv_loss"):
        spread[name] = (spread[name] + LEAST_SPREAD) * (means[name].detach() + GAIN_MS)
    for name in ("history", "service", "recomputed"):
        spread[name] = (spread[name] + LEAST_SPREAD) * means[name].detach()
    spread["predicted"] = (spread["predicted"] + LEAST_SPREAD)[..., None] * means["predicted"].detach()
    return means, spread, knots
