"""Collection: drives a backend through designed episodes and logs every interval, in one process or in many."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime
import functools
import multiprocessing
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

import helm_gym
from helm_gym.actions import absolute_action
from helm_gym.backend import Backend, open_backend
from helm_gym.control_loop import ControlLoop, Step
from helm_gym.errors import IncompatibleError
from helm_gym.evaluation.machine import describe_machine
from helm_gym.policy import open_policy
from helm_gym.profile import Profile
from helm_gym.tasks import Task
from helm_gym.telemetry import FIELDS
from helm_gym.workload.state import PARAMETERS
from surrogate_backend import excitation, log

Progress = Callable[[int, int, int], None]  # episodes done, episodes wanted, intervals logged now


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is collected: ``episodes`` of a design on one backend, ``intervals`` each."""

    profile: Profile
    backend: str
    design: str
    intervals: int
    seed: int

    def manifest(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "profile": self.profile.name,
            "profile_fingerprint": self.profile.fingerprint,
            "design": self.design,
            "intervals": self.intervals,
            "seed": self.seed,
        }


def collect(
    plan: Plan,
    folder: pathlib.Path,
    episodes: int,
    workers: int = 1,
    ray: bool = False,
    progress: Progress | None = None,
) -> int:
    """Logs episodes 0 to ``episodes`` - 1 that ``folder`` does not hold yet; returns how many were added.

    An episode is reported as done only when its file is on disk. Killed at any point, it goes on where it stopped.

    Args:
        plan: what.
        folder: where; made if it is not there.
        episodes: how many the folder shall hold.
        workers: processes; each serves one episode at a time.
        ray: hand episodes to a Ray cluster in place of processes here.
        progress: told after each episode.

    Raises:
        InvalidInputError: the folder holds another log.
        UnknownNameError: no such design or backend.
        IncompatibleError: ``ray`` is asked for and not installed.
    """
    excitation.episode(plan.design, 0, plan.profile, 2, plan.seed)
    log.write_manifest(folder, plan.manifest())
    for left in folder.glob("episode-*.tmp"):
        left.unlink(missing_ok=True)
    missing = [number for number in range(episodes) if not log.episode_path(folder, number).exists()]
    run = functools.partial(run_episode, plan, folder.resolve())
    done = episodes - len(missing)
    for intervals in _spread(run, missing, workers, ray):
        done += 1
        if progress is not None:
            progress(done, episodes, intervals)
    return len(missing)


def _spread(run: Callable[[int], int], numbers: list[int], workers: int, ray: bool) -> Iterator[int]:
    if ray:
        yield from _on_ray(run, numbers)
    elif workers == 1:
        yield from map(run, numbers)
    else:
        # Spawned: a forked child would inherit the threads of torch in an unknown state.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            for future in concurrent.futures.as_completed([pool.submit(run, number) for number in numbers]):
                yield future.result()


def _on_ray(run: Callable[[int], int], numbers: Iterable[int]) -> Iterator[int]:
    try:
        import ray
    except ImportError as error:
        raise IncompatibleError("Ray is not installed; install helm-gym[ray] or leave --ray out.") from error
    remote = ray.remote(num_cpus=1, max_retries=3)(run)
    pending = [remote.remote(number) for number in numbers]
    while pending:
        ready, pending = ray.wait(pending, num_returns=1)
        yield ray.get(ready[0])


@functools.lru_cache(maxsize=1)
def _open(name: str, profile: Profile) -> Backend:
    """A process's backend: the measured one takes seconds to open."""
    return open_backend(name, profile)


def run_episode(plan: Plan, folder: pathlib.Path, number: int) -> int:
    """Serves one episode, writes its file, and returns its intervals."""
    profile = plan.profile
    episode = excitation.episode(plan.design, number, profile, plan.intervals, plan.seed)
    start = 0.5 if episode.schedule is None else float(episode.schedule[0])
    task = Task(f"collect-{plan.design}", episode.regime, "designed excitation", profile.name, start_alpha=start)
    backend = _open(plan.backend, profile)
    scheduled = episode.schedule is not None
    mode: Any = "absolute" if scheduled else "delta"
    loop = ControlLoop(task, backend, mode, intervals=episode.path.intervals)
    step = loop.reset([episode.request_seed], episode.path)
    policy = None if scheduled else open_policy(episode.driver, loop.layout)
    state = None if policy is None else policy.initial_state(1)
    rows = []
    for t in range(loop.intervals):
        if policy is None:
            assert episode.schedule is not None
            action = absolute_action(profile, np.full((1, 1), episode.schedule[t]))
        else:
            assert state is not None
            action, state = policy.act(step.observation[0], state)
            action = action[None]
        step = loop.step(action)
        rows.append(_row(loop, step))
    constants = {
        "episode": number,
        "group": episode.group,
        "setting": episode.setting,
        "regime": episode.regime,
        "driver": episode.driver,
        "request_seed": episode.request_seed,
        "start_alpha": start,
        "warmup": task.warmup,
        "rung": backend.spec.rung,
        "profile": profile.name,
        "profile_fingerprint": profile.fingerprint,
        "machine": describe_machine("cpu" if plan.backend == "modelled" else profile.device),
        "code_version": helm_gym.__version__,
        "date": datetime.date.today().isoformat(),
    }
    table = pa.Table.from_pylist([constants | row for row in rows], schema=log.schema(profile))
    log.write_episode(folder, number, table)
    return len(rows)


def _row(loop: ControlLoop, step: Step) -> dict[str, Any]:
    """One interval of node 0."""
    assert loop.path is not None
    t, telemetry = loop.t - 1, step.telemetry
    assert telemetry.service_ms is not None and telemetry.sojourn_ms is not None
    gaps = loop.path.gaps_s[0, t]
    fields = {field.name: telemetry[field.name][0, 0] for field in FIELDS}
    return {
        "node": 0,
        "interval": t,
        **{f"w_{p.name}": v for p, v in zip(PARAMETERS, loop.path.values[0, t].tolist(), strict=True)},
        "gaps_s": None if np.isnan(gaps).any() else gaps,
        "asked_alpha": loop.target.item(),
        "slo_ms": loop.backend.slo_ms,
        **fields,
        "request_service_ms": telemetry.service_ms[0, 0].astype(np.float32),
        "request_sojourn_ms": telemetry.sojourn_ms[0, 0].astype(np.float32),
    }
