"""Hyper-parameters of the three layers, and of the training of the first."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from agents.on_policy import OnPolicySettings
from helm_gym.errors import InvalidInputError
from helm_gym.ranges import Within

LAYERS = ("base", "adapter", "recovery")


@dataclasses.dataclass(frozen=True)
class Settings(OnPolicySettings):
    """Those that all on-policy agents have, and what follows; all splits are shares of the pool.

    Of the prices, only ``move_price`` has a part in the reward (``lanes.BaseEnv.reward``).

    Attributes:
        layers: which layers decide, joined by commas.
        sharpness: relative cost above a curve's least at which a split counts 1/e of the best one.
        pull: share of the distance to the curves' split that the base policy goes if its network is silent.
        prior_alpha: the split that a typical workload asks for, before anything is learned.
        per_returning, per_history, per_load: by how much a column of the context above the typical moves it.
        rate: of the adapter's learning; 0 learns nothing.
        leak: share of what was learned that is forgotten in a decision.
        bound: of each of the adapter's weights.
        trust: share of the distance to the adapter's split that it goes.
        reach: the most that the adapter adds in a decision.
        drift: deviations from the slow mean that accumulate no alarm.
        alarm: accumulated deviations at which the recovery starts; it is in full control at twice as many.
        hold: decisions from full control to none, if nothing else happens.
        slow: gain of the slow means.
        lead: decisions that the recovery extrapolates the change of the split that is asked for.
        still: distance to the split that the workload asks for below which, without an alarm, less than all of what
            the layers below want is done; it falls with the square.
        quicken: how much of it is done in full control.
        jump: share of the distance to the split that is asked for that is jumped in a decision then.
        memory: gain of the means of grip and of the curves.
        rest_from, rest_at: mean grips from which the target begins to rest, and at which it does nothing else.
        homing: share of the distance to the mean curve's split that a resting target drifts in a decision.
    """

    lanes: Annotated[int, Within(1, 65_536)] = 256
    batch_size: Annotated[int, Within(1, 2**24)] = 2048
    n_epochs: Annotated[int, Within(1, 1000)] = 4
    learning_rate: Annotated[float, Within(0, 1e6, above=True)] = 7e-4
    gamma: Annotated[float, Within(0, 1)] = 0.97
    log_std: Annotated[float, Within(-20, 2)] = -1.5
    move_price: Annotated[float, Within(-1e6, 1e6)] = 0.3
    layers: str = ",".join(LAYERS)
    sharpness: Annotated[float, Within(0, 1e6, above=True)] = 0.015
    pull: Annotated[float, Within(0, 1)] = 0.1
    prior_alpha: Annotated[float, Within(-1e6, 1e6)] = 0.57
    per_returning: Annotated[float, Within(-1e6, 1e6)] = -0.6
    per_history: Annotated[float, Within(-1e6, 1e6)] = -0.22
    per_load: Annotated[float, Within(-1e6, 1e6)] = -0.68
    rate: Annotated[float, Within(0, 1)] = 0.05
    leak: Annotated[float, Within(0, 1)] = 0.0
    bound: Annotated[float, Within(0, 1e6)] = 0.2
    trust: Annotated[float, Within(0, 1)] = 0.1
    reach: Annotated[float, Within(0, 1e6)] = 0.04
    drift: Annotated[float, Within(0, 1e6)] = 1.5
    alarm: Annotated[float, Within(0, 1e6, above=True)] = 3.0
    hold: Annotated[float, Within(0, 1e6, above=True)] = 6.0
    slow: Annotated[float, Within(0, 1)] = 0.1
    lead: Annotated[float, Within(0, 1e6)] = 1.0
    still: Annotated[float, Within(0, 1e6, above=True)] = 0.13
    quicken: Annotated[float, Within(0, 1e6)] = 2.5
    jump: Annotated[float, Within(0, 1)] = 0.1
    memory: Annotated[float, Within(0, 1)] = 0.02
    rest_from: Annotated[float, Within(-1e6, 1e6)] = 0.22
    rest_at: Annotated[float, Within(-1e6, 1e6)] = 0.32
    homing: Annotated[float, Within(0, 1)] = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sharpness", "alarm", "hold", "still"):
            if getattr(self, name) <= 0:
                raise InvalidInputError(f"Hyper-parameter {name} must be above 0, not {getattr(self, name)}.")
        for name in ("pull", "rate", "leak", "trust", "slow", "jump", "memory", "homing"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(f"Hyper-parameter {name} must lie in 0 to 1, not {getattr(self, name)}.")
        for name in ("bound", "reach", "drift", "lead", "quicken"):
            if getattr(self, name) < 0:
                raise InvalidInputError(f"Hyper-parameter {name} must be 0 or more, not {getattr(self, name)}.")
        if self.rest_at <= self.rest_from:
            raise InvalidInputError(f"Hyper-parameter rest_at must be above rest_from, {self.rest_from}.")
        chosen = self.chosen
        unknown = chosen - set(LAYERS)
        if unknown or not chosen:
            raise InvalidInputError(
                f"Hyper-parameter layers must name some of {', '.join(LAYERS)}, not '{self.layers}'."
            )

    @property
    def chosen(self) -> frozenset[str]:
        """The layers that decide."""
        return frozenset(part.strip() for part in self.layers.split(",") if part.strip())
