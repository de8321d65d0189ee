"""What `helm-gym bench` measures of this package and no contract tells: its bookkeeping, and its router alone."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from helm_gym import profile as profiles
from helm_gym.cluster.routing import RULES, WEIGHTS, Routing
from helm_gym.control_loop import ControlLoop
from helm_gym.profile import Profile
from helm_gym.tasks import Task
from helm_gym.workload.sampling import Requests, make_requests
from real_backend.measured import MeasuredBackend
from real_backend.memory.layout import Memory, make_memory, make_rules
from real_backend.memory.ledger import FREE_AT_S, make_ledger
from real_backend.router import route
from real_backend.router_beliefs import make_view, refresh

_STREAMS = 8  # intervals of requests that are played by turns, so that their users and rows are not all at hand
_UTILISATION = 0.7


def bookkeeping_shares(task: Task, runs: int) -> list[float]:
    """The memory manager's CPU time over service time on the measured rung, of each of some short episodes."""
    with contextlib.closing(MeasuredBackend(profiles.load(task.profile))) as backend:
        loop = ControlLoop(dataclasses.replace(task, warmup=4), backend, intervals=16)
        shares = []
        for seed in range(runs):
            loop.reset([seed])
            for _ in range(loop.intervals):
                loop.step(np.zeros((1, 1, 1)))
            shares.append(backend.bookkeeping_ms / backend.service_ms)
    return shares


def rehearse(profile: Profile, nodes: int, rule: str) -> Callable[[], None]:
    """What refreshes one lane's view and routes one interval of nodes x interval.requests each time it is called.

    ``profile`` has the cluster's population (``Cluster.widen``).
    """
    random = np.random.default_rng(0)
    users, count = profile.population.users, nodes * profile.interval.requests
    view = make_view(profile, np.zeros(1, np.int64), np.ones(nodes))
    memory, ledger, rules = _published(profile, nodes, users, random), make_ledger(profile, nodes), make_rules(profile)
    items = random.integers(0, profile.population.items, (users, profile.model.max_history), np.int32)
    streams = itertools.cycle([_requests(profile, nodes, users, random) for _ in range(_STREAMS)])
    routing, alive = Routing(rule, np.ones((1, len(WEIGHTS)))), np.ones(nodes, np.bool_)
    chosen, now_s = np.zeros(count, np.int32), 0.0

    def interval() -> None:
        nonlocal now_s
        refresh(view, 0, memory, 0, ledger, alive)
        number, weights = RULES.index(rule), routing.weights[0]
        now_s = route(view, 0, next(streams), items, now_s, rules, number, weights, routing.bound, chosen)
        ledger.clock[:, FREE_AT_S] = view.free_at_s[0]  # nodes take as long as was expected

    return interval


def _published(profile: Profile, nodes: int, users: int, random: np.random.Generator) -> Memory:
    """Half of each pool full of users' KV, and a share of the rows resident; what no router reads is left small."""
    few = 2 * max(profile.population.hot_users, profile.interval.requests)
    small = dataclasses.replace(profile, population=dataclasses.replace(profile.population, users=few))
    emb = np.full(nodes, profile.pool.pages // 2)
    newer = np.full((nodes, users + 1), users, np.int32)
    length, version = np.zeros((nodes, users), np.int32), np.zeros((nodes, users), np.int32)
    mean = int(profile.population.mean_history)
    held = (profile.pool.pages - int(emb[0])) // -(-mean // profile.tokens_per_page)
    for node in range(nodes):
        ring = random.choice(users, held, replace=False)
        newer[node, [users, *ring]] = [*ring, users]
        length[node, ring] = random.integers(mean // 2, 2 * mean, held)
    share = emb[0] * profile.rows_per_page / profile.population.items
    resident = random.random((nodes, profile.population.items), np.float32) < share
    return make_memory(small, emb)._replace(
        newer=newer, cached_length=length, cached_version=version, row_slot=np.where(resident, 0, -1).astype(np.int32)
    )


def _requests(profile: Profile, nodes: int, users: int, random: np.random.Generator) -> Requests:
    """An interval's requests of hot and other users, at a load that keeps the nodes busy for most of the time."""
    p, clock = profile.population, profile.interval
    count = nodes * clock.requests
    requests = make_requests(
        dataclasses.replace(profile, interval=dataclasses.replace(clock, requests=count, window=count)), 1
    )
    hot = (nodes * p.hot_users * random.random(count) ** 2).astype(np.int32)
    requests.user[0] = np.where(random.random(count) < p.hot_share, hot, random.integers(0, users, count))
    mean = int(p.mean_history)
    requests.length[0] = random.integers(mean // 2, 2 * mean, count)
    requests.delta[:] = int(p.delta_tokens)
    requests.candidate_count[:] = p.candidates
    requests.candidates[:] = random.integers(0, p.items, requests.candidates.shape)
    rules = make_rules(profile)
    service_ms = rules.base_ms + (p.delta_tokens + p.candidates) * (rules.per_token_ms + rules.row_ms)
    requests.gap_s[:] = random.exponential(service_ms * 1e-3 / _UTILISATION / nodes, count)
    return requests
