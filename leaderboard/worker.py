"""The worker: takes one job after another, in a process of its own that may be killed at any time."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from helm_gym.errors import HelmError
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Policy
from leaderboard import checking, evaluating, references
from leaderboard.board import Board
from leaderboard.leases import CHECK, EVALUATE, LEASE_S, Job, Lease, LeaseLostError, claim, makes_way, worker_name
from leaderboard.sandbox import Limits, PolicyFault, SandboxedPolicy
from leaderboard.sandbox.confine import end_with_parent
from leaderboard.season import CONFIRMATION, DEVELOPMENT, HIDDEN, PROVISIONAL, RANKING, Season
from leaderboard.store import Store, StoreError
from leaderboard.submissions import BY_PLATFORM, BY_POLICY, PLAYED, UNFINISHED, state_record
from leaderboard.tables import SCORES, SUBMISSIONS

_IDLE_S = 0.5
# In this order: a score within seconds, what ranks, what its author may see everything of, and what confirms a lead
STAGES = ((HIDDEN, PROVISIONAL), (HIDDEN, RANKING), (DEVELOPMENT, RANKING), (CONFIRMATION, RANKING))
REFERENCE_RUNGS = {HIDDEN: (PROVISIONAL, RANKING), DEVELOPMENT: (RANKING,)}


class Worker:
    """Does a board's jobs.

    Args:
        board: opened.
        limits: of a policy in the sandbox.
        unconfined: whether strangers' files may run where the kernel has no sandbox.
        references: whether the static splits and the oracle are run, which takes minutes a task.
        submissions: whether submissions are checked and evaluated.
        lease_s: without a sign of life, after which another worker may have a job.
    """

    def __init__(
        self,
        board: Board,
        limits: Limits | None = None,
        unconfined: bool = False,
        references: bool = True,
        submissions: bool = True,
        lease_s: float = LEASE_S,
    ):
        self.board, self.store = board, board.store
        self.limits, self.unconfined, self.submissions = limits or Limits(), unconfined, submissions
        self.name, self.lease_s, self.references = worker_name(), lease_s, references
        self._enter()

    def _enter(self, number: int | None = None) -> None:
        """Takes a season's tasks and key; the newest one's where no number is given."""
        with self.store.reading() as connection:
            self.season: Season = self.board.season(connection, number)
            key_hash = self.store.season(connection, number)["key_hash"]
        self._key = self.store.season_key(self.season.number, key_hash)

    def run(self) -> None:
        """Works for ever."""
        while True:
            try:
                worked = self.step()
            except StoreError as error:  # a database that is away, or a full disk: it may come back
                print(f"leaderboard worker: {error}", file=sys.stderr, flush=True)
                worked = False
            if not worked:
                time.sleep(_IDLE_S)

    def step(self) -> bool:
        """Does one job; False where there is none."""
        job = claim(self.store, self.name, self.references, self.lease_s, submissions=self.submissions)
        if job is None:
            return False
        lease = Lease(self.store, self.name, job, self.lease_s)
        with lease.held(), contextlib.suppress(LeaseLostError):
            try:
                self._do(job, lease)
            except (LeaseLostError, StoreError):
                raise
            except Exception as error:  # not the policy's fault, whatever it is; the next job is done all the same
                self._failed(job, lease, error)
        return True

    def _do(self, job: Job, lease: Lease) -> None:
        self._enter(job.season)
        if job.kind == CHECK:
            self._check(lease)
        elif job.kind == EVALUATE:
            self._evaluate(lease)
        else:
            self._evaluate_references(job, lease)

    def _failed(self, job: Job, lease: Lease, error: Exception) -> None:
        text = str(error) if isinstance(error, HelmError) else f"{type(error).__name__}"
        print(f"leaderboard worker: {job.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        if job.submission is not None:
            lease.append([state_record(job.submission["id"], "failed", "platform", BY_PLATFORM, _safe(text))])

    # A submission

    def _check(self, lease: Lease) -> None:
        row = lease.job.submission
        assert row is not None
        found, body = row["id"], json.loads(row["body"])
        others = self._actions(found)
        report = checking.of_reference(body["reference"], self.season.layout()) if body["reference"] else None
        for number, digest in enumerate(body["files"]):
            lease.tick(f"check of file {number + 1}", number, len(body["files"]))
            report = checking.check(self.store.get(digest), self.season.layout(), self.limits, self.unconfined)
            if not report.passed:
                break
        assert report is not None
        near = checking.nearest(report.actions, others) if report.passed else ""
        ended = (
            state_record(found, "queued")
            if report.passed
            else state_record(found, "failed", report.rule, BY_POLICY, report.sentence)
        )
        lease.append([("check", report.body(found, near)), ended])

    def _actions(self, but: str) -> dict[str, str]:
        """What each entry does on the recorded observations, the oldest first."""
        asked = sa.select(SUBMISSIONS.c.id, SUBMISSIONS.c.checked).where(
            SUBMISSIONS.c.checked.is_not(None), SUBMISSIONS.c.id != but
        )
        with self.store.reading() as connection:
            found = {row.id: json.loads(row.checked) for row in connection.execute(asked.order_by(SUBMISSIONS.c.seq))}
        return {name: checked["actions"] for name, checked in found.items() if checked["passed"]}

    def _evaluate(self, lease: Lease) -> None:
        row = lease.job.submission
        assert row is not None
        found, body = row["id"], json.loads(row["body"])
        try:
            for member, content in enumerate(self._contents(body)):
                with self._opened(content, body) as policy:
                    for split, rung in STAGES:
                        for task in self.season.of_those(body["tasks"]):
                            if self._score(lease, found, policy, member, task, split, rung) and makes_way(
                                self.store, lease.job
                            ):
                                lease.append([state_record(found, "queued", "made-way")])
                                return
        except PolicyFault as error:
            lease.append([state_record(found, "failed", PLAYED + error.reason, BY_POLICY, str(error))])
            return
        lease.append([state_record(found, "verified"), *self._superseded(row)])

    def _contents(self, body: dict[str, Any]) -> list[bytes]:
        return [self.store.get(digest) for digest in body["files"]] or [b""]

    @contextlib.contextmanager
    def _opened(self, content: bytes, body: dict[str, Any]) -> Iterator[Policy]:
        layout = self.season.layout()
        if body["reference"]:
            yield open_policy(body["reference"], layout)
            return
        with SandboxedPolicy(content, layout, limits=self.limits, unconfined=self.unconfined) as policy:
            yield policy

    def _score(
        self, lease: Lease, submission: str, policy: Policy, member: int, task: str, split: str, rung: str
    ) -> bool:
        """Plays one task's episodes, unless their scores are there from a run before; whether it played."""
        place = {"submission": submission, "season": self.season.number, "task": task, "split": split, "rung": rung}
        same = (SCORES.c[key] == value for key, value in (place | {"member": member}).items())
        with self.store.reading() as connection:
            if connection.execute(sa.select(SCORES.c.seq).where(*same)).first() is not None:
                return False

        def tick(label: str, done: int, total: int) -> None:
            lease.tick(f"{task}, {split} episodes, {rung}", done, total)

        tick("", 0, 0)
        seeds = self.season.seeds(task, split, self._key)
        run = evaluating.run(self.season, task, seeds, rung, [policy], tick)
        (episodes,) = run.policies
        where = evaluating.where(run)
        if split == DEVELOPMENT:
            where["log"] = self.store.put(evaluating.log_of(run, episodes))
        scored = {"member": member, "episodes": evaluating.episodes_of(run, episodes), "where": where}
        lease.append([("scores", place | scored)])
        return True

    def _superseded(self, row: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
        """An account's earlier entries of the same name and track, finished or not: the new one takes their place."""
        same = (
            SUBMISSIONS.c.account == row["account"],
            SUBMISSIONS.c.name == row["name"],
            SUBMISSIONS.c.track == row["track"],
            SUBMISSIONS.c.state.in_(("verified", *UNFINISHED)),
            SUBMISSIONS.c.seq < row["seq"],
        )
        with self.store.reading() as connection:
            earlier = connection.execute(sa.select(SUBMISSIONS.c.id).where(*same)).scalars().all()
        return [state_record(name, "superseded", "newer-version", "", row["id"]) for name in earlier]

    # References

    def _evaluate_references(self, job: Job, lease: Lease) -> None:
        rungs = REFERENCE_RUNGS[job.split]

        def tick(label: str, done: int, total: int) -> None:
            lease.tick(f"{job.task}, {job.split} episodes: {label}", done, total)

        seeds = self.season.seeds(job.task, job.split, self._key)
        parts = self.store.parts(self.season.number) / f"{job.task}-{job.split}"
        found = references.evaluate(self.season, job.task, seeds, rungs, parts, tick)
        place = {"season": self.season.number, "task": job.task, "split": job.split}
        where = found.where | ({"log": self.store.put(found.log())} if job.split == DEVELOPMENT else {})
        lease.append(
            [("references", place | {"rung": rung, "episodes": found.episodes[rung], "where": where}) for rung in rungs]
        )
        shutil.rmtree(parts, ignore_errors=True)


def _safe(text: str) -> str:
    """What may be shown of a fault of the platform: an error's text may name a hidden seed or an observation."""
    return "the platform failed; it is not your policy's fault, and does not count" + (
        f" ({text[:100]})" if "seed" not in text and "Observed" not in text else ""
    )


def main() -> None:
    """Run by ``serve``: the settings as JSON in argv; ends with its parent."""
    settings = json.loads(sys.argv[1])
    end_with_parent(settings["parent"])
    # Pages come first, then submissions; nobody waits for references.
    os.nice(5 if settings["submissions"] else 10)
    store = Store(pathlib.Path(settings["folder"]), settings["url"])
    options = {key: settings[key] for key in ("unconfined", "references", "submissions", "lease_s")}
    Worker(Board(store), **options).run()


if __name__ == "__main__":
    main()
