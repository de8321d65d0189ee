"""How a policy compares: with the best static split, with an oracle, with the first policy, and with another rung.

Every figure has a generator of its own, so that none depends on what else is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from helm_gym.evaluation.results import Episodes, Evaluation, Values
from helm_gym.evaluation.statistics import Figure, bootstrap, captured_share, iqm, paired_difference

_BOOTSTRAP_SEED = 0
NONE = Figure(np.nan)

BySeed = Callable[[Evaluation, Episodes], Values]
Compute = Callable[[Evaluation, Episodes], Figure]


def static_name(alpha: float) -> str:
    return f"static:{alpha:g}"


def split_of(name: str) -> float:
    """The alpha of a static policy's name."""
    return float(name.removeprefix("static:"))


def best_static(statics: Mapping[str, Episodes], tail: bool = False) -> str:
    """Which is best in hindsight over the requests of all lanes: by mean, or with ``tail`` by P99 sojourn."""

    def pooled(name: str) -> float:
        sojourn = statics[name].all_answers_ms()
        return float(np.percentile(sojourn, 99) if tail else sojourn.mean(dtype=np.float64))

    return min(statics, key=pooled)


def best_static_p99(evaluation: Evaluation) -> float:
    """The static split that gains on P99 are counted from; NaN where there are no references."""
    statics = {name: episodes for name, episodes in evaluation.references.items() if name.startswith("static:")}
    return split_of(best_static(statics, tail=True)) if statics else np.nan


def _rng() -> np.random.Generator:
    return np.random.default_rng(_BOOTSTRAP_SEED)


def over_seeds(values: Values) -> Figure:
    """The interquartile mean over episodes with its interval."""
    return bootstrap((values,), iqm, _rng())


def aggregate(by_seed: BySeed, evaluation: Evaluation, episodes: Episodes) -> Figure:
    return over_seeds(by_seed(evaluation, episodes))


def over_first(by_seed: BySeed, evaluation: Evaluation, episodes: Episodes) -> Figure:
    own, first = (by_seed(evaluation, of) for of in (episodes, evaluation.policies[0]))
    return paired_difference(own, first, _rng())


def _gain(
    evaluation: Evaluation, episodes: Episodes, metric: Callable[[Episodes], Values], static: float, limit: str
) -> Figure:
    """Share of what ``limit`` gains over the static split; no value where either was not run."""
    baseline, best = (evaluation.references.get(name) for name in (static_name(static), limit))
    if baseline is None or best is None:
        return NONE
    return captured_share(metric(baseline), metric(episodes), metric(best), _rng())


def gain_captured(evaluation: Evaluation, episodes: Episodes) -> Figure:
    return _gain(evaluation, episodes, Episodes.mean_latency_ms, evaluation.best_static, "oracle")


def gain_captured_p99(evaluation: Evaluation, episodes: Episodes) -> Figure:
    return _gain(evaluation, episodes, Episodes.p99_ms, best_static_p99(evaluation), "oracle")


def gain_of_clairvoyant(evaluation: Evaluation, episodes: Episodes) -> Figure:
    return _gain(evaluation, episodes, Episodes.mean_latency_ms, evaluation.best_static, "clairvoyant")


def modelled(gain: Compute, evaluation: Evaluation, episodes: Episodes) -> Figure:
    """The same policy's gain on the modelled rung; none where it was not run there."""
    there = evaluation.modelled
    assert there is not None
    same = next((other for other in there.policies if other.policy == episodes.policy), None)
    return NONE if same is None else gain(there, same)


def lost(gain: Compute, evaluation: Evaluation, episodes: Episodes) -> Figure:
    return Figure(modelled(gain, evaluation, episodes).value - gain(evaluation, episodes).value)


def decision_us(percent: float, evaluation: Evaluation, episodes: Episodes) -> Figure:
    return bootstrap((episodes.decision_us,), lambda x, axis: np.percentile(x, percent, axis=axis), _rng())
