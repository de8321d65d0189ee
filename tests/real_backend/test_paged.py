"""HSTU over the pool's pages computes what HSTU in torch does, for any lengths, sizes of heads and places of pages."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helm_gym.profile import Model
from real_backend.hstu.model import HSTU, Jagged
from real_backend.hstu.paged import PagedHSTU
from real_backend.hstu.paged_attention import KEYS

LONGEST, MOST, ROWS, PLACES = 3 * KEYS + 9, 9, 64, 2048
MODELS = [
    Model(layers=3, heads=1, embedding_dim=8, qk_dim=3, v_dim=5, max_history=LONGEST, max_candidates=MOST, seed=2),
    Model(layers=1, heads=3, embedding_dim=4, qk_dim=6, v_dim=2, max_history=LONGEST, max_candidates=MOST, seed=3),
]
NETS = [HSTU(model) for model in MODELS]
lengths = st.sampled_from([0, 1, 3, 4, KEYS - 1, KEYS, KEYS + 1, 2 * KEYS + 5, LONGEST]) | st.integers(0, LONGEST)


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """(cached, stored, length, candidates) of each request of a micro-batch."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        length = draw(lengths)
        cached = min(length, draw(lengths))
        found.append((cached, draw(st.integers(cached, length)), length, draw(st.integers(0, MOST))))
    return found


@settings(max_examples=50, deadline=None)
@given(which=st.sampled_from([0, 1]), batch=requests(), page_tokens=st.sampled_from([1, 4, 16]), seed=st.integers())
def test_paged_equals_torch(which, batch, page_tokens, seed):
    model, net, rng = MODELS[which], NETS[which], np.random.default_rng(seed % 2**32)
    width = model.heads * (model.qk_dim + model.v_dim)
    rows = rng.standard_normal((ROWS, model.embedding_dim)).astype(np.float32)
    tokens = np.full((PLACES, model.layers, width), np.nan, np.float32)  # what nobody stored is not read
    pages_a_user = -(-LONGEST // page_tokens)
    pages = rng.permutation(PLACES // page_tokens)[: len(batch) * pages_a_user].reshape(len(batch), -1).astype(np.int32)
    cached, stored, length, candidates = (np.array(part, np.int32) for part in zip(*batch, strict=True))
    new = [rng.integers(0, ROWS, n) for n in length - cached]
    asked = [rng.integers(0, ROWS, n) for n in candidates]
    slots = np.concatenate([part for pair in zip(new, asked, strict=True) for part in pair]).astype(np.int32)

    places = max(1, int(length.max()))
    kv = torch.randn(len(batch), places, model.layers, width, generator=torch.Generator().manual_seed(seed % 2**32))
    where = [
        pages[b, np.arange(LONGEST) // page_tokens] * page_tokens + np.arange(LONGEST) % page_tokens
        for b in range(len(batch))
    ]
    for b in range(len(batch)):
        tokens[where[b][: cached[b]]] = kv[b, : cached[b]].numpy()
    paged = PagedHSTU(net, rows, tokens, page_tokens, len(batch) * (LONGEST + MOST))
    scores = paged.score(slots, cached, stored, length, candidates, pages)

    position = [torch.arange(a, b) for a, b in zip(cached.tolist(), length.tolist(), strict=True)]
    row = [p + b * places for b, p in enumerate(position)]
    x = torch.from_numpy(rows[np.concatenate([*new, *asked])])
    sizes = cached.tolist(), length.tolist(), candidates.tolist()
    expected = net(x, Jagged(*sizes, torch.cat(position), torch.cat(row), x), kv)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    for b in range(len(batch)):
        kept = tokens[where[b][cached[b] : stored[b]]]
        torch.testing.assert_close(torch.from_numpy(kept), kv[b, cached[b] : stored[b]], atol=1e-5, rtol=1e-5)
        assert np.isnan(tokens[where[b][stored[b] :]]).all(), "K and V are written that were not to be kept"
