"""Figure 14: the layers of the three-layer controller, left out one by one."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as Picture

from helm_gym import registry
from helm_gym.evaluation import plots
from helm_gym.evaluation.formatting import interval
from helm_gym.evaluation.summary import summarise
from helm_gym.observation import ObservationLayout
from helm_gym.paper import Reproduction, Stage
from helm_gym.paper.cached_evaluation import Parts
from helm_gym.policies import from_run
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Policy
from helm_gym.profile import Profile
from helm_gym.tasks import find_task

REGIMES = ("steady", "trend", "burst")
CONTROLLER = "three-layer-ppo"
LAYERS = {
    "base": "base",
    "base + adapter": "base,adapter",
    "base + recovery": "base,recovery",
    "all three": "base,adapter,recovery",
}
BESIDE = "miss-ratio-curve"
_TINTS = ("#B9C0CA", "#7FA6C9", "#C9A24B", "#22262B", plots.colour(BESIDE))
SHOWN = {  # figure -> (title, digits)
    "alpha_gap": ("mean |alpha − alpha*|", 3),
    "gain_captured": ("gain captured, mean", 2),
    "gain_captured_p99": ("gain captured, P99", 2),
    "slo_satisfaction": ("SLO satisfaction", 3),
}


def reproduce(profile: Profile, seeds: int, stage: Stage, folder: pathlib.Path) -> Reproduction:
    """Runs the shipped controller with every choice of layers, and the miss-ratio-curve controller beside it."""
    parts = Parts(folder, profile, range(seeds))
    policies = [with_layers(layers, parts.layout, name) for name, layers in LAYERS.items()]
    policies.append(open_policy(BESIDE, parts.layout))
    rows: dict[str, dict[str, Any]] = {name: {} for name in (*LAYERS, BESIDE)}
    shared: dict[str, Any] = {}
    for regime in REGIMES:
        with stage(f"fig14: {regime}") as tick:
            run = parts.evaluate(find_task(f"{regime}-v0"), policies, tick, references=True)
        for episodes in run.policies:
            figures = summarise(run, episodes)
            rows[episodes.policy][regime] = {name: figures[name].to_json() for name in SHOWN}
        shared = run.provenance()
    made = {
        "figure": "fig14",
        "rows": [{"layers": name} | figures for name, figures in rows.items()],
        "definition": "gain captured: (best static - policy) / (best static - regime oracle), of mean and P99 sojourn, "
        "best static pooled over seeds; interquartile means, 95% bootstrap intervals. Last row: no layer, no learning.",
        **shared,
    }
    return Reproduction(made, draw(made), markdown(made))


def with_layers(layers: str, layout: ObservationLayout, name: str) -> Policy:
    """The shipped controller with some of its layers.

    Raises:
        InvalidInputError: none is shipped for the layout's profile.
    """
    package = registry.find("policy", CONTROLLER).module.partition(".")[0]
    policy = from_run.open_run(from_run.shipped_folder(CONTROLLER, package, layout), layout, {"layers": layers})
    policy.name = name
    return policy


def draw(figures: dict[str, Any]) -> Picture:
    """A panel a figure: every choice of layers in each regime, with intervals."""
    rows = figures["rows"]
    place, tints = np.arange(len(REGIMES)), _TINTS
    with rc_context(plots.RC):
        picture = Picture((12.0, 4.3), layout="constrained")
        for ax, (metric, (title, _)) in zip(picture.subplots(1, len(SHOWN)), SHOWN.items(), strict=True):
            for number, (row, tint) in enumerate(zip(rows, tints, strict=True)):
                ends = np.array(
                    [[row[regime][metric][end] for regime in REGIMES] for end in ("value", "low", "high")], np.float64
                )
                at = place + 0.14 * (number - (len(rows) - 1) / 2)
                ax.vlines(at, ends[1], ends[2], color=tint, linewidth=1.2)
                ax.plot(at, ends[0], "o", color=tint, markersize=5, label=row["layers"])
            ax.set_xticks(place, REGIMES)
            ax.set_title(title)
        plots.legend(picture, picture.axes[0])
        picture.suptitle(
            f"What each layer adds  ({figures['rung']} rung, {figures['profile']}, {len(figures['seeds'])} seeds)",
            x=0.01,
            ha="left",
        )
    return picture


def markdown(figures: dict[str, Any]) -> str:
    """A table a regime."""
    tables = []
    for regime in REGIMES:
        lines = "\n".join(
            f"| {row['layers']} | "
            + " | ".join(interval(row[regime][metric], digits) for metric, (_, digits) in SHOWN.items())
            + " |"
            for row in figures["rows"]
        )
        heads = " | ".join(title for title, _ in SHOWN.values())
        tables.append(f"## {regime}\n\n| layers | {heads} |\n|---|{'---|' * len(SHOWN)}\n{lines}\n")
    return f"""# Figure 14: the controller's layers ({figures["rung"]} rung)

{chr(10).join(tables)}
Profile {figures["profile"]}, {len(figures["seeds"])} seeds, interquartile means with 95% bootstrap intervals,
{figures["machine"]}, {figures["date"]}.
"""
