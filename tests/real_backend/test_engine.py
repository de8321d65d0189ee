"""The engine does what a plan says, and whatever a plan says about caches, scores stay the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helm_gym import profile as profiles
from helm_gym.errors import IncompatibleError, InvalidInputError
from helm_gym.profile import KvMiss, Model, Pool, Profile
from real_backend import fbgemm
from real_backend.engine import Engine, MicroBatch
from real_backend.memory.layout import FILLS, MOVES, OFFLOADS, REFILLS, TOKENS, Plan, make_plan

MODEL = Model(layers=2, heads=2, embedding_dim=8, qk_dim=4, v_dim=4, max_history=24, max_candidates=6, seed=1)
POOL = Pool(pages=64, page_bytes=256, min_alpha=0.5, max_alpha=0.55, page_moves_per_interval=4, shadow_pages=2)
USERS, EMB_PAGES = 6, 16  # the test's own manager: pages 0..15 hold rows, the others KV


def small(page_bytes: int = 256, max_batch: int = 4, model: Model = MODEL, **changes: object) -> Profile:
    base = profiles.load("cpu-small")
    pool = dataclasses.replace(POOL, page_bytes=page_bytes, pages=160)
    population = dataclasses.replace(base.population, items=500, mean_history=10.0, candidates=model.max_candidates)
    whole = {"kv_miss": KvMiss("copy", 3), **changes}
    return dataclasses.replace(base, model=model, pool=pool, population=population, max_batch=max_batch, **whole)


class Manager:
    """Plans micro-batches at random but consistently: remembers what is where, and nothing else is promised."""

    def __init__(self, profile: Profile, rng: np.random.Generator) -> None:
        self.profile, self.rng = profile, rng
        self.history = [np.zeros(0, np.int32) for _ in range(USERS)]
        self.cached = [0] * USERS
        kv_pages = rng.permutation(np.arange(EMB_PAGES, profile.pool.pages)).astype(np.int32)
        self.pages = kv_pages[: USERS * profile.pages_per_user].reshape(USERS, -1)
        self.spare = kv_pages[USERS * profile.pages_per_user :]
        self.host = [-1] * profile.kv_miss.host_users  # user in each place
        self.host_tokens = [0] * profile.kv_miss.host_users

    def plan(self, users: list[int]) -> tuple[Plan, MicroBatch, list[tuple[np.ndarray, np.ndarray]]]:
        profile, rng = self.profile, self.rng
        plan, model = make_plan(profile), profile.model
        offloads, rows, requests = [], [], []
        for user in range(USERS):
            if self.cached[user] and rng.random() < 0.3:  # evict, to the host tier or for good
                place = int(rng.integers(len(self.host)))
                if rng.random() < 0.7 and (self.host[place] < 0 or self.host[place] not in users):
                    offloads.append((user, place))
                    self.host[place], self.host_tokens[place] = user, self.cached[user]
                self.cached[user] = 0
        lengths, tables = [], []
        for i, user in enumerate(users):
            new = rng.integers(0, 500, min(rng.integers(0, 9), model.max_history - len(self.history[user])))
            self.history[user] = np.concatenate([self.history[user], new.astype(np.int32)])
            length = len(self.history[user])
            if not self.cached[user] and user in self.host:
                plan.upload_place[i] = self.host.index(user)
                self.cached[user] = self.host_tokens[plan.upload_place[i]]
            plan.cached[i] = self.cached[user]
            plan.stored[i] = length if rng.random() < 0.7 else rng.integers(self.cached[user], length + 1)
            self.cached[user] = int(plan.stored[i])
            table = self.pages[user].copy()
            table[-(-self.cached[user] // profile.tokens_per_page) :] = -1
            tables.append(table)
            candidates = rng.integers(0, 500, rng.integers(0, 7)).astype(np.int32)
            rows += [*self.history[user][plan.cached[i] :], *candidates]
            requests.append((self.history[user].copy(), candidates))
            lengths.append(length)
        for k, (user, place) in enumerate(offloads):
            plan.offload_place[k], plan.offload_pages[k] = place, self.pages[user]
        plan.counts[[OFFLOADS, TOKENS, FILLS]] = len(offloads), len(rows), len(rows)
        # Every row is filled anew, half of them into staging slots.
        staging = profile.pool.pages * profile.rows_per_page
        free = np.concatenate([np.arange(EMB_PAGES * profile.rows_per_page), staging + np.arange(4 * 30)])
        slots = rng.permutation(free)[: len(rows)]
        plan.slots[: len(rows)] = plan.fill_slot[: len(rows)] = slots
        plan.fill_row[: len(rows)] = rows
        candidates = np.array([len(c) for _, c in requests], np.int32)
        return plan, MicroBatch(np.array(lengths, np.int32), candidates, np.stack(tables)), requests


def fresh_scores(engine: Engine, requests: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Scores of (history, candidates) with nothing cached and nothing kept, one request at a time."""
    profile, parts = engine.profile, []
    for history, candidates in requests:
        rows = np.concatenate([history, candidates])
        plan = make_plan(profile)
        plan.counts[[TOKENS, FILLS]] = len(rows)
        plan.cached[0] = plan.stored[0] = 0
        plan.fill_row[: len(rows)] = rows
        plan.slots[: len(rows)] = plan.fill_slot[: len(rows)] = np.arange(len(rows))
        one = MicroBatch(
            np.array([len(history)], np.int32),
            np.array([len(candidates)], np.int32),
            np.full((1, profile.pages_per_user), -1, np.int32),
        )
        parts.append(engine.execute(plan, one).numpy())
    return np.concatenate(parts)


ENGINES: dict[int, tuple[Engine, Engine]] = {}


@settings(max_examples=40, deadline=None)
@given(page_bytes=st.sampled_from([128, 256, 512]), seed=st.integers(0, 10_000), visits=st.integers(1, 8))
def test_first_law_no_plan_changes_a_score(page_bytes, seed, visits):
    if page_bytes not in ENGINES:
        ENGINES[page_bytes] = Engine(small(page_bytes)), Engine(small(page_bytes))
    engine, reference = ENGINES[page_bytes]
    rng = np.random.default_rng(seed)
    manager = Manager(engine.profile, rng)
    for _ in range(visits):
        users = rng.permutation(USERS)[: rng.integers(1, 5)].tolist()
        plan, batch, requests = manager.plan(users)
        scores = engine.execute(plan, batch).numpy()
        np.testing.assert_allclose(scores, fresh_scores(reference, requests), atol=1e-5)
        engine.pages[manager.spare] = 7.0  # pages that no plan named may hold anything


def test_kv_beyond_stored_is_not_written():
    engine = Engine(small())
    rng = np.random.default_rng(0)
    manager = Manager(engine.profile, rng)
    manager.history[0] = rng.integers(0, 500, 20).astype(np.int32)
    plan, batch, _ = manager.plan([0])
    plan.stored[0], pages = 11, manager.pages[0]
    engine.execute(plan, batch._replace(pages=pages[None]))
    page_tokens = engine.profile.tokens_per_page
    kv = engine.tokens[torch.from_numpy(pages.astype(np.int64)[:, None] * page_tokens + np.arange(page_tokens)).ravel()]
    assert kv[:11].abs().sum((1, 2)).min() > 0
    assert not kv[11:].any()


def test_moves_read_every_source_before_they_write():
    engine, plan = Engine(small()), make_plan(small())
    engine.rows[:10] = torch.arange(10.0)[:, None]
    plan.counts[MOVES] = 3
    plan.move_from[:3], plan.move_to[:3] = [1, 2, 3], [2, 3, 1]
    engine._move(plan)
    assert engine.rows[:5, 0].tolist() == [0, 3, 1, 2, 4]


def test_refills_copy_rows_of_the_table():
    engine, plan = Engine(small()), make_plan(small())
    plan.counts[REFILLS] = 2
    plan.refill_row[:2], plan.refill_slot[:2] = [400, 3], [5, 9]
    engine.refill(plan)
    assert torch.equal(engine.rows[[5, 9]], engine.table[[400, 3]])


def test_an_evicted_user_comes_back_from_the_host_tier_bit_for_bit():
    engine = Engine(small())
    plan, pages, others = make_plan(engine.profile), np.arange(20, 32), np.arange(50, 62)
    kv = torch.randn(12, engine.pages.shape[1])
    engine.pages[20:32] = kv
    plan.counts[OFFLOADS], plan.offload_place[0], plan.offload_pages[0] = 1, 2, pages
    engine._offload(plan)
    engine.pages[20:32] = 0
    plan.upload_place[0], plan.cached[0] = 2, 23
    engine._upload(plan, MicroBatch(np.array([24], np.int32), np.array([1], np.int32), others[None].astype(np.int32)))
    assert torch.equal(engine.pages[50:62], kv)


def test_time_is_split_and_a_modelled_link_is_not_measured():
    link = dataclasses.replace(small().link, modelled=False)
    for profile, measured in ((small(), False), (small(link=link), True)):
        engine, manager = Engine(profile), Manager(profile, np.random.default_rng(3))
        scores, compute_ms, waits = engine.timed_execute(*manager.plan([0, 1])[:2])
        assert scores.dtype == torch.float32
        assert compute_ms > 0
        assert (sum(waits) > 0) is measured


def one_request(length: int, candidates: int) -> MicroBatch:
    pages = np.full((1, small().pages_per_user), -1, np.int32)
    return MicroBatch(np.array([length], np.int32), np.array([candidates], np.int32), pages)


@pytest.mark.parametrize(
    ("length", "candidates", "tokens", "sentence"),
    [
        (25, 1, 26, "A history of 25 tokens is longer than the model's maximum of 24"),
        (24, 7, 31, "7 candidates are more than the model's maximum of 6"),
        (24, 6, 29, "29 slots for a micro-batch of 30 tokens"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(length, candidates, tokens, sentence):
    engine, plan = Engine(small()), make_plan(small())
    plan.cached[0] = plan.stored[0] = 0
    plan.counts[TOKENS] = tokens
    with pytest.raises(InvalidInputError, match=sentence):
        engine.execute(plan, one_request(length, candidates))


def test_tokens_without_a_page_are_refused():
    """The compiled attention would take another user's."""
    engine, plan = Engine(small()), make_plan(small())
    plan.cached[0], plan.stored[0], plan.counts[TOKENS] = 0, 5, 6
    with pytest.raises(InvalidInputError, match="no page"):
        engine.execute(plan, one_request(5, 1))


def test_pages_that_rows_or_tokens_do_not_fill_are_refused():
    with pytest.raises(InvalidInputError, match="page_bytes 192 must be a multiple of the 128 B"):
        Engine(small(page_bytes=192))


def test_a_build_of_fbgemm_for_another_torch_is_named(monkeypatch):
    def broken(name: str) -> None:
        raise OSError("undefined symbol")

    fbgemm.operators.cache_clear()
    monkeypatch.setattr(fbgemm.importlib, "import_module", broken)
    with pytest.raises(IncompatibleError, match=r"torch 2\S+ and fbgemm \S+ do not go together; install torch=="):
        Engine(small())
    fbgemm.operators.cache_clear()
