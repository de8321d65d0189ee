"""Figure 4: latency over alpha by regime. Each regime asks for another split, and one split for all pays in P99."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as Picture
from numpy.typing import NDArray

from helm_gym.evaluation import plots
from helm_gym.evaluation.formatting import interval
from helm_gym.evaluation.results import Evaluation
from helm_gym.evaluation.statistics import Figure, bootstrap, iqm
from helm_gym.paper import Reproduction, Stage
from helm_gym.paper.cached_evaluation import Parts
from helm_gym.policies.opening import open_policy
from helm_gym.profile import Profile
from helm_gym.tasks import find_task

REGIMES = ("steady", "trend", "burst")
STATICS = tuple(f"static:{k / 10:g}" for k in range(1, 10))
HORIZON = 360
PAPER_SPAN = 0.35  # "shift of alpha* between regimes: up to .35"


def reproduce(profile: Profile, seeds: int, stage: Stage, folder: pathlib.Path) -> Reproduction:
    """Replays every regime at every alpha; on bursts also runs static splits and the oracle, queueing included."""
    parts, runs = Parts(folder, profile, range(seeds)), {}
    for regime in REGIMES:
        task = dataclasses.replace(find_task(f"{regime}-v0"), horizon=HORIZON)
        policies = [*STATICS, "oracle"] if regime == "burst" else []
        with stage(f"fig4: {regime}") as tick:
            runs[regime] = parts.evaluate(task, [open_policy(name, parts.layout) for name in policies], tick)
    stars = {name: star for run in runs.values() for name, star in alpha_star(run).items()}
    span = max(s.value for s in stars.values()) - min(s.value for s in stars.values())
    best, loss = best_static_p99_loss(runs["burst"])
    burst = runs["burst"]
    figures: dict[str, Any] = {
        "figure": "fig4",
        "alpha_star": {name: star.value for name, star in stars.items()},
        "alpha_star_interval": {name: star.to_json() for name, star in stars.items()},
        "alpha_star_span": span,
        "burst_best_static": best,
        "burst_best_static_p99_loss": loss.to_json(),
        "definition": "burst_best_static_p99_loss: P99 sojourn of the single split that is best by P99, over the "
        "regime oracle's, minus 1; interquartile means over seeds, 95% bootstrap interval",
        "paper": {"alpha_star_span": PAPER_SPAN},
        **burst.provenance(),
    }
    return Reproduction(figures, draw(runs, figures), markdown(figures))


def alpha_star(run: Evaluation) -> dict[str, Figure]:
    """Where each regime setting has its optimum: mean of its intervals, with an interval over seeds."""
    found = {}
    assert run.optimum is not None
    for name, mask in plots.settings(run.path).items():
        lanes = mask.any(axis=1)
        total = np.where(mask, run.optimum.alpha_star, 0.0).sum(axis=1)[lanes]
        found[name] = bootstrap(
            (total / mask.sum(axis=1)[lanes],), lambda x, axis: np.asarray(x.mean(axis)), np.random.default_rng(0)
        )
    return found


def best_static_p99_loss(run: Evaluation) -> tuple[str, Figure]:
    """The static split that is best by P99, and how much higher its P99 is than the oracle's."""
    p99 = {e.policy: e.p99_ms() for e in run.policies}
    best = min(STATICS, key=lambda name: float(iqm(p99[name])))

    def loss(static: NDArray[np.float64], oracle: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(iqm(static, axis) / iqm(oracle, axis) - 1.0)

    return best, bootstrap((p99[best], p99["oracle"]), loss, np.random.default_rng(0))


def draw(runs: dict[str, Evaluation], figures: dict[str, Any]) -> Picture:
    """Normalised latency over alpha, a panel a regime."""
    with rc_context(plots.RC):
        picture = Picture((12.0, 4.3), layout="constrained")
        for ax, (regime, run) in zip(picture.subplots(1, len(runs), sharey=True), runs.items(), strict=True):
            plots.cost_by_setting(ax, run, normalise=True)
            ax.set(xlabel="alpha (EMB's share)", xlim=(0, 1))
            ax.set_title(regime)
        picture.axes[0].set_ylabel("expected service / its least")
        picture.suptitle(
            f"The optimum moves by {figures['alpha_star_span']:.2f} between regimes  ({figures['rung']} rung, "
            f"{figures['profile']}, {len(figures['seeds'])} seeds; dot = alpha*)",
            x=0.01,
            ha="left",
        )
    return picture


def markdown(figures: dict[str, Any]) -> str:
    """The figure in words and one table."""
    stars = "\n".join(f"| {name} | {interval(star, 2)} |" for name, star in figures["alpha_star_interval"].items())
    loss = figures["burst_best_static_p99_loss"]
    return f"""# Figure 4: the optimum moves ({figures["rung"]} rung)

| regime setting | alpha* |
|---|---|
{stars}

- Span of alpha* between settings: **{figures["alpha_star_span"]:.2f}** (paper: up to {PAPER_SPAN}).
- On bursts the best single split ({figures["burst_best_static"]}) has a P99 that is
  **{interval(loss, 0, 100)}%** above that of an oracle that knows the regime.

Profile {figures["profile"]}, {len(figures["seeds"])} seeds, {figures["machine"]}, {figures["date"]}.
"""
