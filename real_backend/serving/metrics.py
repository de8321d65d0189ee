"""Prometheus metrics of the service; docs/serving.md lists them, and dashboard.json draws them in Grafana."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from helm_gym.telemetry import AT
from real_backend.memory.ledger import KV_HITS, LOOKUPS, REQUESTS, ROW_MISSES
from real_backend.serving.errands import Report

_LATENCY_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_STEP_S = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 0.1, 1.0)


class Metrics:
    """All metrics, in a registry of their own.

    Args:
        pool_bytes: of a node.
    """

    def __init__(self, nodes: int, pool_bytes: int):
        self._pool_bytes = pool_bytes
        self.registry = registry = CollectorRegistry()

        def gauge(name: str, doc: str, *labels: str) -> Gauge:
            return Gauge(name, doc, labels, registry=registry)

        def counter(name: str, doc: str, *labels: str) -> Counter:
            return Counter(name, doc, labels, registry=registry)

        self.alpha = gauge("helm_alpha", "Share of the pool's pages that EMB owns.", "node")
        self.target = gauge("helm_target_alpha", "The share that EMB moves towards.", "node")
        self.pool = gauge("helm_pool_bytes", "Bytes of the pool by who owns them.", "node", "owner")
        self.requests = counter("helm_requests_total", "Requests by status of HTTP.", "protocol", "code")
        self.latency = Histogram(
            "helm_request_seconds",
            "Time from a request's last byte to its answer.",
            ["protocol"],
            buckets=_LATENCY_S,
            registry=registry,
        )
        self.hits = counter("helm_cache_hits_total", "Of EMB: rows looked up; of KV: requests.", "node", "cache")
        self.misses = counter("helm_cache_misses_total", "Of EMB: rows looked up; of KV: requests.", "node", "cache")
        self.h2d = counter("helm_h2d_bytes_total", "Bytes from host to device.", "node", "path")
        self.utilisation = gauge("helm_utilisation", "Service time over time, of the last window.", "node")
        self.moves = gauge("helm_move_seconds", "Time of page moves since the node's start.", "node", "while")
        self.step = Histogram(
            "helm_policy_step_seconds", "Time that the policy took.", buckets=_STEP_S, registry=registry
        )
        self.control = Histogram(
            "helm_control_seconds", "Time of a whole decision, guard included.", buckets=_STEP_S, registry=registry
        )
        self.interventions = counter(
            "helm_guard_interventions_total", "Decisions that were not the policy's, by reason.", "reason"
        )
        self.policy = gauge("helm_policy_info", "1 for the policy that decides.", "sha256", "version")
        self.divergence = gauge(
            "helm_shadow_divergence", "Alpha that the policy in shadow would have set, less the real target.", "node"
        )
        self.spills = counter("helm_router_spill_total", "Requests that went elsewhere: their node had too much to do.")
        self.shed = counter("helm_shed_total", "Requests that found no room: 429.")
        self.retried = counter("helm_retried_total", "Requests of a lost node that another one took.")
        self.restarts = counter("helm_node_restarts_total", "Times that a node was lost.", "node")
        self.ready = gauge("helm_node_ready", "1 where a node can serve.", "node")
        self.under_way = gauge("helm_requests_under_way", "Requests that a node has not answered.", "node")
        self.users = gauge("helm_users", "Users that are remembered.")
        self.forgotten = counter("helm_users_forgotten_total", "Users that were forgotten for others.")
        for node in range(nodes):
            self.ready.labels(node).set(0)

    def note(self, report: Report) -> None:
        """An interval of a node."""
        node, row, sums = report.node, report.row, report.sums
        self.alpha.labels(node).set(report.alpha)
        self.target.labels(node).set(row[AT.target_alpha])
        self.pool.labels(node, "emb").set(report.alpha * self._pool_bytes)
        self.pool.labels(node, "kv").set((1.0 - report.alpha) * self._pool_bytes)
        self.hits.labels(node, "kv").inc(sums[KV_HITS])
        self.misses.labels(node, "kv").inc(sums[REQUESTS] - sums[KV_HITS])
        self.hits.labels(node, "emb").inc(sums[LOOKUPS] - sums[ROW_MISSES])
        self.misses.labels(node, "emb").inc(sums[ROW_MISSES])
        self.h2d.labels(node, "critical").inc(row[AT.h2d_critical_bytes])
        self.h2d.labels(node, "background").inc(row[AT.h2d_background_bytes])
        self.utilisation.labels(node).set(row[AT.utilisation])
        self.moves.labels(node, "nobody waits").set(report.move_s - report.waited_move_s)
        self.moves.labels(node, "requests wait").set(report.waited_move_s)

    def decided(self, node: int, decision: Any, took_s: float) -> None:
        """A decision of the controller's; took_s: with all around the policy."""
        self.control.observe(took_s)
        if decision.step_s > 0.0:
            self.step.observe(decision.step_s)
        if decision.reason is not None:
            self.interventions.labels(decision.reason).inc()
        if decision.shadow_alpha is not None:
            self.divergence.labels(node).set(decision.shadow_alpha - decision.target_alpha)

    def text(self) -> bytes:
        return generate_latest(self.registry)
