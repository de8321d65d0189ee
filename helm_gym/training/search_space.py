"""Where to search for an agent's settings: declared beside them, read by `helm-gym tune`.

    @dataclasses.dataclass(frozen=True)
    class Settings:
        kp: float = 0.05

        @staticmethod
        def space(trial: Trial) -> dict[str, Any]:
            return {"kp": trial.suggest_float("kp", 0.01, 0.3, log=True)}

Optuna's trials are ``Trial``s; what declares a space does not import Optuna.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from helm_gym.observation import ObservationLayout
from helm_gym.policy import Policy
from helm_gym.training.run_folder import Tensors
from helm_gym.training.trainable import Trainable, Training

if TYPE_CHECKING:
    import onnx


class Trial(Protocol):
    """Proposes values; those of one trial are proposed together."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@runtime_checkable
class Searchable(Protocol):
    """Settings, a frozen dataclass, that say where better ones may lie."""

    @staticmethod
    def space(trial: Trial) -> Mapping[str, Any]:
        """Settings to try, by name; a field that is left out keeps its value."""
        ...


def settings_only_agent(
    name: str,
    settings: type,
    policy: Callable[[ObservationLayout, Any], Policy],
    graph: Callable[[ObservationLayout, Any], onnx.ModelProto] | None = None,
) -> Trainable:
    """An agent that is its settings: there is nothing to train (``steps`` 0), but settings to be tuned."""

    def train(training: Training) -> Tensors:
        return {}

    def build(layout: ObservationLayout, chosen: Any, tensors: Tensors) -> Policy:
        return policy(layout, chosen)

    def draw(layout: ObservationLayout, chosen: Any, tensors: Tensors) -> onnx.ModelProto:
        assert graph is not None
        return graph(layout, chosen)

    return Trainable(name, settings, steps=0, train=train, policy=build, graph=draw if graph else None)
