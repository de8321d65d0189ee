"""The one check of policies that come as ONNX files, from anyone: for `evaluate`, for `export` and for a leaderboard.

    checked = check(read_file(path), layout, DELTA)

Nothing of a file is trusted. It is read as bytes, counted, followed operator by operator without running it
(``walk``: shapes, lanes, costs), and only then handed to onnxruntime and tried on observations (``probe``). Each
refusal is one sentence and the id of one rule (``RULES``).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx

from helm_gym.cluster.router_observation import RouterLayout
from helm_gym.cluster.routing import WEIGHTS
from helm_gym.observation import ObservationLayout
from helm_gym.policies.onnx_check.expansion import expand
from helm_gym.policies.onnx_check.metadata import DELTA, ROUTING, check_checksum, check_purpose, checksum, facts_of
from helm_gym.policies.onnx_check.probing import Probed, probe
from helm_gym.policies.onnx_check.reading import parse, read_file
from helm_gym.policies.onnx_check.rules import RULES, first_line, refuse
from helm_gym.policies.onnx_check.walk import INPUTS, OPERATORS, OUTPUTS, Walked, walk

__all__ = [
    "DELTA",
    "INPUTS",
    "OPERATORS",
    "OUTPUTS",
    "ROUTING",
    "RULES",
    "Checked",
    "Probed",
    "Walked",
    "check",
    "checksum",
    "first_line",
    "inspect",
    "parse",
    "read_file",
]


@dataclasses.dataclass(frozen=True)
class Checked:
    """A policy that passed.

    Attributes:
        session: the onnxruntime session of its graph, one thread.
        facts: its metadata.
        walked, probed: what it is and costs, from the file and as measured.
    """

    session: Any
    facts: dict[str, str]
    walked: Walked
    probed: Probed


def inspect(model: onnx.ModelProto, layout: ObservationLayout, action: str) -> tuple[onnx.ModelProto, Walked]:
    """Follows the graph of a parsed model: the model that may run, and what it costs.

    Raises:
        RefusedError: as ``check``, of what can be told without running it.
    """
    flat = expand(model)
    walked = walk(flat)
    bounds, actions = _place(layout, action)
    for name, found, wanted in (("obs", walked.observation, bounds.width), ("action", walked.actions, actions)):
        if found != wanted:
            refuse("signature", f"its '{name}' is float32 of shape [lanes, {found}]; [lanes, {wanted}] is needed.")
    return flat, walked


def check(content: bytes, layout: ObservationLayout, action: str = DELTA) -> Checked:
    """Checks a policy's file and opens it.

    Args:
        content: the file.
        layout: of the nodes' observations to come.
        action: ``DELTA`` where a node's policy is needed, ``ROUTING`` where a router is.

    Raises:
        RefusedError: it breaks a rule; UnfitPolicyError where it was made for something else.
    """
    model = parse(content)
    check_checksum(model)
    check_purpose(model, layout, action)
    flat, walked = inspect(model, layout, action)
    bounds, _ = _place(layout, action)
    probed = probe(_open(flat), walked, bounds.low, bounds.high)
    # Another session to decide with: the one that was tried keeps memory for many rows, and is a tenth slower for one.
    return Checked(_open(flat), facts_of(model), walked, probed)


def _place(layout: ObservationLayout, action: str) -> tuple[ObservationLayout | RouterLayout, int]:
    """What a policy of this action observes, and how wide the action is."""
    return (RouterLayout(), len(WEIGHTS)) if action == ROUTING else (layout, 1)


def _open(flat: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        return onnxruntime.InferenceSession(flat.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's have no base of their own
        refuse("runtime", f"onnxruntime refuses the graph ({first_line(error)}).")
