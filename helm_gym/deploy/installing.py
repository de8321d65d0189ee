"""What can be installed: an ONNX file from anywhere, a policy by its name, or a policy; checked, warmed and tried."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import helm_gym
from helm_gym import registry
from helm_gym.deploy.running import Cuttable, InLine, InThread, LateError, Runner
from helm_gym.errors import InvalidInputError, RefusedError
from helm_gym.kernels import control_interval
from helm_gym.observation import ObservationLayout
from helm_gym.policies.onnx_check import read_file
from helm_gym.policies.onnx_check.rules import naming
from helm_gym.policies.onnx_policy import OnnxPolicy
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Floats, Oracle, Policy
from helm_gym.text import shown

_OWN = ("agents", "baselines")  # packages whose policies run in line
_WARM = 30
_F32 = np.dtype(np.float32)  # compared by identity, which costs least


@dataclasses.dataclass(frozen=True, eq=False)
class Installed:
    """A policy that may decide.

    Attributes:
        identity: the file's SHA-256, or ``name:`` and the name; what has the same may take the other's state up.
        content: the file; None of a policy that is none.
        runs: how it is run; see ``running``.
    """

    policy: Policy
    name: str
    identity: str
    content: bytes | None
    runs: type[Any]

    @property
    def sha256(self) -> str | None:
        return None if self.content is None else self.identity

    def runner(self) -> Runner:
        """A new use of it, from its initial state."""
        runner: Runner = self.runs(self.policy)
        return runner

    def facts(self) -> dict[str, Any]:
        """As a status shows it."""
        told = self.policy.checked.facts if isinstance(self.policy, OnnxPolicy) else {}
        return {"name": self.name, "sha256": self.sha256, "agent": told.get("agent", "")[:60]}


def install(given: str | pathlib.Path | Policy, layout: ObservationLayout) -> Installed:
    """Opens what a controller is started with.

    Args:
        given: the path of an ``.onnx`` file, a registered name such as ``pid``, or a policy.

    Raises:
        UnknownNameError: no such policy; the nearest name is given.
        RefusedError: a file that breaks a rule of ``onnx_check``.
        InvalidInputError: an oracle, a run folder, or no policy at all.
    """
    if isinstance(given, str | pathlib.Path):
        if str(given).endswith(".onnx"):
            return install_file(pathlib.Path(given), layout)
        return _install_name(str(given), layout)
    if not isinstance(given, Policy):
        raise InvalidInputError(f"{shown(given)} is no policy; give an .onnx file, a name or a Policy.")
    _refuse_oracle(given)
    return Installed(given, given.name, f"object:{given.name}", None, InThread)


def _install_name(name: str, layout: ObservationLayout) -> Installed:
    if pathlib.Path(name).is_dir():
        raise InvalidInputError(f"'{name[-200:]}' is a folder; `helm-gym export` makes an .onnx file of a run.")
    entry = registry.find("policy", name)
    policy = open_policy(name, layout)
    _refuse_oracle(policy)
    own = entry.module.partition(".")[0] in _OWN
    identity = f"name:{name}:{helm_gym.__version__}"
    return Installed(policy, name, identity, None, InLine if own else InThread)


def _refuse_oracle(policy: Policy) -> None:
    if isinstance(policy, Oracle):
        raise InvalidInputError(
            f"'{policy.name}' is told the workload's truth, which no live node knows; give another."
        )


def install_file(path: pathlib.Path, layout: ObservationLayout, sha256: str | None = None) -> Installed:
    """Opens an ONNX file.

    Args:
        sha256: of the whole file, in hexadecimal digits; not compared where None.

    Raises:
        RefusedError: another checksum, or a rule of ``onnx_check`` that it breaks.
    """
    with naming(path):
        content = read_file(path)
        found = hashlib.sha256(content).hexdigest()
        if sha256 is not None and found != sha256.strip().lower():
            raise RefusedError("checksum", f"its SHA-256 is {found[:16]}..., not {shown(sha256)}; copy it again.")
        return install_bytes(content, layout, path.name)


def install_bytes(content: bytes, layout: ObservationLayout, name: str) -> Installed:
    """Opens an ONNX file's bytes; see ``install_file``."""
    policy = OnnxPolicy.from_bytes(content, layout, name)
    return Installed(policy, name, hashlib.sha256(content).hexdigest(), content, Cuttable)


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a policy did on recorded observations.

    Attributes:
        decisions: how many there were.
        median_us: time of one.
        divergence: mean distance of its actions from those of the policy that decided then, of a step's range of 2;
            None where nothing was recorded.
    """

    decisions: int
    median_us: float
    divergence: float | None


def try_out(
    installed: Installed, layout: ObservationLayout, recorded: Sequence[tuple[Floats, Floats]], deadline_s: float
) -> Replay:
    """Warms a policy up and has it decide on what was recorded, from its initial state.

    Args:
        recorded: a node each, the observations (n, D), and the actions (n,) that were taken on them.

    Raises:
        RefusedError: it raises, its answers are no actions or not finite, or they take longer than the deadline.
    """
    name = shown(installed.name)
    middle = ((layout.low + layout.high) / 2).astype(np.float32)[None]
    episodes = [np.repeat(middle, _WARM, axis=0), *(observations for observations, _ in recorded)]
    times, answers = [], []
    for episode in episodes:
        runner = installed.runner()
        actions = np.zeros(len(episode), np.float32)
        for k in range(len(episode)):
            started = time.perf_counter()
            try:
                action, following = runner.run(episode[k : k + 1], max(deadline_s, 1.0))
                actions[k], following = sound(action, following, runner.state)
            except UnsoundError as error:
                raise RefusedError("finite", f"Policy {name}: its answer on a recorded observation {error}.") from error
            except LateError as error:
                raise RefusedError("time", f"Policy {name} did not answer within a second.") from error
            except Exception as error:
                raise RefusedError("runtime", f"Policy {name} failed: {type(error).__name__}: {error}.") from error
            runner.keep(following)
            times.append(time.perf_counter() - started)
        runner.stop()
        answers.append(actions)
    median = float(np.median(times[5:]))  # the first ones compile and allocate
    if median > deadline_s:
        raise RefusedError(
            "time",
            f"Policy {name}: its decision takes {median * 1e3:.3g} ms; the deadline is {deadline_s * 1e3:.3g} ms.",
        )
    apart = [np.abs(new - old).mean() for new, (_, old) in zip(answers[1:], recorded, strict=True) if len(old)]
    return Replay(len(times), median * 1e6, float(np.mean(apart)) if apart else None)


class UnsoundError(ValueError):
    """An answer that is none; its text goes on "The answer ...".

    Attributes:
        reason: ``not_finite`` or ``error``.
    """

    def __init__(self, reason: str, text: str):
        super().__init__(text)
        self.reason = reason


def sound(action: Any, following: Any, state: Floats) -> tuple[float, Floats]:
    """The action as a number and the state to come, float32 (1, S).

    Raises:
        UnsoundError: another shape, no numbers, or a NaN or infinity among them.
    """
    if type(following) is not np.ndarray or following.dtype is not _F32 or not following.flags.c_contiguous:
        try:
            following = np.ascontiguousarray(following, np.float32)
        except (TypeError, ValueError):
            raise UnsoundError("error", "has a state that is no array of numbers") from None
    if following.shape != state.shape:
        raise UnsoundError("error", f"has a state of shape {following.shape}; {state.shape} is needed")
    try:
        value = float(action[0, 0]) if type(action) is np.ndarray and action.shape == (1, 1) else _number(action)
    except (TypeError, ValueError):
        raise UnsoundError("error", "has an action that is not one number") from None
    if not control_interval.finite(value, following):
        raise UnsoundError("not_finite", "is not finite")
    return value, following


def _number(action: Any) -> float:
    array = np.asarray(action, np.float64)
    if array.size != 1:
        raise ValueError
    return float(array.reshape(-1)[0])
