"""A cost model for a GPU that nobody has measured: operations and bytes of the model over the card's published rates.

It says what to expect and no more; ``helm-gym calibrate`` on the card replaces it. docs/gpu_profiles.md has the sums.
"""

from __future__ import annotations

from typing import NamedTuple

from helm_gym.profile import CostModel, Link, Model

REACHED = 0.4  # of the peak that products of such sizes reach: an assumption
LINK_REACHED = 0.8  # of the host link's bandwidth, from pinned memory
LAUNCH_MS = 0.005  # of one device operation, the lower end of 5 to 10 us
OPERATIONS = 139 / 5  # of a layer, for a hit (counted at five layers)
LATENCY_MS = 0.01  # of a transfer


class Card(NamedTuple):
    """Published rates (the makers' data sheets)."""

    name: str
    flops: float  # a second, bfloat16, dense
    memory: float  # bytes a second
    link: float  # bytes a second, one direction
    memory_gb: float


CARDS = {
    "a100-40g": Card("NVIDIA A100 40 GB", 312e12, 1555e9, 31.5e9, 40.0),
    "a100-80g": Card("NVIDIA A100 80 GB", 312e12, 2039e9, 31.5e9, 80.0),
    "h200": Card("NVIDIA H200", 989e12, 4800e9, 63e9, 141.0),
    "l20": Card("NVIDIA L20", 119.5e12, 864e9, 31.5e9, 48.0),
}


class Counts(NamedTuple):
    """Floating-point operations (multiplications and additions) and bytes, over all layers."""

    token_flops: float  # of a new token, without attention
    token_bytes: float  # that its intermediate values are written and read
    pair_flops: float  # of attention between a new token and a history token
    context_bytes: float  # of K and V that are read of a history token


def counts(model: Model) -> Counts:
    """What one request needs; in the last layer too, where history tokens in fact need K and V alone."""
    d, wide = model.embedding_dim, model.heads * model.v_dim
    both = model.heads * (model.qk_dim + model.v_dim)
    element = 2 if model.dtype == "bfloat16" else 4
    projection, output = 2 * d * 2 * both, 2 * 3 * wide * d
    # Each written once and read once: the normed input, U, V, Q, K as projected and in float32, O, and what W_o takes;
    # what goes from layer to layer is read and written in float32.
    values = 2 * (element * d + (element + 4) * 2 * both + 4 * wide + (4 + element) * 3 * wide) + 2 * 4 * d
    return Counts(
        model.layers * (projection + output),
        model.layers * values,
        model.layers * 2 * both,
        model.layers * both * element,
    )


def estimate(model: Model, card: Card) -> CostModel:
    """Milliseconds of ``counts`` on ``card``; pairs of a miss are counted as if history were not causal.

    A row that moves within the pool is read and written.
    """
    row_bytes = model.embedding_dim * (2 if model.dtype == "bfloat16" else 4)
    of, compute = counts(model), REACHED * card.flops
    return CostModel(
        base_ms=_rounded(OPERATIONS * model.layers * LAUNCH_MS),
        per_token_ms=_rounded(1e3 * (of.token_flops / compute + of.token_bytes / card.memory)),
        per_pair_ms=_rounded(1e3 * of.pair_flops / compute),
        per_context_ms=_rounded(1e3 * of.context_bytes / card.memory),
        machine=f"estimate for one {card.name}, not measured",
        per_moved_row_ms=_rounded(1e3 * 2 * row_bytes / card.memory),
    )


def link(card: Card) -> Link:
    """The host link, as pinned memory reaches it."""
    return Link(round(LINK_REACHED * card.link / 1e9, 1), LATENCY_MS, background_share=0.1, modelled=False)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
