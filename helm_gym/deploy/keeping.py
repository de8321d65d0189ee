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
import time
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import pydantic

from helm_gym import files, locks
from helm_gym.deploy.assignment import Assignment
from helm_gym.deploy.installing import Installed, install, install_bytes
from helm_gym.deploy.node import Node
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policies.onnx_check.rules import MAX_FILE_BYTES
from helm_gym.policy import Floats

CONTROL, KILL = "control.json", "KILL"
_Sha = Annotated[str, pydantic.StringConstraints(pattern="^[0-9a-f]{64}$")]
_LONGEST = 200
_Short = Annotated[str, pydantic.StringConstraints(max_length=_LONGEST)]
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


_SLOTS = ("current", "former", "candidate")


class Memory:
    """A controller's memory of itself, in its state folder.

    Args:
        mode: that the controller was started with.
        note: is told what was taken up and what was not.
    """

    def __init__(
        self,
        folder: Folder,
        assignment: Assignment,
        layout: ObservationLayout,
        mode: _Mode,
        note: Callable[[str], None],
    ):
        self._folder, self._assignment, self._layout, self._note = folder, assignment, layout, note
        self._given, self._mode = assignment.current.identity[:_LONGEST], mode

    def save(self) -> None:
        """Writes all of it.

        Raises:
            InvalidInputError: the folder cannot be written.
        """
        slots = {name: getattr(self._assignment, name) for name in _SLOTS}
        opened: list[Installed] = [policy for policy in slots.values() if policy is not None]
        told = {
            name: None if policy is None else KeptPolicy(name=policy.name[:_LONGEST], sha256=policy.sha256)
            for name, policy in slots.items()
        }
        kept = Kept(
            given=self._given,
            given_mode=self._mode,
            fingerprint=self._layout.profile.fingerprint,
            saved_at=time.time(),
            nodes=[_kept(node) for node in self._assignment.nodes],
            **told,  # type: ignore[arg-type]  # there is always a current one
        )
        self._folder.write(kept, {policy.identity: policy.content for policy in opened if policy.content is not None})

    def take_up(self, state_age_s: float) -> None:
        """Goes on with what was kept: policies, modes, targets, and adaptation state of at most this age."""
        kept, damage = self._folder.read()
        if damage:
            self._note(damage)
        if kept is None:
            return
        if kept.fingerprint != self._layout.profile.fingerprint or kept.given != self._given:
            self._note("The state folder is of another profile or was started with another policy: a new start.")
            return
        policies, nodes = self._assignment, self._assignment.nodes
        current = self._open(kept, "current")
        policies.current = current or policies.current
        policies.former, policies.candidate = self._open(kept, "former"), self._open(kept, "candidate")
        if len(kept.nodes) == len(nodes):
            for node, of in zip(nodes, kept.nodes, strict=True):
                node.target = of.target
                node.mode = of.mode if kept.given_mode == self._mode else node.mode
        policies.assign()
        young = 0.0 <= time.time() - kept.saved_at <= state_age_s  # of a clock that went back nothing is known
        resumed = sum(young and _resume(node, of) for node, of in zip(nodes, kept.nodes, strict=False))
        self._note(f"Taken up from the state folder: policy {policies.current.name}, the state of {resumed} nodes.")

    def _open(self, kept: Kept, slot: str) -> Installed | None:
        told: KeptPolicy | None = getattr(kept, slot)
        given = self._assignment.current
        if told is None:
            return None
        try:
            if told.sha256 is not None:
                return install_bytes(self._folder.policy(told.sha256), self._layout, told.name)
            return given if told.name == given.name else install(told.name, self._layout)
        except HelmError as error:
            self._note(f"The {slot} policy of the state folder was not taken up: {error}")
            return None


def _kept(node: Node) -> KeptNode:
    identity = None if node.installed is None else node.installed.identity[:_LONGEST]
    state = None if node.runner is None or not node.runner.state.size else packed(node.runner.state)
    return KeptNode(mode=node.mode, target=node.target, identity=identity, state=state)


def _resume(node: Node, of: KeptNode) -> bool:
    """Whether the node goes on with the state that it had."""
    if of.state is None or node.installed is None or node.runner is None:
        return False
    state = unpacked(of.state, node.runner.state) if of.identity == node.installed.identity[:_LONGEST] else None
    if state is None:
        return False
    node.runner.state = state
    return True
