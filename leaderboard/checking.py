"""The check of a submitted file: `helm-gym leaderboard check` and the worker call this one function."""

from __future__ import annotations

import base64
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from helm_gym import profile as profiles
from helm_gym.backend import open_backend
from helm_gym.control_loop import ControlLoop
from helm_gym.errors import RefusedError
from helm_gym.observation import ObservationLayout
from helm_gym.play import Entrant, play
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Floats, Policy
from helm_gym.tasks import find_task
from leaderboard.sandbox import Limits, PolicyFault, SandboxedPolicy

_RECORDED = (("burst-v0", "random"), ("mixed-v0", "miss-ratio-curve"))  # whose episodes are observed
_LANES, _EVERY, _KEPT = 4, 8, 256
NEAR = 0.02  # mean distance of actions, of a step's range of 2, below which two policies are nearly the same


@dataclasses.dataclass(frozen=True)
class Report:
    """How a check ended.

    Attributes:
        passed: whether it may be evaluated.
        rule: the id of the rule that refuses it, or the reason code of how it failed; empty where it passed.
        sentence: the same in words.
        figures: what it is and costs: nodes, state, multiply-adds, memory and time of a decision.
        actions: what it does on recorded observations, (decisions,), to find near-duplicates by.
    """

    passed: bool
    rule: str
    sentence: str
    figures: dict[str, Any]
    actions: Floats

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "rule": self.rule, "sentence": self.sentence, "figures": self.figures}

    def body(self, submission: str, duplicate_of: str) -> dict[str, Any]:
        """As its record has it."""
        figures = self.figures | ({"duplicate_of": duplicate_of} if duplicate_of else {})
        return self.to_json() | {"submission": submission, "figures": figures, "actions": packed(self.actions)}


def check(content: bytes, layout: ObservationLayout, limits: Limits | None = None, unconfined: bool = False) -> Report:
    """Checks a policy's file in the sandbox, by ``helm_gym.policies.onnx_check``.

    Raises:
        IncompatibleError: this machine has no sandbox, and that was not allowed.
    """
    nothing = np.zeros(0, np.float32)
    try:
        with SandboxedPolicy(content, layout, limits=limits, unconfined=unconfined) as policy:
            figures = {
                "bytes": len(content),
                "nodes": policy.walked.nodes,
                "state": policy.walked.state,
                "row_operations": policy.walked.row_operations,
                "row_bytes": policy.walked.row_bytes,
                "row_ms": round(policy.probed.row_ms, 3),
                "agent": policy.facts.get("agent", "")[:60],
                "confined": policy.confined,
            }
            return Report(True, "", "", figures, acts(policy))
    except RefusedError as error:
        return Report(False, error.rule, str(error), {"bytes": len(content)}, nothing)
    except PolicyFault as error:
        return Report(False, error.reason, str(error), {"bytes": len(content)}, nothing)


def of_reference(name: str, layout: ObservationLayout) -> Report:
    """An agent or baseline of this repository: nothing of it is to be checked but what it does."""
    return Report(True, "", "", {}, acts(open_policy(name, layout)))


def acts(policy: Policy) -> Floats:
    """What a policy does on the recorded observations, (decisions,): its own state, as they came."""
    found = []
    for seen in recorded():
        state = policy.initial_state(_LANES)
        for t, observation in enumerate(seen):
            action, state = policy.act(observation, state)
            if t % _EVERY == 0:
                found.append(np.asarray(action, np.float32).reshape(-1))
    return np.concatenate(found)


@functools.lru_cache(maxsize=1)
def recorded() -> tuple[Floats, ...]:
    """Observations of public episodes on the surrogate, (intervals, lanes, D) each: the same for every policy."""
    found = []
    for name, policy in _RECORDED:
        task = find_task(name)
        profile = profiles.load(task.profile)
        backend = open_backend("surrogate", profile, lanes=_LANES)
        loop = ControlLoop(task, backend, intervals=_KEPT)
        entrant = Entrant(open_policy(policy, ObservationLayout(profile)))
        found.append(np.stack([step.observation[:, 0].copy() for step in play(loop, entrant, task.seeds[:_LANES])]))
        backend.close()
    return tuple(found)


def packed(actions: Floats) -> str:
    """Actions as a record holds them."""
    return base64.b64encode(np.asarray(actions, "<f2").tobytes()).decode()


def unpacked(text: str) -> Floats:
    return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32)


def nearest(actions: Floats, others: Mapping[str, str]) -> str:
    """Which of the others does nearly the same, the nearest of them; "" where none does.

    Args:
        others: by entry, its actions as a record holds them, the oldest first.
    """
    distances: Sequence[tuple[float, str]] = [
        (float(np.abs(actions - theirs).mean()), name)
        for name, text in others.items()
        if len(theirs := unpacked(text)) == len(actions)
    ]
    closest = min(distances, default=(np.inf, ""), key=lambda pair: pair[0])
    return closest[1] if closest[0] <= NEAR else ""
