"""Policies of run folders, and those that packages ship."""

from __future__ import annotations

import importlib.resources
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from helm_gym import registry
from helm_gym.errors import InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Policy
from helm_gym.text import shown
from helm_gym.training import run_folder, trainable


def open_run(
    folder: pathlib.Path,
    layout: ObservationLayout,
    overrides: Mapping[str, Any] | None = None,
    routes: bool = False,
) -> Policy:
    """The policy of a run folder, or of a shipped one, acting in Python.

    Args:
        overrides: hyper-parameters that are to differ from the run's, such as which layers decide.
        routes: whether a router is wanted, and not a policy of nodes.

    Raises:
        InvalidInputError: no run folder, a broken one, one that holds no policy yet, or one of the other kind.
        IncompatibleError: made for another observation layout, clock or profile.
        UnknownNameError: of an agent or hyper-parameter that this version does not have.
    """
    run = run_folder.read_run(folder)
    run.origin.check(layout, f"Run {folder}")
    _refuse_strange_code(run.agent, folder)
    agent = trainable.find_trainable(run.agent)
    if agent.routes != routes:
        raise InvalidInputError(
            f"Run {folder} is {'a' if agent.routes else 'no'} router; CONTROLLER+ROUTER takes each in its place."
        )
    settings = trainable.make_settings(agent, {**run.settings, **(overrides or {})}, f"Run {folder}")
    policy = trainable.build(agent, layout, settings, run_folder.policy_tensors(folder, run), f"Run {folder}")
    policy.name = str(folder)
    return policy


def _refuse_strange_code(agent: str, folder: pathlib.Path) -> None:
    """A run folder may come from a stranger: what it names is not imported, but may have been by whoever runs this."""
    module, colon, _ = agent.partition(":")
    if colon and module not in sys.modules:
        raise InvalidInputError(
            f"Run {folder} was made by {shown(agent)}, which has no name here; if you trust module {shown(module)}, "
            f"import it first, with {registry.IMPORTS}={shown(module)[1:-1]} before the command."
        )


def open_shipped(agent: trainable.Trainable, package: str, layout: ObservationLayout) -> Policy:
    """The policy that ``package`` ships for the layout's profile; without one, the defaults if they need no weights.

    Raises:
        InvalidInputError: nothing is shipped for the profile, and it must be trained first.
        IncompatibleError: the profile has the name of a shipped one and is another.
    """
    folder = shipped_folder(agent.name, package, layout)
    if run_folder.is_run(folder):
        return open_run(folder, layout, routes=agent.routes)
    try:
        return trainable.build(agent, layout, agent.settings(), {}, "")
    except InvalidInputError as error:
        raise InvalidInputError(
            f"No {agent.name} is shipped for profile '{layout.profile.name}'; train one (`helm-gym train {agent.name}`)"
            " and give its folder."
        ) from error


def shipped_folder(name: str, package: str, layout: ObservationLayout) -> pathlib.Path:
    """Where ``package`` ships the agent's policy for the layout's profile, or would."""
    place = importlib.resources.files(package) / run_folder.SHIPPED / name.replace("-", "_") / layout.profile.name
    return pathlib.Path(str(place))
