"""Scores without a cache, a pool or a plan: HSTU over each whole history at once, in torch.

What a service answers is compared with these (`helm-gym load --loadgen --accuracy`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from real_backend.engine import Engine
from real_backend.hstu.model import Jagged


class Offline:
    """A profile's model, without anything around it."""

    def __init__(self, profile: Profile):
        self._engine = Engine(profile)
        self._profile = profile

    def scores(self, history: NDArray[np.int32], candidates: NDArray[np.int32]) -> NDArray[np.float32]:
        """Scores of a request's candidates, float32 (candidates,).

        Args:
            history: rows of the item table, the oldest first, at most the model's longest.
            candidates: rows of the table.

        Raises:
            InvalidInputError: a history that is empty or longer, or a row that the table does not have.
        """
        engine, most, length = self._engine, self._profile.model.max_history, len(history)
        rows = np.concatenate([history, candidates])
        if not 0 < length <= most or rows.min() < 0 or rows.max() >= len(engine.table):
            raise InvalidInputError(
                f"A request of {length} items does not fit profile '{self._profile.name}': histories of 1 to {most} "
                f"of its {len(engine.table):,} items do."
            )
        with torch.inference_mode():
            x = engine.table[torch.from_numpy(rows.astype(np.int64))].clone()
            position = torch.arange(length)
            buffer = torch.zeros(1, length, *engine.tokens.shape[1:])
            scores = engine.hstu(x, Jagged([0], [length], [len(candidates)], position, position, x), buffer)
            return np.asarray(scores.numpy(), np.float32)


def offline_scores(
    profile: Profile, histories: Sequence[NDArray[np.int32]], candidates: Sequence[NDArray[np.int32]]
) -> list[NDArray[np.float32]]:
    """``Offline.scores`` of each request."""
    model = Offline(profile)
    return [model.scores(history, wanted) for history, wanted in zip(histories, candidates, strict=True)]
