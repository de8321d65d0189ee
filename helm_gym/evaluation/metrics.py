"""What is reported: each metric of a policy's episodes, aggregated over seeds, and the JSON object that holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.evaluation.optimum import near_optimal
from helm_gym.evaluation.results import Episodes, Evaluation
from helm_gym.evaluation.statistics import Figure, bootstrap, captured_share, iqm

Values = NDArray[np.float64]
_BOOTSTRAP_SEED = 0  # of every figure's own generator, so that a figure does not depend on what else is reported
NONE = Figure(np.nan)


def static_name(alpha: float) -> str:
    return f"static:{alpha:g}"


def split_of(name: str) -> float:
    """The alpha of a static policy's name."""
    return float(name.removeprefix("static:"))


def mean_latency_ms(episodes: Episodes) -> Values:
    """Mean sojourn, arrival to answer, of each lane."""
    return np.asarray(episodes.sojourn_ms.mean(axis=(1, 2), dtype=np.float64))


def p99_ms(episodes: Episodes) -> Values:
    """P99 of sojourn over all requests of each lane's episode."""
    lanes = len(episodes.sojourn_ms)
    return np.asarray(np.percentile(episodes.sojourn_ms.reshape(lanes, -1), 99, axis=1), np.float64)


def _throughput_rps(episodes: Episodes) -> Values:
    """Answers over the time from the first scored interval's start to the last answer."""
    answers = episodes.sojourn_ms[0].size
    return answers / (episodes.arrival_s.sum(axis=1) + 1e-3 * episodes.sojourn_ms[:, -1].max(axis=1))


# One value a lane, (lanes,); bytes are an episode's total. In the order in which they are reported.
METRICS: dict[str, Callable[[Evaluation, Episodes], Values]] = {
    "mean_latency_ms": lambda evaluation, episodes: mean_latency_ms(episodes),
    "p99_ms": lambda evaluation, episodes: p99_ms(episodes),
    "slo_satisfaction": lambda evaluation, episodes: 1.0 - episodes.violations.mean(axis=1),
    "throughput_rps": lambda evaluation, episodes: _throughput_rps(episodes),
    "alpha_gap": lambda evaluation, episodes: np.abs(episodes.alpha - evaluation.optimum.alpha_star).mean(axis=1),
    "alpha_near_optimal": lambda evaluation, episodes: near_optimal(evaluation.optimum, episodes.alpha).mean(axis=1),
    "cost": lambda evaluation, episodes: episodes.cost.mean(axis=1),
    "moved_bytes": lambda evaluation, episodes: episodes.moved_bytes.sum(axis=1),
    "h2d_critical_bytes": lambda evaluation, episodes: episodes.h2d_critical_bytes.sum(axis=1),
}


def best_static(statics: Mapping[str, Episodes], tail: bool = False) -> str:
    """Which is best in hindsight over the requests of all lanes: by mean, or with ``tail`` by P99 sojourn."""

    def pooled(name: str) -> float:
        sojourn = statics[name].sojourn_ms
        return float(np.percentile(sojourn, 99) if tail else sojourn.mean(dtype=np.float64))

    return min(statics, key=pooled)


def best_static_p99(evaluation: Evaluation) -> float:
    """The static split that gains on P99 are counted from; NaN where there are no references."""
    statics = {name: episodes for name, episodes in evaluation.references.items() if name.startswith("static:")}
    return split_of(best_static(statics, tail=True)) if statics else np.nan


def summarise(evaluation: Evaluation, episodes: Episodes) -> dict[str, Figure]:
    """Every figure of one policy or reference, by its name in the JSON object."""

    def over_seeds(values: Values) -> Figure:
        return bootstrap((values,), iqm, _rng())

    def decision(percent: float) -> Figure:
        return bootstrap(
            (episodes.decision_us,), lambda samples, axis: np.percentile(samples, percent, axis=axis), _rng()
        )

    figures = {name: over_seeds(metric(evaluation, episodes)) for name, metric in METRICS.items()}
    figures["gain_captured"] = _gain(evaluation, episodes, mean_latency_ms, evaluation.best_static, "oracle")
    figures["gain_captured_p99"] = _gain(evaluation, episodes, p99_ms, best_static_p99(evaluation), "oracle")
    figures["gain_of_clairvoyant"] = _gain(evaluation, episodes, mean_latency_ms, evaluation.best_static, "clairvoyant")
    figures["decision_us_p50"], figures["decision_us_p99"] = decision(50), decision(99)
    return figures


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The object that ``helm-gym evaluate --json`` prints: strict JSON, null where a number does not exist.

    ``best_static`` is the alpha that gains on the mean are counted from, ``best_static_p99`` that of gains on P99. On
    another rung than the modelled one, ``gain_captured_modelled`` is a policy's gain on the same seeds there, and
    ``gain_lost`` what it is less here; with ``_p99`` the same of the gain on P99.
    """

    def row(episodes: Episodes) -> dict[str, Any]:
        figures = summarise(evaluation, episodes)
        figures |= _lost(evaluation, episodes, figures)
        return {"name": episodes.policy} | {name: figure.to_json() for name, figure in figures.items()}

    return {
        "task": evaluation.task.name,
        **evaluation.provenance(),
        "slo_ms": evaluation.slo_ms,
        "best_static": Figure(evaluation.best_static).to_json()["value"],
        "best_static_p99": Figure(best_static_p99(evaluation)).to_json()["value"],
        "policies": [row(episodes) for episodes in evaluation.policies],
        "references": [row(episodes) for episodes in evaluation.references.values()],
    }


def _lost(evaluation: Evaluation, episodes: Episodes, figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """The gains on the modelled rung, and what they are less on this one; nothing where that was not run."""
    there = evaluation.modelled
    same = next((other for other in there.policies if other.policy == episodes.policy), None) if there else None
    if there is None or same is None:
        return {}
    before, found = summarise(there, same), dict[str, Figure]()
    for name, lost in (("gain_captured", "gain_lost"), ("gain_captured_p99", "gain_lost_p99")):
        found |= {f"{name}_modelled": before[name], lost: Figure(before[name].value - figures[name].value)}
    return found


def _gain(
    evaluation: Evaluation, episodes: Episodes, metric: Callable[[Episodes], Values], static: float, limit: str
) -> Figure:
    """Share of what ``limit`` gains over the static split; no value where either was not run."""
    baseline, best = (evaluation.references.get(name) for name in (static_name(static), limit))
    if baseline is None or best is None:
        return NONE
    return captured_share(metric(baseline), metric(episodes), metric(best), _rng())


def _rng() -> np.random.Generator:
    return np.random.default_rng(_BOOTSTRAP_SEED)
