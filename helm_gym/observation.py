"""From telemetry to what a controller sees: float32, bounded, one row a node, with fixed documented scales.

Everything here is telemetry that a live node can report; nothing reads the hidden regime. The layout, the clock and
the window belong together: a policy trained under one version is refused under another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import UnknownNameError
from helm_gym.kernels import lazy
from helm_gym.observation_schema import COLUMNS, FAST, LAYOUT_VERSION, PLACES, Scales
from helm_gym.profile import Profile
from helm_gym.telemetry import Telemetry


class ObservationLayout:
    """Names, places and bounds of the observation's columns, and the function that fills them.

    Columns are those of ``COLUMNS`` and, for each of ``FAST``, ``change_<name>``: its change since the last interval.
    """

    def __init__(self, profile: Profile):
        self.version = LAYOUT_VERSION
        self.profile = profile
        bounds = [(c.low, c.high) for c in COLUMNS for _ in range(c.width)] + [(-1.0, 1.0)] * len(FAST)
        self.low, self.high = (np.array(ends, np.float32) for ends in zip(*bounds, strict=True))
        self.names = [
            name if place.stop - place.start == 1 else f"{name}_{k}"
            for name, place in PLACES.items()
            for k in range(place.stop - place.start)
        ]
        self.width = len(self.names)

    def column(self, name: str) -> int | slice:
        """Where a column stands; a slice where it is one a grid point.

        Raises:
            UnknownNameError: no such column.
        """
        if name not in PLACES:
            raise UnknownNameError("observation column", name, PLACES)
        place = PLACES[name]
        return int(place.start) if place.stop - place.start == 1 else place

    def memory(self, lanes: int, nodes: int) -> NDArray[np.float32]:
        """What ``observe`` remembers from interval to interval, (lanes, nodes, fast), before the first one."""
        return np.full((lanes, nodes, len(FAST)), np.nan, np.float32)

    def observe(
        self, telemetry: Telemetry, slo_ms: float, memory: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """The observation, (lanes, nodes, width).

        Args:
            telemetry: one interval's report.
            slo_ms: what latencies are scaled by.
            memory: the last interval's fast-moving columns, which this interval's replace; without it, or in the
                first interval, their changes are 0. It is its owner's: what becomes of an observation does not matter.
        """
        values = telemetry.values
        lanes, nodes, _ = values.shape
        if memory is None:
            memory = self.memory(lanes, nodes)
        out = np.empty((lanes, nodes, self.width), np.float32)
        lazy.passes().observe(values, self.per_scale(slo_ms), memory, out)
        return out

    def per_scale(self, slo_ms: float) -> NDArray[np.float64]:
        """One over the scale of each column but the changes, (columns,)."""
        profile = self.profile
        scales = Scales(
            slo_ms=slo_ms,
            service_ms=slo_ms / 8,
            row_bytes=profile.row_bytes,
            max_history=profile.model.max_history,
            backlog_rows=profile.pool.shadow_pages * profile.rows_per_page,
            pages=profile.pool.pages,
            page_budget=profile.pool.page_moves_per_interval,
        )
        return np.array([1.0 / c.scale(scales) for c in COLUMNS for _ in range(c.width)])
