"""Policies: pure functions with explicit state, opened by name; and oracles, which are typed apart.

    action, state = policy.act(observation, state)

Reward is not passed: what a controller may learn from while it serves is in the observation. PID's integral, a
recurrent memory and an adapter's weights are all ``state``, so every policy is vectorised and can be snapshotted,
replayed and swapped while it runs.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from helm_gym import files
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.observation import ObservationLayout
from helm_gym.profile import Profile
from helm_gym.tasks import Task
from helm_gym.workload.state import WorkloadPath

Floats = NDArray[np.float32]


@runtime_checkable
class Policy(Protocol):
    """Decides the change of target alpha; rows are lanes x nodes."""

    name: str

    def initial_state(self, rows: int) -> Floats:
        """State before the first decision, (rows, S); S may be 0."""
        ...

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        """observation (rows, D), state (rows, S) -> action (rows, 1) in [-1, 1], the next state (rows, S)."""
        ...


@dataclasses.dataclass(frozen=True)
class Truth:
    """What only an oracle is handed: the hidden workload of the episodes that it is about to control.

    Attributes:
        path: the lanes' workload.
        seeds: one a lane; with the path they fix every request.
        alpha_star: float64 (lanes, intervals), the offline optimum (evaluation/optimum.py).
        task: whose warm-up the twin must go through.
    """

    task: Task
    profile: Profile
    path: WorkloadPath
    seeds: tuple[int, ...]
    alpha_star: NDArray[np.float64]


@runtime_checkable
class Oracle(Policy, Protocol):
    """A policy that is told the truth. Nothing that is deployed or ranked can be one."""

    def prepare(self, truth: Truth) -> None:
        """Called before each batch of episodes."""
        ...


# name -> (where, one line for `helm-gym agents`, argument); a Trainable stands for what is shipped of it
POLICIES: dict[str, tuple[str, str, str]] = {
    "static": ("baselines.simple:Static", "one split, held", "ALPHA"),
    "random": ("baselines.simple:Random", "a random walk of the target", ""),
    "threshold": ("baselines.rules:Threshold", "moves towards the side whose hit rate falls below its band", ""),
    "shadow-gradient": ("baselines.rules:ShadowGradient", "follows the sign of the shadow lists' marginals", ""),
    "miss-bytes": ("baselines.rules:MissBytes", "splits in proportion to each side's missed bytes", ""),
    "miss-ratio-curve": ("baselines.curves:MissRatioCurve", "argmin of the simulated cost, smoothed", ""),
    "oracle": ("baselines.oracles:RegimeOracle", "jumps to alpha* of the present regime", ""),
    "oracle-late": ("baselines.oracles:RegimeOracle", "the same, WINDOWS windows late", "WINDOWS"),
    "clairvoyant": ("baselines.oracles:Clairvoyant", "looks ahead with the true future requests", ""),
    "pid": ("agents.pid:PID", "PID on the marginal-utility error", ""),
    "ppo": ("agents.ppo:PPO", "PPO alone: an MLP over three windows, trained on the surrogate", ""),
    "recurrent-ppo": ("agents.recurrent_ppo:RECURRENT_PPO", "PPO with an LSTM in place of windows", ""),
    "maskable-ppo": (
        "agents.maskable_ppo:MASKABLE_PPO",
        "PPO over nine changes of target, those out of bounds masked",
        "",
    ),
    "lstm": ("baselines.predictors.lstm:LSTM", "goes where an LSTM predicts alpha*", ""),
    "gbdt": ("baselines.predictors.gbdt:GBDT", "goes where boosted trees predict alpha*", ""),
    "three-layer-ppo": (
        "agents.three_layer_ppo:THREE_LAYER_PPO",
        "frozen PPO, an adapter that learns online, and recovery from bursts",
        "",
    ),
    "bayesian": ("agents.bayesian:BAYESIAN", "Gaussian process over split and context", ""),
}


def policy_names() -> list[str]:
    """All names, with their arguments: ``static:ALPHA``."""
    return [f"{name}:{argument}" if argument else name for name, (_, _, argument) in POLICIES.items()]


def open_policy(text: str, layout: ObservationLayout) -> Policy:
    """Opens a policy: by name, such as ``pid`` or ``static:0.5``, or a run folder, or an ``.onnx`` file.

    Raises:
        UnknownNameError: no such policy; the nearest name is given.
        InvalidInputError: an argument that is missing, superfluous or not a number in its range, or a folder or file
            that holds no policy.
        IncompatibleError: a folder's or file's policy was made for another observation layout, clock or profile.
    """
    name, _, argument = text.partition(":")
    if name not in POLICIES:
        return _open_path(text, layout)
    where, _, expected = POLICIES[name]
    if bool(expected) != bool(argument):
        form = f"'{name}:{expected}'" if expected else f"'{name}', without an argument"
        raise InvalidInputError(f"Policy '{text}' cannot be opened; write {form}.")
    module, _, attribute = where.partition(":")
    found: Any = getattr(importlib.import_module(module), attribute)
    if callable(found):
        policy: Policy = found(layout, _number(text, argument)) if argument else found(layout)
    else:  # a Trainable: what was trained and is shipped
        from helm_gym import runs

        policy = runs.open_shipped(found, module.partition(".")[0], layout)
    policy.name = text
    return policy


def _open_path(text: str, layout: ObservationLayout) -> Policy:
    from helm_gym import runs  # which speaks of policies, as onnx_policy does

    path = pathlib.Path(text)
    if path.suffix == ".onnx":
        from helm_gym.onnx_policy import OnnxPolicy  # with onnx, which takes a third of a second

        return OnnxPolicy(path, layout)
    refuse_file(path)
    if os.path.isdir(path):
        return runs.open_run(path, layout)
    if os.sep in text:
        raise InvalidInputError(f"Policy '{text}' is no folder or file; give a run folder, an .onnx file or a name.")
    raise UnknownNameError("policy", text, policy_names())


def refuse_file(path: pathlib.Path) -> None:
    """Says what a file that is no policy is and what to do; nothing of it is unpickled.

    Raises:
        InvalidInputError: there is a file of this name, or of the name with the ``.zip`` that Stable-Baselines3 adds.
    """
    found = next((file for file in (str(path), f"{path}.zip") if os.path.isfile(file)), None)
    if found is None or os.path.isdir(path):
        return
    try:
        head = files.read_start(pathlib.Path(found), 64)
    except OSError as error:
        raise InvalidInputError(f"Policy {found[-200:]} cannot be read: {files.reason(error)}.") from error
    first = head[30:] if head.startswith(b"PK\x03\x04") else b""  # the name of an archive's first member
    if first.startswith(b"data"):
        kind = "a model of Stable-Baselines3"
    elif b"/data.pkl" in first or b"/byteorder" in first:
        kind = "a file of torch.save"
    else:
        raise InvalidInputError(f"Policy {found[-200:]} is no policy; give a run folder, an .onnx file or a name.")
    raise InvalidInputError(
        f"Policy {found[-200:]} is {kind}: it is pickled, and what is pickled is not loaded. Write it with "
        "torch.onnx.export, then `helm-gym export FILE.onnx --out policy.onnx`; docs/policies.md shows how."
    )


def _number(text: str, argument: str) -> float:
    try:
        value = float(argument)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise InvalidInputError(f"Policy '{text}' needs a finite number behind the colon, not '{argument}'.")
    return value


def towards(layout: ObservationLayout, observation: Floats, target: NDArray[np.floating]) -> Floats:
    """The action (rows, 1) that brings the target alpha to ``target`` (rows,), as far as one step reaches.

    Targets within half a page of the present one are the same: observed splits are whole pages.
    """
    change = target - observation[:, layout.column("target_alpha")]
    change = np.where(np.abs(change) * layout.profile.pool.pages <= 0.5, 0.0, change)
    step = change / layout.profile.max_step
    return np.clip(step, -1.0, 1.0).astype(np.float32)[:, None]
