"""Figure 15: the controller's alpha over a four-hour window against the offline optimum."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as Picture
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.evaluation import plots
from helm_gym.evaluation.formatting import interval
from helm_gym.evaluation.results import Episodes, Evaluation
from helm_gym.evaluation.statistics import Figure, bootstrap, iqm
from helm_gym.paper import Reproduction, Stage
from helm_gym.paper.cached_evaluation import Parts, open_if_there
from helm_gym.profile import Profile
from helm_gym.tasks import find_task

POLICIES = ("three-layer-ppo", "miss-ratio-curve")
HOURS = 4.0
INTERVALS = 1440  # of the window: one stands for ten seconds
NEAR = 0.05
_REGIME = {"calm": "steady", "trend": "trend", "wave": "burst", "flood": "burst", "viral": "burst"}


def reproduce(profile: Profile, seeds: int, stage: Stage, folder: pathlib.Path) -> Reproduction:
    """Runs the controller through windows in which calms, trends and bursts follow one another."""
    parts = Parts(folder, profile, range(seeds))
    policies = [policy for policy in (open_if_there(name, parts.layout) for name in POLICIES) if policy is not None]
    if not policies:
        raise InvalidInputError(f"Neither of {', '.join(POLICIES)} is there for profile '{profile.name}'.")
    task = dataclasses.replace(find_task("mixed-v0"), horizon=INTERVALS)
    with stage("fig15") as tick:
        run = parts.evaluate(task, policies, tick)
    interval_s = float(run.policies[0].nodes["interval_arrival_s"].mean())
    figures: dict[str, Any] = {
        "figure": "fig15",
        "hours": HOURS,
        "intervals": INTERVALS,
        "interval_s": interval_s,
        "intervals_of_four_hours": round(HOURS * 3600 / interval_s),
        "policies": {episodes.policy: _follows(run, episodes) for episodes in run.policies},
        "definition": f"gap: mean |alpha - alpha*|; near: share of intervals with alpha within {NEAR} of alpha*; "
        "correlation: of alpha with alpha* over a window; interquartile means over windows, 95% bootstrap intervals. "
        "interval_s: time that an interval of 50 requests takes at this profile's arrival rate.",
        "paper": {"hours": HOURS, "data": "Amazon-Books", "gap_range": [0.024, 0.029]},
        **run.provenance(),
    }
    return Reproduction(figures, draw(run, figures), markdown(figures))


def _follows(run: Evaluation, episodes: Episodes) -> dict[str, Any]:
    """How closely a policy follows alpha*: overall, and its gap by regime."""
    assert run.optimum is not None
    star, apart = run.optimum.alpha_star, np.abs(episodes.alpha - run.optimum.alpha_star)
    regimes = regime_of_each(run)
    correlation = [np.corrcoef(a, s)[0, 1] for a, s in zip(episodes.alpha, star, strict=True)]
    by_regime = {}
    for regime in dict.fromkeys(_REGIME.values()):
        mask = regimes == regime
        lanes = mask.any(axis=1)
        by_regime[regime] = _over_windows((apart * mask).sum(axis=1)[lanes] / mask.sum(axis=1)[lanes]).to_json()
    return {
        "gap": _over_windows(apart.mean(axis=1)).to_json(),
        "gap_by_regime": by_regime,
        "near": _over_windows((apart <= NEAR).mean(axis=1)).to_json(),
        "correlation": _over_windows(np.array(correlation)).to_json(),
    }


def regime_of_each(run: Evaluation) -> NDArray[np.str_]:
    """Steady, trend or burst, (lanes, T)."""
    kinds = [[_REGIME[run.path.kind[lane][s]] for s in row] for lane, row in enumerate(run.path.segment)]
    return np.array(kinds)


def _over_windows(values: NDArray[np.float64]) -> Figure:
    """NaN where no window has what is asked for: a regime that none holds, or a correlation of a split that is held."""
    values = values[np.isfinite(values)]
    if not len(values):
        return Figure(np.nan, np.nan, np.nan)
    return bootstrap((values,), iqm, np.random.default_rng(0))


def draw(run: Evaluation, figures: dict[str, Any]) -> Picture:
    """One window: a panel a policy, alpha over alpha*, whose dots tell the regime."""
    assert run.optimum is not None
    hours = np.arange(INTERVALS) * HOURS / INTERVALS
    regimes, star, seed = regime_of_each(run)[0], run.optimum.alpha_star[0], run.seeds[0]
    with rc_context(plots.RC):
        picture = Picture((11.5, 1.2 + 2.9 * len(run.policies)), layout="constrained")
        panels = picture.subplots(len(run.policies), 1, sharex=True, squeeze=False)[:, 0]
        for ax, episodes in zip(panels, run.policies, strict=True):
            for regime, kind in (("steady", "steady"), ("trend", "trend"), ("burst", "wave")):
                of = regimes == regime
                ax.scatter(hours[of], star[of], s=7, color=plots.KINDS[kind], alpha=0.6, label=f"alpha*, {regime}")
            ax.plot(hours, episodes.alpha[0], color=plots.INK, linewidth=1.1, label="alpha in force")
            ax.set(ylim=(0, 1), xlim=(0, HOURS), ylabel="alpha (EMB's share)")
            gap = figures["policies"][episodes.policy]["gap"]["value"]
            ax.set_title(f"{episodes.policy}: mean gap {gap:.3f}")
        panels[-1].set_xlabel(f"hours ({INTERVALS} intervals; one stands for {HOURS * 3600 / INTERVALS:g} s)")
        plots.legend(picture, panels[0])
        picture.suptitle(
            f"alpha over a four-hour window against the offline optimum  ({figures['rung']} rung, "
            f"{figures['profile']}, seed {seed} of {len(run.seeds)})",
            x=0.01,
            ha="left",
        )
    return picture


def markdown(figures: dict[str, Any]) -> str:
    """How closely each policy follows, in one table, and what the window stands for."""
    lines = "\n".join(
        f"| {name} | {interval(row['gap'], 3)} | "
        + " | ".join(interval(row["gap_by_regime"][regime], 3) for regime in ("steady", "trend", "burst"))
        + f" | {interval(row['near'], 2)} | {interval(row['correlation'], 2)} |"
        for name, row in figures["policies"].items()
    )
    faster = figures["intervals_of_four_hours"] / INTERVALS
    return f"""# Figure 15: alpha over a four-hour window ({figures["rung"]} rung)

| policy | gap | steady | trend | burst | within {NEAR} | correlation |
|---|---|---|---|---|---|---|
{lines}

- At this profile's arrival rate an interval of 50 requests takes {figures["interval_s"]:.2f} s, so that four hours are
  {figures["intervals_of_four_hours"]:,} intervals. The window is scaled: {INTERVALS:,} intervals, each of which stands
  for {HOURS * 3600 / INTERVALS:g} s, in which the workload changes {faster:.0f} times as fast as a clock would have it.
- Paper (Amazon-Books): gaps of {figures["paper"]["gap_range"][0]} to {figures["paper"]["gap_range"][1]} for its
  three-layer controller.

Profile {figures["profile"]}, {len(figures["seeds"])} windows, interquartile means with 95% bootstrap intervals,
{figures["machine"]}, {figures["date"]}.
"""
