"""``helm-gym evaluate --cluster``: pairs of a controller and a router on a cluster, as a table or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helm_gym.cli.common import Progress, print_json, print_table
from helm_gym.profile import Profile
from helm_gym.tasks import Task
from helm_gym.workload.traces import Trace

_COLUMNS = {  # figure -> (heading, digits, scale)
    "mean_latency_ms": ("mean ms", 2, 1.0),
    "p99_ms": ("P99 ms", 1, 1.0),
    "p99_ms_over_first": ("P99 over first", 1, 1.0),
    "slo_satisfaction": ("SLO %", 1, 100.0),
    "emb_hit_rate": ("EMB hit %", 1, 100.0),
    "kv_hit_rate": ("KV hit %", 1, 100.0),
    "utilisation": ("busy", 2, 1.0),
    "mean_alpha": ("alpha", 2, 1.0),
    "imbalance": ("imbalance", 2, 1.0),
    "rerouted": ("rerouted", 0, 1.0),
    "given_up": ("given up", 0, 1.0),
}


def evaluate_cluster(
    task: Task,
    pairs: Sequence[str],
    cluster: str,
    backend: str,
    profile: Profile,
    seeds: Sequence[int] | None,
    trace: Trace | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Opens what was asked for, runs it and prints it; see ``helm-gym evaluate``."""
    from helm_gym.cluster import find_cluster
    from helm_gym.evaluation import clusters
    from helm_gym.observation import ObservationLayout

    found, layout = find_cluster(cluster), ObservationLayout(profile)
    opened = [clusters.open_pair(text, layout) for text in pairs]
    with Progress(quiet).stage(f"{task.name} on {found.size} nodes") as tick:
        evaluation = clusters.evaluate(task, opened, found, backend, profile, seeds, trace, tick)
    figures: dict[str, Any] = evaluation.to_json()
    if as_json:
        return print_json(figures)
    rows = [
        [pair["name"], *(_cell(name, pair[name], digits, scale) for name, (_, digits, scale) in _COLUMNS.items())]
        for pair in figures["pairs"]
    ]
    count = len(evaluation.seeds)
    where = f"{evaluation.rung} rung, {count} seed{'s' * (count > 1)}, {evaluation.machine}, {evaluation.date}"
    headings = ["controller+router", *(heading for heading, _, _ in _COLUMNS.values())]
    print_table(f"{task.name}, {found.size} nodes of {profile.name} ({where})", headings, rows)


def _cell(name: str, figure: dict[str, float | None], digits: int, scale: float) -> str:
    """Tails with their intervals; of the rest the value, for a table's width (``--json`` has all)."""
    from helm_gym.paper.words import interval

    return interval(figure if name.startswith("p99") else figure | {"low": None, "high": None}, digits, scale)
