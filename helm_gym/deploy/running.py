"""How a policy is run: in line where it can be cut off or is this project's own, else in a thread of its own.

A node's thread must not wait longer than the deadline, whatever the policy does. Handing a decision to another thread
and back takes longer (13 us and up, and milliseconds where threads compete for the interpreter) than most decisions
themselves, so it is done only where there is no other way:

- an ONNX file runs in line. It has no loops (``onnx_check``), and a watchdog in another thread has onnxruntime stop
  it between two operators (``RunOptions.terminate``) once its time is over.
- a policy of this project's packages runs in line: its code is bounded and tested. A late answer is not used.
- any other Python code runs in a thread of its own, and is left behind there where it does not answer.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, Protocol

from helm_gym.errors import HelmError
from helm_gym.policies.onnx_check import OUTPUTS
from helm_gym.policies.onnx_policy import OnnxPolicy
from helm_gym.policy import Floats, Policy


class LateError(HelmError):
    """A policy did not answer in time."""


class Runner(Protocol):
    """One node's use of a policy.

    Attributes:
        state: (1, S), of the last answer that was kept; never written to in place by who reads it.
        started: when the decision under way began, by ``time.perf_counter``; 0 where none is.
    """

    state: Floats
    started: float

    def run(self, observation: Floats, deadline_s: float) -> tuple[Any, Any]:
        """The action (1, 1) and the state to come (1, S), of an observation (1, D).

        Raises:
            LateError: it was cut off.
            Exception: whatever the policy raises.
        """
        ...

    def keep(self, following: Floats) -> None:
        """Takes the state to come for the present one: the answer was sound."""
        ...

    def stop(self) -> None:
        """Ends what runs beside the node's thread, if it can be ended."""
        ...

    def cut_off(self) -> None:
        """Has the decision under way end soon; called by another thread."""
        ...


class InLine:
    """Calls the policy. It is one of this project's own."""

    def __init__(self, policy: Policy):
        self._policy = policy
        self.state, self.started = policy.initial_state(1), 0.0

    def run(self, observation: Floats, deadline_s: float) -> tuple[Any, Any]:
        return self._policy.act(observation, self.state)

    def keep(self, following: Floats) -> None:
        self.state = following

    def stop(self) -> None: ...

    def cut_off(self) -> None: ...


class Cuttable:
    """Runs an ONNX file's graph, and stops in its middle when told to."""

    def __init__(self, policy: OnnxPolicy):
        import onnxruntime

        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = 4  # an end that was asked for is no error to be printed
        self._session = policy.checked.session  # with bound arrays and options a run takes twice as long
        self.state, self.started = policy.initial_state(1), 0.0

    def run(self, observation: Floats, deadline_s: float) -> tuple[Any, Any]:
        self._options.terminate = False
        self.started = time.perf_counter()
        try:
            action, following = self._session.run(OUTPUTS, {"obs": observation, "state": self.state}, self._options)
        except Exception as error:
            if self._options.terminate:
                raise LateError("The policy was cut off.") from error
            raise
        finally:
            self.started = 0.0
        return action, following

    def keep(self, following: Floats) -> None:
        self.state = following

    def stop(self) -> None: ...

    def cut_off(self) -> None:
        began = self.started
        self._options.terminate = True
        if self.started != began:  # it has just ended by itself: the next one is not meant
            self._options.terminate = False


class InThread:
    """Asks a thread, and leaves it behind where it does not answer."""

    def __init__(self, policy: Policy):
        self._policy = policy
        self.state, self.started = policy.initial_state(1), 0.0
        self._asked: queue.SimpleQueue[tuple[int, Floats, Floats] | None] = queue.SimpleQueue()
        self._answered: queue.SimpleQueue[tuple[int, Any, Any]] = queue.SimpleQueue()
        self._number = 0
        self._waiting = False  # for an answer that was given up
        self._thread = threading.Thread(target=self._serve, name=f"policy {policy.name[:40]}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while (asked := self._asked.get()) is not None:
            number, observation, state = asked
            action: Any
            following: Any
            try:
                action, following = self._policy.act(observation, state)
            except Exception as error:
                action, following = error, None
            self._answered.put((number, action, following))

    def run(self, observation: Floats, deadline_s: float) -> tuple[Any, Any]:
        if self._waiting and not self._came_back():
            raise LateError("The policy still hangs in an earlier decision.")
        self._number += 1
        self._asked.put((self._number, observation.copy(), self.state.copy()))  # it may keep them, or write to them
        try:
            _, action, following = self._answered.get(timeout=deadline_s)
        except queue.Empty:
            self._waiting = True
            raise LateError("The policy did not answer in time.") from None
        if isinstance(action, Exception):
            raise action
        return action, following

    def _came_back(self) -> bool:
        try:
            self._answered.get_nowait()
        except queue.Empty:
            return False
        self._waiting = False
        return True

    def keep(self, following: Floats) -> None:
        self.state = following

    def stop(self) -> None:
        self._asked.put(None)

    def cut_off(self) -> None: ...
