"""Speed of the parts, each beside peers that ran in the same minutes on the same core.

Time is this process's CPU time, so that a neighbour on a shared machine slows nothing down but our patience; rates
are per second of one core. A figure is the median of a few runs, with the slowest and the fastest of them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib
import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym import profile as profiles
from helm_gym.backend import open_backend
from helm_gym.benchmarks.controller_time import controller_onnx_us, controller_us
from helm_gym.benchmarks.figure import RUNS, Figure, figure_of, rates_of
from helm_gym.benchmarks.reading_speed import (
    log_csv_rows_per_s,
    log_parquet_rows_per_s,
    trace_jsonl_rows_per_s,
    trace_rows_per_s,
)
from helm_gym.cluster.topology import Cluster, Node
from helm_gym.control_loop import ControlLoop
from helm_gym.errors import UnknownNameError
from helm_gym.tasks import find_task

_OF_REAL_BACKEND = "real_backend.benchmarks"  # what the contract of a backend does not tell
_BATCHING = "real_backend.batching"
_OPERATIONS = "real_backend.operations"
DECIDES, DECISIONS = "three-layer-ppo", 10_000  # whose decisions are timed, and how many in a run
TASK, ENV = "burst-v0", "helm/Burst-v0"
NODES = 32  # of the cluster whose router is timed
NODE_STEPS = 60  # of all lanes, in a run
EPISODE = 481  # steps of an episode and of the autoreset behind it
_EPISODE = "{} lanes; observation, noise, reward, info and one autoreset in each run; a lane-step serves 50 requests"


def hit_ms() -> Figure:
    """Compute time of a request whose user's KV is cached, beside plain torch that computes the whole history."""
    return _request_ms("hit")


def miss_ms() -> Figure:
    """The same of a request whose user's KV is not cached."""
    return _request_ms("miss")


def _request_ms(kind: str) -> Figure:
    ours, plain = importlib.import_module(_BATCHING).request_ms(profiles.load("cpu-small"), kind, RUNS)
    doc = f"a {kind} of cpu-small's mean history, delta and candidates, alone in its micro-batch; one core"
    return figure_of(ours, "ms", "measured", doc, {"torch without a cache": statistics.median(plain)})


def bookkeeping_share() -> Figure:
    """The memory manager's own time over service time, on the measured rung."""
    shares = importlib.import_module(_OF_REAL_BACKEND).bookkeeping_shares(find_task(TASK), RUNS)
    return figure_of(shares, "of service time", "measured", "the memory manager's CPU time over service time")


def modelled_requests_per_s() -> Figure:
    """Requests through the whole control loop: sampling, serving, telemetry and observation, one lane."""
    task = find_task(TASK)
    with contextlib.closing(open_backend("modelled", profiles.load(task.profile))) as backend:
        loop = ControlLoop(dataclasses.replace(task, warmup=4), backend, intervals=200)
        still = np.zeros((1, 1, 1))
        loop.reset([0])

        def serve() -> None:
            loop.t = 0  # the path again, from warm caches: a reset is no request
            for _ in range(loop.intervals):
                loop.step(still)

        runs = rates_of(serve, loop.intervals * loop.profile.interval.requests)
    return figure_of(runs, "requests/s", "modelled", "whole control loop with telemetry, one lane, one core")


def batch_requests_per_s() -> Figure:
    """Requests a second of a loaded node by size of its micro-batches, measured and modelled, and their padding."""
    by_batch = dataclasses.asdict(importlib.import_module(_BATCHING).batch_rates(profiles.load("cpu-small")))
    doc = "cpu-small with max_batch 1 to 8, 5,000 requests/s offered, one core; value: the largest micro-batches"
    figure = figure_of([by_batch["measured"][max(by_batch["measured"])]], "requests/s", "measured", doc)
    return dataclasses.replace(figure, by_batch={k: of for k, of in by_batch.items() if k != "cost"})


def device_operations() -> Figure:
    """Operations that a hit gives to a GPU at DLRMv3's depth (5 layers), beside a miss and the padded path."""
    counts = importlib.import_module(_OPERATIONS).device_operations(profiles.load("cpu-small"))
    paths = {"a miss": counts["pages"]["miss"]}
    paths |= {f"padded, a {kind}": counts["padded"][kind] for kind in ("hit", "miss")}
    doc = "5 layers, group norm, bfloat16, over pages; counted on the CPU, the kernel as one launch a layer"
    return figure_of([float(counts["pages"]["hit"])], "operations", None, doc, paths)


def env_steps_per_s() -> Figure:
    """Steps of the single Gymnasium environment, beside classic environments."""
    runs = _steps(ENV, 4800)
    peers = {name: statistics.median(_steps(name, 4800)) for name in ("CartPole-v1", "Pendulum-v1")}
    return figure_of(
        runs, "steps/s", "surrogate", f"gym.make('{ENV}'); a step serves 50 requests, resets included", peers
    )


def modelled_env_steps_per_s() -> Figure:
    """The same environment on the modelled rung."""
    runs = _steps(ENV, 200, backend="modelled")
    return figure_of(runs, "steps/s", "modelled", f"gym.make('{ENV}', backend='modelled')")


def _lane_steps(lanes: int) -> Figure:
    runs = _vector_steps(ENV, EPISODE, lanes)
    peers = {"CartPole-v1": statistics.median(_vector_steps("CartPole-v1", EPISODE, lanes))}
    peers["Pendulum-v1"] = statistics.median(_steps("Pendulum-v1", 4800))
    return figure_of(runs, "lane-steps/s", "surrogate", _EPISODE.format(lanes), peers)


def lane_steps_per_s_64() -> Figure:
    """Lane-steps of the native vector environment: 64 lanes."""
    return _lane_steps(64)


def lane_steps_per_s_1024() -> Figure:
    """The same with 1,024 lanes."""
    return _lane_steps(1024)


def lane_steps_per_s_8192() -> Figure:
    """The same with 8,192 lanes."""
    return _lane_steps(8192)


def lane_steps_per_s_two_cores() -> Figure:
    """Two processes at once, each with 1,024 lanes: the sum of their rates."""
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        both = [future.result() for future in [pool.submit(_vector_steps, ENV, EPISODE, 1024) for _ in range(2)]]
    runs = [sum(rates) for rates in zip(*both, strict=True)]
    return figure_of(runs, "lane-steps/s", "surrogate", "two processes of 1,024 lanes each, at the same time")


def _node_steps(lanes: int) -> list[float]:
    """Node-steps a CPU second of the native vector environment of clusters of NODES."""
    from helm_gym.envs.cluster_vector import ClusterVectorEnv

    with contextlib.closing(ClusterVectorEnv(lanes, regime="burst", backend="surrogate", cluster=NODES)) as env:
        env.reset(seed=0)
        still = np.zeros((lanes, NODES + 3), np.float32)

        def work() -> None:
            for _ in range(NODE_STEPS):
                env.step(still)

        return rates_of(work, NODE_STEPS * lanes * NODES)


def node_steps_per_s_two_cores() -> Figure:
    """Nodes of a cluster's surrogate: two processes at once, each with half of 256 lanes of 32 nodes."""
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        both = [future.result() for future in [pool.submit(_node_steps, 128) for _ in range(2)]]
    runs = [sum(rates) for rates in zip(*both, strict=True)]
    doc = f"gym.make_vec('helm/Cluster-v0', backend='surrogate'), {NODES} nodes, two processes of 128 lanes at once"
    return figure_of(runs, "node-steps/s", "surrogate", f"{doc}; a node-step serves 50 requests")


def memory_8192_lanes_mb() -> Figure:
    """Largest resident memory of a process that steps 8,192 lanes through a reset, Python and all."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        used = pool.submit(_memory_mb, 8192).result()
    return figure_of(
        [used], "MB", "surrogate", "peak resident memory of the process, 8,192 lanes, one reset on the way"
    )


def _memory_mb(lanes: int) -> float:
    import resource

    _drive(ENV, EPISODE + 2, lanes)()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def _steps(name: str, steps: int, **arguments: Any) -> list[float]:
    import gymnasium as gym

    env = gym.make(name, **arguments)
    try:
        env.reset(seed=0)
        env.action_space.seed(0)
        actions = [env.action_space.sample() for _ in range(64)]

        def drive() -> None:
            for k in range(steps):
                _, _, terminated, truncated, _ = env.step(actions[k % 64])
                if terminated or truncated:
                    env.reset()

        return rates_of(drive, steps)
    finally:
        env.close()


def _vector_steps(name: str, steps: int, lanes: int) -> list[float]:
    return rates_of(_drive(name, steps, lanes), steps * lanes)


def _drive(name: str, steps: int, lanes: int) -> Callable[[], None]:
    """What steps the native vector environment ``steps`` times; an episode and its autoreset are so many."""
    import gymnasium as gym

    env = gym.make_vec(name, num_envs=lanes, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(16)]

    def drive() -> None:
        for k in range(steps):
            env.step(actions[k % 16])

    return drive


def decision_us_p50() -> Figure:
    """Median time from one node's telemetry to its allocation, of the shipped controller."""
    return _decision(50)


def decision_us_p99() -> Figure:
    """The 99th percentile of the same."""
    return _decision(99)


def _decision(percentile: int) -> Figure:
    runs, peers = ([float(np.percentile(times, percentile)) for times in side] for side in _decisions())
    doc = f"CPU time of a decision of {DECIDES}: observe, act and the target within its bounds; one node, one core"
    return figure_of(runs, "us", "surrogate", doc, {"PPO.predict of Stable-Baselines3": statistics.median(peers)})


@functools.cache  # both figures are of the same decisions
def _decisions() -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Times (us) of the shipped controller's decisions and of SB3's ``predict``, by turns, a run each."""
    from stable_baselines3 import PPO

    from helm_gym.benchmarks.decision_time import decision_us, predict_us, record
    from helm_gym.envs.sb3 import PartitionVecEnv
    from helm_gym.policies.opening import open_policy
    from helm_gym.policy import Floats

    layout, slo_ms, seen = record()
    policy = open_policy(DECIDES, layout)
    with contextlib.closing(PartitionVecEnv(1)) as env:
        model = PPO("MlpPolicy", env, device="cpu")  # 64-64, untrained: it takes as long

    def predict(row: Floats) -> object:
        return model.predict(row, deterministic=True)

    ours, theirs = [], []
    for _ in range(RUNS):
        ours.append(decision_us(policy, layout, slo_ms, seen, DECISIONS))
        theirs.append(predict_us(predict, layout.width, DECISIONS // 5))
    return ours, theirs


def routing_us() -> Figure:
    """Time in which a request of a cluster of 32 nodes finds its node, beside random choice in the same kernel."""
    rehearse = importlib.import_module(_OF_REAL_BACKEND).rehearse
    profile, intervals = Cluster((Node(NODES),)).widen(profiles.load("cpu-small")), 40
    requests = intervals * NODES * profile.interval.requests

    def runs(rule: str) -> list[float]:
        interval = rehearse(profile, NODES, rule)

        def work() -> None:
            for _ in range(intervals):
                interval()

        return [1e6 / rate for rate in rates_of(work, requests)]

    doc = f"CPU time a request, {NODES} nodes, joint score, refresh of the view included; made-up nodes and requests"
    return figure_of(runs("score"), "us", None, doc, {"random choice": statistics.median(runs("random"))})


FIGURES: dict[str, Callable[[], Figure]] = {
    figure.__name__: figure
    for figure in (
        modelled_requests_per_s,
        modelled_env_steps_per_s,
        env_steps_per_s,
        lane_steps_per_s_64,
        lane_steps_per_s_1024,
        lane_steps_per_s_8192,
        lane_steps_per_s_two_cores,
        node_steps_per_s_two_cores,
        memory_8192_lanes_mb,
        bookkeeping_share,
        batch_requests_per_s,
        hit_ms,
        miss_ms,
        device_operations,
        decision_us_p50,
        decision_us_p99,
        controller_us,
        controller_onnx_us,
        routing_us,
        trace_rows_per_s,
        trace_jsonl_rows_per_s,
        log_csv_rows_per_s,
        log_parquet_rows_per_s,
    )
}
GROUPS = {
    "decision": ["decision_us_p50", "decision_us_p99", "controller_us", "controller_onnx_us"],
    "surrogate": [name for name in FIGURES if "lane" in name or "node_steps" in name] + ["env_steps_per_s"],
    "real": [
        "modelled_requests_per_s",
        "modelled_env_steps_per_s",
        "bookkeeping_share",
        "batch_requests_per_s",
        "hit_ms",
        "miss_ms",
        "device_operations",
        "routing_us",
    ],
    "readers": ["trace_rows_per_s", "trace_jsonl_rows_per_s", "log_csv_rows_per_s", "log_parquet_rows_per_s"],
}


def names(only: Sequence[str]) -> list[str]:
    """Figures by name or group, all where ``only`` is empty.

    Raises:
        UnknownNameError: no such figure or group; the nearest name is given.
    """
    for name in only:
        if name not in FIGURES and name not in GROUPS:
            raise UnknownNameError("figure", name, [*FIGURES, *GROUPS])
    chosen = [figure for name in only for figure in GROUPS.get(name, [name])]
    return list(dict.fromkeys(chosen)) or list(FIGURES)


def measure(name: str) -> Figure:
    """Measures one figure, in seconds.

    Raises:
        UnknownNameError: no such figure; the nearest name is given.
    """
    return FIGURES[names([name])[0]]()
