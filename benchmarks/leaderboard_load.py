"""Load on a leaderboard: made-up entries to fill a board, and page views at a fixed rate whose latency is told.

    helm-gym leaderboard serve --board DIR --workers 0    # once, ended with Ctrl-C: makes the board
    python benchmarks/leaderboard_load.py fill DIR --entries 16
    helm-gym leaderboard serve --board DIR                # its workers evaluate
    python benchmarks/leaderboard_load.py load --rate 200 --seconds 60

The load is an open loop: each view has its time, whatever became of those before it, and its latency counts from that
time, so that a server that stalls is charged with every view that it kept waiting (wrk is a closed loop, and is not).
Beside the pages, a tenth as often, the style sheet is fetched: what takes that long is the machine's, and no page's.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import hashlib
import os
import pathlib
import time

import numpy as np

from leaderboard.evaluating import METRICS
from leaderboard.season import HIDDEN, PROVISIONAL, RANKING
from leaderboard.serving import open_board
from leaderboard.submissions import POLICY, Submission, state_record

PATHS = ("/", "/tasks/burst-v0.html", "/tasks/steady-v0.html", "/tasks/mixed-v0.html")
PEER, PEER_EVERY = "/style.css", 10
_TIMEOUT_S = 10.0
_IDLE_S = 5.0  # after which a connection is not used again: the server closes it after 10


def fill(folder: pathlib.Path, count: int) -> None:
    """Entries with drawn scores on every task, verified; for measuring pages and nothing else."""
    board, rng = open_board(folder), np.random.default_rng(0)
    with board.store.reading() as connection:
        season = board.season(connection)
    hard = {task: rng.lognormal(3.0, 0.3, season.hidden) for task in season.tasks}
    for number in range(count):
        digest = hashlib.sha256(f"made up {number}".encode()).hexdigest()
        given = Submission(f"account-{number % 97}", f"entry {number}", POLICY, (digest,), "", season.tasks, {})
        records = [("submission", given.body()), state_record(given.id, "received"), state_record(given.id, "queued")]
        for task in season.tasks:
            latency = hard[task] * rng.lognormal(0.0, 0.1) * rng.lognormal(0.0, 0.05, season.hidden)
            episodes = [dict.fromkeys(METRICS, float(value)) for value in latency]
            place = {"submission": given.id, "season": season.number, "task": task, "split": HIDDEN, "member": 0}
            records += [
                ("scores", place | {"rung": rung, "episodes": episodes, "where": {}}) for rung in (PROVISIONAL, RANKING)
            ]
        board.store.append([*records, state_record(given.id, "verified")])
    board.store.close()


class Client:
    """Views pages over kept connections, as many as are needed at a time."""

    def __init__(self, host: str, port: int):
        self.host, self.port = host, port
        self.free: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.opened = 0

    async def view(self, path: str) -> str:
        """Fetches a page whole; returns its status, or the error's name."""
        try:
            while self.free and self.free[0][0] < time.monotonic() - _IDLE_S:
                self.free.pop(0)[2].close()
            if self.free:
                _, reader, writer = self.free.pop()
            else:
                self.opened += 1
                reader, writer = await asyncio.open_connection(self.host, self.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())
            async with asyncio.timeout(_TIMEOUT_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                await reader.readexactly(int(head.partition("content-length:")[2].split("\r\n")[0]))
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError) as error:
            return type(error).__name__
        self.free.append((time.monotonic(), reader, writer))
        return head.split()[1]


async def load(host: str, port: int, rate: float, seconds: float) -> None:
    """Prints the latency of ``rate`` page views a second, each at its own time, and of the peer's beside them."""
    client, count = Client(host, port), int(rate * seconds)
    took: list[tuple[str, float]] = []
    statuses: collections.Counter[str] = collections.Counter()

    async def one(path: str, due: float) -> None:
        statuses[await client.view(path)] += 1
        took.append((path, (time.perf_counter() - due) * 1000))

    begun, tasks, late = time.perf_counter() + 0.1, [], []
    for number in range(count):
        due = begun + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        late.append((time.perf_counter() - due) * 1000)
        tasks.append(asyncio.create_task(one(PATHS[number % len(PATHS)], due)))
        if number % PEER_EVERY == 0:
            tasks.append(asyncio.create_task(one(PEER, due)))
    await asyncio.gather(*tasks)
    for path in ("pages", *PATHS, PEER):
        chosen = np.array([ms for name, ms in took if name == path or (path == "pages" and name != PEER)])
        ends = np.percentile(chosen, (50, 90, 99, 99.9))
        print(f"{path:24} P50 {ends[0]:.1f}, P90 {ends[1]:.1f}, P99 {ends[2]:.1f}, P99.9 {ends[3]:.1f} ms")
    print(
        f"{count} views at {rate:g}/s, done in {time.perf_counter() - begun:.1f} s; {dict(statuses)}; "
        f"{client.opened} connections; slowest {max(ms for _, ms in took):.0f} ms; "
        f"the client itself was late by {np.percentile(late, 99):.1f} ms (P99); load average {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    filling, loading = commands.add_parser("fill"), commands.add_parser("load")
    filling.add_argument("folder", type=pathlib.Path)
    filling.add_argument("--entries", type=int, default=16)
    loading.add_argument("--host", default="127.0.0.1")
    loading.add_argument("--port", type=int, default=8484)
    loading.add_argument("--rate", type=float, default=200.0)
    loading.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    if given.command == "fill":
        fill(given.folder, given.entries)
    else:
        asyncio.run(load(given.host, given.port, given.rate, given.seconds))


if __name__ == "__main__":
    main()
