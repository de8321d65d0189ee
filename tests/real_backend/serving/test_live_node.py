"""A node in real time does what the rungs do with the same requests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from helm_gym.telemetry import AT, COLUMN
from helm_gym.workload.regimes import make_path
from real_backend.engine import Engine, MicroBatch, Waits
from real_backend.measured import MeasuredBackend
from real_backend.memory.layout import MOVES, Memory, Plan, make_rules
from real_backend.memory.pricing import batch_load, batch_ms
from real_backend.serving.live_node import Ask, LiveNode
from tests.real_backend.serving.running import small

ALPHAS = (0.5, 0.5, 0.6, 0.7, 0.3, 0.3, 0.45, 0.75, 0.75, 0.75)
SEED = 11


class Clock:
    """Time that passes only where the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait_until(self, until_s: float) -> None:
        self.now = max(self.now, until_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Micro-batches and moves take what the cost model says, on both paths; they are carried out all the same."""
    clock, execute, carry_out = Clock(), Engine.timed_execute, Engine.move

    def timed(engine: Engine, plan: Plan, batch: MicroBatch) -> object:
        scores, _, _ = execute(engine, plan, batch)
        size, rules = len(batch.length), make_rules(engine.profile)
        ms = batch_ms(rules, size, *batch_load(rules, size, plan.cached, batch.length, batch.candidates))
        clock.now += 1e-3 * ms
        served, log = getattr(engine, "log", (None, None))
        if plan is served:  # and not a probe's
            counts = plan.counts.copy()
            fills = plan.fill_row[: counts[0]].copy(), plan.fill_slot[: counts[0]].copy()
            log.append((plan.request[:size].copy(), plan.cached[:size].copy(), batch.pages.copy(), *fills, scores))
        return scores, ms, Waits(0.0, 0.0, 0.0, 0.0)

    def moved(engine: Engine, plan: Plan) -> float:
        carry_out(engine, plan)
        return float(plan.counts[MOVES] * engine.profile.cost.per_moved_row_ms)

    monkeypatch.setattr(Engine, "timed_execute", timed)
    monkeypatch.setattr(Engine, "move", moved)
    yield clock


@pytest.mark.parametrize("batch", [1, 4])
def test_the_same_requests_have_the_same_plans_hits_page_tables_telemetry_and_scores(clock: Clock, batch: int) -> None:
    profile = small(max_batch=batch)
    path = make_path("burst", profile, [SEED], len(ALPHAS))
    backend = MeasuredBackend(profile)
    backend.reset(path.at(0), np.array([SEED]), np.full((1, 1), ALPHAS[0]))
    offline_log, live_log = [], []
    backend.nodes[0].engine.log = backend.nodes[0].plan, offline_log  # type: ignore[attr-defined]  # of the test's own
    requests, items, rows, tables = [], [], [], []
    for t, alpha in enumerate(ALPHAS):
        rows.append(backend.step(np.full((1, 1), alpha), path.at(t)).values[0, 0].copy())
        requests.append([array[0].copy() for array in backend._requests])
        items.append(backend._traffic.items[0].copy())
        tables.append(Memory._make(array.copy() for array in backend._memory))
    assert backend.speed == pytest.approx(1.0)

    clock.now = 0.0
    histories = items[0].copy()
    node = LiveNode(profile, histories, ALPHAS[0], clock, clock.wait_until, slice_pages=12)
    node.node.engine.log = node.node.plan, live_log  # type: ignore[attr-defined]  # of the test's own
    clock.now = arrival_s = 0.0
    node.ledger.clock[:] = 0.0
    for t, alpha in enumerate(ALPHAS):
        histories[:] = items[t]
        node.set_target(alpha)
        assert node.idle()
        moved_s = node.move_s[0]
        user, version, length, delta, candidates, count, gap_s, number = requests[t]
        due = [arrival_s + gap for gap in np.cumsum(gap_s)]
        arrival_s, sent = due[-1], 0
        while sent < number[0] or node.waiting:
            if not node.waiting:
                clock.now = max(clock.now, due[sent])
            while sent < number[0] and due[sent] <= clock.now:
                asked = candidates[sent, : count[sent]]
                node.admit(sent, Ask(user[sent], version[sent], length[sent], delta[sent], asked), due[sent])
                sent += 1
            node.step()
        assert node.ended and node.full
        assert node.move_s[0] == moved_s, "all pages had moved before the first request came"
        row = node.end_interval()
        for name, column in COLUMN.items():
            assert row[column] == pytest.approx(rows[t][column], rel=1e-6, abs=1e-9), name
        for name, mine, theirs in zip(Memory._fields, node.memory, tables[t], strict=True):
            assert np.array_equal(mine, theirs), (t, name)
    assert len(live_log) == len(offline_log) > 0
    for live, offline in zip(live_log, offline_log, strict=True):
        for mine, theirs in zip(live, offline, strict=True):
            assert np.array_equal(mine, theirs)


def serve_some(node: LiveNode, clock: Clock, count: int, rng: np.random.Generator) -> None:
    for k in range(count):
        users = node.profile.population.users
        candidates = rng.integers(0, node.profile.population.items, 8, dtype=np.int32)
        node.admit(k, Ask(int(rng.integers(users)), 0, 40, 4, candidates), clock.now)
        assert [answer.number for answer in node.step()] == [k]


def test_an_interval_without_requests_is_reported_and_finite(clock: Clock) -> None:
    profile = small()
    items = np.zeros((profile.population.users, profile.model.max_history), np.int32)
    node = LiveNode(profile, items, 0.5, clock, clock.wait_until)
    for served in (0, 3, 0, 0, 0, 0):
        serve_some(node, clock, served, np.random.default_rng(0))
        assert not node.ended
        clock.now += node.ends_in_s
        assert node.ended
        row = node.end_interval()
        assert np.isfinite(row).all()
        assert row[AT.interval_arrival_s] > 1.0, "the time in which nothing came is counted"
    assert row[[AT.arrival_rate_rps, AT.utilisation, AT.kv_hit_rate]] == pytest.approx(0.0, abs=1e-9)
    assert row[AT.alpha] == 0.5


def test_pages_move_while_nobody_waits_and_no_more_than_an_interval_allows(clock: Clock) -> None:
    profile = small()
    items = np.zeros((profile.population.users, profile.model.max_history), np.int32)
    node = LiveNode(profile, items, 0.5, clock, clock.wait_until, slice_pages=4)
    node.set_target(0.7)
    moves = 0
    while node.idle():
        moves += 1
    assert moves == 3 and node.alpha == (128 + 12) / 256
    node.end_interval()
    rng = np.random.default_rng(0)
    serve_some(node, clock, profile.interval.requests, rng)  # never idle; rows are missed, so the link is waited for
    assert node.alpha == (128 + 24) / 256
    assert node.end_interval()[AT.moved_pages] == 12
    assert node.move_s[1] == 0.0
