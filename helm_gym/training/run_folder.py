"""Run folders: what a training leaves behind, and how it is opened as a policy again.

    run.json            what was trained, on what, how far it is (``Run``)
    policy.safetensors  tensors of the best policy so far; its metadata says how good it is
    profile.yaml        the profile that it was trained on
    checkpoints/        what resuming needs, newest two kept
    tensorboard/

Nothing is pickled: weights are safetensors and the rest is text, so a folder from a stranger can be opened.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from helm_gym import files
from helm_gym.errors import InvalidInputError
from helm_gym.policy_origin import Origin
from helm_gym.profile import Profile
from helm_gym.text import shown

Tensors = Mapping[str, NDArray[Any]]

FORMAT = 1
_OBJECTS = ("settings", "facts", "scores", "versions")  # fields of Run that are JSON objects
STATES = ("training", "done")
MAX_RUN_BYTES, MAX_TENSOR_BYTES = 16 * files.MIB, 1024 * files.MIB
RUN, CARD, POLICY, PROFILE = "run.json", "card.json", "policy.safetensors", "profile.yaml"
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
SHIPPED = "shipped"  # folder of a package: <agent>/<profile>/ with card, tensors and policy.onnx


@dataclasses.dataclass
class Run:
    """What run.json holds.

    Attributes:
        agent: a name of ``training.TRAINABLE``.
        settings: hyper-parameters by name.
        steps: how many were asked for; a step is a decision of one lane.
        status: ``training`` or ``done``.
        facts: what the training says of itself: validation score, seconds, ``env_share``.
        scores: what it was evaluated to be afterwards.
    """

    agent: str
    task: str
    origin: Origin
    settings: dict[str, Any]
    seed: int
    steps: int
    status: str = "training"
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    machine: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    date: str = dataclasses.field(default_factory=lambda: datetime.date.today().isoformat())

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return {"format": FORMAT, "agent": self.agent, "task": self.task} | values.pop("origin") | values

    @classmethod
    def from_json(cls, values: Any, what: str) -> Run:
        """Raises InvalidInputError where ``values`` are no run of this format."""
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise InvalidInputError(f"{what} is no run of format {FORMAT}; train it again with this version.")
        origin = Origin.read(values, what)
        names = {field.name: field for field in dataclasses.fields(cls) if field.name != "origin"}
        kinds: dict[str, Any] = {"seed": int, "steps": int} | dict.fromkeys(_OBJECTS, dict)
        for name, field in names.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if name not in values and required:
                raise InvalidInputError(f"{what} lacks '{name}'; train it again.")
            value: Any = values.get(name)
            kind = kinds.get(name, str)
            if name in values and (type(value) is not kind or (kind is int and not 0 <= value < 2**63)):
                raise InvalidInputError(f"{what}: '{name}' is {shown(value)}; train it again.")
        if values.get("status", "done") not in STATES:
            raise InvalidInputError(f"{what}: 'status' is {shown(values['status'])}; train it again.")
        return cls(origin=origin, **{name: values[name] for name in names if name in values})


def write_run(folder: pathlib.Path, run: Run, name: str = RUN) -> None:
    files.write(folder / name, json.dumps(run.to_json(), indent=2) + "\n")


def is_run(path: pathlib.Path) -> bool:
    """Whether ``path`` is a folder with run.json, or with the card of a shipped policy."""
    return os.path.isfile(path / RUN) or os.path.isfile(path / CARD)


def read_run(folder: pathlib.Path) -> Run:
    """Reads run.json, or card.json, which is the same for a shipped policy.

    Raises:
        InvalidInputError: neither is there, or it cannot be read as one.
    """
    path = folder / (RUN if os.path.lexists(folder / RUN) else CARD)
    if not os.path.lexists(path):
        raise InvalidInputError(f"{folder} is no run folder: it holds no {RUN}; `helm-gym train` makes one.")
    return Run.from_json(files.read_json(path, "Run", MAX_RUN_BYTES, "remove its folder and train again"), str(path))


def write_tensors(path: pathlib.Path, tensors: Tensors, facts: Mapping[str, Any] | None = None) -> None:
    """Writes tensors and, as JSON in the same file so that they are never apart, ``facts``."""
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    files.write(path, save(arrays, metadata={"facts": json.dumps(facts or {})}))


def read_tensors(path: pathlib.Path, again: str = "train it again") -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The tensors of a file, and its facts.

    Args:
        again: what to do where it cannot be read.

    Raises:
        InvalidInputError: missing, broken, too large, of a type that numpy has not, or with a value that is not finite.
    """
    content = files.read_bytes(path, "Tensors", MAX_TENSOR_BYTES, again)
    try:
        tensors = load(content)
    except KeyError as error:  # a type's name: bfloat16 and those of eight bits
        raise InvalidInputError(
            f"{path} holds tensors of type {error.args[0]}; numpy's are needed, {again}."
        ) from error
    except (ValueError, SafetensorError) as error:
        raise InvalidInputError(f"{path} cannot be read ({files.reason(error)}); {again}.") from error
    for name, value in tensors.items():
        if value.dtype.kind not in "biuf" or not np.isfinite(value).all():
            raise InvalidInputError(f"{path}: tensor {shown(name)} is not finite, or no number; {again}.")
    header = files.parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")], str(path), again)
    facts = files.parse_json(header.get("__metadata__", {}).get("facts", "{}"), f"{path}: its metadata", again)
    if not isinstance(facts, dict):
        raise InvalidInputError(f"{path}: its metadata is no object; {again}.")
    return tensors, facts


def policy_tensors(folder: pathlib.Path, run: Run) -> dict[str, NDArray[Any]]:
    """The tensors of the best policy; none for an agent without weights, whose run is done.

    Raises:
        InvalidInputError: a training that has not come to a policy yet, or a broken file.
    """
    path = folder / POLICY
    if os.path.lexists(path):
        return read_tensors(path)[0]
    if run.status == "training":
        raise InvalidInputError(f"Run {folder} holds no policy yet; train it on with the command that began it.")
    return {}


def open_profile(folder: pathlib.Path, run: Run) -> Profile:
    """The profile that a run was trained on: its own copy, or the shipped one of that name.

    Raises:
        InvalidInputError: its copy is missing and none of that name is shipped, or it cannot be read.
    """
    from helm_gym import profile as profiles

    own = folder / PROFILE
    if os.path.lexists(own):
        return profiles.load(own)
    if run.origin.profile not in profiles.names():
        raise InvalidInputError(f"Run {folder} lacks its {PROFILE}; the command that began it writes it again.")
    return profiles.load(run.origin.profile)
