"""Figure 13: what allocation and routing are worth, alone and together."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as Picture

from helm_gym.cluster.topology import Cluster, Node
from helm_gym.evaluation import plots
from helm_gym.evaluation.formatting import interval
from helm_gym.evaluation.statistics import paired_difference
from helm_gym.paper import Reproduction, Stage
from helm_gym.paper.cached_cluster_evaluation import ClusterParts, Values, figure, shared, short_task
from helm_gym.profile import Profile

NODES = 8
REGIMES = ("steady", "trend", "burst")
SPLITS = tuple(f"static:{alpha:g}" for alpha in (0.5, 0.6, 0.7, 0.8))
CONTROLLER, ROUTER, PLAIN = "three-layer-ppo", "joint", "least-loaded"
SYSTEMS = ("neither", "allocation", "routing", "both")
_TINTS = ("#B9C0CA", "#7FA6C9", "#C9772B", "#22262B")


def best_split(parts: ClusterParts, cluster: Cluster, router: str, regime: str, seeds: range, stage: Stage) -> str:
    """The static split that is best in hindsight by mean sojourn, under that router."""
    costs = {}
    for split in SPLITS:
        with stage(f"{regime}: {split}+{router}") as tick:
            run = parts.measure(short_task(regime), f"{split}+{router}", cluster, seeds, tick)
        costs[split] = float(run["mean_latency_ms"].mean())
    return min(costs, key=lambda split: costs[split])


def reproduce(profile: Profile, seeds: int, stage: Stage, folder: pathlib.Path) -> Reproduction:
    """The best static split or the controller, least-loaded or joint routing, in each regime."""
    parts, cluster, chosen = ClusterParts(folder, profile), Cluster((Node(NODES),)), range(max(2, seeds))
    rows = []
    for regime in REGIMES:
        plain = best_split(parts, cluster, PLAIN, regime, chosen, stage)
        routed = best_split(parts, cluster, ROUTER, regime, chosen, stage)
        pairs = [f"{plain}+{PLAIN}", f"{CONTROLLER}+{PLAIN}", f"{routed}+{ROUTER}", f"{CONTROLLER}+{ROUTER}"]
        runs: dict[str, Values] = {}
        for system, pair in zip(SYSTEMS, pairs, strict=True):
            with stage(f"{regime}: {pair}") as tick:
                runs[system] = parts.measure(short_task(regime), pair, cluster, chosen, tick)
        for system, pair in zip(SYSTEMS, pairs, strict=True):
            row: dict[str, Any] = {"regime": regime, "system": system, "pair": pair}
            row |= {name: figure(runs[system][name]) for name in ("mean_latency_ms", "p99_ms", "slo_satisfaction")}
            for name in ("mean_latency_ms", "p99_ms"):
                against = paired_difference(runs[system][name], runs["both"][name], np.random.default_rng(0))
                row[f"{name}_over_both"] = against.to_json()
            rows.append(row)
    made = {
        "figure": "fig13",
        "nodes": NODES,
        "seeds": list(chosen),
        "rows": rows,
        "definition": f"{NODES} nodes, 160 scored intervals. neither: the static split that is best in hindsight, "
        f"{PLAIN} routing; allocation: {CONTROLLER}, {PLAIN}; routing: the static split that is best in hindsight "
        f"under it, {ROUTER}; both: {CONTROLLER}, {ROUTER}. Interquartile means over seeds, 95% bootstrap intervals; "
        "*_over_both: less the figure of both, seed by seed.",
        **shared(profile),
    }
    return Reproduction(made, draw(made), markdown(made))


def draw(figures: dict[str, Any]) -> Picture:
    """P99 and mean of the four systems by regime."""
    shown = {"mean_latency_ms": "mean sojourn (ms, log)", "p99_ms": "P99 of sojourn (ms, log)"}
    place = np.arange(len(REGIMES))
    with rc_context(plots.RC):
        picture = Picture((9.0, 4.0), layout="constrained")
        for ax, (metric, title) in zip(picture.subplots(1, len(shown)), shown.items(), strict=True):
            for number, (system, tint) in enumerate(zip(SYSTEMS, _TINTS, strict=True)):
                rows = [row[metric] for row in figures["rows"] if row["system"] == system]
                at = place + 0.16 * (number - 1.5)
                low, high = ([row[end] for row in rows] for end in ("low", "high"))
                ax.vlines(at, np.array(low, float), np.array(high, float), color=tint, linewidth=1.4)
                ax.plot(at, [row["value"] for row in rows], "o", color=tint, markersize=6, label=system)
            ax.set_xticks(place, REGIMES)
            ax.set_title(title)
            ax.set_yscale("log")
        plots.legend(picture, picture.axes[0])
        picture.suptitle(
            f"Allocation and routing, alone and together  (modelled rung, {NODES} nodes)", x=0.01, ha="left"
        )
    return picture


def markdown(figures: dict[str, Any]) -> str:
    lines = "\n".join(
        f"| {row['regime']} | {row['system']} | {row['pair']} | {interval(row['mean_latency_ms'], 2)} | "
        f"{interval(row['p99_ms'], 1)} | {interval(row['p99_ms_over_both'], 1)} | "
        f"{interval(row['slo_satisfaction'], 1, 100)} |"
        for row in figures["rows"]
    )
    return f"""# Figure 13: allocation and routing, alone and together (modelled rung)

{figures["definition"]}

| regime | system | pair | mean ms | P99 ms | P99 over both ms | SLO % |
|---|---|---|---|---|---|---|
{lines}

Profile {figures["profile"]}, {len(figures["seeds"])} seeds, {figures["machine"]}, {figures["date"]}.
"""
