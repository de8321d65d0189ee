"""What a fidelity report holds: the figures, what they stand on, and the curves behind them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surrogate_backend.fidelity.cases import GROUPS, Origin, Setting
from surrogate_backend.fidelity.measures import KEYS, MEASURES, excess
from surrogate_backend.fidelity.rollout import Rollout
from surrogate_backend.fidelity.trust import Trust

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which controller the surrogate ranks first, and what comes of following it.

    Attributes:
        place: of the surrogate's first in the real ranking, from 1, among ``policies``.
        cost: its real mean sojourn over the real best's, less one, in per cent.
        lane_tau: Kendall's tau of one lane's ranking, the mean over lanes.
    """

    twin: str
    real: str
    place: int
    policies: int
    cost: float
    lane_tau: float


@dataclasses.dataclass(frozen=True)
class Judged:
    """One setting, real and surrogate.

    Attributes:
        repeat: the surrogate's lanes of the repeats' schedule; None where the log has none.
        sweep, policy: the surrogate's lanes of each held split and of each controller of the setting, in order.
        floor, surrogate: the figures of this setting alone; absent where it has no episodes for them. The bias has
            its sign, and its floor is of this setting alone.
        timing: path errors between an episode and the same requests timed again.
        stars: alpha* of the real curve and the surrogate's; None where the sweep is not whole.
    """

    setting: Setting
    repeat: Rollout | None
    sweep: tuple[Rollout, ...]
    policy: tuple[Rollout, ...]
    floor: Mapping[str, float]
    surrogate: Mapping[str, float]
    timing: Mapping[str, float]
    stars: tuple[float, float] | None
    choice: Choice | None
    extrapolating: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "setting": self.setting.number,
            "regime": self.setting.regime,
            "episodes": {group: len(self.setting.group(group)) for group in GROUPS},
            "disturbed": self.setting.disturbed,
            "floor": _numbers(self.floor),
            "surrogate": _numbers(self.surrogate),
            "timing": _numbers(self.timing),
            "alpha_star": None if self.stars is None else {"real": self.stars[0], "twin": self.stars[1]},
            "best": None if self.choice is None else dataclasses.asdict(self.choice),
            "extrapolating": self.extrapolating,
        }


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A surrogate's fidelity to the real backend that a log was taken of.

    Attributes:
        checkpoint: of the surrogate; surrogate: its backend's name; lanes: how many episodes it ran at once.
        machine, date, versions: of the judging; ``origin`` has the log's.
        floor, surrogate, timing: the figures by their keys; NaN where the log holds nothing for one.
        stands_on: settings and real episodes behind each figure.
        missing: why a figure does not exist, or lacks a setting.
    """

    rung: str
    profile: str
    checkpoint: str
    twin: str
    lanes: int
    machine: str
    date: str
    versions: Mapping[str, str]
    origin: Origin
    floor: Mapping[str, float]
    surrogate: Mapping[str, float]
    timing: Mapping[str, float]
    stands_on: Mapping[str, Mapping[str, int]]
    missing: Mapping[str, str]
    settings: tuple[Judged, ...]
    trust: Trust

    @property
    def excess(self) -> dict[str, float]:
        """Path errors beyond their floors."""
        return excess(self.floor, self.surrogate)

    def to_json(self) -> dict[str, Any]:
        """The object that ``helm-gym fidelity --json`` prints: strict JSON, null where a number does not exist.

        Relative errors (mape, regret, bias) are in per cent, hit rates in points of 100, alpha* in alpha.
        """
        return {
            "rung": self.rung,
            "profile": self.profile,
            "checkpoint": self.checkpoint,
            "twin": self.twin,
            "lanes": self.lanes,
            "machine": self.machine,
            "date": self.date,
            "versions": dict(self.versions),
            "log": dataclasses.asdict(self.origin),
            "floor": _numbers({key: self.floor[key] for key in KEYS}),
            "surrogate": _numbers({key: self.surrogate[key] for key in KEYS}),
            "excess": _numbers(self.excess),
            "timing": _numbers(self.timing),
            "units": {measure.key: measure.unit for measure in MEASURES},
            "marks": {
                measure.key: {
                    "kind": measure.kind,
                    "mark": measure.mark,
                    "passed": measure.passed(self.floor[measure.key], self.surrogate[measure.key]),
                }
                for measure in MEASURES
            },
            "stands_on": {key: dict(count) for key, count in self.stands_on.items()},
            "missing": dict(self.missing),
            "settings": [judged.to_json() for judged in self.settings],
            "trust": self.trust.to_json(),
        }


def _numbers(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {key: float(value) if math.isfinite(value) else None for key, value in figures.items()}
