"""The accounts of an interval, from the ledger's sums: where bytes and time went (helm_gym.telemetry.ACCOUNTS)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from helm_gym.kernels.jit import kernel
from helm_gym.profile import Profile
from helm_gym.telemetry import ACCOUNTS
from real_backend.memory.layout import Memory
from real_backend.memory.ledger import (
    BACKGROUND_MS,
    COMPUTE_MS,
    DELAY_MS,
    MOVED_DOWN_TOKENS,
    MOVED_ROWS,
    MOVES_MS,
    OFFLOADED_TOKENS,
    OFFLOADS_MS,
    REFILLED_ROWS,
    ROW_MISSES,
    ROWS_MS,
    STAGED_ROWS,
    UPLOADED_TOKENS,
    UPLOADS_MS,
    Ledger,
)

_MS = (COMPUTE_MS, ROWS_MS, UPLOADS_MS, OFFLOADS_MS, DELAY_MS, MOVES_MS, BACKGROUND_MS)


def close_accounts(memory: Memory, ledger: Ledger, profile: Profile) -> NDArray[np.float64]:
    """The last interval's accounts of every unit, (units, accounts)."""
    accounts = np.empty((len(ledger.sums), len(ACCOUNTS)))
    _close(memory, ledger, profile.row_bytes, profile.kv_bytes_per_token, profile.tokens_per_page, accounts)
    return accounts


@kernel
def _close(memory, ledger, row_bytes, token_bytes, tokens_per_page, out):
    for u in range(out.shape[0]):
        sums, to = ledger.sums[u, (ledger.interval[u, 0] - 1) % ledger.sums.shape[1]], out[u]
        for k in range(len(_MS)):
            to[k] = sums[_MS[k]]
        k = len(_MS)
        to[k] = sums[ROW_MISSES] * row_bytes
        to[k + 1] = sums[UPLOADED_TOKENS] * token_bytes
        to[k + 2] = (sums[OFFLOADED_TOKENS] - sums[MOVED_DOWN_TOKENS]) * token_bytes
        to[k + 3] = sums[MOVED_DOWN_TOKENS] * token_bytes
        to[k + 4] = sums[REFILLED_ROWS] * row_bytes
        to[k + 5] = sums[MOVED_ROWS] * row_bytes
        to[k + 6] = sums[STAGED_ROWS] * row_bytes
        to[k + 7] = _unused_tokens(memory.newer[u], memory.cached_length[u], tokens_per_page) * token_bytes


@kernel
def _unused_tokens(newer, cached_length, tokens_per_page):
    """Places for tokens in the pages that users occupy, without a token; they are those in the ring of recency."""
    sentinel, unused = newer.shape[0] - 1, 0
    user = newer[sentinel]
    while user != sentinel:
        unused += -cached_length[user] % tokens_per_page
        user = newer[user]
    return unused
