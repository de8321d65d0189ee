"""What an engine refuses: profiles whose pages are not filled exactly, and micro-batches that contradict their plan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from real_backend.memory.layout import TOKENS, Plan


def check_profile(profile: Profile) -> None:
    for what, count, size in (
        ("rows", profile.rows_per_page, profile.row_bytes),
        ("tokens", profile.tokens_per_page, profile.kv_bytes_per_token),
    ):
        if count * size != profile.pool.page_bytes:
            raise InvalidInputError(
                f"Profile '{profile.name}': pool.page_bytes {profile.pool.page_bytes} must be a multiple of the "
                f"{size} B that one of its {what} takes; choose a multiple of both a row's {profile.row_bytes} B "
                f"and a token's {profile.kv_bytes_per_token} B."
            )


def check_batch(
    profile: Profile,
    plan: Plan,
    length_of: NDArray[np.int32],
    candidates_of: NDArray[np.int32],
    pages_of: NDArray[np.int32],
) -> None:
    """Raises InvalidInputError before any byte moves: the compiled index and fbgemm's padding would not notice."""
    size, model = len(length_of), profile.model
    if not 0 < size <= profile.max_batch:
        raise InvalidInputError(f"A micro-batch of {size} requests; this profile takes 1 to {profile.max_batch}.")
    length, candidates = length_of.tolist(), candidates_of.tolist()
    cached, stored = plan.cached[:size].tolist(), plan.stored[:size].tolist()
    longest, most = max(length), max(candidates)
    if longest > model.max_history:
        raise InvalidInputError(
            f"A history of {longest} tokens is longer than the model's maximum of {model.max_history}; "
            "keep the newest tokens or raise model.max_history."
        )
    if most > model.max_candidates:
        raise InvalidInputError(
            f"{most} candidates are more than the model's maximum of {model.max_candidates}; "
            "score them in several requests or raise model.max_candidates."
        )
    if any(not (0 <= c <= n and s <= n) for c, s, n in zip(cached, stored, length, strict=True)):
        raise InvalidInputError("A plan reads or stores more history tokens than the request has.")
    for pages, n in zip(pages_of, map(max, cached, stored), strict=True):
        if n and pages[: -(-n // profile.tokens_per_page)].min() < 0:
            raise InvalidInputError("A plan reads or stores history tokens for which the user has no page.")
    tokens = sum(length) - sum(cached) + sum(candidates)
    if tokens != plan.counts[TOKENS]:
        raise InvalidInputError(f"A plan has {plan.counts[TOKENS]} slots for a micro-batch of {tokens} tokens.")
