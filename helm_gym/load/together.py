"""Services measured side by side: each request goes to each of them, one after another, in an order that rotates.

For machines that do other work: what it does meanwhile meets all services alike, request by request, and no request
waits for another. So it is service that is compared, and no queue. A latency of more than four times the median of all
services' in the same block counts as so much: that is a pause of the machine's, as long as nothing queues.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from helm_gym.load.client import Client
from helm_gym.load.open_loop import Outcome, ask, check, row_counts
from helm_gym.load.stream import Request

BLOCK = 100  # requests whose figures are taken together
_PAUSE = 4.0  # of a block's median


async def run(
    clients: Sequence[Client],
    requests: Iterable[Request],
    warm_s: float = 0.0,
    tick: Callable[[float], None] = lambda seconds: None,
) -> list[list[Outcome]]:
    """Each service's outcome, block by block; what is left behind the last whole block is not looked at.

    Requests are sent at their times, or as soon as those before them are answered.

    Raises:
        HelmError: a service does not answer at the start.
    """
    before = [await check(client) for client in clients]
    rows: list[list[tuple[float, float, int, int, bool]]] = [[] for _ in clients]
    faults: list[list[str]] = [[] for _ in clients]
    began, told = time.perf_counter(), 0.0
    for number, request in enumerate(requests):
        await asyncio.sleep(max(0.0, began + request.due_s - time.perf_counter()))
        for place in range(len(clients)):
            of = (number + place) % len(clients)
            started = time.perf_counter()
            answer, again = await ask(clients[of], request, request.body())
            if request.due_s >= warm_s:
                took_ms = (time.perf_counter() - started) * 1e3
                rows[of].append((request.due_s, took_ms, answer.status, answer.cached, again))
                faults[of].append(answer.fault)
        if request.due_s - told >= 0.5:
            told = request.due_s
            tick(told)
    after = [await row_counts(client) for client in clients]
    for client in clients:
        await client.close()
    hits = [None if a is None or b is None else (b[0] - a[0], b[1] - a[1]) for a, b in zip(before, after, strict=True)]
    return _blocks(rows, faults, hits)


def _blocks(
    rows: Sequence[Sequence[tuple[float, float, int, int, bool]]],
    faults: Sequence[Sequence[str]],
    hits: Sequence[tuple[float, float] | None],
) -> list[list[Outcome]]:
    found: list[list[Outcome]] = [[] for _ in rows]
    for start in range(0, len(rows[0]) - BLOCK + 1, BLOCK):
        table = np.array([of[start : start + BLOCK] for of in rows], np.float64)  # (services, requests, columns)
        table[:, :, 1] = np.minimum(table[:, :, 1], _PAUSE * np.median(table[:, :, 1]))
        for k, block in enumerate(table):
            due, latency, status, cached, again = block.T
            counted = collections.Counter(filter(None, faults[k][start : start + BLOCK]))
            seconds = float(due[-1] - due[0])
            outcome = Outcome(
                due,
                latency,
                status.astype(np.int64),
                cached.astype(np.int64),
                np.zeros(BLOCK),
                int(again.sum()),
                seconds,
                dict(counted),
            )
            found[k].append(dataclasses.replace(outcome, embedding=hits[k]))
    return found
