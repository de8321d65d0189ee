"""Policies as ONNX files: ``obs[lanes, D], state[lanes, S] -> action[lanes, A], state_out[lanes, S]``, all float32.

Normalisation, clipping and scaling are inside; the state starts at zeros. The metadata says what the policy was made
for (``runs.Origin``), which training it came from, what its action is (A = 1: a node's split; A = 3: a router's
weights), and a checksum of everything else. What a file must be to be opened is in ``onnx_check``.
"""

from __future__ import annotations

import pathlib
from typing import Self

import numpy as np

from helm_gym.errors import HelmError
from helm_gym.observation import ObservationLayout
from helm_gym.policies.onnx_check import DELTA, OUTPUTS, ROUTING, check, first_line, read_file
from helm_gym.policies.onnx_check.rules import naming, shown
from helm_gym.policy import Floats


class OnnxPolicy:
    """A policy of nodes that onnxruntime runs, on one thread.

    Args:
        path: the file.
        layout: of the observations to come.

    Raises:
        RefusedError: no ONNX file, or one that breaks a rule of ``onnx_check``; as IncompatibleError, too, where it was
            made for another observation layout, clock or profile.
    """

    action = DELTA

    def __init__(self, path: pathlib.Path, layout: ObservationLayout):
        with naming(path):
            self._open(read_file(path), layout, str(path))

    @classmethod
    def from_bytes(cls, content: bytes, layout: ObservationLayout, name: str) -> Self:
        """The policy of a file's bytes, with the same checks."""
        policy = cls.__new__(cls)
        policy._open(content, layout, name)
        return policy

    def _open(self, content: bytes, layout: ObservationLayout, name: str) -> None:
        self.name, self.checked = name, check(content, layout, self.action)
        self._session = self.checked.session

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, self.checked.walked.state), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        """See ``Policy``.

        Raises:
            HelmError: the graph fails on these values.
        """
        try:
            action, following = self._session.run(OUTPUTS, {"obs": observation, "state": state})
        except Exception as error:
            raise HelmError(f"Policy '{shown(self.name, 100)}': its graph failed ({first_line(error)}).") from error
        return action, following


class OnnxRouter(OnnxPolicy):
    """A router that onnxruntime runs, on one thread; see ``OnnxPolicy``."""

    action, rule = ROUTING, "score"
