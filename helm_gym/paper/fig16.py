"""Figure 16: mean alpha of the controller over the cluster's size and the share of requests from hot users."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as Picture

from helm_gym.cluster.topology import Cluster, Node
from helm_gym.evaluation import plots
from helm_gym.paper import Reproduction, Stage
from helm_gym.paper.cached_cluster_evaluation import ClusterParts, figure, shared, short_task
from helm_gym.profile import Profile

SIZES = (1, 2, 4, 8, 16, 32)
HOT_SHARES = (0.2, 0.4, 0.6, 0.8, 0.95)
PAIR = "three-layer-ppo+joint"
SEEDS = 2
SPLIT = (0.33, 0.67)  # below: nearly all KV; above: nearly all EMB


def reproduce(profile: Profile, seeds: int, stage: Stage, folder: pathlib.Path) -> Reproduction:
    """Steady episodes at every size and hot share; the population is the profile's but for the share."""
    rows = []
    for hot_share in HOT_SHARES:
        population = dataclasses.replace(profile.population, hot_share=hot_share)
        parts = ClusterParts(folder, dataclasses.replace(profile, population=population), made_for=profile)
        for size in SIZES:
            chosen = range(min(seeds, SEEDS))
            with stage(f"{size} nodes, hot share {hot_share:g}") as tick:
                run = parts.measure(short_task("steady"), PAIR, Cluster((Node(size),)), chosen, tick)
            row = {"nodes": size, "hot_share": hot_share}
            rows.append(row | {name: figure(run[name]) for name in ("mean_alpha", "p99_ms", "kv_hit_rate")})
    made = {
        "figure": "fig16",
        "rows": rows,
        "pair": PAIR,
        "definition": f"Mean alpha over nodes and 160 intervals of steady-v0 after settling, {PAIR}, "
        f"{min(seeds, SEEDS)} seeds; the hot share of an episode is drawn within 15% of the one that is named.",
        "paper": "alpha falls from All-EMB over Split to All-KV as the hot share grows",
        **shared(profile),
    }
    return Reproduction(made, draw(made), markdown(made))


def _grid(figures: dict[str, Any]) -> np.ndarray[Any, Any]:
    """(hot shares, sizes)."""
    values = [row["mean_alpha"]["value"] for row in figures["rows"]]
    return np.array(values, np.float64).reshape(len(HOT_SHARES), len(SIZES))


def draw(figures: dict[str, Any]) -> Picture:
    """A map of mean alpha."""
    grid = _grid(figures)
    with rc_context(plots.RC):
        picture = Picture((6.4, 4.2), layout="constrained")
        ax = picture.subplots()
        image = ax.imshow(grid, vmin=0, vmax=1, cmap="RdYlBu", origin="lower", aspect="auto")
        for (y, x), alpha in np.ndenumerate(grid):
            ax.text(x, y, f"{alpha:.2f}", ha="center", va="center")
        ax.set_xticks(range(len(SIZES)), [str(size) for size in SIZES])
        ax.set_yticks(range(len(HOT_SHARES)), [f"{share:g}" for share in HOT_SHARES])
        ax.set_xlabel("nodes")
        ax.set_ylabel("hot share")
        ax.grid(False)
        picture.colorbar(image, label="mean alpha (EMB's share)")
        picture.suptitle(f"Mean alpha of {PAIR}  (modelled rung)", x=0.01, ha="left")
    return picture


def markdown(figures: dict[str, Any]) -> str:
    grid = _grid(figures)
    lines = "\n".join(
        f"| {share:g} | " + " | ".join(f"{alpha:.2f} ({_regime(alpha)})" for alpha in row) + " |"
        for share, row in zip(HOT_SHARES, grid, strict=True)
    )
    heads = " | ".join(f"{size} nodes" for size in SIZES)
    return f"""# Figure 16: mean alpha over cluster size and hot share (modelled rung)

{figures["definition"]}

| hot share | {heads} |
|---|{"---|" * len(SIZES)}
{lines}

The paper: {figures["paper"]}.

Profile {figures["profile"]}, {figures["machine"]}, {figures["date"]}.
"""


def _regime(alpha: float) -> str:
    return "All-KV" if alpha < SPLIT[0] else "All-EMB" if alpha > SPLIT[1] else "Split"
