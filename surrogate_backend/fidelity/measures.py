"""The figures of the report: their names in ``--json``, how each is defined, its floor, and the mark it has to pass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

PATH_FIELDS = {  # figure -> field of telemetry
    "service_mean_mape": "service_mean_ms",
    "service_p99_mape": "service_p99_ms",
    "sojourn_mean_mape": "sojourn_mean_ms",
    "sojourn_p99_mape": "sojourn_p99_ms",
}
EXPECTED_FIELDS = {"expected_service_mape": "service_mean_ms", "expected_sojourn_mape": "sojourn_mean_ms"}
HIT_FIELDS = {"emb_hit_mae": "emb_hit_rate", "kv_hit_mae": "kv_hit_rate"}
Kind = Literal["excess", "most", "least"]


@dataclasses.dataclass(frozen=True)
class Measure:
    """One figure.

    Attributes:
        key: its name in the JSON, the same under ``floor`` and ``surrogate``.
        unit: of its value; relative errors are in per cent, hit rates in points of 100.
        group: of the log's episodes that it stands on.
        mark: to pass; on the ``excess`` over the floor, or the ``most`` or ``least`` that the value may be.
        doc: its definition; floor: how the floor is found.
    """

    key: str
    heading: str
    unit: str
    digits: int
    group: str
    kind: Kind
    mark: float
    doc: str
    floor: str

    def value(self, floor: float, surrogate: float) -> float:
        """What is held against the mark."""
        return surrogate - floor if self.kind == "excess" else surrogate

    def passed(self, floor: float, surrogate: float) -> bool | None:
        """Whether the mark is met; None where the figure does not exist."""
        value = self.value(floor, surrogate)
        if not math.isfinite(value):
            return None
        return value >= self.mark if self.kind == "least" else value <= self.mark


_PATH_FLOOR = "The same between two real episodes, over all ordered pairs of different request seeds."
_HALVES = (
    "One half of the real seeds against the other, averaged over fixed random halvings, times 1/2: the expected error "
    "of a mean over all seeds against the truth (sqrt(ab)/n where the halves a and b of n are not equal)."
)
_BLOCKS = (
    "The intervals of a sweep are cut into halves: twenty blocks an episode, of each two neighbours one to either "
    "half, in fixed random ways, the same for all splits"
)


def _path(key: str, heading: str, mark: float, what: str) -> Measure:
    doc = (
        f"{what} over the last 200 requests, one surrogate lane against one real episode, free-running over the whole "
        "episode: the surrogate is given the workload's parameters and the logged schedule of alpha and nothing else. "
        "Relative error interval by interval; the median over the intervals of a pair, since sojourn has heavy tails; "
        "the mean over pairs, as many as the floor has, and over settings."
    )
    return Measure(key, heading, "%", 2, "repeat", "excess", mark, doc, _PATH_FLOOR)


MEASURES = (
    _path("service_mean_mape", "path error, mean service", 0.5, "Mean service time"),
    _path("service_p99_mape", "path error, P99 service", 1.5, "P99 of service time"),
    _path("sojourn_mean_mape", "path error, mean sojourn", 2.0, "Mean sojourn"),
    _path("sojourn_p99_mape", "path error, P99 sojourn", 2.5, "P99 of sojourn"),
    Measure(
        "expected_service_mape", "expected mean service", "%", 2, "repeat", "most", 2.0,
        "Mean service time, averaged over the real seeds, against the same averaged over the surrogate's lanes: "
        "absolute relative error, averaged over intervals and settings.",
        _HALVES,
    ),
    Measure(
        "expected_sojourn_mape", "expected mean sojourn", "%", 2, "repeat", "most", 7.0,
        "The same of mean sojourn, but with the median over a setting's intervals: in a passing overload a mean over "
        "the seeds is ruled by one or two of them.",
        _HALVES,
    ),
    Measure(
        "emb_hit_mae", "expected EMB hit rate", "points", 2, "repeat", "most", 0.7,
        "EMB hit rate, averaged over the real seeds, against the same averaged over the surrogate's lanes: absolute "
        "difference in points of 100, averaged over intervals and settings.",
        _HALVES,
    ),
    Measure("kv_hit_mae", "expected KV hit rate", "points", 2, "repeat", "most", 1.3, "The same of KV's.", _HALVES),
    Measure(
        "alpha_star_mae", "alpha*", "alpha", 4, "sweep", "most", 0.02,
        "alpha* is where mean service time over the held splits is least, refined by the parabola through the least "
        "and its two neighbours; real and surrogate each by its own curve, the surrogate's averaged over its lanes. "
        "Absolute difference, averaged over settings.",
        f"{_BLOCKS}; the distance of the halves' alpha*, averaged, times 1/2.",
    ),
    Measure(
        "alpha_star_regret", "regret at the surrogate's alpha*", "%", 3, "sweep", "most", 0.5,
        "What the real curve (Akima's interpolation between the splits) costs at the surrogate's alpha* over its "
        "least.",
        f"{_BLOCKS}; what one half's curve costs at the other's alpha*, averaged, times 1/4, for a regret goes with "
        "the square of the distance.",
    ),
    Measure(
        "stationary_bias", "stationary bias of service", "%", 2, "sweep", "most", 1.0,
        "Mean service time of a held split on a stationary workload, surrogate over real less one: the mean over "
        "splits and settings with its sign, and then its absolute value.",
        "From the repeats, for a sweep has few request seeds: mean service of one seed over a stretch as long as the "
        "sweep, over the other seeds' less one; the expected absolute value of its mean over settings.",
    ),
    Measure(
        "kendall_tau_mean", "Kendall's tau, mean", "", 3, "policy", "least", 0.9,
        "Rank correlation of the controllers' mean sojourn over an episode, real against surrogate (averaged over its "
        "lanes); each controller runs on the surrogate in closed loop, on the surrogate's own observations. Mean over "
        "settings.",
        "The same between two halves of the real episodes: 24 blocks of intervals each, of each two neighbours one to "
        "either half, averaged over fixed random ways. Half an episode is noisier than a whole one, so that a good "
        "surrogate can beat this floor.",
    ),
    Measure(
        "kendall_tau_min", "Kendall's tau, least", "", 3, "policy", "least", 0.85,
        "The least of the settings' taus.", "The least of the settings' floors.",
    ),
)  # fmt: skip
KEYS = tuple(measure.key for measure in MEASURES)
PATH_KEYS = tuple(PATH_FIELDS)


def excess(floor: Mapping[str, float], surrogate: Mapping[str, float]) -> dict[str, float]:
    """The path errors beyond their floors, in points."""
    return {key: surrogate[key] - floor[key] for key in PATH_KEYS}
