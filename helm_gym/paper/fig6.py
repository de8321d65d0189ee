"""Figures 6 and 10: hit rates and P99 of the routers, and what their scores are made of."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as Picture
from numpy.typing import NDArray

from helm_gym.cluster.topology import Cluster, Node
from helm_gym.evaluation import plots
from helm_gym.evaluation.formatting import interval
from helm_gym.evaluation.statistics import paired_difference
from helm_gym.paper import Reproduction, Stage
from helm_gym.paper.cached_cluster_evaluation import ClusterParts, Values, figure, shared, short_task
from helm_gym.profile import Profile

SIZES = {4: 1.0, 8: 1.0, 32: 0.4}  # nodes -> share of the seeds: an episode of 32 nodes is as much as eight of 4
ROUTERS = {  # and the tints that they are drawn in
    "joint": "#22262B",
    "kv-aware": "#2F6F9F",
    "emb-aware": "#C9772B",
    "consistent-hash": "#7FA6C9",
    "least-loaded": "#8A6FA8",
    "round-robin": "#B9C0CA",
    "random": "#D8DCE2",
}
PAPER = {"emb-aware": "EMB Aware", "kv-aware": "KV Aware", "joint": "GR Aware"}
SPLIT = "static:0.6"
REGIME = "burst"


def measure(profile: Profile, seeds: int, stage: Stage, folder: pathlib.Path, sizes: dict[int, float]) -> Any:
    """Every router's figures by seed: size -> router -> metric."""
    parts, task = ClusterParts(folder, profile), short_task(REGIME)
    found: dict[int, dict[str, Values]] = {}
    for size, share in sizes.items():
        cluster, chosen = Cluster((Node(size),)), range(max(2, round(share * seeds)))
        found[size] = {}
        for router in ROUTERS:
            with stage(f"{size} nodes, {router}") as tick:
                found[size][router] = parts.measure(task, f"{SPLIT}+{router}", cluster, chosen, tick)
    return found


def reproduce(profile: Profile, seeds: int, stage: Stage, folder: pathlib.Path) -> Reproduction:
    """Hit rates and P99 of every router at three sizes, and joint routing against each of the others, paired."""
    found = measure(profile, seeds, stage, folder, SIZES)
    made = {
        "figure": "fig6",
        "rows": [
            {
                "nodes": size,
                "router": router,
                "seeds": len(values["p99_ms"]),
                **{name: figure(values[name]) for name in ("emb_hit_rate", "kv_hit_rate", "p99_ms", "mean_latency_ms")},
                **{name: figure(values[name]) for name in ("utilisation", "slo_satisfaction", "imbalance")},
                "p99_over_joint_ms": _over(values, routers["joint"]),
            }
            for size, routers in found.items()
            for router, values in routers.items()
        ],
        "definition": f"Task {REGIME}-v0, 160 scored intervals, every node at {SPLIT}; interquartile means over seeds "
        "with 95% bootstrap intervals; p99_over_joint_ms: P99 less joint routing's, seed by seed.",
        "paper": {
            "rows": {"EMB Aware": [69, 4], "KV Aware": [42, 29], "GR Aware": [66, 24]},
            "columns": "EMB and KV hit rates (%), as far as the figure can be read",
        },
        **shared(profile),
    }
    return Reproduction(made, draw(made), markdown(made))


def _over(values: Values, joint: Values) -> dict[str, float | None]:
    return paired_difference(values["p99_ms"], joint["p99_ms"], np.random.default_rng(0)).to_json()


def draw(figures: dict[str, Any]) -> Picture:
    """A panel a figure: every router at every size, with intervals."""
    shown = {"emb_hit_rate": "EMB hit rate", "kv_hit_rate": "KV hit rate", "p99_ms": "P99 of sojourn (ms, log)"}
    sizes = list(dict.fromkeys(row["nodes"] for row in figures["rows"]))
    place = np.arange(len(sizes))
    with rc_context(plots.RC):
        picture = Picture((11.0, 4.0), layout="constrained")
        for ax, (metric, title) in zip(picture.subplots(1, len(shown)), shown.items(), strict=True):
            for number, (router, tint) in enumerate(ROUTERS.items()):
                rows = [row for row in figures["rows"] if row["router"] == router]
                at = place + 0.11 * (number - (len(ROUTERS) - 1) / 2)
                ax.vlines(at, *_ends(rows, metric), color=tint, linewidth=1.2)
                ax.plot(at, [row[metric]["value"] for row in rows], "o", color=tint, markersize=5, label=router)
            ax.set_xticks(place, [f"{size} nodes" for size in sizes])
            ax.set_title(title)
        picture.axes[-1].set_yscale("log")
        plots.legend(picture, picture.axes[0])
        picture.suptitle(
            f"What each router hits, and its tail  (modelled rung, {figures['profile']})", x=0.01, ha="left"
        )
    return picture


def _ends(rows: list[dict[str, Any]], metric: str) -> NDArray[np.float64]:
    return np.array([[row[metric][end] for row in rows] for end in ("low", "high")], np.float64)


def markdown(figures: dict[str, Any]) -> str:
    lines = "\n".join(
        f"| {row['nodes']} | {row['router']} | {interval(row['emb_hit_rate'], 1, 100)} | "
        f"{interval(row['kv_hit_rate'], 1, 100)} | {interval(row['p99_ms'], 1)} | "
        f"{interval(row['p99_over_joint_ms'], 1)} | {interval(row['utilisation'], 2)} | {row['seeds']} |"
        for row in figures["rows"]
    )
    return f"""# Figure 6: what each router hits, and its tail (modelled rung)

{figures["definition"]}

| nodes | router | EMB hit % | KV hit % | P99 ms | P99 over joint ms | busy | seeds |
|---|---|---|---|---|---|---|---|
{lines}

The paper (as far as its figure can be read; EMB / KV hit %): EMB-aware 69 / 4, KV-aware 42 / 29, joint 66 / 24.

Profile {figures["profile"]}, {figures["machine"]}, {figures["date"]}.
"""
