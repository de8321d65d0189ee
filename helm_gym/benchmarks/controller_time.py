"""How long a guarded decision takes (``helm_gym.deploy``), beside the policy's decision alone."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from helm_gym.benchmarks.decision_time import decision_us, record
from helm_gym.benchmarks.figure import Figure, figure_of
from helm_gym.deploy import Controller, ControlSettings
from helm_gym.policies.from_run import shipped_folder
from helm_gym.policies.opening import open_policy

RUNS, DECISIONS, WARM = 3, 6_000, 300


def controller_us() -> Figure:
    """Median time of a live node's decision under the shipped controller, in line, all guards on."""
    return _figure("three-layer-ppo")


def controller_onnx_us() -> Figure:
    """The same of the shipped PID as an ONNX file, which runs under a watchdog."""
    return _figure("")


def _figure(name: str) -> Figure:
    layout, slo_ms, seen = record()
    given = name or str(shipped_folder("pid", "agents", layout) / "policy.onnx")
    ours, peers = [], []
    for _ in range(RUNS):
        ours.append(_median_us(given, [values[0, 0].copy() for values in seen], slo_ms))
        peers.append(float(np.median(decision_us(open_policy(given, layout), layout, slo_ms, seen, DECISIONS))))
    what = name or "the shipped PID's ONNX file"
    doc = f"CPU time of Controller.decide with {what}: freshness, observe, act, guard, history; one node, one core"
    return figure_of(ours, "us", "surrogate", doc, {"observe, act and target alone": statistics.median(peers)})


def _median_us(given: str, rows: list[Any], slo_ms: float) -> float:
    times = np.empty(WARM + DECISIONS)
    patient = ControlSettings(slo_ms=slo_ms, deadline_s=1.0)  # of a shared machine: a pause is not the policy's doing
    with Controller("cpu-small", given, mode="active", settings=patient) as controller:
        for k in range(len(times)):
            row = rows[k % len(rows)]
            started = time.thread_time_ns()
            controller.decide(0, row, 0.15 * k)
            times[k] = time.thread_time_ns() - started
    return float(np.median(times[WARM:])) / 1e3
