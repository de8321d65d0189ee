"""The ledger: time and sums of every unit, in rings of intervals; what telemetry is made of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.profile import Profile
from real_backend.memory.layout import SIM_ALPHAS

# Indices into Ledger.sums: what an interval adds up.
REQUESTS = 0
KV_HITS = 1
LOOKUPS = 2
ROW_MISSES = 3
RECOMPUTED = 4
EMB_GAIN = 5
EMB_LOSS = 6
KV_GAIN = 7
KV_LOSS = 8
HISTORY = 9
COMPUTE_MS = 10
TRANSFER_MS = 11
UPLOADED_TOKENS = 12
REFILLED_ROWS = 13
OFFLOADED_TOKENS = 14
MOVED_PAGES = 15
SPAN_S = 16
# Parts of TRANSFER_MS, and what comes beside it
ROWS_MS = 17  # rows that requests missed, coming up
UPLOADS_MS = 18  # KV coming up
OFFLOADS_MS = 19  # KV going down before its page is used again
DELAY_MS = 20  # these three longer, because background traffic took its share of the link
MOVES_MS = 21  # rows moved within the pool: no request's service, but the server's time
BACKGROUND_MS = 22  # the link's time for background traffic, at its full bandwidth
MOVED_ROWS = 23
MOVED_DOWN_TOKENS = 24  # of OFFLOADED_TOKENS, those of users that moves of pages evicted: in the background
STAGED_ROWS = 25  # the most of a micro-batch that found no slot
SIMULATED = 26  # one a simulated alpha
SUMS = SIMULATED + len(SIM_ALPHAS)

# Indices into Ledger.clock.
NOW_S = 0  # last arrival
FREE_AT_S = 1  # when the server has worked off what it accepted
REFILL_CREDIT = 2  # rows that background traffic may copy
DOWN_MS = 3  # what is still to go down in the background, at the link's full bandwidth
CLOCKS = 4

WAITING, ANSWERED = -1, -2  # of a request's progress
NO_USER = np.iinfo(np.int32).max  # where an interval has room for more requests than there were


class Ledger(NamedTuple):
    """Time and sums of every unit: U units, K intervals a window, room for R requests an interval."""

    clock: NDArray[np.float64]  # (U, CLOCKS)
    sums: NDArray[np.float64]  # (U, K, SUMS), a ring of intervals
    window_sums: NDArray[np.float64]  # (U, SUMS), scratch
    service_ms: NDArray[np.float64]  # (U, K, R), each request's, and infinity behind an interval's last
    sojourn_ms: NDArray[np.float64]  # (U, K, R)
    done_s: NDArray[np.float64]  # (U, K, R), when each was answered
    user: NDArray[np.int32]  # (U, K, R), NO_USER behind the last
    interval: NDArray[np.int64]  # (U, 1), intervals so far
    # Of the present interval's requests
    arrival_s: NDArray[np.float64]  # (U, R)
    progress: NDArray[np.int32]  # (U, R), history tokens that are done, WAITING or ANSWERED
    outcome: NDArray[np.int8]  # (U, R), of the KV cache, once it has begun
    cursor: NDArray[np.int64]  # (U, 1), all before it have been answered
    positions: NDArray[np.int32]  # (U, tokens), scratch of the simulations
    sampled: NDArray[np.int32]  # (U, tokens)


def room(profile: Profile, nodes: int) -> int:
    """Requests that a node may get in one interval: all of them, and in a cluster all of a lost node's once more."""
    return nodes * profile.interval.requests * (1 if nodes == 1 else 2)


def make_ledger(profile: Profile, units: int, nodes: int = 1) -> Ledger:
    """``nodes``: how many share a lane's requests."""
    intervals = profile.interval.window // profile.interval.requests
    window = (units, intervals, room(profile, nodes))
    tokens = profile.model.max_history + profile.model.max_candidates
    return Ledger(
        clock=np.zeros((units, CLOCKS)),
        sums=np.zeros((units, intervals, SUMS)),
        window_sums=np.zeros((units, SUMS)),
        service_ms=np.full(window, np.inf),
        sojourn_ms=np.full(window, np.inf),
        done_s=np.zeros(window),
        user=np.full(window, NO_USER, np.int32),
        interval=np.zeros((units, 1), np.int64),
        arrival_s=np.zeros((units, window[2])),
        progress=np.full((units, window[2]), WAITING, np.int32),
        outcome=np.zeros((units, window[2]), np.int8),
        cursor=np.zeros((units, 1), np.int64),
        positions=np.zeros((units, tokens), np.int32),
        sampled=np.zeros((units, tokens), np.int32),
    )
