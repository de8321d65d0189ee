"""How many operations a request gives to a device: each is a launch, which on a GPU takes longer than its sums."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helm_gym.profile import Profile
from real_backend.engine import Engine, MicroBatch
from real_backend.hstu import pages
from real_backend.memory.layout import TOKENS, Plan, make_plan


class Counting(TorchDispatchMode):
    """Counts torch's operations that compute: views cost no launch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def one_request(engine: Engine, cached: int, length: int, candidates: int) -> tuple[Plan, MicroBatch]:
    """One request whose rows lie in the pool, its first ``cached`` history tokens in the last pages."""
    profile = engine.profile
    plan, n = make_plan(profile), length - cached + candidates
    plan.cached[0], plan.stored[0], plan.counts[TOKENS] = cached, length, n
    plan.slots[:n] = np.arange(n) % (profile.rows_per_page * 2)
    used = -(-length // profile.tokens_per_page)
    places = np.full((1, profile.pages_per_user), -1, np.int32)
    places[0, :used] = profile.pool.pages - 1 - np.arange(used)
    return plan, MicroBatch(np.array([length], np.int32), np.array([candidates], np.int32), places)


def count_operations(engine: Engine, plan: Plan, batch: MicroBatch) -> int:
    """Operations of a micro-batch whose rows are resident; on CUDA Triton's launches are not among them."""
    with Counting() as counting:
        engine.execute(plan, batch)
    return counting.count


def device_operations(profile: Profile) -> dict[str, dict[str, int]]:
    """Operations of a hit and of a miss at DLRMv3's depth, as a GPU's path has them and as the padded one.

    Counted on the CPU, where the kernel's reference stands in for the one launch of the kernel a layer. Indices that go
    up, seven small copies a micro-batch, are not counted.
    """
    model = dataclasses.replace(profile.model, layers=5, norm="group", dtype="bfloat16")
    page_bytes = model.layers * model.heads * (model.qk_dim + model.v_dim) * 2 * profile.tokens_per_page
    deep = dataclasses.replace(
        profile, model=model, pool=dataclasses.replace(profile.pool, page_bytes=page_bytes, pages=1024)
    )
    length = round(profile.population.mean_history)
    cached = length - round(profile.population.delta_tokens)
    found = {}
    for name, paged in (("pages", True), ("padded", False)):
        engine = Engine(deep, "cpu", paged=paged)
        with _one_launch():
            found[name] = {
                kind: count_operations(engine, *one_request(engine, held, length, profile.population.candidates))
                for kind, held in (("miss", 0), ("hit", cached))
            }
    return found


@contextlib.contextmanager
def _one_launch() -> Iterator[None]:
    """Attention over pages is one operation, as the kernel is."""
    attend = pages.attend
    pages.attend = lambda q, fresh, pool, at, last: q.new_empty((q.shape[0], at.heads * at.v_dim), dtype=torch.float32)
    try:
        yield
    finally:
        pages.attend = attend
