"""Workloads: regimes, users, items and requests, recorded arrivals and their readers."""

from helm_gym.registry import register

register("regime", "steady", "helm_gym.workload.regimes:steady", "parameters fixed")
register("regime", "trend", "helm_gym.workload.regimes:trend", "parameters drift over the horizon")
register("regime", "burst", "helm_gym.workload.regimes:burst", "a calm that sudden jumps interrupt")
register("regime", "mixed", "helm_gym.workload.regimes:mixed", "segments of all kinds, for training")
register("regime", "trace", "helm_gym.workload.recorded:RECORDED", "arrivals from a recorded trace")
register("regime", "fitted", "helm_gym.workload.fitted:load", "parameters as in a log (`workload fit`)", "FILE")
register("task", "fitted", "helm_gym.workload.fitted:fitted_task", "parameters as in a log (`workload fit`)", "FILE")
