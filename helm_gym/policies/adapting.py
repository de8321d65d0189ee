"""Whatever decides, as a ``Policy``: a name or path, a policy, a function, a model of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from helm_gym.errors import HelmError, IncompatibleError, InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Floats, Policy


@runtime_checkable
class Predictor(Protocol):
    """A model of Stable-Baselines3 or sb3-contrib, or whatever has their ``predict``."""

    observation_space: Any
    action_space: Any

    def predict(
        self,
        observation: NDArray[np.floating],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], Any]: ...


def as_policy(given: object, layout: ObservationLayout, name: str = "") -> Policy:
    """The policy that ``given`` stands for.

    Args:
        given: a policy; a name, run folder or ``.onnx`` file as ``helm-gym evaluate`` takes them; a model of
            Stable-Baselines3; or a function of one observation (D,) that returns the action, a number in [-1, 1].
        layout: of the observations to come.
        name: to report it by; its own where not given.

    Raises:
        UnknownNameError, IncompatibleError: see ``opening.open_policy``; a model that was trained on other spaces.
        InvalidInputError: none of these.
    """
    if isinstance(given, str):
        policy = open_policy(given, layout)
    elif isinstance(given, Policy):
        policy = given
    elif isinstance(given, Predictor):
        policy = FromPredictor(given, layout)
    elif callable(given):
        policy = FromFunction(given)
    else:
        raise InvalidInputError(
            f"A policy cannot be made of {type(given).__name__}; give a name, a Policy, a model of Stable-Baselines3 "
            "or a function of one observation."
        )
    if name:
        policy.name = name
    return policy


class FromFunction:
    """A function of one observation as a policy without state.

    Args:
        function: takes an observation, float32 (D,), and returns the action: a number, or an array of one.
    """

    def __init__(self, function: Callable[[Floats], ArrayLike]):
        self.name = getattr(function, "__name__", type(function).__name__)
        self._function = function

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, 0), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        """See ``Policy``.

        Raises:
            HelmError: what the function returned is not one number.
        """
        actions = np.empty((len(observation), 1), np.float32)
        for row, seen in enumerate(observation):
            given = self._function(seen)
            try:
                actions[row] = np.asarray(given, np.float32).reshape(1)
            except (TypeError, ValueError) as error:
                raise HelmError(
                    f"Policy '{self.name}' returned {str(given)[:60]!r} for one observation; an action is one number "
                    "in [-1, 1]."
                ) from error
        return actions, state


class FromPredictor:
    """A model of Stable-Baselines3 as a policy; what a recurrent one remembers is the policy's state.

    Its actions are the deterministic ones. Scaling that was done outside of the model (``VecNormalize``) is not known
    here: wrap it in a function, or train without it (observations are scaled already).

    Args:
        model: trained on one interval's observation, with the action of the environment or of ``DiscreteActions``.
        layout: of the observations to come.

    Raises:
        IncompatibleError: trained on other spaces.
    """

    def __init__(self, model: Predictor, layout: ObservationLayout):
        self.name, self._model = type(model).__name__.lower(), model
        seen = getattr(model.observation_space, "shape", None)
        if seen != (layout.width,):
            raise IncompatibleError(
                f"Model {self.name} was trained on observations of shape {seen}; ({layout.width},) is needed, one "
                "interval's. Give a function that makes its observations of ours."
            )
        self._values = _action_values(model.action_space, self.name)
        _, memory = model.predict(np.zeros((1, layout.width), np.float32), deterministic=True)
        # Of a recurrent model a tuple of arrays (layers, rows, units), zeros at first.
        self._shapes = [] if memory is None else [(part.shape[0], part.shape[2]) for part in memory]

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, sum(layers * units for layers, units in self._shapes)), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        """See ``Policy``."""
        rows = len(observation)
        if not self._shapes:
            action, _ = self._model.predict(observation, deterministic=True)
            return self._to_action(action, rows), state
        ends = np.cumsum([layers * units for layers, units in self._shapes])[:-1]
        memory = tuple(
            np.ascontiguousarray(part.reshape(rows, *shape).swapaxes(0, 1))
            for part, shape in zip(np.split(state, ends, axis=1), self._shapes, strict=True)
        )
        going_on = np.zeros(rows, bool)
        action, following = self._model.predict(observation, memory, going_on, deterministic=True)
        parts = [np.swapaxes(part, 0, 1).reshape(rows, -1) for part in following]
        return self._to_action(action, rows), np.concatenate(parts, axis=1).astype(np.float32)

    def _to_action(self, action: NDArray[Any], rows: int) -> Floats:
        if self._values is None:
            return np.asarray(action, np.float32).reshape(rows, 1)
        return self._values[np.asarray(action, np.int64)].reshape(rows, 1)


def _action_values(space: Any, name: str) -> Floats | None:
    """What each of a discrete model's actions stands for; None where its actions are ours."""
    from gymnasium import spaces

    from helm_gym.envs.discrete import action_values

    if isinstance(space, spaces.Box) and space.shape == (1,):
        return None
    if isinstance(space, spaces.Discrete):
        return action_values(int(space.n))
    raise IncompatibleError(
        f"Model {name} acts in {space}; a change of alpha is needed, Box(-1, 1, (1,)), or that of DiscreteActions."
    )
