"""What an evaluation holds: episodes by policy, the workload they shared, and where it ran."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.backend import Rung
from helm_gym.tasks import Task
from helm_gym.workload.state import WorkloadPath


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The offline optimum by replay on the modelled rung.

    Attributes:
        grid: (A,) alphas that were replayed.
        cost_ms: (A, lanes, T), mean service time of each interval at each alpha, as replayed.
        expected_ms: (A, lanes, T), the same averaged over intervals of the same workload.
        alpha_star: (lanes, T), argmin over the grid, refined by a parabola through its neighbours.
    """

    grid: NDArray[np.float64]
    cost_ms: NDArray[np.float64]
    expected_ms: NDArray[np.float64]
    alpha_star: NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Episodes:
    """One policy's episodes; only scored intervals (settling is left out), each array (lanes, T) unless said.

    Attributes:
        sojourn_ms: float32 (lanes, T, requests).
        moved_bytes, h2d_critical_bytes: bytes of each interval.
        arrival_s: time from the first to the last arrival of each interval.
        decision_us: (decisions,), time of ``policy.act`` a row, telemetry to action.
        violations: share of answers later than the SLO in force; the measured rung scales its SLO with the machine's
            speed at each reset, so it cannot be told from sojourn afterwards. NaN where it was not kept.
    """

    policy: str
    sojourn_ms: NDArray[np.float32]
    alpha: NDArray[np.float64]
    service_ms: NDArray[np.float64]
    emb_hit_rate: NDArray[np.float64]
    kv_hit_rate: NDArray[np.float64]
    cost: NDArray[np.float64]
    moved_bytes: NDArray[np.float64]
    h2d_critical_bytes: NDArray[np.float64]
    arrival_s: NDArray[np.float64]
    decision_us: NDArray[np.float64]
    violations: NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.full((1, 1), np.nan))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Policies on one task, one rung, the same seeds.

    Attributes:
        policies: in the order they were asked for.
        references: those that only serve to scale gains (static grid or best static, oracle, clairvoyant).
        best_static: the single alpha that is best in hindsight over all lanes, by mean sojourn.
        path, optimum: of the scored intervals.
        slo_ms: that violations were counted against on this rung; the mean over episodes where it varies.
        modelled: the same policies and seeds on the modelled rung, where this is another and references were run; what
            the gain loses from there to here is reported.
        machine: what it ran on; versions: of Python and the libraries; date: ISO, day.
    """

    task: Task
    rung: Rung
    profile: str
    seeds: tuple[int, ...]
    slo_ms: float
    path: WorkloadPath
    optimum: Optimum
    policies: tuple[Episodes, ...]
    references: dict[str, Episodes]
    best_static: float
    machine: str
    versions: dict[str, str]
    date: str
    modelled: Evaluation | None = None

    def provenance(self) -> dict[str, Any]:
        """What every figure made of these episodes names, as JSON has it."""
        return {
            "rung": self.rung,
            "profile": self.profile,
            "seeds": list(self.seeds),
            "machine": self.machine,
            "versions": self.versions,
            "date": self.date,
        }
