"""Writing policies as ONNX files: their metadata, their check against recorded observations, and files from elsewhere.

facts = export_file(Path("mine.onnx"), Path("policy.onnx"), layout, "mixed-v0")
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from helm_gym import files
from helm_gym.backend import open_backend
from helm_gym.cluster.router_observation import RouterLayout
from helm_gym.cluster.routing import Router, Routing, weights_of
from helm_gym.cluster.topology import Cluster, Node
from helm_gym.control_loop import ControlLoop
from helm_gym.errors import InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policies import onnx_check
from helm_gym.policies.onnx_check.metadata import CHECKSUM, ROUTER_LAYOUT, facts_of
from helm_gym.policies.onnx_check.rules import naming, refuse
from helm_gym.policies.onnx_policy import OnnxPolicy, OnnxRouter
from helm_gym.policy import Floats, Policy
from helm_gym.policy_origin import Origin
from helm_gym.tasks import find_task
from helm_gym.training import run_folder

CHECK_SEEDS = (40_000, 40_001)  # of the recorded episodes
CHECK_INTERVALS = 120


def export_file(
    path: pathlib.Path, out: pathlib.Path, layout: ObservationLayout, task: str, name: str = ""
) -> dict[str, str]:
    """Makes a policy of an ONNX file from elsewhere, or of an older export, and returns its metadata.

    What the file says of itself is kept, and what it does not say is added: it becomes a policy for ``layout``. Where
    it observes a router's layout it becomes a router.

    Args:
        path: graph ``obs[lanes, D], state[lanes, S] -> action[lanes, A], state_out[lanes, S]``, float32.
        out: where the policy goes.
        layout: of the nodes' observations; its profile is what the policy is made for.
        task: on whose observations it is checked.
        name: by which its metadata call it.

    Raises:
        RefusedError: it breaks a rule of ``onnx_check``; the sentence says which and what to do.
        IncompatibleError: its metadata say that it was made for something else.
        UnknownNameError: no such task.
    """
    if find_task(task).regime == "trace":
        raise InvalidInputError(f"Task '{task}' plays one recording, which is for evaluation; name another.")
    with naming(path):
        model = onnx_check.parse(onnx_check.read_file(path))
    routes = _observed(model) == RouterLayout().width
    given = facts_of(model)
    facts = origin_facts(layout, routes) | {"task": task, "date": datetime.date.today().isoformat()} | given
    content = stamp(model, facts | ({"name": name} if name else {}))
    with naming(path):
        policy = (OnnxRouter if routes else OnnxPolicy).from_bytes(content, layout, str(path))
        _check_recorded(policy, record(policy, layout, task, routes))
    files.write(out, content)
    return policy.checked.facts


def origin_facts(layout: ObservationLayout, routes: bool) -> dict[str, Any]:
    """What a file says that it was made for, and what its action is."""
    facts: dict[str, Any] = dataclasses.asdict(Origin.of(layout))
    facts["action"] = onnx_check.ROUTING if routes else onnx_check.DELTA
    return facts | ({ROUTER_LAYOUT: RouterLayout().version} if routes else {})


def stamp(model: onnx.ModelProto, facts: Mapping[str, Any]) -> bytes:
    """The file of ``model`` with this metadata and the checksum over all of it.

    Descriptions of nodes are left out: exporters write the paths of their machine there.
    """
    stamped = onnx.ModelProto()
    stamped.CopyFrom(model)
    graphs = [stamped.graph, *stamped.functions]
    for part in [stamped, *graphs, *(node for graph in graphs for node in graph.node)]:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for value in [*stamped.graph.value_info, *stamped.graph.initializer, *stamped.graph.input, *stamped.graph.output]:
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    for key, text in facts.items():
        if key != CHECKSUM:
            stamped.metadata_props.add(key=key, value=str(text))
    stamped.metadata_props.add(key=CHECKSUM, value=onnx_check.checksum(stamped))
    return bytes(stamped.SerializeToString())


def update_card(out: pathlib.Path, checksum: str) -> None:
    """Writes a new checksum of ``out`` into the card.json beside it.

    Raises:
        InvalidInputError: there is none, or it is no card.
    """
    path = out.parent / run_folder.CARD
    if not path.is_file():
        raise InvalidInputError(f"No {run_folder.CARD} lies beside {out}; leave --card out, or export a run folder.")
    run = run_folder.read_run(out.parent)
    run.facts = {**run.facts, CHECKSUM: checksum}
    run_folder.write_run(out.parent, run, run_folder.CARD)


def record(policy: Policy | Router, layout: ObservationLayout, task: str, routes: bool = False) -> list[Floats]:
    """What a policy, or a router in front of two nodes that hold their split, observes on the modelled rung.

    Behind the episodes come the bounds of what can be observed: (lanes, D) each.
    """
    lanes, cluster = len(CHECK_SEEDS), Cluster((Node(2),)) if routes else None
    backend = open_backend("modelled", layout.profile, lanes, cluster)
    loop = ControlLoop(find_task(task), backend, intervals=CHECK_INTERVALS)
    step, state = loop.reset(CHECK_SEEDS), policy.initial_state(lanes)
    seen: list[Floats] = []
    while True:
        seen.append(step.cluster.router if step.cluster is not None else step.observation[:, 0])
        if step.done:
            break
        action, state = policy.act(seen[-1], state)
        if cluster is not None:
            step = loop.step(np.zeros((lanes, cluster.size, 1)), Routing("score", weights_of(action)))
        else:
            step = loop.step(action[:, None])
    backend.close()
    bounds = RouterLayout() if routes else layout
    return [*seen, *(np.tile(bound, (lanes, 1)) for bound in (bounds.low, bounds.high, bounds.low))]


def _check_recorded(policy: OnnxPolicy, seen: Sequence[Floats]) -> None:
    """Raises RefusedError where a policy is not finite, or not the same twice, on its own episodes."""
    states = [policy.initial_state(len(seen[0]))] * 2
    for number, observation in enumerate(seen):
        (action, state), (action_, state_) = (policy.act(observation, state) for state in states)
        if not (np.isfinite(action).all() and np.isfinite(state).all()):
            refuse("finite", f"its action or state is not finite at decision {number} of a recorded episode.")
        if (action != action_).any() or (state != state_).any():
            refuse("deterministic", f"it decides in two ways at decision {number} of a recorded episode.")
        states = [state, state_]


def _observed(model: onnx.ModelProto) -> int:
    """D, as the file claims it."""
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name == "obs" and len(dims) == 2:
            return int(dims[1].dim_value)
    return 0
