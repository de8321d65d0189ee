"""Compiles ahead of time what environments, policies and commands compile on their first use: it uses each once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow

from helm_gym import profile as profiles
from helm_gym import registry
from helm_gym.backend import open_backend
from helm_gym.cluster.topology import Cluster, Node, Outage
from helm_gym.control_loop import ControlLoop
from helm_gym.errors import HelmError
from helm_gym.kernels import kernel_cache
from helm_gym.observation import ObservationLayout
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Oracle
from helm_gym.tasks import find_task
from helm_gym.workload.demand import rate_for_load, service_ms
from helm_gym.workload.readers.log_ids import Numbering, hash_numbers, hash_texts, objects_by_line
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import at_rest

Progress = Callable[[str, int, int], None]
_PROFILE = "cpu-small"
# The second node is lost and comes back: what it was sent is taken back and routed again.
_CLUSTER = Cluster((Node(2),), load=2.0, outages=(Outage(1, 1, 1),))


@dataclasses.dataclass(frozen=True)
class Warmed:
    """What there was to compile.

    Attributes:
        kernels: names of those compiled; one that is used with several types of arguments is there several times.
        failed: part -> why this machine cannot use it; its kernels may be missing.
    """

    kernels: list[str]
    seconds: float
    failed: dict[str, str]


def warm(progress: Progress | None = None) -> Warmed:
    """Uses every part that has kernels, in two processes, so that others find all of them compiled.

    Args:
        progress: told which parts are done, and how many, of how many.
    """
    started, kernels, failed = time.monotonic(), [], {}
    workers = min(2, os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool, _ended_with_this():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is this process's to answer
        running = {pool.submit(_use, name): name for name in PARTS}
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for done, future in enumerate(concurrent.futures.as_completed(running)):
            name, (compiled, problem) = running[future], future.result()
            kernels += compiled
            if problem:
                failed[name] = problem
            if progress is not None:
                progress(name, done + 1, len(PARTS))
    return Warmed(kernels, time.monotonic() - started, failed)


@contextlib.contextmanager
def _ended_with_this() -> Iterator[None]:
    """Where the block is broken off, processes that compile for a minute yet are not waited for."""
    try:
        yield
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise


def _use(name: str) -> tuple[list[str], str]:
    """In a process of its own: what it compiled, and why the part cannot be used, or ""."""
    kernel_cache.silent = True
    before = len(kernel_cache.compiled)
    try:
        PARTS[name]()
    except HelmError as error:
        return kernel_cache.compiled[before:], str(error)
    return kernel_cache.compiled[before:], ""


def _workload() -> None:
    profile = profiles.load(_PROFILE)
    for name in registry.listed("regime"):
        with contextlib.suppress(HelmError):  # one that needs a recording
            make_path(name, profile, [0], 1)
    values = at_rest(profile)[None]
    service_ms(profile, values)
    rate_for_load(profile, values, np.array([0.5]))
    Numbering().number(np.append(hash_texts(pyarrow.array(["a"])), hash_numbers(np.ones(1, np.int64))))
    objects_by_line(b"{}\n", 1)


def _episodes(backend: str, *lanes: int, cluster: Cluster | None = None) -> None:
    """A few intervals, as everything that drives a backend serves them."""
    profile = profiles.load(_PROFILE)
    task = dataclasses.replace(find_task("mixed-v0"), warmup=2, horizon=2)
    for count in lanes:
        with contextlib.closing(open_backend(backend, profile, count, cluster)) as opened:
            loop = ControlLoop(task, opened)
            loop.reset(range(count))
            for kind in (np.float32, np.float64):  # of environments and policies, and of whoever passes numpy's own
                loop.step(np.zeros((*loop.shape, 1), kind))


def _policies() -> None:
    """All that have a name and are told nothing else than it; what is trained and not shipped has none yet."""
    layout = ObservationLayout(profiles.load(_PROFILE))
    for entry in registry.listed("policy").values():
        with contextlib.suppress(HelmError):
            policy = open_policy(f"{entry.name}:0.5" if entry.argument else entry.name, layout)
            if not isinstance(policy, Oracle):
                policy.act(np.zeros((1, layout.width), np.float32), policy.initial_state(1))
    # What training alone uses of a policy.
    package = importlib.import_module("agents.three_layer_ppo.policy")
    seen = package.Seen(layout, package.Settings())
    seen(np.zeros((1, layout.width), np.float32), seen.initial_state(1))


def _service() -> None:
    """A node on the wall clock, which warms itself up, and the router in front of several."""
    profile = profiles.load(_PROFILE)
    histories = np.zeros((profile.population.users, profile.model.max_history), np.int32)
    importlib.import_module("real_backend.serving.live_node").LiveNode(profile, histories, 0.5)
    importlib.import_module("real_backend.serving.live_router").LiveRouter(profile, 2, histories)


PARTS: dict[str, Callable[[], None]] = {  # those that take longest come first
    "surrogate": functools.partial(_episodes, "surrogate", 1, 2),
    "surrogate of clusters": functools.partial(_episodes, "surrogate", 1, cluster=_CLUSTER),
    "modelled": functools.partial(_episodes, "modelled", 1),
    "modelled clusters": functools.partial(_episodes, "modelled", 1, cluster=_CLUSTER),
    "real": functools.partial(_episodes, "real", 1),
    "real clusters": functools.partial(_episodes, "real", 1, cluster=_CLUSTER),
    "service": _service,
    "policies": _policies,
    "workload": _workload,
}
