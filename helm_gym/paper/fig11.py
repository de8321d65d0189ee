"""Figure 11: P99 and SLO satisfaction of three systems, over regimes and populations."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as Picture

from helm_gym.cluster.topology import Cluster, Node
from helm_gym.evaluation import plots
from helm_gym.evaluation.formatting import interval
from helm_gym.paper import Reproduction, Stage
from helm_gym.paper.cached_cluster_evaluation import ClusterParts, figure, shared, short_task
from helm_gym.paper.fig13 import CONTROLLER, REGIMES, best_split
from helm_gym.profile import Profile

NODES = 8
_BASE = Cluster((Node(NODES),))
POPULATIONS = {
    "few interests": dataclasses.replace(_BASE, interests=8),
    "many interests": _BASE,
    "large catalogue": dataclasses.replace(_BASE, catalogue=8.0, load=0.5),
}
SYSTEMS = {"EMB": "emb-aware", "KV-EMB-Opt": "kv-aware", "HELM": "joint"}  # ours: the controller and joint routing
_TINTS = ("#B9C0CA", "#7FA6C9", "#22262B")


def reproduce(profile: Profile, seeds: int, stage: Stage, folder: pathlib.Path) -> Reproduction:
    """Three systems on three populations in three regimes."""
    parts, chosen = ClusterParts(folder, profile), range(max(2, seeds // 3))
    rows = []
    for label, cluster in POPULATIONS.items():
        for regime in REGIMES:
            for system, router in SYSTEMS.items():
                pair = f"{CONTROLLER}+{router}"
                if system != "HELM":
                    pair = f"{best_split(parts, cluster, router, regime, chosen, stage)}+{router}"
                with stage(f"{label}, {regime}: {pair}") as tick:
                    run = parts.measure(short_task(regime), pair, cluster, chosen, tick)
                row = {"population": label, "regime": regime, "system": system, "pair": pair}
                rows.append(row | {name: figure(run[name]) for name in ("p99_ms", "slo_satisfaction")})
    made = {
        "figure": "fig11",
        "nodes": NODES,
        "seeds": list(chosen),
        "rows": rows,
        "definition": "EMB: the static split that is best in hindsight, emb-aware routing; KV-EMB-Opt: the same under "
        f"kv-aware routing; HELM: {CONTROLLER} and joint routing. The paper's data sets are not public here: these "
        "populations are drawn. Interquartile means over seeds, 95% bootstrap intervals.",
        "paper": {
            "p99_less": [0.24, 0.38],
            "slo_satisfaction": [0.935, 0.996],
            "slo_satisfaction_of_KV-EMB-Opt_in_trend": [0.83, 0.91],
        },
        "populations": {label: dataclasses.asdict(cluster) for label, cluster in POPULATIONS.items()},
        **shared(profile),
    }
    return Reproduction(made, draw(made), markdown(made))


def draw(figures: dict[str, Any]) -> Picture:
    """P99 above, SLO satisfaction below; a column a population."""
    shown = {"p99_ms": ("P99 (ms, log)", "log"), "slo_satisfaction": ("SLO satisfaction", "linear")}
    place = np.arange(len(REGIMES))
    with rc_context(plots.RC):
        picture = Picture((10.0, 5.4), layout="constrained")
        axes = picture.subplots(len(shown), len(POPULATIONS), sharey="row", squeeze=False)
        for line, (metric, (title, scale)) in enumerate(shown.items()):
            for ax, population in zip(axes[line], POPULATIONS, strict=True):
                for number, (system, tint) in enumerate(zip(SYSTEMS, _TINTS, strict=True)):
                    there = [r for r in figures["rows"] if (r["population"], r["system"]) == (population, system)]
                    height = [row[metric]["value"] for row in there]
                    ax.bar(place + 0.26 * (number - 1), height, 0.24, color=tint, label=system)
                ax.set_xticks(place, REGIMES)
                ax.set_yscale(scale)
                if line == 0:
                    ax.set_title(population)
            axes[line][0].set_ylabel(title)
        plots.legend(picture, picture.axes[0])
        picture.suptitle(f"Three systems  (modelled rung, {NODES} nodes)", x=0.01, ha="left")
    return picture


def markdown(figures: dict[str, Any]) -> str:
    lines = "\n".join(
        f"| {row['population']} | {row['regime']} | {row['system']} | {row['pair']} | "
        f"{interval(row['p99_ms'], 1)} | {interval(row['slo_satisfaction'], 1, 100)} |"
        for row in figures["rows"]
    )
    return f"""# Figure 11: three systems over regimes and populations (modelled rung)

{figures["definition"]}

| population | regime | system | pair | P99 ms | SLO % |
|---|---|---|---|---|---|
{lines}

The paper: P99 24 to 38% below the best static split, SLO satisfaction 93.5 to 99.6%, of KV-EMB-Opt 83 to 91% in Trend.

Profile {figures["profile"]}, {NODES} nodes, {len(figures["seeds"])} seeds, {figures["machine"]}, {figures["date"]}.
"""
