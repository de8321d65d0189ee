"""What the stages of gpu_check share: the profile as it fits the device, its table, and a workload."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import safetensors.torch
import torch

from helm_gym.profile import Profile
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import INDEX, WorkloadState
from real_backend.hstu.weights import TABLE
from real_backend.measured import MeasuredBackend

Figures = dict[str, Any]
_DRAWN_BYTES = 2**28  # of a table, drawn at a time


@dataclasses.dataclass
class Check:
    """What the stages share.

    Attributes:
        profile: as it is served here.
        device: cpu or cuda.
        quick: few repetitions, for a test.
        out: folder for what is not JSON.
    """

    profile: Profile
    device: str
    quick: bool
    out: pathlib.Path

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    def times(self, full: int, few: int) -> int:
        return few if self.quick else full


def sized(profile: Profile, table_bytes: float) -> Profile:
    """The profile with table, pool and hot users smaller alike, so that a machine can hold it; small ones stay."""
    share = min(1.0, table_bytes / (profile.population.items * profile.row_bytes))
    if share == 1.0 or profile.model.table:
        return profile
    pool, people = profile.pool, profile.population
    least = math.ceil(1.1 * profile.pages_per_user / (1.0 - pool.max_alpha))
    pages = max(least, round(share * pool.pages))
    shrunk = pages / pool.pages
    hot = max(8, round(shrunk * people.hot_users))
    return dataclasses.replace(
        profile,
        pool=dataclasses.replace(
            pool, pages=pages, page_moves_per_interval=max(1, round(shrunk * pool.page_moves_per_interval))
        ),
        kv_miss=dataclasses.replace(profile.kv_miss, host_users=min(16, profile.kv_miss.host_users)),
        population=dataclasses.replace(
            people,
            items=round(share * people.items),
            hot_users=hot,
            users=min(people.users, max(20 * hot, profile.interval.requests + 1)),
        ),
    )


def with_table(check: Check) -> None:
    """Writes the item table once, for all engines of the check to map: drawing it anew for each would take minutes."""
    model, items = check.profile.model, check.profile.population.items
    if model.table or check.profile.row_bytes * items < _DRAWN_BYTES:
        return
    table = torch.empty((items, model.embedding_dim), dtype=getattr(torch, model.dtype))
    generator = torch.Generator(check.device).manual_seed(model.seed)
    step = _DRAWN_BYTES // check.profile.row_bytes
    for start in range(0, items, step):
        part = table[start : start + step]
        part.copy_(torch.randn(part.shape, device=check.device, generator=generator))
    check.out.mkdir(parents=True, exist_ok=True)
    path = check.out / "items.safetensors"
    safetensors.torch.save_file({TABLE: table}, path)
    check.profile = dataclasses.replace(check.profile, model=dataclasses.replace(model, table=str(path.absolute())))


def of_dtype(profile: Profile, dtype: Any) -> Profile:
    """The profile in another type, with as many rows and tokens in a page."""
    factor = getattr(torch, dtype).itemsize / profile.bytes_per_element
    pool = dataclasses.replace(profile.pool, page_bytes=round(profile.pool.page_bytes * factor))
    return dataclasses.replace(profile, model=dataclasses.replace(profile.model, dtype=dtype), pool=pool)


@contextlib.contextmanager
def opened(profile: Profile, device: str) -> Iterator[MeasuredBackend]:
    backend = MeasuredBackend(profile, device=device)
    try:
        yield backend
    finally:
        backend.close()
        backend.nodes.clear()
        if device == "cuda":
            torch.cuda.empty_cache()


def steady(profile: Profile, seed: int, **changes: float) -> WorkloadState:
    """One interval's workload at rest, with parameters set anew."""
    state = make_path("steady", profile, [seed], 1).at(0)
    values = state.values.copy()
    for name, value in changes.items():
        values[:, INDEX[name]] = value
    return WorkloadState(values, state.gaps_s)
