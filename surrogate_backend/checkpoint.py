"""Checkpoints: the networks' weights and noise as safetensors, and a card that says where they come from."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from helm_gym import files
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.profile import Profile
from helm_gym.training.run_folder import read_tensors

SHIPPED = pathlib.Path(__file__).parent / "checkpoints"
WEIGHTS, CARD = "model.safetensors", "card.json"
FORMAT = 2
_AGAIN = "fit it again"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A fitted surrogate.

    Attributes:
        tensors: by name: ``net.*``, ``noise.*``, ``range.*`` of what was logged, ``hurdle`` (layout.HURDLED).
        card: how it was made and how true it is.
    """

    tensors: Mapping[str, NDArray[Any]]
    card: Mapping[str, Any]


def names() -> list[str]:
    """Names of the shipped checkpoints."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{WEIGHTS}"))


def find(text: str | None, profile: Profile, kind: str = "") -> pathlib.Path:
    """The folder of a checkpoint: a path, a shipped name, or, for None, the newest one shipped for ``profile``.

    Args:
        kind: of checkpoint that is looked for where ``text`` is None; a single node's where empty.

    Raises:
        UnknownNameError: neither a folder nor a shipped name.
        InvalidInputError: nothing is shipped for the profile.
    """
    if text is None:
        wanted = "-".join(filter(None, (profile.name, kind)))
        own = [name for name in names() if name.rpartition("-v")[0] == wanted]
        if not own:
            raise InvalidInputError(
                f"No surrogate{f' of {kind}' if kind else ''} is shipped for profile '{profile.name}'; collect a log, "
                "fit one and take backend 'surrogate:FOLDER', or take backend 'modelled'."
            )
        return SHIPPED / max(own, key=lambda name: int(name.rpartition("-v")[2]))
    if os.path.isdir(text):
        return pathlib.Path(text)
    if text not in names():
        raise UnknownNameError("checkpoint", text, names())
    return SHIPPED / text


def save(folder: pathlib.Path, checkpoint: Checkpoint) -> None:
    """Writes weights and card. A kill leaves the former pair, the new one, or no card: never one with other weights.

    Raises:
        InvalidInputError: the folder cannot be written.
    """
    weights = save_tensors({name: np.ascontiguousarray(value) for name, value in checkpoint.tensors.items()})
    (folder / CARD).unlink(missing_ok=True)
    files.write(folder / WEIGHTS, weights)
    files.write(folder / CARD, json.dumps(checkpoint.card, indent=2) + "\n")


def load(folder: pathlib.Path, profile: Profile) -> Checkpoint:
    """Reads a checkpoint of ``profile``.

    Raises:
        InvalidInputError: files that are missing or broken, of another format, or of another profile.
    """
    card = files.read_json(folder / CARD, "Checkpoint", instead=_AGAIN)
    tensors, _ = read_tensors(folder / WEIGHTS, _AGAIN)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise InvalidInputError(f"Checkpoint {folder} is not of format {FORMAT}; fit it again with this version.")
    if card.get("profile_fingerprint") != profile.fingerprint:
        raise InvalidInputError(
            f"Checkpoint {folder} was fitted to another profile ('{card.get('profile')}', "
            f"{card.get('profile_fingerprint')}) than '{profile.name}' ({profile.fingerprint}); fit one to it, or take "
            "backend 'modelled'."
        )
    return Checkpoint(tensors, card)
