"""What a control interval costs, and the reward: its negative."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class CostWeights:
    """Weights of the cost's terms beside mean latency over the SLO."""

    tail: float = 0.2
    slo: float = 1.0
    move: float = 0.5


TERMS = ("mean", "tail", "slo", "move")
# Of telemetry, behind each term.
COST_FIELDS = ("interval_sojourn_ms", "interval_p99_ms", "interval_violations", "moved_pages")


def cost_coefficients(slo_ms: float, weights: CostWeights, pages: int) -> NDArray[np.float64]:
    """What one unit of each term's field costs, (terms,).

    ``c = mean / SLO + w_tail P99 / SLO + w_slo violations + w_move |moved share|``, all over the last interval and
    averaged over nodes.
    """
    return np.array([1.0 / slo_ms, weights.tail / slo_ms, weights.slo, weights.move / pages])
