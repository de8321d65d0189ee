"""What a control interval costs, and the reward: its negative."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from helm_gym.telemetry import Telemetry


@dataclasses.dataclass(frozen=True)
class CostWeights:
    """Weights of the cost's terms beside mean latency over the SLO."""

    tail: float = 0.2
    slo: float = 1.0
    move: float = 0.5


def cost_terms(telemetry: Telemetry, slo_ms: float, weights: CostWeights, pages: int) -> dict[str, NDArray[np.float64]]:
    """Each term of ``c = mean / SLO + w_tail P99 / SLO + w_slo violations + w_move |moved share|``, (lanes,).

    All over the last interval, averaged over nodes.
    """
    terms = {
        "mean": telemetry["interval_sojourn_ms"] / slo_ms,
        "tail": weights.tail * telemetry["interval_p99_ms"] / slo_ms,
        "slo": weights.slo * telemetry["interval_violations"],
        "move": weights.move * np.abs(telemetry["moved_pages"]) / pages,
    }
    return {name: term.mean(axis=1) for name, term in terms.items()}
