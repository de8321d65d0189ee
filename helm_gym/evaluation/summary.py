"""An evaluation's figures: by seed, of each policy, as a table's columns and rows, and as the JSON object."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from helm_gym.evaluation.gains import best_static_p99
from helm_gym.evaluation.metrics import METRICS, Metric, Row
from helm_gym.evaluation.results import Episodes, Evaluation, Values
from helm_gym.evaluation.statistics import Figure


def by_seed(evaluation: Evaluation, episodes: Episodes) -> dict[str, Values]:
    """Every metric that has one value an episode, (seeds,) each."""
    return {
        metric.key: metric.by_seed(evaluation, episodes)
        for metric in METRICS.values()
        if metric.by_seed is not None and metric.exists(evaluation)
    }


def summarise(evaluation: Evaluation, episodes: Episodes) -> dict[str, Figure]:
    """Every figure of one policy or reference, by its name in the JSON object."""
    return {key: metric.figure(evaluation, episodes) for key, metric in METRICS.items() if metric.exists(evaluation)}


def columns(evaluation: Evaluation, rows: Iterable[Row]) -> list[Metric]:
    """The columns of a table of these rows: those that have a number in it."""
    there = list(rows)
    return [
        metric
        for metric in METRICS.values()
        if metric.exists(evaluation)
        and metric.shown(evaluation)
        and any(math.isfinite(metric.number(row)) for row in there)
    ]


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The object that ``helm-gym evaluate --json`` prints: strict JSON, null where a number does not exist.

    ``best_static`` is the alpha that gains on the mean are counted from, ``best_static_p99`` that of gains on P99. On
    another rung than the modelled one, ``gain_captured_modelled`` is a policy's gain on the same seeds there, and
    ``gain_lost`` what it is less here; with ``_p99`` the same of the gain on P99. ``*_over_first`` is a policy's figure
    less the first policy's, seed by seed. ``series``, where a cluster lost a node: by interval, means over seeds.
    """

    def row(episodes: Episodes) -> dict[str, Any]:
        figures = {name: figure.to_json() for name, figure in summarise(evaluation, episodes).items()}
        return {"name": episodes.policy} | figures | _transient(episodes)

    cluster = evaluation.cluster
    return {
        "task": evaluation.task.name,
        **evaluation.provenance(),
        "nodes": 1 if cluster is None else cluster.size,
        "cluster": None if cluster is None else dataclasses.asdict(cluster),
        "in_turns": evaluation.in_turns,
        "slo_ms": evaluation.slo_ms,
        "best_static": Figure(evaluation.best_static).to_json()["value"],
        "best_static_p99": Figure(best_static_p99(evaluation)).to_json()["value"],
        "policies": [row(episodes) for episodes in evaluation.policies],
        "references": [row(episodes) for episodes in evaluation.references.values()],
    }


def _transient(episodes: Episodes) -> dict[str, Any]:
    """How a cluster fared interval by interval, where it lost a node: the loss shows, and the return."""
    if episodes.alive.all():
        return {}
    series = {
        "sojourn_ms": np.nanmean(episodes.sojourn_ms, axis=2),
        "p99_ms": np.nanpercentile(episodes.sojourn_ms, 99, axis=2),
        "alive": episodes.alive.mean(axis=2),
        **{name: episodes.over_nodes(name) for name in ("emb_hit_rate", "kv_hit_rate", "alpha")},
    }
    return {"series": {name: values.mean(axis=0).tolist() for name, values in series.items()}}
