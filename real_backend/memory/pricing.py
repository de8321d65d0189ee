"""What compute and transfers cost by the cost model: the one place where plans and simulations are priced."""

from __future__ import annotations

import numpy as np

from helm_gym.kernels.jit import kernel
from real_backend.memory.layout import FILLS, OFFLOAD_TOKENS, UPLOAD_TOKENS


@kernel
def compute_ms(rules, n, length):
    """The cost model's share of one request: n new tokens against a history of ``length``."""
    return n * (rules.per_token_ms + rules.per_pair_ms * length) + rules.per_context_ms * length


@kernel
def batch_ms(rules, requests, tokens, pairs, context):
    """The cost model for a micro-batch: sums over its requests of new tokens n, of n x history, of history."""
    return (
        rules.base_ms
        + requests * rules.per_request_ms
        + tokens * rules.per_token_ms
        + pairs * rules.per_pair_ms
        + context * rules.per_context_ms
    )


@kernel
def batch_load(rules, size, start, stop, asked):
    """What ``batch_ms`` takes of a micro-batch of ``size`` requests: (tokens, pairs, context).

    start, stop, asked: (batch,), history tokens done before and afterwards, and candidates.
    """
    tokens, pairs, context = 0, 0, 0
    new, most, longest = 0, 0, 0
    for b in range(size):
        n, length = stop[b] - start[b] + asked[b], np.int64(stop[b])
        tokens += n
        pairs += n * length
        context += length
        new, most, longest = max(new, stop[b] - start[b]), max(most, asked[b]), max(longest, length)
    if rules.pads:
        return tokens, size * (new + most) * longest, size * longest
    return tokens, pairs, context


@kernel
def transfers_ms(plan, rules):
    """Time on the host link at its full bandwidth, a transfer of each: (missed rows, KV copied up, copied down)."""
    rows, up, down = 0.0, 0.0, 0.0
    if plan.counts[FILLS] > 0:
        rows = rules.latency_ms + plan.counts[FILLS] * rules.row_ms
    if plan.counts[UPLOAD_TOKENS] > 0:
        up = rules.latency_ms + plan.counts[UPLOAD_TOKENS] * rules.kv_token_ms
    if plan.counts[OFFLOAD_TOKENS] > 0:
        down = rules.latency_ms + plan.counts[OFFLOAD_TOKENS] * rules.kv_token_ms
    return rows, up, down


@kernel
def delay_ms(moving_ms, waiting_ms, share):
    """How much longer ``moving_ms`` of traffic takes because ``waiting_ms`` of background traffic has its share.

    Both at the link's full bandwidth. While there is background traffic the other has 1 - share of the bandwidth; when
    that ends in the middle, all of it.
    """
    if share >= 1.0:
        return waiting_ms if moving_ms > 0.0 else 0.0
    return min(moving_ms * share / (1.0 - share), waiting_ms)
