"""The parent's end of a sandbox: a ``Policy`` whose decisions another process makes."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import subprocess
import sys
import time
from typing import Any, Self

import numpy as np

from helm_gym.errors import HelmError, IncompatibleError, RefusedError, UnfitPolicyError
from helm_gym.observation import ObservationLayout
from helm_gym.policies.onnx_check import DELTA, Probed, Walked
from helm_gym.policies.onnx_check.rules import shown
from helm_gym.policy import Floats
from leaderboard.sandbox import wire
from leaderboard.sandbox.confine import missing

_SENTENCE = 360


class PolicyFault(HelmError):
    """A policy that was let in and failed while it decided; its own fault, and nobody else's.

    Attributes:
        reason: a reason code: ``time``, ``crash``, ``runtime``, ``signature`` or ``finite``.
    """

    def __init__(self, reason: str, sentence: str):
        super().__init__(sentence)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a policy may take.

    Attributes:
        memory_bytes: of address space beyond what the libraries have.
        cpu_s: of all its decisions together.
        open_s, decide_s: that the parent waits for the check, and for one batch of decisions.
    """

    memory_bytes: int = 2 * 2**30
    cpu_s: int = 3600
    open_s: float = 60.0
    decide_s: float = 20.0


class SandboxedPolicy:
    """A policy from a stranger's bytes, checked by ``onnx_check`` and run in a process without rights.

    Args:
        content: the ONNX file.
        layout: of the observations to come; its profile is one that ``helm_gym.profile.load`` finds by name.
        action: ``onnx_check.DELTA`` or ``ROUTING``.
        name: to report it by.
        unconfined: run it although this kernel has no sandbox; where it has one, it is always used.

    Raises:
        RefusedError: it breaks a rule; UnfitPolicyError where it was made for something else.
        PolicyFault: the check took too long, or the process ended in it.
        IncompatibleError: this kernel has no sandbox, and that was not allowed.
    """

    def __init__(
        self,
        content: bytes,
        layout: ObservationLayout,
        action: str = DELTA,
        name: str = "policy",
        limits: Limits | None = None,
        unconfined: bool = False,
    ):
        self.name, self._limits = name, limits or Limits()
        lacks = missing()
        if lacks and not unconfined:
            raise IncompatibleError(
                f"This machine cannot confine a stranger's file: it lacks {'; '.join(lacks)}. Run it elsewhere, or "
                "give --unconfined for files that you trust."
            )
        self.confined = not lacks
        setup = {
            "parent": os.getpid(),
            "profile": layout.profile.name,
            "action": action,
            "confined": self.confined,
            "memory_bytes": self._limits.memory_bytes,
            "cpu_s": self._limits.cpu_s,
        }
        # Nothing of this process's environment goes along. Landlock and the filter bind one thread: libraries start no
        # other, and onnxruntime none that reports to its maker.
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
        self._child = subprocess.Popen(
            [sys.executable, "-s", "-P", "-m", "leaderboard.sandbox.child", json.dumps(setup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "ORT_DISABLE_TELEMETRY": "1", **threads},
            bufsize=0,
        )
        assert self._child.stdin is not None and self._child.stdout is not None
        self._to, self._from = self._child.stdin.fileno(), self._child.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self._deadline, self._decisions = 0.0, 0
        try:
            self._start_clock(self._limits.open_s)
            self._write(wire.packed(content))
            self._opened(wire.read_object(self._read))
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise PolicyFault("signature", f"{self.name}: its process answered what is no answer.") from error
        except BaseException:
            self.close()
            raise

    def _opened(self, told: dict[str, Any]) -> None:
        sentence = shown(str(told.get("sentence", "")), _SENTENCE)
        if told["result"] in ("refused", "unfit"):
            raise (UnfitPolicyError if told["result"] == "unfit" else RefusedError)(str(told["rule"]), sentence)
        if told["result"] != "opened":
            raise PolicyFault("crash", f"{self.name}: {sentence}")
        self.facts = {str(key): str(value) for key, value in told["facts"].items()}
        self.walked, self.probed = Walked(**told["walked"]), Probed(**told["probed"])

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, self.walked.state), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        """See ``Policy``.

        Raises:
            PolicyFault: no answer in time, none at all, or one that is none.
        """
        rows = len(observation)
        arrays = (np.ascontiguousarray(given, np.float32).tobytes() for given in (observation, state))
        self._start_clock(self._limits.decide_s)
        try:
            self._write(b"".join((wire.COUNT.pack(rows), *arrays)))
            if self._read(1) != wire.DONE:
                text = wire.read_sized(self._read, wire.MAX_TEXT).decode(errors="replace")
                raise PolicyFault("runtime", f"{self.name}: its graph failed ({shown(text, _SENTENCE)}).")
            action = wire.read_floats(self._read, rows, self.walked.actions)
            following = wire.read_floats(self._read, rows, self.walked.state)
        except ValueError as error:
            raise PolicyFault("signature", f"{self.name}: its process answered what is no answer.") from error
        self._decisions += 1
        if not (np.isfinite(action).all() and np.isfinite(following).all()):
            # Not what was observed: that is of hidden episodes.
            raise PolicyFault("finite", f"{self.name}: its decision {self._decisions:,} was not finite.")
        return action, following

    def _start_clock(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def _wait(self, descriptor: int, event: int) -> None:
        waiting = select.poll()
        waiting.register(descriptor, event)
        if not waiting.poll(max(0.0, 1e3 * (self._deadline - time.monotonic()))):
            self._child.kill()
            self.close()
            raise PolicyFault("time", f"{self.name}: no answer within its time; it was ended.")

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            try:
                left = left[os.write(self._to, left) :]
            except BlockingIOError:
                self._wait(self._to, select.POLLOUT)
            except BrokenPipeError:
                raise self._ended() from None

    def _read(self, count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            try:
                part = os.read(self._from, count - len(content))
            except BlockingIOError:
                self._wait(self._from, select.POLLIN)
                continue
            if not part:
                raise self._ended()
            content += part
        return bytes(content)

    def _ended(self) -> PolicyFault:
        status = self.close()
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return PolicyFault("crash", f"{self.name}: its process ended {how}: out of memory or time, or a fault in it.")

    def close(self) -> int:
        """Ends the process, and returns how it ended."""
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        child.stdin.close()  # at which an idle one ends by itself
        try:
            status = child.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            child.kill()
            status = child.wait()
        child.stdout.close()
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
