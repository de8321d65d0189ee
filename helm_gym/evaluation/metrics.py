"""What is reported: each metric once, with how it is computed, and how tables, pages and docs show it.

A metric that is added to ``METRICS`` is in the JSON object, the command line's table, the HTML report and
docs/figures.md, for single nodes and clusters alike.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from helm_gym.evaluation import gains
from helm_gym.evaluation.gains import BySeed, Compute
from helm_gym.evaluation.optimum import near_optimal
from helm_gym.evaluation.results import Episodes, Evaluation, Values

Row = Mapping[str, Any]
NO_VALUE = "–"  # in a table
_EXACT_GAIN = 10.0


def always(evaluation: Evaluation) -> bool:
    return True


def on_nodes(evaluation: Evaluation) -> bool:
    """Whether each node serves alone, so that there can be references to count gains from."""
    return evaluation.cluster is None


def with_optimum(evaluation: Evaluation) -> bool:
    return evaluation.optimum is not None


def in_cluster(evaluation: Evaluation) -> bool:
    return evaluation.cluster is not None


def replayed(evaluation: Evaluation) -> bool:
    """Whether the same was run on the modelled rung, too."""
    return evaluation.modelled is not None


@dataclasses.dataclass(frozen=True)
class Metric:
    """One figure of a policy.

    Attributes:
        key: its name in the JSON object.
        heading: of its column.
        doc: what it is, for whoever reads the column.
        figure: of a policy's episodes.
        by_seed: one value an episode, (seeds,), where ``figure`` is their interquartile mean.
        exists: which evaluations have it.
        shown: in which of them tables have it as a column.
        digits, scale: of the column's numbers.
        best: which end is good.
        exact: a number beyond it, either way, is shown as beyond it, since it says no more than that.
    """

    key: str
    heading: str
    doc: str
    figure: Compute
    by_seed: BySeed | None = None
    exists: Callable[[Evaluation], bool] = always
    shown: Callable[[Evaluation], bool] = always
    digits: int = 2
    scale: float = 1.0
    best: Callable[[Iterable[float]], float] | None = min
    exact: float = math.inf

    def text(self, row: Row) -> str:
        """``value [low, high]`` of a row of the JSON object; a dash where there is none."""
        value, low, high = (self.number(row, end) for end in ("value", "low", "high"))
        if not math.isfinite(value):
            return NO_VALUE
        shown, *ends = map(self._form, (value, low, high))
        known = math.isfinite(low + high) and (abs(value) <= self.exact or ends != [shown, shown])
        return f"{shown} [{', '.join(ends)}]" if known else shown

    def _form(self, number: float) -> str:
        if abs(number) > self.exact:
            return f"<-{self.exact:g}" if number < 0 else f">{self.exact:g}"
        return f"{number:.{self.digits}f}"

    def number(self, row: Row, end: str = "value") -> float:
        """A figure's value or an end of its interval, scaled for the column; NaN where there is none."""
        number = (row.get(self.key) or {}).get(end)
        return math.nan if number is None else self.scale * float(number)


def _answers(episodes: Episodes) -> Values:
    return np.isfinite(episodes.sojourn_ms).sum(axis=(1, 2)).astype(np.float64)


def _throughput_rps(episodes: Episodes) -> Values:
    """Answers over the time from the first scored interval's start to the last answer."""
    span_s = episodes.nodes["interval_arrival_s"].max(axis=2).sum(axis=1)
    return _answers(episodes) / (span_s + 1e-3 * np.nanmax(episodes.sojourn_ms[:, -1], axis=1))


def _imbalance(episodes: Episodes) -> Values:
    busy = np.where(episodes.alive, episodes.nodes["utilisation"], np.nan)
    return np.asarray((np.nanstd(busy, axis=2) / np.maximum(1e-9, np.nanmean(busy, axis=2))).mean(axis=1))


def _sum_of(field: str) -> Callable[[Evaluation, Episodes], Values]:
    return lambda _, episodes: np.asarray(episodes.nodes[field].sum(axis=(1, 2)))


def _star(evaluation: Evaluation) -> Values:
    assert evaluation.optimum is not None
    return evaluation.optimum.alpha_star


def _near(evaluation: Evaluation, episodes: Episodes) -> Values:
    assert evaluation.optimum is not None
    return np.asarray(near_optimal(evaluation.optimum, episodes.alpha).mean(axis=1), np.float64)


def by_seed(key: str, heading: str, doc: str, of: BySeed, **shown: Any) -> Metric:
    """A metric of one value an episode; ``shown``: the other attributes of ``Metric``."""
    return Metric(key, heading, doc, functools.partial(gains.aggregate, of), of, **shown)


def _never(evaluation: Evaluation) -> bool:
    return False


_PER_EPISODE = (
    by_seed("mean_latency_ms", "mean ms", "mean latency, arrival to answer", lambda _, e: e.mean_latency_ms()),
    by_seed("p99_ms", "P99 ms", "99th percentile of latency", lambda _, e: e.p99_ms(), digits=1),
    by_seed(
        "slo_satisfaction",
        "SLO %",
        "answers within the SLO",
        lambda _, e: 1.0 - e.over_requests("interval_violations").mean(axis=1),
        digits=1,
        scale=100.0,
        best=max,
    ),
    by_seed("throughput_rps", "answers/s", "answers a second", lambda _, e: _throughput_rps(e), shown=_never, best=max),
    by_seed(
        "service_ms",
        "service ms",
        "mean service time",
        lambda _, e: e.over_requests("interval_service_ms").mean(axis=1),
        shown=_never,
    ),
    by_seed(
        "emb_hit_rate",
        "EMB hit %",
        "row look-ups served from the pool; of a cluster, nodes alive averaged",
        lambda _, e: e.over_nodes("emb_hit_rate").mean(axis=1),
        shown=in_cluster,
        digits=1,
        scale=100.0,
        best=max,
    ),
    by_seed(
        "kv_hit_rate",
        "KV hit %",
        "requests whose user's KV was there; of a cluster, nodes alive averaged",
        lambda _, e: e.over_nodes("kv_hit_rate").mean(axis=1),
        shown=in_cluster,
        digits=1,
        scale=100.0,
        best=max,
    ),
    by_seed(
        "utilisation",
        "busy",
        "busy share of time; of a cluster, nodes alive averaged",
        lambda _, e: e.over_nodes("utilisation").mean(axis=1),
        shown=in_cluster,
        best=None,
    ),
    by_seed(
        "mean_alpha",
        "alpha",
        "EMB's share of the pool; of a cluster, nodes alive averaged",
        lambda _, e: e.alpha.mean(axis=1),
        shown=in_cluster,
        best=None,
    ),
    by_seed(
        "imbalance",
        "imbalance",
        "standard deviation over nodes of their busy share, over its mean",
        lambda _, e: _imbalance(e),
        exists=in_cluster,
    ),
    by_seed(
        "alpha_gap",
        "alpha gap",
        "mean distance from the offline optimum alpha*",
        lambda run, e: np.abs(e.alpha - _star(run)).mean(axis=1),
        exists=with_optimum,
        digits=3,
    ),
    by_seed(
        "alpha_near_optimal",
        "near alpha*",
        "share of intervals in which alpha costs at most 1% more than alpha*",
        _near,
        exists=with_optimum,
        shown=_never,
        best=max,
    ),
    by_seed("cost", "cost", "the task's cost", lambda _, e: e.cost.mean(axis=1), shown=_never),
    by_seed(
        "moved_bytes",
        "moved MB",
        "bytes of the pages that changed hands in an episode, all nodes",
        lambda _, e: e.nodes["moved_bytes"].sum(axis=2).sum(axis=1),
        shown=_never,
        scale=1e-6,
    ),
    by_seed(
        "h2d_critical_bytes",
        "critical MB",
        "bytes from host to device that requests waited for in an episode, all nodes",
        lambda _, e: e.nodes["h2d_critical_bytes"].sum(axis=2).sum(axis=1),
        shown=_never,
        scale=1e-6,
    ),
    by_seed(
        "moves_ms",
        "moves ms",
        "the server's time for moving rows when alpha changes, in an episode, all nodes",
        _sum_of("moves_ms"),
        shown=_never,
    ),
    by_seed(
        "offloads_ms",
        "offloads ms",
        "what requests waited for KV to go down, in an episode, all nodes",
        _sum_of("offloads_ms"),
        shown=_never,
    ),
    by_seed(
        "delay_ms",
        "delay ms",
        "what background traffic added to requests' transfers, in an episode, all nodes",
        _sum_of("delay_ms"),
        shown=_never,
    ),
    by_seed(
        "background_ms",
        "background ms",
        "the link's time for background traffic, in an episode, all nodes",
        _sum_of("background_ms"),
        shown=_never,
    ),
    by_seed(
        "spilled",
        "spilled",
        "share of requests that went elsewhere because a node's load was bounded",
        lambda _, e: (e.traffic["spills"] / np.maximum(1, e.requests.sum(axis=2))).mean(axis=1),
        exists=in_cluster,
        shown=_never,
    ),
    by_seed(
        "rerouted",
        "rerouted",
        "requests of lost nodes that others served again",
        lambda _, e: e.traffic["rerouted"].sum(axis=1).astype(np.float64),
        exists=in_cluster,
        digits=0,
    ),
    by_seed(
        "given_up",
        "given up",
        "requests of lost nodes that found no room elsewhere",
        lambda _, e: e.traffic["given_up"].sum(axis=1).astype(np.float64),
        exists=in_cluster,
        digits=0,
    ),
    by_seed(
        "requests", "answers", "answers of an episode", lambda _, e: _answers(e), shown=_never, digits=0, best=None
    ),
)
_COMPARED = ("mean_latency_ms", "p99_ms", "cost")  # with the first policy, seed by seed
_AGAINST = (
    *(
        Metric(
            f"{metric.key}_over_first",
            f"{metric.heading.split()[0]} over first",
            f"{metric.doc}, less the first policy's, seed by seed",
            functools.partial(gains.over_first, metric.by_seed),
            shown=in_cluster if metric.key == "p99_ms" else _never,
            digits=metric.digits,
        )
        for metric in _PER_EPISODE
        if metric.key in _COMPARED and metric.by_seed is not None
    ),
    Metric(
        "gain_captured",
        "gain, mean",
        "0: best static; 1: regime oracle; on mean latency",
        gains.gain_captured,
        exists=on_nodes,
        best=max,
        exact=_EXACT_GAIN,
    ),
    Metric(
        "gain_captured_p99",
        "gain, P99",
        "the same on P99 latency",
        gains.gain_captured_p99,
        exists=on_nodes,
        best=max,
        exact=_EXACT_GAIN,
    ),
    Metric(
        "gain_of_clairvoyant",
        "gain of clairvoyant",
        "0: best static; 1: clairvoyant; on mean latency",
        gains.gain_of_clairvoyant,
        exists=on_nodes,
        shown=_never,
        best=max,
    ),
    Metric(
        "gain_captured_modelled",
        "gain, modelled",
        "gain on mean latency on the modelled rung, same seeds",
        functools.partial(gains.modelled, gains.gain_captured),
        exists=replayed,
        shown=_never,
        best=max,
    ),
    Metric(
        "gain_lost",
        "gain lost, mean",
        "gain on the modelled rung, same seeds, less that here",
        functools.partial(gains.lost, gains.gain_captured),
        exists=replayed,
        exact=_EXACT_GAIN,
    ),
    Metric(
        "gain_captured_p99_modelled",
        "gain P99, modelled",
        "gain on P99 latency on the modelled rung, same seeds",
        functools.partial(gains.modelled, gains.gain_captured_p99),
        exists=replayed,
        shown=_never,
        best=max,
    ),
    Metric(
        "gain_lost_p99",
        "gain lost, P99",
        "the same on P99 latency",
        functools.partial(gains.lost, gains.gain_captured_p99),
        exists=replayed,
        exact=_EXACT_GAIN,
    ),
    Metric(
        "decision_us_p50",
        "decision µs",
        "median time from telemetry to action",
        functools.partial(gains.decision_us, 50),
        digits=1,
    ),
    Metric(
        "decision_us_p99",
        "decision P99 µs",
        "P99 of the same",
        functools.partial(gains.decision_us, 99),
        shown=_never,
        digits=1,
    ),
)
METRICS: dict[str, Metric] = {metric.key: metric for metric in (*_PER_EPISODE, *_AGAINST)}


def markdown() -> str:
    """The table of docs/figures.md."""
    rows = "\n".join(f"| `{metric.key}` | {metric.heading} | {metric.doc} |" for metric in METRICS.values())
    return f"| JSON key | column | what it is |\n|---|---|---|\n{rows}\n"
