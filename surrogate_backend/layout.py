"""What the surrogate's networks say, by place and unit: shared by fitting (torch) and stepping (compiled)."""

from __future__ import annotations

import dataclasses

import numpy as np

from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.telemetry import ALPHA_GRID

FOLLOWED = (0.2, 0.5, 0.8)  # alphas that the fluid follows beside the present one, for the simulated curve
CURVE = len(ALPHA_GRID)
# Outputs of the users' network, of the caches' network, in order; then the logarithms of spreads.
USER_FIELDS = ("history", "unique", "returning")
CACHE_FIELDS = (
    *("service", "kv_hit", "emb_hit", "recomputed", "emb_gain", "emb_loss", "kv_gain", "kv_loss"),
    *("emb_empty", "kv_empty", "backlog", "refilled"),
)
USER_SPREADS = (*USER_FIELDS, "predicted")
CACHE_SPREADS = CACHE_FIELDS[:8]
HURDLED = CACHE_FIELDS[8:]  # often exactly zero in the log, and so below a threshold
# Quantiles of an interval's service times, as a share of their mean; close at the ends, on which P99 rests.
LEVELS = np.array([0, 0.3, 1.5, 5, 10, 16, 24, 32, 40, 48, 54, 58, 61, 62.6, 63.5, 64]) / 64
KNOTS = len(LEVELS)
ENDS = (0.002, 0.998)  # what the first and the last stand for: at 0 and 1 nothing beyond the extremes would be wrong
KNOT_WEIGHT = np.convolve(np.diff(LEVELS), [0.5, 0.5])  # the mean of a piecewise linear quantile function
USER_OUTPUTS = len(USER_FIELDS) + CURVE + len(USER_SPREADS)
CACHE_OUTPUTS = len(CACHE_FIELDS) + KNOTS + len(CACHE_SPREADS)
RUNGS = ("modelled", "measured")
# Of the rows of a page that EMB gives up, those that are moved elsewhere, where EMB has no empty slots; else none is.
# From accounts["moved_rows_bytes"] of the modelled rung: .12 under splits drawn anew every twelve intervals (48
# episodes of burst and mixed, cpu-small, 2026-11-29), .03 where alpha first falls after a long calm.
MOVED_SHARE = 0.12
GAIN_MS, BACKLOG_ROWS, REFILL_ROWS = 0.01, 500.0, 250.0  # units of the outputs that no estimate stands behind
LEAST_SPREAD = 0.003
# Interpolation of the simulated curve from the splits that the fluid follows to the grid, linear: (splits, grid).
INTERPOLATE = np.stack([np.interp(ALPHA_GRID, FOLLOWED, row) for row in np.eye(len(FOLLOWED))])


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Widths: hidden state of the users' and of the caches' network, and their layers."""

    user_hidden: int = 8
    hidden: int = 16
    layer: int = 20


def moved_page_ms(profile: Profile) -> float:
    """What moves of rows take for each page that EMB gives up, where EMB is full."""
    return MOVED_SHARE * profile.rows_per_page * profile.cost.per_moved_row_ms


def delay_ratio(profile: Profile) -> float:
    """How much longer transfers take while background traffic has its share of the link."""
    share = min(profile.link.background_share, 0.999)
    return share / (1.0 - share)


def check_profile(profile: Profile) -> None:
    """Raises InvalidInputError unless a surrogate can be fitted to logs of the profile."""
    if profile.max_batch != 1:
        raise InvalidInputError(
            f"Profile '{profile.name}' serves micro-batches of {profile.max_batch}; a surrogate is fitted to one "
            "request at a time (max_batch 1)."
        )
