"""The accounts of an interval, from the ledger's sums: where bytes and time went (helm_gym.telemetry.ACCOUNTS)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
    UNCHARGED_MS,
    UPLOADED_TOKENS,
    UPLOADS_MS,
    Ledger,
)

_MS = (COMPUTE_MS, ROWS_MS, UPLOADS_MS, OFFLOADS_MS, DELAY_MS, MOVES_MS, UNCHARGED_MS, BACKGROUND_MS)


def close_accounts(memory: Memory, ledger: Ledger, profile: Profile) -> NDArray[np.float64]:
    """The last interval's accounts of every unit, (units, accounts)."""
    place = int(ledger.interval[0, 0] - 1) % ledger.sums.shape[1]
    sums = ledger.sums[:, place]
    row, token = profile.row_bytes, profile.kv_bytes_per_token
    columns = [sums[:, k] for k in _MS]
    columns += [
        sums[:, ROW_MISSES] * row,
        sums[:, UPLOADED_TOKENS] * token,
        (sums[:, OFFLOADED_TOKENS] - sums[:, MOVED_DOWN_TOKENS]) * token,
        sums[:, MOVED_DOWN_TOKENS] * token,
        sums[:, REFILLED_ROWS] * row,
        sums[:, MOVED_ROWS] * row,
        sums[:, STAGED_ROWS] * row,
        _unused_tokens(memory, profile.tokens_per_page) * token,
    ]
    accounts = np.stack(columns, axis=1)
    assert accounts.shape[1] == len(ACCOUNTS)
    return accounts


def _unused_tokens(memory: Memory, tokens_per_page: int) -> NDArray[np.float64]:
    """Places for tokens in the pages that users occupy, without a token, (units,)."""
    return np.asarray(-(memory.cached_length.astype(np.int64)) % tokens_per_page).sum(axis=1).astype(np.float64)
