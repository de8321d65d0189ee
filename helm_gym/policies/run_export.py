"""A run as one ONNX file, checked against the policy that acts in Python before it is written."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from helm_gym import files
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policies import onnx_export
from helm_gym.policies.onnx_check.rules import naming
from helm_gym.policies.onnx_policy import OnnxPolicy, OnnxRouter
from helm_gym.policy import Policy
from helm_gym.tasks import all_tasks
from helm_gym.training import run_folder, trainable
from helm_gym.training.run_folder import Run

TOLERANCE = 1e-5


def export(folder: pathlib.Path, out: pathlib.Path) -> dict[str, Any]:
    """Writes the run's policy to ``out`` and returns its metadata, with ``largest_difference`` as checked.

    Raises:
        InvalidInputError: no run, one without a policy, or an agent that is no graph.
        HelmError: graph and policy differ by more than 1e-5, or the graph breaks a rule of ``onnx_check``.
    """
    run = run_folder.read_run(folder)
    layout = ObservationLayout(run_folder.open_profile(folder, run))
    run.origin.check(layout, f"Run {folder}")
    agent = trainable.find_trainable(run.agent)
    if agent.graph is None:
        raise InvalidInputError(f"Run {folder}: '{run.agent}' cannot be a graph and runs in Python only.")
    settings = trainable.make_settings(agent, run.settings, f"Run {folder}")
    tensors = run_folder.policy_tensors(folder, run)
    policy = trainable.build(agent, layout, settings, tensors, f"Run {folder}")
    model = agent.graph(layout, settings, tensors)
    facts = onnx_export.origin_facts(layout, agent.routes) | {
        "agent": run.agent,
        "task": run.task,
        "run": folder.resolve().name,
        "seed": run.seed,
        "steps": run.steps,
        "settings": json.dumps(run.settings),
        "date": run.date,
    }
    onnx.checker.check_model(model, full_check=True)
    content = onnx_export.stamp(model, facts)
    with naming(out):
        exported = (OnnxRouter if agent.routes else OnnxPolicy).from_bytes(content, layout, str(out))
    # A task of a file or module of the user's own has a name that does not open it: any other shows the same graph.
    task = run.task if run.task in {known.name for known in all_tasks()} else "mixed-v0"
    difference = check(policy, exported, layout, task)
    files.write(out, content)
    return facts | {"checksum": exported.checked.facts["checksum"], "largest_difference": difference}


def check(policy: Policy, exported: Policy, layout: ObservationLayout, task: str) -> float:
    """The largest difference of actions and states over recorded observations, each following its own states.

    Raises:
        HelmError: it is more than 1e-5.
    """
    largest = 0.0
    states = [p.initial_state(len(onnx_export.CHECK_SEEDS)) for p in (policy, exported)]
    seen = onnx_export.record(policy, layout, task, isinstance(exported, OnnxRouter))
    for number, observation in enumerate(seen):
        decided = [p.act(observation, state) for p, state in zip((policy, exported), states, strict=True)]
        states = [following for _, following in decided]
        (action, state), (action_, state_) = decided
        apart = max(np.abs(action - action_).max(), np.abs(state - state_).max(initial=0.0))
        if not apart <= TOLERANCE:
            raise HelmError(
                f"The graph of '{policy.name}' differs from it by {apart:.2g} at decision {number}; "
                f"{TOLERANCE:g} is allowed."
            )
        largest = max(largest, float(apart))
    return largest


def write_card(folder: pathlib.Path, out: pathlib.Path, scores: Sequence[Mapping[str, Any]], facts: Any) -> Run:
    """Writes card.json and policy.safetensors beside ``out``: with them its folder opens as the run does.

    Args:
        scores: what `helm-gym evaluate --json` printed; of each, the policy's own figures are kept (a router's pair's).
        facts: as ``export`` has returned them.

    Raises:
        InvalidInputError: an evaluation in which the run does not appear.
    """
    run = run_folder.read_run(folder)
    tensors = run_folder.policy_tensors(folder, run)
    for evaluation in scores:
        own = _own(evaluation, folder.resolve())
        if own is None:
            raise InvalidInputError(f"An evaluation on {evaluation['task']} does not judge {folder}; evaluate it.")
        judged = {key: evaluation[key] for key in ("rung", "nodes", "seeds", "machine", "date") if key in evaluation}
        run.scores[evaluation["task"]] = judged | own
    run.facts = {**run.facts, "checksum": facts["checksum"], "largest_difference": facts["largest_difference"]}
    run_folder.write_run(out.parent, run, run_folder.CARD)
    if tensors:
        run_folder.write_tensors(out.parent / run_folder.POLICY, tensors)
    return run


def _own(evaluation: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any] | None:
    """The figures of the run in ``folder``: a policy's, or a router's with the name of the controller beside it."""
    for row in evaluation["policies"]:
        figures = {key: value for key, value in row.items() if key != "name"}
        controller, plus, name = row["name"].rpartition("+")
        if plus:
            figures = {"controller": controller} | figures
        if run_folder.is_run(pathlib.Path(name)) and pathlib.Path(name).resolve() == folder:
            return figures
    return None
