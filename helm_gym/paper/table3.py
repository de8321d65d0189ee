"""Table III: control strategies, by how far they stay from the offline optimum and by the time of a decision."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as Picture
from numpy.typing import NDArray

from helm_gym.benchmarks import decision_time
from helm_gym.evaluation import plots
from helm_gym.evaluation.formatting import interval, today
from helm_gym.evaluation.statistics import Figure, bootstrap, iqm
from helm_gym.paper import Reproduction, Stage
from helm_gym.paper.cached_evaluation import Parts, open_if_there
from helm_gym.policy import Oracle
from helm_gym.profile import Profile
from helm_gym.provenance import describe_machine, versions
from helm_gym.tasks import find_task

Values = NDArray[np.float64]
_RECORDED, _DECISIONS = 60, 1000  # intervals of telemetry, and decisions on them that are timed
REGIMES = ("steady", "trend", "burst")
# In the table's order: what knows nothing, what follows a rule, what predicts, what learns, what is told. Not the
# clairvoyant, which takes minutes an episode: `helm-gym evaluate --clairvoyant` has it.
METHODS = (
    *(f"static:{alpha:g}" for alpha in (0.1, 0.3, 0.5, 0.7, 0.9)),
    "best-static",
    "threshold",
    "shadow-gradient",
    "miss-bytes",
    "miss-ratio-curve",
    "lstm",
    "gbdt",
    "bayesian",
    "pid",
    "ppo",
    "recurrent-ppo",
    "maskable-ppo",
    "three-layer-ppo",
    "oracle",
)
# arXiv 2605.04450, Table III, as far as it is public: steady, trend, burst; a range where single figures are not.
PAPER: dict[str, dict[str, Any]] = {
    "static:0.1": {"gap": (0.292, 0.341, 0.331)},
    "static:0.3": {"gap": (0.092, 0.141, 0.131)},
    "static:0.5": {"gap": (0.108, 0.061, 0.072)},
    "static:0.7": {"gap": (0.308, 0.259, 0.269)},
    "static:0.9": {"gap": (0.508, None, None)},
    "lstm": {"gap_range": (0.041, 0.069)},
    "ppo": {"gap": (0.043, None, None)},
    "three-layer-ppo": {"gap_range": (0.024, 0.029), "decision_us": 32.0},
}


def reproduce(profile: Profile, seeds: int, stage: Stage, folder: pathlib.Path) -> Reproduction:
    """Runs every strategy that this version has through the three regimes on the modelled rung."""
    parts = Parts(folder, profile, range(seeds))
    policies = {name: open_if_there(name, parts.layout) for name in METHODS}
    rows = {name: policy for name, policy in policies.items() if policy is not None}
    measured: dict[str, dict[str, dict[str, Values]]] = {name: {} for name in rows}
    for regime in REGIMES:
        task = find_task(f"{regime}-v0")
        with stage(f"table3: {regime}") as tick:
            parts.optimum(task, tick)
        for name, policy in rows.items():
            with stage(f"table3: {regime}, {name}") as tick:
                measured[name][regime] = parts.measure(task, name, policy, tick)
    with stage("table3: time of a decision"):
        recorded = decision_time.record(_RECORDED, profile=profile, backend="modelled")
        times = {
            name: None if isinstance(policy, Oracle) else decision_time.decision_us(policy, *recorded, count=_DECISIONS)
            for name, policy in rows.items()
        }
    figures: dict[str, Any] = {
        "figure": "table3",
        "rows": [_row(name, measured[name], times[name]) for name in rows],
        "missing": [name for name in METHODS if name not in rows],
        "definition": "gap: mean |alpha - alpha*| over an episode's scored intervals, of the split in force from the "
        "offline optimum by replay; interquartile mean over seeds, 95% bootstrap interval. decision_us: median CPU "
        "time of one node's decision, telemetry to allocation. 'oracle' marks a row that is told the workload's truth.",
        "rung": "modelled",
        "profile": profile.name,
        "seeds": list(parts.seeds),
        "machine": describe_machine("cpu"),
        "versions": versions(),
        "date": today(),
    }
    return Reproduction(figures, draw(figures), markdown(figures))


def _row(name: str, measured: Mapping[str, Mapping[str, Values]], times: Values | None) -> dict[str, Any]:
    def figure(metric: str) -> dict[str, Figure]:
        return {regime: _over_seeds(values[metric]) for regime, values in measured.items()}

    gap, near, kept = figure("alpha_gap"), figure("alpha_near_optimal"), figure("slo_satisfaction")
    paper = dict(PAPER.get(name, {}))
    if "gap" in paper:
        paper["gap"] = dict(zip(REGIMES, paper["gap"], strict=True))
    return {
        "method": name,
        "oracle": times is None,
        "decision_us": None if times is None else float(np.median(times)),
        "decision_us_p99": None if times is None else float(np.percentile(times, 99)),
        "gap": {regime: value.value for regime, value in gap.items()},
        "gap_interval": {regime: value.to_json() for regime, value in gap.items()},
        "near_optimal": {regime: value.value for regime, value in near.items()},
        "slo_satisfaction": {regime: value.value for regime, value in kept.items()},
        "paper": paper or None,
    }


def _over_seeds(values: Values) -> Figure:
    return bootstrap((values,), iqm, np.random.default_rng(0))


def draw(figures: dict[str, Any]) -> Picture:
    """A panel a regime: each strategy's gap with its interval, and the paper's figure as a hollow diamond."""
    rows = figures["rows"]
    names = [row["method"] for row in rows]
    place = np.arange(len(rows))
    with rc_context(plots.RC):
        picture = Picture((11.5, 1.6 + 0.29 * len(rows)), layout="constrained")
        for ax, regime in zip(picture.subplots(1, len(REGIMES), sharey=True), REGIMES, strict=True):
            value = np.array([row["gap"][regime] for row in rows])
            low, high = (_ends(rows, regime, end) for end in ("low", "high"))
            ax.hlines(place, low, high, color=plots.INK, linewidth=1.2)
            ax.scatter(value, place, color=[plots.colour(name, names) for name in names], s=34, zorder=3)
            for at, row in zip(place, rows, strict=True):
                paper = row["paper"] or {}
                known = [v for v in (paper.get("gap", {}).get(regime),) if v is not None] or paper.get("gap_range", ())
                ax.plot(
                    known, [at] * len(known), "D-", color="#B00020", markerfacecolor="none", markersize=5, linewidth=0.8
                )
            ax.set(title=regime, xlabel="mean |alpha − alpha*|", xlim=(0, None))
        picture.axes[0].set_yticks(place, names)
        picture.axes[0].invert_yaxis()
        picture.suptitle(
            f"How far each strategy stays from the offline optimum  ({figures['rung']} rung, {figures['profile']}, "
            f"{len(figures['seeds'])} seeds; red diamonds: the paper's)",
            x=0.01,
            ha="left",
        )
    return picture


def _ends(rows: Sequence[Mapping[str, Any]], regime: str, end: str) -> Values:
    """One end of each row's interval, NaN where there is none."""
    return np.array([row["gap_interval"][regime][end] for row in rows], np.float64)


def markdown(figures: dict[str, Any]) -> str:
    """The table, the paper's figures beside ours."""
    lines = []
    for row in figures["rows"]:
        paper = row["paper"] or {}
        gaps = " | ".join(interval(row["gap_interval"][regime], 3) for regime in REGIMES)
        time = "–" if row["decision_us"] is None else f"{row['decision_us']:.0f} / {row['decision_us_p99']:.0f}"
        lines.append(f"| {row['method']} | {gaps} | {time} | {_paper(paper)} |")
    missing = figures["missing"]
    absent = f"\nNot there yet for this profile: {', '.join(missing)}.\n" if missing else ""
    return f"""# Table III: control strategies ({figures["rung"]} rung)

Mean |alpha − alpha*| in each regime, and the CPU time of a decision (median / P99, µs). Oracles are told the workload.

| method | steady | trend | burst | decision | paper: steady / trend / burst |
|---|---|---|---|---|---|
{chr(10).join(lines)}
{absent}
Profile {figures["profile"]}, {len(figures["seeds"])} seeds, interquartile means with 95% bootstrap intervals,
{figures["machine"]}, {figures["date"]}.
"""


def _paper(paper: Mapping[str, Any]) -> str:
    gap = paper.get("gap")
    words = " / ".join("–" if v is None else f"{v:.3f}" for v in gap.values()) if gap else ""
    if "gap_range" in paper:
        words = "{:.3f} to {:.3f}".format(*paper["gap_range"])
    return words + (f"; {paper['decision_us']:.0f} µs" if "decision_us" in paper else "")
