"""Who works on what: a worker leases a job, says now and then that it is alive, and writes only while it holds it.

A worker that was killed says nothing any more; once its lease has run out, whoever comes next has the job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from helm_gym.errors import HelmError
from leaderboard.queue import comes_last, job_of
from leaderboard.season import DEVELOPMENT, HIDDEN
from leaderboard.store import Body, Store, StoreError
from leaderboard.submissions import BY_PLATFORM, FINAL, UNCHECKED, UNFINISHED, state_record
from leaderboard.tables import LEASES, REFERENCES, SUBMISSIONS

LEASE_S = 20.0
_BEATS = 10  # in the time of a lease
MAX_RUNS = 6  # times that a job is begun; it is given up then, and nobody's fault but the platform's
CHECK, EVALUATE, REFERENCE_JOB = "check", "evaluate", "references"
REFERENCE_SPLITS = (HIDDEN, DEVELOPMENT)  # episodes whose scale the references are


class LeaseLostError(HelmError):
    """The job is another worker's by now, or was called off; what was done for it is not written."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Something to be done.

    Attributes:
        name: of its lease.
        kind: ``CHECK``, ``EVALUATE`` or ``REFERENCE_JOB``.
        season: that it is done for; once another one begins, nobody holds its lease any more.
        submission: its row; or task and split of the references to be run.
    """

    name: str
    kind: str
    season: int = 1
    submission: dict[str, Any] | None = None
    task: str = ""
    split: str = ""

    @property
    def order(self) -> int:
        """Checks first, then evaluations of new submissions, references, and other entries."""
        if self.submission is None:
            return 2
        return 0 if self.kind == CHECK else 3 if self.submission["comes_last"] else 1


def worker_name() -> str:
    """One that no other worker has had; it tells where its process is to be looked for."""
    return f"{_here()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"


def _here() -> str:
    """The machine, and its numbering of processes."""
    return f"{socket.gethostname()[:40]}/{os.stat('/proc/self/ns/pid').st_ino}"


def _has_ended(worker: str) -> bool:
    """Whether a worker's process is known to be gone: then nobody waits until its lease runs out."""
    place, _, process = worker.rpartition("/")[0].rpartition("/")
    return place == _here() and process.isdecimal() and not os.path.exists(f"/proc/{process}")


def claim(
    store: Store,
    worker: str,
    references: bool = True,
    lease_s: float = LEASE_S,
    now: float | None = None,
    submissions: bool = True,
) -> Job | None:
    """Leases the next job of the newest season, in the order of ``Job.order``; of a closed one only checks.

    Args:
        references: whether the references that the season needs are taken.
        submissions: whether submissions are.
    """
    at = time.time() if now is None else now
    with store.writing() as connection:
        leases = {row.job: row for row in connection.execute(sa.select(LEASES))}
        season = store.season(connection)
        number, closed = season["season"], season["closed"] is not None
        jobs: list[tuple[int, int, Job]] = []
        states = UNCHECKED if closed else UNFINISHED
        asked = sa.select(SUBMISSIONS, comes_last().label("comes_last")).where(SUBMISSIONS.c.state.in_(states))
        for row in connection.execute(asked.order_by(SUBMISSIONS.c.seq)).mappings() if submissions else ():
            kind = CHECK if row["state"] in UNCHECKED else EVALUATE
            job = Job(job_of(row["id"]), kind, number, dict(row))
            jobs.append((job.order, row["seq"], job))
        tasks = season["tasks"] if references and not closed else []
        needed = [(task, split) for split in REFERENCE_SPLITS for task in tasks]
        places = sa.select(REFERENCES.c.task, REFERENCES.c.split).where(REFERENCES.c.season == number)
        there = {(row.task, row.split) for row in connection.execute(places)}
        for place, (task, split) in enumerate(needed):
            if (task, split) not in there:
                job = Job(f"{REFERENCE_JOB}:{number}:{task}:{split}", REFERENCE_JOB, number, task=task, split=split)
                jobs.append((job.order, place, job))
        for _, _, job in sorted(jobs, key=lambda found: found[:2]):
            lease = leases.get(job.name)
            if lease is not None and lease.until > at and not _has_ended(lease.worker):
                continue
            if job.submission is not None and not _begin(store, connection, job, lost=lease is not None):
                continue
            connection.execute(LEASES.delete().where(LEASES.c.job == job.name))
            fresh = {"worker": worker, "until": at + lease_s, "heartbeat": at, "started": at}
            connection.execute(LEASES.insert().values(job=job.name, stage=job.kind, done=0, total=0, **fresh))
            return job
    return None


def makes_way(store: Store, job: Job) -> bool:
    """Whether something waits that comes before this submission's job, and that nobody works on."""
    leased = sa.select(LEASES.c.job)
    free = SUBMISSIONS.c.state.in_(UNFINISHED), sa.literal(job_of("")).concat(SUBMISSIONS.c.id).not_in(leased)
    first = SUBMISSIONS.c.state.in_(UNCHECKED)
    before = first if job.order < 3 else sa.or_(first, sa.not_(comes_last()))
    with store.reading() as connection:
        return connection.execute(sa.select(SUBMISSIONS.c.id).where(*free, before).limit(1)).first() is not None


def _begin(store: Store, connection: sa.Connection, job: Job, lost: bool) -> bool:
    """Writes that a submission's job begins; False where it is given up instead."""
    row = job.submission
    assert row is not None
    state = "checking" if job.kind == CHECK else "running"
    if row["runs"] >= MAX_RUNS:
        detail = f"begun {row['runs']} times, and its worker ended each time"
        store.append_within(connection, [state_record(row["id"], "failed", "gave-up", BY_PLATFORM, detail)])
        connection.execute(LEASES.delete().where(LEASES.c.job == job.name))
        return False
    again = row["state"] == state
    reason, fault = ("worker-lost", BY_PLATFORM) if again else ("", "")
    detail = "its worker ended; begun again" if again and lost else "begun again" if again else ""
    store.append_within(connection, [state_record(row["id"], state, reason, fault, detail)])
    return True


class Lease:
    """A job that this worker holds: ``beat`` in the background, ``append`` only while it is held."""

    def __init__(self, store: Store, worker: str, job: Job, lease_s: float = LEASE_S):
        self.job, self.lost = job, threading.Event()
        self._store, self._lease_s = store, lease_s
        self._mine = LEASES.c.job == job.name, LEASES.c.worker == worker
        self._progress = (job.kind, 0, 0)
        self._stop = threading.Event()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Says now and then that this worker is alive; gives the job back at the end."""
        beating = threading.Thread(target=self._beat, daemon=True)
        beating.start()
        try:
            yield
        finally:
            self._stop.set()
            beating.join()
            with contextlib.suppress(StoreError), self._store.writing() as connection:
                connection.execute(LEASES.delete().where(*self._mine))

    def tick(self, stage: str, done: int, total: int) -> None:
        """Tells how far the work is; ends it where it was called off.

        Raises:
            LeaseLostError: it was called off, or is another worker's.
        """
        self._progress = (stage, done, total)
        if self.lost.is_set():
            raise LeaseLostError(f"{self.job.name} was called off, or is another worker's.")

    def append(self, entries: Iterable[tuple[str, Body]]) -> None:
        """Writes what came of the job.

        Raises:
            LeaseLostError: it is not this worker's any more, or is finished already.
        """

        def check(connection: sa.Connection) -> None:
            held = connection.execute(sa.select(LEASES.c.job).where(*self._mine)).first()
            if held is None or not self._unfinished(connection):
                raise LeaseLostError(f"{self.job.name} was called off, or is another worker's.")

        self._store.append(entries, guard=check)

    def _unfinished(self, connection: sa.Connection) -> bool:
        if self.job.submission is None:
            return True
        state = sa.select(SUBMISSIONS.c.state).where(SUBMISSIONS.c.id == self.job.submission["id"])
        return connection.execute(state).scalar() not in FINAL

    def _beat(self) -> None:
        while not self._stop.wait(self._lease_s / _BEATS):
            stage, done, total = self._progress
            at = time.time()
            told = {"until": at + self._lease_s, "heartbeat": at, "stage": stage[:200], "done": done, "total": total}
            try:
                with self._store.writing() as connection:
                    held = connection.execute(LEASES.update().where(*self._mine).values(**told)).rowcount
                    if not held or not self._unfinished(connection):
                        self.lost.set()
            except StoreError:  # a database that is away for a while; the lease runs on until it ends
                continue
