"""HSTU against a reference that is written from the paper's formulas, one pair of tokens at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.profile import Model
from real_backend import fbgemm
from real_backend.hstu import attention
from real_backend.hstu.model import HSTU, Jagged

Floats = NDArray[np.float64]
MODELS = [
    Model(layers=2, heads=2, embedding_dim=8, qk_dim=4, v_dim=4, max_history=24, max_candidates=6, seed=1),
    Model(layers=3, heads=1, embedding_dim=8, qk_dim=3, v_dim=5, max_history=24, max_candidates=6, seed=2),
    Model(layers=1, heads=3, embedding_dim=4, qk_dim=2, v_dim=6, max_history=24, max_candidates=6, seed=3),
    Model(2, 2, 8, 4, 4, 24, 6, seed=4, norm="group", attention_n=17),
]


def _silu(x: Floats) -> Floats:
    return x / (1 + np.exp(-x))


def _norm(x: Floats, weight: Floats, bias: Floats) -> Floats:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * weight + bias


def naive_scores(net: HSTU, rows: Floats, length: int) -> Floats:
    """Scores of the candidates behind ``length`` history tokens: float64, no cache, every pair in a loop."""
    model, w = net.model, {name: p.double().numpy() for name, p in net.named_parameters()}
    tokens, h, qk, dv = len(rows), model.heads, model.qk_dim, model.v_dim
    big_n = model.attention_n or model.max_history + model.max_candidates
    x = rows.astype(np.float64)
    if model.positions == "absolute":
        x[:length] += w["position"][:length]
        x[length:] += w["candidate"]
    for i in range(model.layers):
        p = {name.removeprefix(f"layers.{i}."): value for name, value in w.items()}
        projected = _norm(x, p["norm_weight"], p["norm_bias"]) @ p["uvqk"] + p["uvqk_bias"]
        u, v, q, k = np.split(projected, np.cumsum([h * dv, h * dv, h * qk]), axis=1)
        q, k, v = q.reshape(tokens, h, qk), k.reshape(tokens, h, qk), v.reshape(tokens, h, dv)
        o = np.zeros((tokens, h, dv))
        for a in range(tokens):
            for b in range(tokens):
                if a == b or min(a, length) > min(b, length):
                    score = (q[a] * k[b]).sum(-1, keepdims=True) / np.sqrt(qk)  # of every head
                    o[a] += _silu(score) / big_n * v[b]
        o, u = o.reshape(tokens, h * dv), _silu(u)
        weight, bias = p["out_norm_weight"], p["out_norm_bias"]
        if model.norm == "group":
            normed = _norm(o.reshape(tokens, h, dv), weight[:, None], bias[:, None]).reshape(tokens, h * dv)
        else:
            normed = _norm(o, weight, bias)
        gated = u * normed
        x = x + np.concatenate([u, o, gated], axis=1) @ p["output"]
    if model.head == "dot":
        ends = x[length:] / np.maximum(np.linalg.norm(x[length:], axis=1, keepdims=True), 1e-6)
        return np.asarray((ends * rows[length:]).sum(1))
    scores: Floats = _norm(x[length:], w["norm_weight"], w["norm_bias"]) @ w["head"] + w["head_bias"]
    return scores


def run(net: HSTU, requests: list[tuple[torch.Tensor, torch.Tensor, int]], kv: torch.Tensor) -> list[torch.Tensor]:
    """Scores of (history rows, candidate rows, cached tokens) in one micro-batch over ``kv`` (batch, places, ...)."""
    cached, length, candidates = [r[2] for r in requests], [len(r[0]) for r in requests], [len(r[1]) for r in requests]
    position = [np.arange(a, b) for a, b in zip(cached, length, strict=True)]
    row = [p + i * kv.shape[1] for i, p in enumerate(position)]
    x = torch.cat([history[n:] for history, _, n in requests] + [c for _, c, _ in requests])
    seq = Jagged(cached, length, candidates, *(torch.from_numpy(np.concatenate(a)) for a in (position, row)), x)
    return list(net(x, seq, kv).split(candidates))


def buffer(model: Model, batch: int) -> torch.Tensor:
    width = model.heads * (model.qk_dim + model.v_dim)
    return torch.randn(batch, model.max_history, model.layers, width)  # stale values of other users


@settings(max_examples=40, deadline=None)
@given(
    model=st.sampled_from(MODELS),
    visits=st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=3), min_size=1, max_size=4),
    candidates=st.lists(st.integers(0, 6), min_size=4, max_size=4),
    block=st.sampled_from([1, 3, 128]),
    seed=st.integers(0, 1000),
)
def test_cached_scores_equal_uncached_scores_and_the_reference(model, visits, candidates, block, seed):
    torch.manual_seed(seed)
    net, batch = HSTU(model), len(visits)
    usual, attention.BLOCK["cpu"] = attention.BLOCK["cpu"], block
    try:
        histories = [torch.randn(min(sum(v), model.max_history), model.embedding_dim) for v in visits]
        kv, done = buffer(model, batch), [0] * batch
        for visit in range(max(map(len, visits))):
            ends = [min(sum(v[: visit + 1]), model.max_history) for v in visits]
            asked = [torch.randn(c, model.embedding_dim) for c in candidates[:batch]]
            requests = [(h[:e], c, d) for h, e, c, d in zip(histories, ends, asked, done, strict=True)]
            together = run(net, requests, kv)
            done = ends
            for (history, c, _), scores in zip(requests, together, strict=True):
                alone = run(net, [(history, c, 0)], buffer(model, 1))[0]
                naive = naive_scores(net, torch.cat((history, c)).numpy(), len(history))
                np.testing.assert_allclose(scores, alone, atol=1e-5)
                np.testing.assert_allclose(scores, naive, atol=1e-5)
    finally:
        attention.BLOCK["cpu"] = usual


def test_long_history_in_causal_blocks():
    model = Model(2, 2, 16, 8, 8, 400, 8)
    net, history, asked = HSTU(model), torch.randn(400, 16), torch.randn(8, 16)
    whole = run(net, [(history, asked, 0)], buffer(model, 1))[0]
    kv = buffer(model, 1)
    for start, end in ((0, 129), (129, 257), (257, 391), (391, 400)):
        scores = run(net, [(history[:end], asked, start)], kv)[0]
    np.testing.assert_allclose(scores, whole, atol=1e-5)


def test_history_and_attention_matter():
    """A test of exactness says nothing about a model whose scores hardly depend on what is cached."""
    net, history, asked = HSTU(MODELS[0]), torch.randn(20, 8), torch.randn(6, 8)
    whole = run(net, [(history, asked, 0)], buffer(MODELS[0], 1))[0]
    for changed in (history[1:], history[:-1], history.flip(0)):
        assert (run(net, [(changed, asked, 0)], buffer(MODELS[0], 1))[0] - whole).abs().max() > 1e-2


def test_weights_are_a_function_of_the_seed_and_survive_a_round_trip():
    a, b, other = HSTU(MODELS[0]), HSTU(MODELS[0]), HSTU(MODELS[1])
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.candidate, other.candidate)
    for p in b.parameters():
        p.zero_()
    b.load_state_dict(a.state_dict())
    request = [(torch.randn(5, 8), torch.randn(3, 8), 0)]
    assert torch.equal(run(a, request, buffer(MODELS[0], 1))[0], run(b, request, buffer(MODELS[0], 1))[0])


def test_padding_never_cuts_a_sequence_off():
    lengths = [2, 5]
    with pytest.raises(InvalidInputError, match="5 tokens does not fit in 4"):
        fbgemm.pad(torch.zeros(7, 3), lengths, fbgemm.offsets(lengths, torch.device("cpu")), 4)
