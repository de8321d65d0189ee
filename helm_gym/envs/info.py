"""What ``info`` holds beside an observation: the cost's terms and, for analysis, the hidden truth. No measured time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.control_loop import ControlLoop, Step
from helm_gym.reward import TERMS
from helm_gym.telemetry import AT
from helm_gym.workload.state import PARAMETERS

_NAMES = tuple(parameter.name for parameter in PARAMETERS)


def describe_lane(loop: ControlLoop, outcome: Step, seed: int) -> dict[str, Any]:
    """``info`` of a loop's only lane, in Python's own types; the keys are those of ``describe_lanes``."""
    path, telemetry = loop.path, outcome.telemetry
    assert path is not None
    t = max(loop.t - 1, 0)
    values = telemetry.values
    info: dict[str, Any] = {
        "cost": dict(zip(TERMS, outcome.terms[:, 0].tolist())),  # noqa: B905 (strict costs a third of the dict)
        "alpha": values.item(AT.alpha),
        "target_alpha": values.item(AT.target_alpha),
        "workload": dict(zip(_NAMES, path.values[0, t].tolist())),  # noqa: B905 (strict costs a third of the dict)
        "segment": path.kind[0][path.segment.item(0, t)],
        "seed": seed,
    }
    if telemetry.extrapolating is not None:
        info["extrapolating"] = any(telemetry.extrapolating[0].tolist())
    return info


def describe_lanes(
    loop: ControlLoop, outcome: Step, seeds: NDArray[np.int64], everywhere: NDArray[np.bool_]
) -> dict[str, Any]:
    """``info`` of all lanes: arrays (lanes,), or dicts of them, and beside each key Gymnasium's mask of who has it.

    Args:
        outcome: the loop's last.
        seeds: (lanes,), of the loop's episodes.
        everywhere: True for each lane; it is the mask of every key, so better read-only. The workload is read-only
            too, since it is the path's own: copying it would read memory all over the path.
    """
    path, telemetry = loop.path, outcome.telemetry
    assert path is not None
    t = max(loop.t - 1, 0)
    truth = path.values[:, t].T
    truth.flags.writeable = False
    info: dict[str, Any] = {
        "cost": masked(dict(zip(TERMS, outcome.terms, strict=True)), everywhere),
        "alpha": telemetry.values[:, 0, AT.alpha].copy(),
        "target_alpha": telemetry.values[:, 0, AT.target_alpha].copy(),
        "workload": masked(dict(zip(_NAMES, truth, strict=True)), everywhere),
        "segment": path.kind_at(t),
        "seed": seeds.copy(),
    }
    if telemetry.extrapolating is not None:
        info["extrapolating"] = telemetry.extrapolating.any(axis=1)
    return masked(info, everywhere)


def describe_cluster(outcome: Step) -> dict[str, NDArray[Any]]:
    """What a cluster's ``info`` has beside a node's or in its place: arrays (lanes, nodes), or (lanes,) of traffic."""
    assert outcome.cluster is not None
    traffic, values = outcome.cluster.traffic, outcome.telemetry.values
    return {
        "alpha": values[:, :, AT.alpha].copy(),
        "target_alpha": values[:, :, AT.target_alpha].copy(),
        "requests": traffic.requests.copy(),
        "alive": traffic.alive.copy(),
        "spills": traffic.spills.copy(),
        "rerouted": traffic.rerouted.copy(),
        "given_up": traffic.given_up.copy(),
    }


def masked(info: dict[str, Any], everywhere: NDArray[np.bool_]) -> dict[str, Any]:
    """``info`` with Gymnasium's mask of who has it beside each key."""
    return info | {f"_{key}": everywhere for key in info}
