"""Collection: drives a backend through designed episodes and logs every interval, in one process or in many.

Episodes are served here, by worker processes or by a Ray cluster; this process alone writes them. So a worker that dies
leaves nothing half written, machines need no folder in common, and what was reported is on this disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from helm_gym.actions import Mode, absolute_action
from helm_gym.backend import Backend, open_backend
from helm_gym.control_loop import ControlLoop, Step
from helm_gym.errors import HelmError, UnknownNameError
from helm_gym.policies.opening import open_policy
from helm_gym.profile import Profile
from helm_gym.ray_connection import check_gpus, connected
from helm_gym.tasks import Task
from helm_gym.telemetry import FIELDS
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import PARAMETERS
from helm_gym.workload.traces import Trace
from surrogate_backend.data import excitation, log
from surrogate_backend.file_claims import Claim
from surrogate_backend.layout import check_profile

Progress = Callable[[int, int, int], None]  # episodes done, episodes wanted, intervals logged now
Submit = Callable[[Sequence[int]], "Future[list[pa.Table]]"]  # has episodes served in turns, by their numbers

BACKENDS = ("modelled", "real")
_LOOK_EVERY_S = 1.0  # whether another collection has finished an episode, or died at it
_GRACE_S = 5.0  # for a worker that is not serving to send its result and end


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is collected: episodes of a design on one backend, ``intervals`` each.

    Attributes:
        trace: recorded arrivals, one more regime of the train design.
    """

    profile: Profile
    backend: str
    design: str
    intervals: int
    seed: int
    trace: Trace | None = None

    def manifest(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "profile": self.profile.name,
            "profile_fingerprint": self.profile.fingerprint,
            "design": self.design,
            "intervals": self.intervals,
            "seed": self.seed,
            "trace": None if self.trace is None else f"{self.trace.name} {_fingerprint(self.trace)}",
        }

    def check(self) -> None:
        """Raises UnknownNameError for a design that there is not, InvalidInputError for a trace that it cannot take."""
        excitation.episode(self.design, 0, self.profile, 2, self.seed, self.trace)

    def serve(self, numbers: Sequence[int]) -> list[pa.Table]:
        """See ``serve``."""
        return serve(self, numbers)

    def episode(self, number: int) -> excitation.Episode:
        return excitation.episode(self.design, number, self.profile, self.intervals, self.seed, self.trace)

    def rounds(self, numbers: Iterable[int]) -> list[tuple[int, ...]]:
        """Ascending numbers, parted into those that are served in turns."""
        grouped = itertools.groupby(numbers, lambda number: excitation.round_of(self.design, number, self.profile))
        return [tuple(members) for _, members in grouped]


def _fingerprint(trace: Trace) -> str:
    content = hashlib.sha256()
    for part in (trace.arrival_s, trace.tokens, trace.returning):
        content.update(b"-" if part is None else part.tobytes())
    return content.hexdigest()[:16]


def collect(
    plan: Plan,
    folder: pathlib.Path,
    episodes: int,
    workers: int = 1,
    ray: bool = False,
    progress: Progress | None = None,
) -> int:
    """Logs episodes 0 to ``episodes`` - 1 that ``folder`` does not hold yet; returns how many were added here.

    An episode is reported as done only when its file is on disk. Killed at any point, the same call goes on where it
    stopped. Several collections of one plan may fill a folder together: each takes episodes that no other is at, and
    all wait until the folder holds them all.

    Args:
        plan: what.
        folder: where; made if it is not there.
        episodes: how many the folder shall hold.
        workers: processes; each serves one episode at a time. With ``ray`` the tasks at a time; 1: as many as the
            cluster has processors.
        ray: hand episodes to a Ray cluster in place of processes here.
        progress: told of what is there at the start, and after each episode.

    Raises:
        InvalidInputError: the folder holds another log or cannot be written; a trace that the design cannot take; a
            profile that no surrogate can be fitted to.
        UnknownNameError: no such design or backend.
        IncompatibleError: ``ray`` is asked for and not installed.
        HelmError: a worker died.
    """
    if plan.backend not in BACKENDS:
        raise UnknownNameError("backend", plan.backend, BACKENDS)
    plan.check()
    if plan.design == "train":
        check_profile(plan.profile)  # hours before a fit refuses what was logged
    if plan.trace is not None:
        make_path("trace", plan.profile, [0], 1, plan.trace)
    log.write_manifest(folder, plan.manifest())
    log.remove_unfinished(folder)
    missing = [number for number in range(episodes) if not log.episode_path(folder, number).exists()]
    report = progress or (lambda done, wanted, intervals: None)
    report(episodes - len(missing), episodes, 0)
    if not missing:
        return 0
    added, serving = 0, dict[Future[list[pa.Table]], dict[int, Claim]]()

    def finished(number: int, intervals: int) -> None:
        missing.remove(number)
        report(episodes - len(missing), episodes, intervals)

    with contextlib.ExitStack() as stack:
        submit, width = stack.enter_context(_servers(plan, workers, ray))
        while missing:
            at_work = {number for claims in serving.values() for number in claims}
            for numbers in plan.rounds([number for number in missing if number not in at_work]):
                if len(serving) >= width:
                    break
                claims = {}
                for number in numbers:
                    claim = log.claim(folder, number)
                    if claim is not None:
                        claims[number] = stack.enter_context(claim)
                    elif log.episode_path(folder, number).exists():
                        finished(number, 0)
                if claims:
                    serving[submit(tuple(claims))] = claims
            done, _ = wait(serving, _LOOK_EVERY_S, FIRST_COMPLETED)
            for future in done:
                for (number, claim), table in zip(serving.pop(future).items(), future.result(), strict=True):
                    claim.write(log.to_parquet(table))
                    added += 1
                    finished(number, table.num_rows)
            if missing and not serving and not done:  # all that is missing is another collection's
                report(episodes - len(missing), episodes, 0)
                time.sleep(_LOOK_EVERY_S)
    return added


def _servers(plan: Plan, workers: int, ray: bool) -> contextlib.AbstractContextManager[tuple[Submit, int]]:
    """Those who serve episodes, and how many they can at a time."""
    if ray:
        return _on_ray(plan, workers)
    return _here(plan) if workers == 1 else _in_processes(plan, workers)


@contextlib.contextmanager
def _here(plan: Plan) -> Iterator[tuple[Submit, int]]:
    def submit(numbers: Sequence[int]) -> Future[list[pa.Table]]:
        future: Future[list[pa.Table]] = Future()
        future.set_result(plan.serve(numbers))
        return future

    try:
        yield submit, 1
    finally:
        _open.cache_clear()


@contextlib.contextmanager
def _in_processes(plan: Plan, workers: int) -> Iterator[tuple[Submit, int]]:
    # Spawned: a forked child would inherit the threads of torch in an unknown state.
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)

    def submit(numbers: Sequence[int]) -> Future[list[pa.Table]]:
        # Ctrl-C is for this process, which ends the others: they are born with it masked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return pool.submit(_serve_there, plan, numbers)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    with (
        theirs,
        _environment(OMP_NUM_THREADS="1"),
        ProcessPoolExecutor(workers, context, _end_with, (theirs,)) as pool,
    ):
        try:
            yield submit, workers
            pool.shutdown()
        except BrokenProcessPool as error:
            raise HelmError(
                "A worker process died, killed or out of memory; what was reported is on disk: run the same again, "
                "perhaps with fewer workers."
            ) from error
        finally:
            ours.close()


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """For processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


# Held by a worker whenever it is not serving: its parent would wait for ever for the rest of a result cut off halfway.
_sending = threading.Lock()


def _end_with(parent: Connection) -> None:
    """Ends this worker, whatever it is serving, when its parent closes the pipe or is killed."""
    _sending.acquire()

    def watch() -> None:
        parent.poll(None)
        _sending.acquire(timeout=_GRACE_S)  # an idle worker ends by itself, unless its parent was killed
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _serve_there(plan: Plan, numbers: Sequence[int]) -> list[pa.Table]:
    _sending.release()
    try:
        return _serve_apart(plan, numbers)
    finally:
        _sending.acquire()


def _serve_apart(plan: Plan, numbers: Sequence[int]) -> list[pa.Table]:
    try:
        return plan.serve(numbers)
    except HelmError as error:  # its sentence alone: not every exception can be sent to another process
        raise HelmError(str(error)) from None


@contextlib.contextmanager
def _on_ray(plan: Plan, workers: int) -> Iterator[tuple[Submit, int]]:
    with connected("leave --ray out") as ray:
        try:
            gpus = float(plan.backend == "real" and plan.profile.device == "cuda")
            check_gpus(ray, gpus, plan.profile.name)
            # Ray has a task's libraries use as many threads as it was given processors.
            task, shared = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_serve_apart), ray.put(plan)
            width = workers if workers > 1 else int(ray.cluster_resources().get("CPU", 1))
            yield lambda numbers: task.remote(shared, numbers).future(), width
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, HelmError):
                raise HelmError(str(error.cause)) from error
            raise
        except ray.exceptions.RayError as error:
            raise HelmError(
                f"Ray failed ({str(error).partition(chr(10))[0]}); what was reported is on disk: run the same again."
            ) from error


@functools.cache
def _open(name: str, profile: Profile, place: int) -> Backend:
    """A process's backends, one for each place in a round: the measured one takes seconds to open."""
    return open_backend(name, profile)


def run_episode(plan: Plan, folder: pathlib.Path, number: int) -> int:
    """Serves one episode in this process, writes its file, and returns its intervals; 0 where it is there already."""
    claim = log.claim(folder, number)
    if claim is None:
        return 0
    with claim:
        (table,) = plan.serve([number])
        claim.write(log.to_parquet(table))
    return int(table.num_rows)


def serve(plan: Plan, numbers: Sequence[int]) -> list[pa.Table]:
    """Serves episodes of one length, an interval of each in turn; their rows, as the log has them.

    Each has a backend of its own. Where in memory it lies makes one that measures half a per cent faster or slower, so
    that which is whose changes from round to round.
    """
    schema, count = log.schema(plan.profile), len(numbers)
    turned = numbers[0] // count
    playing = [_play(plan, number, (place + turned) % count) for place, number in enumerate(numbers)]
    return [pa.Table.from_pylist(rows, schema=schema) for rows in zip(*zip(*playing, strict=True), strict=True)]


def _play(plan: Plan, number: int, place: int) -> Iterator[dict[str, Any]]:
    """An episode's rows, each when it is asked for."""
    profile, episode = plan.profile, plan.episode(number)
    start = 0.5 if episode.schedule is None else float(episode.schedule[0])
    task = Task(f"collect-{plan.design}", episode.regime, "designed excitation", profile.name, start_alpha=start)
    backend = _open(plan.backend, profile, place)
    mode: Mode = "delta" if episode.schedule is None else "absolute"
    loop = ControlLoop(task, backend, mode, intervals=episode.path.intervals)
    constants = log.constants_of(backend.spec, number, episode, start, task.warmup)
    step, decide = loop.reset([episode.request_seed], episode.path), _driver(episode, loop)
    for _ in range(loop.intervals):
        step = loop.step(decide(step))
        yield constants | _row(loop, step)


def _driver(episode: excitation.Episode, loop: ControlLoop) -> Callable[[Step], NDArray[np.floating]]:
    """Decides an episode's actions, one interval after another."""
    if episode.schedule is not None:
        targets = iter(absolute_action(loop.profile, episode.schedule[:, None, None]))
        return lambda step: next(targets)
    policy = open_policy(episode.driver, loop.layout)
    state = policy.initial_state(1)

    def act(step: Step) -> NDArray[np.floating]:
        nonlocal state
        action, state = policy.act(step.observation[0], state)
        return action[None]

    return act


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
