"""The modelled rung: the memory manager on real requests, with time from the profile's cost model."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from helm_gym.backend import Rung
from real_backend.base import ManagedBackend
from real_backend.memory.serve import serve_interval


class ModelledBackend(ManagedBackend):
    """Deterministic; any number of lanes, each bit-identical to the same lane alone."""

    name: ClassVar[str] = "modelled"
    rung: ClassVar[Rung] = "modelled"
    snapshots: ClassVar[bool] = True

    def _serve(self, targets: NDArray[np.int64]) -> None:
        serve_interval(
            self._memory,
            self._traffic.items,
            targets,
            self.profile.pool.page_moves_per_interval,
            self.profile.max_batch,
            self._requests,
            self._plan,
            self._ledger,
            self._rule_table,
        )
