"""Speed of the parts, each beside peers that ran in the same minutes on the same core.

Time is this process's CPU time, so that a neighbour on a shared machine slows nothing down but our patience; rates
are per second of one core. A figure is the median of a few runs, with the slowest and the fastest of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np

from helm_gym import profile as profiles
from helm_gym.backend import open_backend
from helm_gym.control_loop import ControlLoop
from helm_gym.errors import UnknownNameError
from helm_gym.tasks import find_task

RUNS = 3
LANES = 16
TASK = "burst-v0"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        value, low, high: median, least and largest of the runs.
        rung: of the backend underneath; none for a peer, which has no backend.
        peers: the same rate of others, measured in the same run; ``ratio`` is ours over theirs.
    """

    value: float
    low: float
    high: float
    unit: str
    rung: str | None
    doc: str
    peers: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def ratio(self) -> dict[str, float]:
        return {name: self.value / rate for name, rate in self.peers.items()}


def _rate(work: Callable[[], None], count: int) -> list[float]:
    """Units a CPU second in each run; ``work`` does ``count`` of them. One run first warms caches and compilers."""
    work()
    rates = []
    for _ in range(RUNS):
        started = time.process_time()
        work()
        rates.append(count / (time.process_time() - started))
    return rates


def _figure(runs: list[float], unit: str, rung: str | None, doc: str, peers: dict[str, float] | None = None) -> Figure:
    return Figure(statistics.median(runs), min(runs), max(runs), unit, rung, doc, peers or {})


def bookkeeping_share() -> Figure:
    """The memory manager's own time over service time, on the measured rung."""
    task = find_task(TASK)
    with contextlib.closing(open_backend("real", profiles.load(task.profile))) as backend:
        loop = ControlLoop(dataclasses.replace(task, warmup=4), backend, intervals=16)
        shares = []
        for seed in range(RUNS):
            loop.reset([seed])
            for _ in range(loop.intervals):
                loop.step(np.zeros((1, 1, 1)))
            shares.append(backend.bookkeeping_ms / backend.service_ms)  # type: ignore[attr-defined]
    return _figure(shares, "of service time", "measured", "the memory manager's CPU time over service time")


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

        runs = _rate(serve, loop.intervals * loop.profile.interval.requests)
    return _figure(runs, "requests/s", "modelled", "whole control loop with telemetry, one lane, one core")


def env_steps_per_s() -> Figure:
    """Steps of the single Gymnasium environment, beside classic environments."""
    runs = _steps("helm/Burst-v0", 200)
    peers = {name: statistics.median(_steps(name, 5000)) for name in ("CartPole-v1", "Pendulum-v1")}
    return _figure(runs, "steps/s", "modelled", "gym.make('helm/Burst-v0'); a step serves 50 requests", peers)


def vector_env_lane_steps_per_s() -> Figure:
    """Lane-steps of the native vector environment, beside classic ones with as many lanes."""
    runs = _vector_steps("helm/Burst-v0", 30)
    peers = {name: statistics.median(_vector_steps(name, 1000)) for name in ("CartPole-v1", "Pendulum-v1")}
    return _figure(runs, "lane-steps/s", "modelled", f"{LANES} lanes; a lane-step serves 50 requests", peers)


def _steps(name: str, steps: int) -> list[float]:
    import gymnasium as gym

    env = gym.make(name)
    try:
        env.reset(seed=0)
        env.action_space.seed(0)
        actions = [env.action_space.sample() for _ in range(64)]

        def drive() -> None:
            for k in range(steps):
                _, _, terminated, truncated, _ = env.step(actions[k % 64])
                if terminated or truncated:
                    env.reset()

        return _rate(drive, steps)
    finally:
        env.close()


def _vector_steps(name: str, steps: int) -> list[float]:
    import gymnasium as gym

    native = gym.spec(name).vector_entry_point is not None
    env = gym.make_vec(name, num_envs=LANES, vectorization_mode="vector_entry_point" if native else "sync")
    try:
        env.reset(seed=0)
        env.action_space.seed(0)
        actions = [env.action_space.sample() for _ in range(16)]

        def drive() -> None:
            for k in range(steps):
                env.step(actions[k % 16])

        return _rate(drive, steps * LANES)
    finally:
        env.close()


FIGURES: dict[str, Callable[[], Figure]] = {
    figure.__name__: figure
    for figure in (modelled_requests_per_s, env_steps_per_s, vector_env_lane_steps_per_s, bookkeeping_share)
}


def measure(name: str) -> Figure:
    """Measures one figure, in seconds.

    Raises:
        UnknownNameError: no such figure; the nearest name is given.
    """
    if name not in FIGURES:
        raise UnknownNameError("figure", name, FIGURES)
    return FIGURES[name]()
