"""What survives the process: the policies' files, and one file with modes, the kill switch and adaptation state.

STATE/control.json       written whole or not at all, and every policy's file before it
STATE/<sha256>.onnx      of the policies that control.json names
STATE/KILL               as long as it is there, the kill switch is on; `touch` needs no controller
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import pathlib
from typing import Annotated, Literal

import numpy as np
import pydantic

from helm_gym import files, locks
from helm_gym.errors import InvalidInputError
from helm_gym.policies.onnx_check.rules import MAX_FILE_BYTES
from helm_gym.policy import Floats

CONTROL, KILL = "control.json", "KILL"
_Sha = Annotated[str, pydantic.StringConstraints(pattern="^[0-9a-f]{64}$")]
_Short = Annotated[str, pydantic.StringConstraints(max_length=200)]
_STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


_Mode = Literal["off", "shadow", "canary", "active"]


class KeptPolicy(pydantic.BaseModel):
    """``sha256`` where it is a file, beside it; otherwise its name opens it."""

    model_config = _STRICT
    name: _Short
    sha256: _Sha | None = None


class KeptNode(pydantic.BaseModel):
    """``state``: base64 of float32 (S,), of the policy of this identity."""

    model_config = _STRICT
    mode: _Mode
    target: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    identity: _Short | None = None
    state: Annotated[str, pydantic.StringConstraints(max_length=100_000)] | None = None


class Kept(pydantic.BaseModel):
    """The content of ``control.json``.

    Attributes:
        given, given_mode: identity of the policy and mode that the controller was started with.
        fingerprint: of the profile.
        saved_at: by the wall clock (s), since no other goes on over a restart.
    """

    model_config = _STRICT
    format: Literal[1] = 1
    given: _Short
    given_mode: _Mode
    fingerprint: _Short
    saved_at: float
    current: KeptPolicy
    former: KeptPolicy | None = None
    candidate: KeptPolicy | None = None
    nodes: Annotated[list[KeptNode], pydantic.Field(max_length=4096)]


class Folder:
    """A controller's state folder, which one process has at a time.

    Raises:
        HelmError: another process has it.
        InvalidInputError: it cannot be written.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(
            locks.alone(path, f"Another controller has {path}; end it, or give another state_folder.")
        )

    def close(self) -> None:
        self._stack.close()

    def read(self) -> tuple[Kept | None, str]:
        """What was kept, None where there is nothing; and what to tell of a file that was damaged.

        A damaged file is set aside under another name: the node is to start, and nothing is thrown away.
        """
        path = self.path / CONTROL
        if not path.exists():
            return None, ""
        try:
            return Kept.model_validate(files.read_json(path, "State")), ""
        except (InvalidInputError, pydantic.ValidationError) as error:
            reason = str(error).partition("\n")[0]
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            return None, f"{path} could not be read ({reason}); it is now {aside.name}, and nothing was taken up."

    def write(self, kept: Kept, contents: dict[str, bytes]) -> None:
        """Writes policies' files (by SHA-256) that are not there yet, then ``control.json``, then removes others."""
        for sha256, content in contents.items():
            if not self._file(sha256).exists():
                files.write(self._file(sha256), content)
        files.write(self.path / CONTROL, kept.model_dump_json())
        for stale in self.path.glob("*.onnx"):
            if stale.stem not in contents:
                stale.unlink(missing_ok=True)

    def policy(self, sha256: str) -> bytes:
        """A policy's file.

        Raises:
            InvalidInputError: it is not there, or not what it was.
        """
        path = self._file(sha256)
        content = files.read_bytes(path, "Policy", MAX_FILE_BYTES)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise InvalidInputError(f"Policy {path} is not what was written there: its SHA-256 differs.")
        return content

    def _file(self, sha256: str) -> pathlib.Path:
        return self.path / f"{sha256}.onnx"

    @property
    def killed(self) -> bool:
        return (self.path / KILL).exists()

    def kill(self, on: bool) -> None:
        if on:
            files.write(self.path / KILL, "The kill switch is on while this file is here.\n")
        else:
            (self.path / KILL).unlink(missing_ok=True)


def packed(state: Floats) -> str:
    return base64.b64encode(np.ascontiguousarray(state, "<f4").tobytes()).decode()


def unpacked(text: str, like: Floats) -> Floats | None:
    """The state of the shape of ``like``; None where it is none."""
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    except ValueError:
        return None
    return values.reshape(like.shape) if values.size == like.size and np.isfinite(values).all() else None
