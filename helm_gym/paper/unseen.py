"""Bursts unlike those of training, which the paper does not show: what the gain is worth there, and what guards it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as Picture
from numpy.typing import NDArray

from helm_gym.evaluation import plots, protocol
from helm_gym.evaluation.formatting import interval
from helm_gym.evaluation.gains import best_static
from helm_gym.evaluation.optimum import GRID, offline_optimum
from helm_gym.evaluation.summary import summarise
from helm_gym.paper import Reproduction, Stage
from helm_gym.paper.cached_evaluation import Parts, open_if_there
from helm_gym.profile import Profile
from helm_gym.tasks import find_task
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import WorkloadPath

POLICIES = ("three-layer-ppo", "miss-ratio-curve")
_RAMP = 12  # intervals


def stretched(path: WorkloadPath, factor: float, intervals: int) -> WorkloadPath:
    """Everything ``factor`` times as long, cut to ``intervals``; arrivals are Poisson."""
    at = (np.arange(intervals) / factor).astype(np.int64)
    return dataclasses.replace(
        path, values=path.values[:, at], gaps_s=path.gaps_s[:, :intervals], segment=path.segment[:, at]
    )


def scaled(path: WorkloadPath, depth: float) -> WorkloadPath:
    """Bursts ``depth`` times as far from the calm before them, the arrival rate with them."""
    calm = path.values[:, :1]
    return dataclasses.replace(path, values=calm + depth * (path.values - calm))


def ramped(path: WorkloadPath) -> WorkloadPath:
    """Bursts that come and go over ``_RAMP`` intervals, and not at once."""
    before = np.repeat(path.values[:, :1], _RAMP - 1, axis=1)
    total = np.cumsum(np.concatenate([np.zeros_like(before[:, :1]), before, path.values], axis=1), axis=1)
    return dataclasses.replace(path, values=(total[:, _RAMP:] - total[:, :-_RAMP]) / _RAMP)


Change = Callable[[WorkloadPath, int], WorkloadPath]  # a path of three times the intervals -> one of those intervals
GENERATORS: dict[str, Change] = {
    "as in burst-v0": lambda path, count: stretched(path, 1.0, count),
    "half as long": lambda path, count: stretched(path, 1 / 2, count),
    "a third as long": lambda path, count: stretched(path, 1 / 3, count),
    "three times as long": lambda path, count: stretched(path, 3.0, count),
    "half as deep": lambda path, count: scaled(stretched(path, 1.0, count), 0.5),
    "ramps in place of jumps": lambda path, count: ramped(stretched(path, 1.0, count)),
}
SHOWN = {  # figure -> (heading, digits)
    "gain_captured": ("gain, mean", 2),
    "gain_captured_p99": ("gain, P99", 2),
    "slo_satisfaction": ("SLO satisfaction", 3),
    "cost_over_best_static": ("cost over best static", 3),
}


def reproduce(profile: Profile, seeds: int, stage: Stage, folder: pathlib.Path) -> Reproduction:
    """Runs the shipped controller through bursts of lengths, depths and shapes that it was not trained on."""
    parts, task = Parts(folder, profile, range(seeds)), find_task("burst-v0")
    policies = [policy for policy in (open_if_there(name, parts.layout) for name in POLICIES) if policy is not None]
    intervals = task.settle + task.horizon
    drawn = make_path(task.regime, profile, parts.seeds, 3 * intervals)
    rows: list[dict[str, Any]] = []
    shared: dict[str, Any] = {}
    for name, change in GENERATORS.items():
        path = change(drawn, intervals)
        # An interval's values lie together, as kernels are compiled for.
        values = np.ascontiguousarray(path.values.swapaxes(0, 1)).swapaxes(0, 1)
        path = dataclasses.replace(path, values=values)
        with stage(f"unseen: {name}") as tick:
            # Every second split of the grid: the oracle needs alpha* no closer than that finds it.
            optimum = offline_optimum(task, profile, path, parts.seeds, grid=GRID[::2])
            run = protocol.evaluate(
                task, policies, profile=profile, seeds=parts.seeds, progress=tick, optimum=optimum, path=path
            )
        statics = {key: value for key, value in run.references.items() if key.startswith("static:")}
        least = min(statics.values(), key=lambda episodes: float(episodes.cost.mean()))
        row: dict[str, Any] = {"bursts": name, "best_static": best_static(statics), "policies": {}}
        for episodes in run.policies:
            cost: dict[str, NDArray[np.float64]] = {
                key: of.cost.mean(axis=1) for key, of in (("policy", episodes), ("static", least))
            }
            over = float(cost["policy"].mean() / cost["static"].mean() - 1)
            figures = {key: value.to_json() for key, value in summarise(run, episodes).items() if key in SHOWN}
            row["policies"][episodes.policy] = figures | {
                "cost_over_best_static": {"value": over, "low": None, "high": None},
                "cost_over_best_static_worst": float((cost["policy"] / cost["static"]).max() - 1),
            }
        rows.append(row)
        shared = run.provenance()
    made = {
        "figure": "unseen",
        "rows": rows,
        "definition": "burst-v0 changed after it was drawn. gain: against the regime oracle and the best static "
        "split of these episodes; interquartile means, 95% bootstrap intervals; none where the oracle, which pays "
        "for its moves, is no better than that split. cost_over_best_static: mean cost over that of the static split "
        "whose mean cost is least in hindsight, less 1; worst: of the single episodes.",
        **shared,
    }
    return Reproduction(made, draw(made), markdown(made))


def draw(figures: dict[str, Any]) -> Picture:
    """A panel a figure: every policy on each kind of bursts."""
    rows = figures["rows"]
    names, place = list(rows[0]["policies"]), np.arange(len(rows))
    with rc_context(plots.RC):
        picture = Picture((12.5, 1.4 + 0.42 * len(rows)), layout="constrained")
        for ax, (metric, (title, _)) in zip(picture.subplots(1, len(SHOWN), sharey=True), SHOWN.items(), strict=True):
            for number, name in enumerate(names):
                values = [row["policies"][name][metric] for row in rows]
                at = place + 0.16 * (number - (len(names) - 1) / 2)
                ends = np.array([[value["low"], value["high"]] for value in values], np.float64)
                tint = plots.colour(name, names)
                ax.hlines(at, ends[:, 0], ends[:, 1], color=tint, linewidth=1.2)
                ax.plot([value["value"] for value in values], at, "o", color=tint, markersize=5, label=name)
            ax.set_title(title)
        picture.axes[0].set_yticks(place, [row["bursts"] for row in rows])
        picture.axes[0].invert_yaxis()
        plots.legend(picture, picture.axes[0])
        picture.suptitle(
            f"Bursts unlike those of training  ({figures['rung']} rung, {figures['profile']}, "
            f"{len(figures['seeds'])} seeds)",
            x=0.01,
            ha="left",
        )
    return picture


def markdown(figures: dict[str, Any]) -> str:
    """A row for each kind of bursts and policy."""
    lines = []
    for row in figures["rows"]:
        for name, values in row["policies"].items():
            shown = " | ".join(interval(values[metric], digits) for metric, (_, digits) in SHOWN.items())
            worst = f"{values['cost_over_best_static_worst']:.3f}"
            lines.append(f"| {row['bursts']} | {row['best_static']} | {name} | {shown} | {worst} |")
    heads = " | ".join(heading for heading, _ in SHOWN.values())
    return f"""# Bursts unlike those of training ({figures["rung"]} rung)

| bursts | best static | policy | {heads} | worst episode |
|---|---|---|{"---|" * len(SHOWN)}---|
{chr(10).join(lines)}

{figures["definition"]}
Profile {figures["profile"]}, {len(figures["seeds"])} seeds, {figures["machine"]}, {figures["date"]}.
"""
