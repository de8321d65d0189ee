"""What a controller is told, and the words in which it reports."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.ranges import Within, check_ranges

Mode = Literal["off", "shadow", "canary", "active"]
MODES: tuple[Mode, ...] = ("off", "shadow", "canary", "active")
Level = Literal["policy", "pid", "static"]
FALLBACK = "pid"  # the policy that takes over where the given one fails

# reason -> what happened; docs/deploy.md has the same table
REASONS = {
    "absent": "There was no telemetry; the split was held.",
    "invalid": "The telemetry was no row of telemetry's columns; the split was held.",
    "stale": "The telemetry was older than max_age_s; the split was held.",
    "telemetry_not_finite": "A column of the telemetry that is observed was NaN; the split was held.",
    "idle": "No request came in the interval; the split was held and the policy not asked.",
    "late": "The policy answered after deadline_s, or was cut off; the split was held.",
    "error": "The policy raised an error, or answered with a wrong shape; the split was held.",
    "not_finite": "The policy's action or state was not finite; the split was held.",
    "alternating": "The policy's large actions changed their sign too often; the split was held.",
    "least_emb": "The embedding cache would have had less than min_emb_bytes; it was given so much.",
    "least_kv": "The KV cache would have had less than min_kv_bytes; it was given so much.",
    "step": "The target would have moved by more than max_step; it moved by so much.",
    "cooldown": "The target had moved less than cooldown_s before; the split was held.",
    "pid": "The policy had failed too often in a row: PID decided in its place.",
    "static": "PID or the telemetry had failed too often in a row: the static split was held.",
    "killed": "The kill switch was on: the static split was held.",
    "canary_worse": "The policy on trial did worse than the rest: it was rolled back.",
    "canary_faults": "The policy on trial failed too often in a row: it was rolled back.",
    "swap_refused": "A policy that was to be swapped in was refused.",
}
POLICY_FAULTS = frozenset({"late", "error", "not_finite", "alternating"})
TELEMETRY_FAULTS = frozenset({"absent", "invalid", "stale", "telemetry_not_finite"})


@dataclasses.dataclass(frozen=True)
class ControlSettings:
    """Limits and times of a controller. Times are of the caller's monotonic clock.

    Attributes:
        deadline_s: in which a policy must have answered, by the clock: also where this machine has no time for it. A
            decision of the shipped ones takes some 10 to 70 us.
        max_age_s: of telemetry that is still decided on.
        min_emb_bytes, min_kv_bytes: of the pool, that each cache keeps whatever the policy asks.
        max_step: largest change of the target alpha in a decision; the profile's where NaN or larger.
        cooldown_s: between two changes of the target; 0: none.
        reversals: of the last eight actions, large ones (at least half of the largest step) of the other sign than
            the large one before, at which a policy is taken to alternate.
        faults: of a policy or of telemetry in a row, after which something safer takes over.
        static_alpha: the split that is held when nothing else is left, and by the kill switch; where NaN it is
            the last safe split.
        slo_ms: what latencies are scaled by in the observation; the profile's where NaN.
        history: decisions that are remembered of each node.
        state_age_s: after which what a policy has learned online is not taken up again.
        save_s: between two writes of the state folder.
        canary_margin: by which a trial's P99, share of errors or memory may exceed the others'.
        canary_level: probability with which a trial that is no worse is rolled back all the same, over all its time.
    """

    deadline_s: Annotated[float, Within(0, 60, above=True)] = 0.1
    max_age_s: Annotated[float, Within(0, 1e6, above=True)] = 10.0
    min_emb_bytes: Annotated[int, Within(0, 2**50)] = 0
    min_kv_bytes: Annotated[int, Within(0, 2**50)] = 0
    max_step: Annotated[float, Within(0, 1, above=True, or_nan=True)] = math.nan
    cooldown_s: Annotated[float, Within(0, 1e6)] = 0.0
    reversals: Annotated[int, Within(1, 8)] = 4
    faults: Annotated[int, Within(1, 1000)] = 3
    static_alpha: Annotated[float, Within(0, 1, or_nan=True)] = math.nan
    slo_ms: Annotated[float, Within(0, 1e7, above=True, or_nan=True)] = math.nan
    history: Annotated[int, Within(1, 100_000)] = 256
    state_age_s: Annotated[float, Within(0, 1e9)] = 600.0
    save_s: Annotated[float, Within(0, 1e6, above=True)] = 1.0
    canary_margin: Annotated[float, Within(0, 10)] = 0.05
    canary_level: Annotated[float, Within(0, 0.5, above=True)] = 0.05

    def __post_init__(self) -> None:
        check_ranges(self, "ControlSettings")

    def bounds(self, profile: Profile) -> tuple[float, float]:
        """Least and largest alpha: the profile's, and what leaves each cache its least size, in whole pages.

        Raises:
            InvalidInputError: nothing is left between them, or the static split is not.
        """
        pool = profile.pool
        low = max(pool.min_alpha, math.ceil(self.min_emb_bytes / pool.page_bytes) / pool.pages)
        high = min(pool.max_alpha, 1.0 - math.ceil(self.min_kv_bytes / pool.page_bytes) / pool.pages)
        if low > high:
            raise InvalidInputError(
                f"min_emb_bytes and min_kv_bytes leave no split of profile '{profile.name}', whose pool has "
                f"{pool.pages * pool.page_bytes:,} bytes; lower one."
            )
        if self.static_alpha < low or self.static_alpha > high:
            raise InvalidInputError(
                f"static_alpha {self.static_alpha:g} is out of bounds; {low:g} to {high:g} are left to it."
            )
        return low, high


def check_mode(mode: str) -> Mode:
    """Raises InvalidInputError where it is none."""
    for known in MODES:
        if mode == known:
            return known
    raise InvalidInputError(f"'{str(mode)[:40]}' is no mode; write {', '.join(MODES[:-1])} or {MODES[-1]}.")
