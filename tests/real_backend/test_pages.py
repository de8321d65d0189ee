"""Attention over pages: the kernel, its reference in torch, and the engine over both give the same scores.

The kernel runs through Triton's interpreter, in a process of its own, since that is chosen when Triton is imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from real_backend.engine import Engine
from real_backend.hstu.pages import Layout, places, reference
from tests.real_backend.test_engine import USERS, Manager, small

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (pip install triton)"
)


def _interprets() -> bool:
    """Triton 3.2, 3.3 and 3.5 were tried: their interpreters fail, in lines of their own, with NumPy 2.4 and later."""
    if importlib.util.find_spec("triton") is None:
        return False
    return tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) >= (3, 9)


needs_interpreter = pytest.mark.skipif(
    not _interprets(), reason="Triton is not installed, or its interpreter does not go with this NumPy (before 3.9)"
)


def case(rng: np.random.Generator, dtype: torch.dtype = torch.float32, long: int = 0) -> tuple[tuple, list]:
    """Arguments of ``attend`` but ``last``, and for each request what its tokens see, as plain tensors."""
    batch, heads, qk, v = (int(x) for x in (rng.integers(1, 5), rng.integers(1, 4), *rng.choice([3, 8, 16, 20], 2)))
    page_tokens = int(rng.choice([1, 4, 16]))
    cached, new = (rng.integers(0, 30 + long, batch).astype(np.int32) for _ in range(2))
    asked = rng.integers(0, 9 + long // 2, batch).astype(np.int32)
    used = -(-cached // page_tokens)
    pages = np.full((batch, max(1, used.max())), -1, np.int32)
    numbers = rng.permutation(int(used.sum()) + 3).astype(np.int32)
    for i, count in enumerate(used):
        pages[i, :count], numbers = numbers[:count], numbers[count:]
    starts = places(cached, cached, cached + new, asked, pages, page_tokens).starts
    width = heads * (qk + v)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    draw = lambda *shape: torch.randn(shape, generator=generator).to(dtype)  # noqa: E731  # one line
    pool = draw((int(used.sum()) + 3) * page_tokens, 2, width)[:, 1]  # a layer's part of it: rows lie apart
    fresh, q = draw(int(starts[-1]), width), draw(int(starts[-1]), heads * qk)
    at = Layout(
        *(torch.from_numpy(a) for a in (pages, cached, starts)),
        page_tokens,
        (int(new.max()), int(asked.max())),
        heads,
        qk,
        v,
    )
    return (q, fresh, pool, at), [(int(c), int(n), int(a)) for c, n, a in zip(cached, new, asked, strict=True)]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_reference_is_the_published_mask(seed):
    """Against every pair of tokens of a request in float64, with Meta's formula of who sees whom."""
    (q, fresh, pool, at), requests = case(np.random.default_rng(seed))
    out, starts, batch = reference(q, fresh, pool, at, False), at.starts.tolist(), len(requests)
    wide = at.heads * at.qk_dim
    for i, (cached, new, asked) in enumerate(requests):
        lines = [int(at.pages[i, p // at.page_tokens]) * at.page_tokens + p % at.page_tokens for p in range(cached)]
        own = [*range(starts[i], starts[i + 1]), *range(starts[batch + i], starts[batch + i + 1])]
        kv = torch.cat((pool[lines], fresh[own])).double()
        ids = torch.arange(cached + new + asked).clamp(max=cached + new)
        seen = torch.eye(len(ids), dtype=torch.bool) | (ids[:, None] > ids)
        keys, values = kv[:, :wide].unflatten(1, (at.heads, -1)), kv[:, wide:].unflatten(1, (at.heads, -1))
        a = torch.einsum("xha,yha->hxy", q[own].double().unflatten(1, (at.heads, -1)), keys)
        expected = torch.einsum("hxy,yhv->xhv", torch.nn.functional.silu(a) * seen[cached:], values).flatten(1)
        np.testing.assert_allclose(out[own], expected, atol=2e-5)
    last = reference(q[starts[batch] :], fresh, pool, at, True)
    assert torch.equal(last, out[starts[batch] :])


def engines_agree(profile, visits: int, seed: int, atol: float) -> int:
    """Serves one stream on the padded and on the paged engine; returns how many requests hit."""
    padded, paged = Engine(profile, paged=False), Engine(profile, paged=True)
    rng = np.random.default_rng(seed)
    manager, hits = Manager(profile, rng), 0
    for _ in range(visits):
        plan, batch, _ = manager.plan(rng.permutation(USERS)[: rng.integers(1, 5)].tolist())
        hits += int((plan.cached[: len(batch.length)] > 0).sum())
        np.testing.assert_allclose(paged.execute(plan, batch), padded.execute(plan, batch), atol=atol)
    return hits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_engine_over_pages_scores_as_the_padded_one(dtype):
    model = small().model
    profile = small(model=type(model)(**(vars(model) | {"dtype": dtype, "norm": "group"})))
    assert engines_agree(profile, 40, 5, 1e-5 if dtype == "float32" else 3e-2) > 20


def interpreted(code: str) -> str:
    """Runs ``code`` with Triton's interpreter, which needs no GPU."""
    head = "import numpy as np, torch\nfrom tests.real_backend.test_pages import *\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@needs_interpreter
def test_the_kernel_computes_the_reference():
    told = interpreted("""
        from real_backend.hstu import pages as paged
        worst, pairs = 0.0, 0
        for seed in range(24):
            rng = np.random.default_rng(seed)
            dtype = torch.bfloat16 if seed % 3 == 2 else torch.float32
            arguments, requests = case(rng, dtype, long=150 if seed % 4 == 3 else 0)
            at, first = arguments[3], int(arguments[3].starts[len(requests)])
            for last in (False, True):
                q = arguments[0][first:] if last else arguments[0]
                expected, got = paged.reference(q, *arguments[1:], last), paged.attend(q, *arguments[1:], last)
                assert paged.kernel() is not None and got.dtype == torch.float32 and got.shape == expected.shape
                # Sums of bfloat16 are taken in another order, and one rounding of a weight may fall the other way.
                within = 2e-2 * expected.abs().max() if dtype == torch.bfloat16 else 1e-4
                if got.numel():
                    assert (got - expected).abs().max() <= within, (seed, last, (got - expected).abs().max())
                    worst = max(worst, float((got - expected).abs().max()) if dtype == torch.float32 else 0.0)
            pairs += sum((c + n) * (n + a) for c, n, a in requests)
        print("pairs", pairs, "worst", worst)
    """)
    assert int(told.split()[1]) > 100_000


@needs_interpreter
def test_the_engine_scores_with_the_kernel_as_without():
    assert int(interpreted("print('hits', engines_agree(small(), 12, 3, 1e-5))").split()[1]) > 5


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_for_a_gpu(capability):
    """Down to machine code, for DLRMv3's sizes; no GPU is needed for that, and nothing is run."""
    code = f"""
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile
        from real_backend.hstu.triton_kernel import _attend, constants_of
        at = Layout(None, None, None, 256, (1, 1), 4, 128, 128)
        constants = constants_of(at)
        signature = dict.fromkeys(("q", "fresh", "pool"), "*bf16")
        signature |= dict.fromkeys(("pages", "cached", "starts"), "*i32") | {{"out": "*fp32"}}
        numbers = ("stride_fresh", "stride_pool", "stride_pages", "first", "batch", "page_tokens")
        signature |= dict.fromkeys(numbers, "i32")
        signature |= dict.fromkeys(constants, "constexpr")
        made = compile(ASTSource(_attend, signature, constants), target=GPUTarget("cuda", {capability}, 32))
        print(len(made.asm["ptx"]), len(made.asm["cubin"]), made.metadata.shared)
    """
    head = "import numpy as np, torch\nfrom tests.real_backend.test_pages import *\n"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ptx, cubin, shared = map(int, done.stdout.split())
    assert ptx > 1000 and cubin > 1000 and shared <= 160 * 1024
