"""What a control interval costs, and the reward: its negative."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from helm_gym.telemetry import COLUMN, Telemetry


@dataclasses.dataclass(frozen=True)
class CostWeights:
    """Weights of the cost's terms beside mean latency over the SLO."""

    tail: float = 0.2
    slo: float = 1.0
    move: float = 0.5


TERMS = ("mean", "tail", "slo", "move")
_PAID = [COLUMN[n] for n in ("interval_sojourn_ms", "interval_p99_ms", "interval_violations", "moved_pages")]


def cost_terms(telemetry: Telemetry, slo_ms: float, weights: CostWeights, pages: int) -> dict[str, NDArray[np.float64]]:
    """Each term of ``c = mean / SLO + w_tail P99 / SLO + w_slo violations + w_move |moved share|``, (lanes,).

    All over the last interval, averaged over nodes.
    """
    weight = np.array([1 / slo_ms, weights.tail / slo_ms, weights.slo, weights.move / pages])
    terms = (np.abs(telemetry.values[:, :, _PAID]) * weight).mean(axis=1)  # (lanes, terms)
    return dict(zip(TERMS, terms.T, strict=True))
