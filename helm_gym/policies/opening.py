"""Policies opened by name, from run folders and from ONNX files."""

from __future__ import annotations

import inspect
import os
import pathlib
from typing import Any

import numpy as np

from helm_gym import files, registry
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.observation import ObservationLayout
from helm_gym.policies import from_run
from helm_gym.policy import Policy
from helm_gym.text import shown
from helm_gym.training.trainable import Trainable


def open_policy(text: str, layout: ObservationLayout) -> Policy:
    """Opens a policy: by name or ``module:attribute``, such as ``pid`` or ``static:0.5``, a run folder, an ``.onnx``.

    What has the name is a Trainable, whose shipped policy is opened, or is called: with the layout, and with the
    number behind the colon where there is one.

    Raises:
        UnknownNameError: no such policy; the nearest name is given.
        InvalidInputError: an argument that is missing, superfluous or not a number in its range, a folder or file that
            holds no policy, or what has the name is none.
        IncompatibleError: a folder's or file's policy was made for another observation layout, clock or profile.
    """
    try:
        entry = registry.find("policy", text)
    except UnknownNameError:
        opened: Policy | None = open_path(text, layout)
        if opened is None:
            raise
        return opened
    found = entry.load()
    if isinstance(found, Trainable):  # what was trained and is shipped
        policy = from_run.open_shipped(found, entry.module.partition(".")[0], layout)
    else:
        policy = _called(found, [layout, _number(text, entry.given)] if entry.given else [layout], text)
    policy.name = text
    return policy


def _called(found: Any, arguments: list[Any], text: str) -> Policy:
    try:
        inspect.signature(found).bind(*arguments)
    except (TypeError, ValueError) as error:
        takes = "the layout and a number" if len(arguments) > 1 else "the layout"
        raise InvalidInputError(f"Policy {shown(text)} cannot be opened with {takes}: {error}.") from error
    policy = found(*arguments)
    if not isinstance(policy, Policy):
        raise InvalidInputError(
            f"Policy {shown(text)} is a {type(policy).__name__}, which has no act or initial_state."
        )
    return policy


def open_path(text: str, layout: ObservationLayout, routes: bool = False) -> Any:
    """The policy, or with ``routes`` the router, of an ``.onnx`` file or a run folder; None where ``text`` is no path.

    Raises:
        InvalidInputError, IncompatibleError: see ``open_policy``.
    """
    path = pathlib.Path(text)
    if path.suffix == ".onnx":
        from helm_gym.policies import onnx_policy  # with onnx, which takes a third of a second

        return (onnx_policy.OnnxRouter if routes else onnx_policy.OnnxPolicy)(path, layout)
    refuse_file(path)
    if os.path.isdir(path):
        return from_run.open_run(path, layout, routes=routes)
    if os.sep in text:
        what = "Router" if routes else "Policy"
        raise InvalidInputError(f"{what} '{text}' is no folder or file; give a run folder, an .onnx file or a name.")
    return None


def refuse_file(path: pathlib.Path) -> None:
    """Says what a file that is no policy is and what to do; nothing of it is unpickled.

    Raises:
        InvalidInputError: there is a file of this name, or of the name with the ``.zip`` that Stable-Baselines3 adds.
    """
    found = next((file for file in (str(path), f"{path}.zip") if os.path.isfile(file)), None)
    if found is None or os.path.isdir(path):
        return
    try:
        head = files.read_start(pathlib.Path(found), 64)
    except OSError as error:
        raise InvalidInputError(f"Policy {found[-200:]} cannot be read: {files.reason(error)}.") from error
    first = head[30:] if head.startswith(b"PK\x03\x04") else b""  # the name of an archive's first member
    if first.startswith(b"data"):
        kind = "a model of Stable-Baselines3"
    elif b"/data.pkl" in first or b"/byteorder" in first:
        kind = "a file of torch.save"
    else:
        raise InvalidInputError(f"Policy {found[-200:]} is no policy; give a run folder, an .onnx file or a name.")
    raise InvalidInputError(
        f"Policy {found[-200:]} is {kind}: it is pickled, and what is pickled is not loaded. Write it with "
        "torch.onnx.export, then `helm-gym export FILE.onnx --out policy.onnx`; docs/policies.md shows how."
    )


def _number(text: str, argument: str) -> float:
    try:
        value = float(argument)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise InvalidInputError(f"Policy '{text}' needs a finite number behind the colon, not '{argument}'.")
    return value
