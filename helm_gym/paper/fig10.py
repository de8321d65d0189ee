"""Figure 10: each router's score by component: EMB hits, KV hits, and how evenly nodes are loaded."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as Picture

from helm_gym.evaluation import plots
from helm_gym.evaluation.formatting import interval
from helm_gym.paper import Reproduction, Stage
from helm_gym.paper.cached_cluster_evaluation import Values, figure, shared
from helm_gym.paper.fig6 import PAPER, REGIME, SPLIT, measure
from helm_gym.profile import Profile

NODES = 8
COMPONENTS = {"emb": "EMB hits", "kv": "KV hits", "load": "even load"}
_TINTS = ("#C9772B", "#2F6F9F", "#B9C0CA")
_PAPER_TOTAL = {"emb-aware": 0.29, "kv-aware": 0.38, "joint": 0.47}


def reproduce(profile: Profile, seeds: int, stage: Stage, folder: pathlib.Path) -> Reproduction:
    """The score of every router on eight nodes."""
    found = measure(profile, seeds, stage, folder, {NODES: 1.0})[NODES]
    rows = [{"router": router, **_score(values)} for router, values in found.items()]
    made = {
        "figure": "fig10",
        "rows": rows,
        "definition": f"A third each of the EMB and the KV hit rate, and 1 less the standard deviation over nodes "
        f"of their busy share over its mean (the paper does not say how its score is scaled). {REGIME}-v0, {NODES} "
        f"nodes at {SPLIT}; interquartile means over {seeds} seeds, 95% bootstrap intervals.",
        "paper": {PAPER[router]: total for router, total in _PAPER_TOTAL.items()},
        **shared(profile),
    }
    return Reproduction(made, draw(made), markdown(made))


def _score(values: Values) -> dict[str, Any]:
    parts = {
        "emb": values["emb_hit_rate"] / 3,
        "kv": values["kv_hit_rate"] / 3,
        "load": np.maximum(0.0, 1.0 - values["imbalance"]) / 3,
    }
    return {name: figure(part) for name, part in parts.items()} | {"total": figure(sum(parts.values()))}  # type: ignore[arg-type]


def draw(figures: dict[str, Any]) -> Picture:
    """A stacked bar a router, the paper's totals as marks."""
    rows = figures["rows"]
    place, floor = np.arange(len(rows)), np.zeros(len(rows))
    with rc_context(plots.RC):
        picture = Picture((9.6, 3.8), layout="constrained")
        ax = picture.subplots()
        for (name, title), tint in zip(COMPONENTS.items(), _TINTS, strict=True):
            height = np.array([row[name]["value"] for row in rows])
            ax.bar(place, height, 0.6, floor, color=tint, label=title)
            floor = floor + height
        for k, row in enumerate(rows):
            if row["router"] in _PAPER_TOTAL:
                ax.plot(k, _PAPER_TOTAL[row["router"]], "_", color="#22262B", markersize=26)
        ax.set_xticks(place, [row["router"] for row in rows])
        ax.set_ylabel("score; line: the paper's")
        plots.legend(picture, ax)
        picture.suptitle(f"Routing scores by component  (modelled rung, {figures['profile']})", x=0.01, ha="left")
    return picture


def markdown(figures: dict[str, Any]) -> str:
    lines = "\n".join(
        f"| {row['router']} | " + " | ".join(interval(row[name], 3) for name in (*COMPONENTS, "total")) + " | "
        f"{_PAPER_TOTAL.get(row['router'], '')} |"
        for row in figures["rows"]
    )
    return f"""# Figure 10: routing scores by component (modelled rung)

{figures["definition"]}

| router | EMB | KV | load | total | paper's total |
|---|---|---|---|---|---|
{lines}

Profile {figures["profile"]}, {figures["machine"]}, {figures["date"]}.
"""
