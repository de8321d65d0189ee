"""What all on-policy agents have: hyper-parameters, rounds, and a learning rate that falls over all steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from helm_gym.errors import InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Policy
from helm_gym.ranges import Within
from helm_gym.training.run_folder import Tensors
from helm_gym.training.search_space import Trial
from helm_gym.training.trainable import Trainable, Training

if TYPE_CHECKING:
    import onnx

BACKENDS = ("surrogate", "surrogate-measured", "modelled")  # that have lanes by the hundred


@dataclasses.dataclass(frozen=True)
class OnPolicySettings:
    """Hyper-parameters that all on-policy agents have.

    Attributes:
        lanes: episodes side by side.
        episode: intervals of a training episode.
        n_steps: intervals between updates; divides ``episode``.
        batch_size, n_epochs, learning_rate, gamma, gae_lambda, clip_range, ent_coef, vf_coef, max_grad_norm: of PPO;
            the learning rate falls linearly to nought.
        hidden: width of the network's layers.
        log_std: of the actions, at first.
        windows: observations that the network sees at once.
        excess_price: of P99 over the SLO beyond 1, clipped at 3; mean over SLO, clipped at 3, costs 1.
        slo_price: of all answers later than the SLO.
        move_price: of the whole pool moved.
        validate_every: rounds between validations.
        cluster: size of the clusters, behind joint routing, whose nodes the lanes are; 0: they are single nodes.
        backend: that the lanes are of and that validates, ``surrogate`` or ``modelled``, on which a training takes
            forty times as long (docs/training.md).
    """

    lanes: Annotated[int, Within(1, 65_536)] = 128
    episode: Annotated[int, Within(1, 100_000)] = 480
    n_steps: Annotated[int, Within(1, 100_000)] = 32
    batch_size: Annotated[int, Within(1, 2**24)] = 1024
    n_epochs: Annotated[int, Within(1, 1000)] = 6
    learning_rate: Annotated[float, Within(0, 1e6, above=True)] = 3e-4
    gamma: Annotated[float, Within(0, 1)] = 0.9
    gae_lambda: Annotated[float, Within(0, 1)] = 0.9
    clip_range: Annotated[float, Within(0, 100, above=True)] = 0.2
    ent_coef: Annotated[float, Within(0, 1e6)] = 0.0
    vf_coef: Annotated[float, Within(0, 1e6)] = 0.5
    max_grad_norm: Annotated[float, Within(0, 1e6, above=True)] = 0.5
    hidden: Annotated[int, Within(1, 4096)] = 64
    log_std: Annotated[float, Within(-20, 2)] = -1.0
    windows: Annotated[int, Within(1, 64)] = 3
    excess_price: Annotated[float, Within(-1e6, 1e6)] = 0.1
    slo_price: Annotated[float, Within(-1e6, 1e6)] = 0.5
    move_price: Annotated[float, Within(-1e6, 1e6)] = 1.0
    validate_every: Annotated[int, Within(1, 1_000_000)] = 1
    cluster: Annotated[int, Within(0, 1024)] = 0
    backend: str = "surrogate"

    def __post_init__(self) -> None:
        counts = ("lanes", "episode", "n_steps", "batch_size", "n_epochs", "hidden", "windows", "validate_every")
        for name in (*counts, "learning_rate", "clip_range", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise InvalidInputError(f"Hyper-parameter {name} must be above 0, not {getattr(self, name)}.")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(f"Hyper-parameter {name} must lie in 0 to 1, not {getattr(self, name)}.")
        if self.episode % self.n_steps:
            raise InvalidInputError(f"n_steps {self.n_steps} must divide episode, {self.episode} intervals.")
        if self.cluster < 0 or (self.cluster and self.lanes % self.cluster):
            raise InvalidInputError(f"cluster {self.cluster} must divide lanes, {self.lanes}; or be 0, for no cluster.")
        if self.backend.partition(":")[0] not in BACKENDS:
            raise InvalidInputError(f"Hyper-parameter backend must be {' or '.join(BACKENDS)}, not '{self.backend}'.")
        if self.lanes * self.n_steps < 2:
            raise InvalidInputError("lanes x n_steps is 1; an update needs at least 2 decisions.")

    @property
    def round(self) -> int:
        """Decisions of a round: an episode in every lane."""
        return self.lanes * self.episode

    @staticmethod
    def space(trial: Trial) -> dict[str, Any]:
        """What decides whether an agent learns, and what it learns from; sizes stay as they are."""
        return {
            "learning_rate": trial.suggest_float("learning_rate", 5e-5, 3e-3, log=True),
            "n_epochs": trial.suggest_int("n_epochs", 1, 10),
            "gamma": trial.suggest_float("gamma", 0.7, 0.99),
            "gae_lambda": trial.suggest_float("gae_lambda", 0.7, 1.0),
            "excess_price": trial.suggest_float("excess_price", 0.01, 1.0, log=True),
            "slo_price": trial.suggest_float("slo_price", 0.0, 2.0),
            "move_price": trial.suggest_float("move_price", 0.1, 10.0, log=True),
        }


def on_policy(
    name: str,
    settings: type[OnPolicySettings],
    train: Callable[[Training], Tensors],
    policy: Callable[[ObservationLayout, Any, Tensors], Policy],
    graph: Callable[[ObservationLayout, Any, Tensors], onnx.ModelProto],
) -> Trainable:
    """An agent that agents/sb3.py trains."""
    return Trainable(
        name,
        settings,
        steps=2_000_000,
        train=train,
        policy=policy,
        graph=graph,
        round=lambda chosen, task: chosen.round,
        continues=True,
        schedule="The learning rate",
    )
