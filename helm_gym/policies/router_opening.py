"""Routers opened by name, from run folders and from ONNX files."""

from __future__ import annotations

from typing import Any

from helm_gym import registry
from helm_gym.cluster.routing import Router
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.observation import ObservationLayout
from helm_gym.policies import from_run, opening
from helm_gym.text import shown
from helm_gym.training.trainable import Trainable


def open_router(text: str, layout: ObservationLayout) -> Router:
    """Opens a router: by name or ``module:attribute``, such as ``joint``, or a run folder, or an ``.onnx`` file.

    Args:
        layout: of the nodes' observations, which the router's is made of.

    Raises:
        UnknownNameError: no such router; the nearest name is given.
        InvalidInputError: a folder or file that holds no router.
        IncompatibleError: a folder's or file's router was made for another layout, clock or profile.
    """
    try:
        entry = registry.find("router", text)
    except UnknownNameError:
        opened = opening.open_path(text, layout, routes=True)
        if opened is None:
            raise
        return _checked(opened, text)
    found = entry.load()
    if isinstance(found, Trainable):  # what was trained and is shipped
        found = from_run.open_shipped(found, entry.module.partition(".")[0], layout)
        found.name = text
    elif isinstance(found, type):
        found = found()
    return _checked(found, text)


def _checked(found: Any, text: str) -> Router:
    if not isinstance(found, Router):
        raise InvalidInputError(
            f"Router {shown(text)} is a {type(found).__name__}; see helm_gym.cluster.routing.Router."
        )
    return found
