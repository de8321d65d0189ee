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


def offline_scores(
    profile: Profile, histories: Sequence[NDArray[np.int32]], candidates: Sequence[NDArray[np.int32]]
) -> list[NDArray[np.float32]]:
    """Scores of each request's candidates, float32 (candidates,).

    Args:
        histories: rows of the item table, the oldest first, at most the model's longest each.
        candidates: of each request, rows of the table.

    Raises:
        InvalidInputError: a history that is empty or longer, or a row that the table does not have.
    """
    engine, model = Engine(profile), profile.model
    found = []
    with torch.inference_mode():
        for history, wanted in zip(histories, candidates, strict=True):
            length, rows = len(history), np.concatenate([history, wanted])
            if not 0 < length <= model.max_history or rows.min() < 0 or rows.max() >= len(engine.table):
                raise InvalidInputError(
                    f"A request of {length} items does not fit profile '{profile.name}': histories of 1 to "
                    f"{model.max_history} of its {len(engine.table):,} items do."
                )
            x = engine.table[torch.from_numpy(rows.astype(np.int64))].clone()
            position = torch.arange(length)
            buffer = torch.zeros(1, length, *engine.tokens.shape[1:])
            scores = engine.hstu(x, Jagged([0], [length], [len(wanted)], position, position, x), buffer)
            found.append(np.asarray(scores.numpy(), np.float32))
    return found
