"""What compute and transfers cost by the cost model: the one place where plans and simulations are priced."""

from __future__ import annotations

from helm_gym.kernels.jit import kernel
from real_backend.memory.layout import FILLS, UPLOAD_TOKENS


@kernel
def compute_ms(rules, n, length):
    """The cost model's share of one request: n new tokens against a history of ``length``."""
    return n * (rules.per_token_ms + rules.per_pair_ms * length) + rules.per_context_ms * length


@kernel
def batch_ms(rules, tokens, pairs, context):
    """The cost model for a micro-batch: sums over its requests of new tokens n, of n x history, of history."""
    return rules.base_ms + tokens * rules.per_token_ms + pairs * rules.per_pair_ms + context * rules.per_context_ms


@kernel
def transfer_ms(plan, rules):
    """Time on the host link that the batch waits for: missed rows in one transfer, KV copied up in another."""
    ms = 0.0
    if plan.counts[FILLS] > 0:
        ms += rules.latency_ms + plan.counts[FILLS] * rules.row_ms
    if plan.counts[UPLOAD_TOKENS] > 0:
        ms += rules.latency_ms + plan.counts[UPLOAD_TOKENS] * rules.kv_token_ms
    return ms
