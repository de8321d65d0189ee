"""Policies as ONNX files: ``obs[lanes, D], state[lanes, S] -> action[lanes, A], state_out[lanes, S]``, all float32.

Normalisation, clipping and scaling are inside; the state starts at zeros. The metadata says what the policy was made
for (``runs.Origin``), which training it came from, what its action is (A = 1: a node's split; A = 3: a router's
weights), and a checksum of the graph.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from helm_gym.cluster_view import RouterLayout
from helm_gym.errors import HelmError, IncompatibleError, InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats
from helm_gym.routing import WEIGHTS
from helm_gym.runs import Origin

if TYPE_CHECKING:
    import onnx

ACTION = "delta"  # a change of target alpha over the profile's largest step
ROUTING = "routing"  # a router's weights, as helm_gym.routing.weights_of takes them
ROUTER_LAYOUT = "router_layout_version"
INPUTS, OUTPUTS = ("obs", "state"), ("action", "state_out")
_MAX_BYTES = 64 * 2**20  # of a file: larger ones are no controller


def checksum(model: onnx.ModelProto) -> str:
    """SHA-256 of the graph, without the metadata that holds it."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


class OnnxPolicy:
    """A policy of nodes that onnxruntime runs, on one thread.

    Args:
        path: the file.
        layout: of the observations to come.

    Raises:
        InvalidInputError: no ONNX file, or one that is no policy of HELM-Gym, or that was changed since its export.
        IncompatibleError: made for another observation layout, clock or profile.
    """

    action, actions = ACTION, 1

    def __init__(self, path: pathlib.Path, layout: ObservationLayout):
        import onnxruntime

        self.name = str(path)
        content = _read(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's have no base of their own
            raise InvalidInputError(f"Policy {path}: onnxruntime refuses the graph ({_first_line(error)}).") from error
        facts = self._session.get_modelmeta().custom_metadata_map
        Origin.read(facts, f"Policy {path}").check(layout, f"Policy {path}")
        if facts.get("action") != self.action:
            raise InvalidInputError(f"Policy {path}: its action is '{facts.get('action')}'; '{self.action}' is needed.")
        self._width = self._check_signature(path, self._columns(path, layout, facts))

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, self._width), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        """See ``Policy``.

        Raises:
            HelmError: the graph fails on these values.
        """
        try:
            action, following = self._session.run(OUTPUTS, {"obs": observation, "state": state})
        except Exception as error:
            raise HelmError(f"Policy '{self.name}': its graph failed ({_first_line(error)}).") from error
        return action, following

    def _columns(self, path: pathlib.Path, layout: ObservationLayout, facts: Mapping[str, str]) -> int:
        """D of the observations to come."""
        return layout.width

    def _check_signature(self, path: pathlib.Path, columns: int) -> int:
        """The state's width, if inputs and outputs are a policy's."""
        given, returned = ({v.name: v for v in values} for values in (
            self._session.get_inputs(), self._session.get_outputs()
        ))  # fmt: skip
        for kind, found, wanted in (("inputs", given, INPUTS), ("outputs", returned, OUTPUTS)):
            if set(found) != set(wanted):
                raise InvalidInputError(
                    f"Policy {path}: its {kind} are {', '.join(found) or 'none'}; {' and '.join(wanted)} are needed."
                )
        state = given["state"].shape[-1]
        for value, width in (
            (given["obs"], columns),
            (given["state"], state),
            (returned["action"], self.actions),
            (returned["state_out"], state),
        ):
            if value.type != "tensor(float)" or len(value.shape) != 2 or value.shape[1] != width:
                raise InvalidInputError(
                    f"Policy {path}: '{value.name}' is {value.type} of shape {value.shape}; float32 of shape "
                    f"[lanes, {width}] is needed."
                )
        if not isinstance(state, int):
            raise InvalidInputError(f"Policy {path}: the width of 'state' is '{state}'; a number is needed.")
        return state


class OnnxRouter(OnnxPolicy):
    """A router that onnxruntime runs, on one thread; see ``OnnxPolicy``."""

    action, actions, rule = ROUTING, len(WEIGHTS), "score"

    def _columns(self, path: pathlib.Path, layout: ObservationLayout, facts: Mapping[str, str]) -> int:
        """Raises IncompatibleError where the router was made for another layout of its observation."""
        here = RouterLayout()
        if facts.get(ROUTER_LAYOUT) != str(here.version):
            raise IncompatibleError(
                f"Router {path} was made for something else: router's layout {facts.get(ROUTER_LAYOUT)} there and "
                f"{here.version} here; train one for this."
            )
        return here.width


def _read(path: pathlib.Path) -> bytes:
    """The file's bytes, if they are a whole model that reads nothing else and is as it was exported."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidInputError(f"Policy {path} is larger than {_MAX_BYTES // 2**20} MiB; no controller is.")
        content = path.read_bytes()
        model = onnx.ModelProto.FromString(content)
    except OSError as error:
        raise InvalidInputError(f"Policy {path} cannot be read: {error.strerror}; give an .onnx file.") from error
    except DecodeError as error:
        raise InvalidInputError(f"Policy {path} is no ONNX file, or a broken one; export it again.") from error
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    attributes = [attribute for node in nodes for attribute in node.attribute]
    if any(attribute.HasField("g") or attribute.graphs for attribute in attributes):
        raise InvalidInputError(f"Policy {path} has branches or loops; a decision is one pass through its graph.")
    tensors = [*model.graph.initializer, *(attribute.t for attribute in attributes)]
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise InvalidInputError(f"Policy {path} keeps weights in other files; export it with all of them inside.")
    kept = {entry.key: entry.value for entry in model.metadata_props}.get("checksum")
    if kept is None:
        raise InvalidInputError(f"Policy {path} has no checksum: it is no export of HELM-Gym (`helm-gym export`).")
    if kept != checksum(model):
        raise InvalidInputError(f"Policy {path} is not what was exported: its checksum differs; export it again.")
    return content


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
