"""The stages of gpu_check: each measures one thing on one device, and says whether what must hold does.

A stage returns figures and ``ok``; a stage that measured nothing is not ok. On a CPU the same lines run, and what only
a GPU can show says so (``applies: false``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import safetensors.torch
import torch

from helm_gym.profile import Profile
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import INDEX, WorkloadState
from real_backend.calibration import calibrate
from real_backend.engine import Engine, MicroBatch
from real_backend.hstu.model import HSTU
from real_backend.hstu.pages import Layout, Paged, attend, places
from real_backend.hstu.weights import TABLE
from real_backend.measured import MeasuredBackend
from real_backend.memory.layout import FILLS, REFILLS, TOKENS, Plan, make_plan
from real_backend.operations import count_operations, one_request

Figures = dict[str, Any]
LEAST_HITS = 0.4  # of the requests that correctness is tried on
WITHIN = {"float32": 1e-4, "bfloat16": 1e-2}  # of the largest score
ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
SIZES = (1, 2, 4, 8)
_COMPARED = 3  # requests that are held against the model on the CPU, which takes seconds for each
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


def correctness(check: Check) -> Figures:
    """Every micro-batch under a random alpha again without any cache, in both types; at least 40% must be hits.

    In float32 some are held against the model on the CPU too, so that a device that is wrong both times is seen.
    """
    found: Figures = {"ok": True}
    for dtype in ("float32", "bfloat16"):
        one = _score_law(check, of_dtype(check.profile, dtype))
        enough = one["requests"] > 0 and one["kv_hits"] >= LEAST_HITS * one["requests"]
        close = one["largest_difference"] <= WITHIN[dtype] * one["largest_score"]
        one["ok"] = bool(enough and close and one["largest_score"] > 0.1)
        found[dtype] = one
        found["ok"] = found["ok"] and one["ok"]
    return found


def _score_law(check: Check, profile: Profile) -> Figures:
    intervals = check.times(24, 5)
    worst = largest = on_cpu = 0.0
    hits = count = compared = 0
    state = steady(profile, 77, hot_share=0.95, new_share=0.1, turnover=0.0)
    # Few enough hot users that each comes back within the check.
    state.values[:, INDEX["hot_users"]] = min(profile.population.hot_users, 4 * intervals)
    with opened(profile, check.device) as backend:
        engine, bare = backend.nodes[0].engine, Engine(profile, check.device)
        served = engine.timed_execute

        def checked(plan: Plan, batch: MicroBatch) -> Any:
            nonlocal worst, largest, hits, count, on_cpu, compared
            result = served(plan, batch)
            if plan is backend.nodes[0].probe_plan:
                return result
            rows = _rows_of(backend, plan, batch)
            expected = bare.execute(*_without_cache(profile, rows, batch))
            if len(expected):
                worst = _worse(worst, result[0] - expected)
                largest = max(largest, float(expected.abs().max()))
            if profile.model.dtype == "float32" and compared < _COMPARED and len(rows[0][1]):
                compared += 1
                alone = _on_cpu(profile, bare, *rows[0])
                on_cpu = _worse(on_cpu, result[0][: len(alone)] - alone)
            hits += int((plan.cached[: len(batch.length)] > 0).sum())
            count += len(batch.length)
            return result

        backend.reset(state, np.array([77]), np.full((1, 1), 0.5))
        engine.timed_execute = checked  # type: ignore[method-assign]  # watched, not replaced
        rng = np.random.default_rng(5)
        for _ in range(intervals):
            low, high = profile.pool.min_alpha, min(0.7, profile.pool.max_alpha)
            backend.step(np.full((1, 1), rng.uniform(low, high)), state)
    found: Figures = {"requests": count, "kv_hits": hits, "hit_share": hits / max(1, count)}
    found |= {"largest_difference": worst, "largest_score": largest}
    if compared:
        found |= {"largest_difference_to_cpu": on_cpu}
        found["largest_difference"] = on_cpu if not on_cpu <= worst else worst
    return found


def _worse(worst: float, difference: torch.Tensor) -> float:
    """The larger of ``worst`` and what differs most; NaN wins."""
    most = float(difference.abs().max())
    return most if not most <= worst else worst


def _rows_of(backend: MeasuredBackend, plan: Plan, batch: MicroBatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each request of a micro-batch: rows of its history, and of its candidates."""
    q, rows = backend._requests, []
    for b, length in enumerate(batch.length):
        r = plan.request[b]
        rows.append((backend._traffic.items[0, q.user[0, r], :length], q.candidates[0, r, : batch.candidates[b]]))
    return rows


def _without_cache(
    profile: Profile, rows: list[tuple[np.ndarray, np.ndarray]], batch: MicroBatch
) -> tuple[Plan, MicroBatch]:
    """The same requests as misses of everything: all rows fetched, the whole history computed, nothing kept."""
    again = make_plan(profile)
    wanted = np.concatenate([part for request in rows for part in request])
    unique, where = np.unique(wanted, return_inverse=True)
    n, size = len(wanted), len(batch.length)
    again.slots[:n], again.counts[TOKENS] = where, n
    again.fill_row[: len(unique)], again.fill_slot[: len(unique)] = unique, np.arange(len(unique))
    again.counts[FILLS] = len(unique)
    again.cached[:size] = again.stored[:size] = 0
    return again, batch._replace(pages=np.full_like(batch.pages, -1))


def _on_cpu(profile: Profile, engine: Engine, history: np.ndarray, asked: np.ndarray) -> torch.Tensor:
    """One request's scores by the model in plain torch on the CPU, over rows of the host's table."""
    net, model = HSTU(profile.model), profile.model
    net.load_state_dict({name: value.cpu() for name, value in engine.hstu.state_dict().items()})
    none, pages = np.zeros(1, np.int32), np.full((1, 1), -1, np.int32)
    at = places(none, none, np.array([len(history)], np.int32), np.array([len(asked)], np.int32), pages, 1)
    table, held, starts = (torch.from_numpy(a) for a in (pages, none, at.starts))
    layout = Layout(table, held, starts, 1, (len(history), len(asked)), model.heads, model.qk_dim, model.v_dim)
    pool = torch.zeros(1, model.layers, model.heads * (model.qk_dim + model.v_dim))
    seq = Paged(pool, layout, *(torch.from_numpy(a) for a in (at.position, at.token, at.place)))
    scores: torch.Tensor = net(engine.table[np.concatenate((history, asked))].float(), seq)
    return scores


def _sizes(profile: Profile) -> tuple[int, int, int]:
    """Tokens of a returning user's history before and after the visit, and candidates."""
    people = profile.population
    length = min(profile.model.max_history, round(people.mean_history))
    return max(1, length - round(people.delta_tokens)), length, people.candidates


def hit_and_miss(check: Check) -> Figures:
    """A returning user's request with his history cached, and the same computed in full; operations of each."""
    with opened(check.profile, check.device) as backend:
        engine, (cached, length, candidates) = backend.nodes[0].engine, _sizes(check.profile)
        miss, hit = (one_request(engine, held, length, candidates) for held in (0, cached))
        found: Figures = {"history": length, "cached": cached, "candidates": candidates, "paged": engine.paged}
        for name, request in (("miss", miss), ("hit", hit)):  # the miss first: it leaves what the hit reads
            times = [engine.timed_execute(*request)[1] for _ in range(check.times(30, 8))]
            found[f"{name}_ms"] = statistics.median(times[2:])
            found[f"{name}_operations"] = count_operations(engine, *request)
        found["miss_over_hit"] = found["miss_ms"] / found["hit_ms"]
        if engine.paged and check.cuda:  # Triton's are not among torch's operations
            for name in ("hit", "miss"):
                found[f"{name}_operations"] += check.profile.model.layers
        found["ok"] = 0.0 < found["hit_ms"] < found["miss_ms"]
    return found


def batch_sizes(check: Check) -> Figures:
    """Requests a second of service time, at four sizes of micro-batches, of a node that is offered more than it can."""
    rates, batches = {}, {}
    for size in SIZES:
        profile = dataclasses.replace(check.profile, max_batch=size)
        state = steady(profile, 5)
        state.values[:, INDEX["arrival_rate_rps"]] *= 20.0
        with opened(profile, check.device) as backend:
            backend.reset(state, np.array([5]), np.full((1, 1), 0.5))
            warm, intervals = check.times(8, 2), check.times(16, 3)
            for _ in range(warm):
                backend.step(np.full((1, 1), 0.5), state)
            before, backend.nodes[0].samples = backend.service_ms, []
            for _ in range(intervals):
                backend.step(np.full((1, 1), 0.5), state)
            spent = backend.service_ms - before
            samples = backend.nodes[0].samples or []
            rates[str(size)] = 1e3 * intervals * profile.interval.requests / spent
            batches[str(size)] = statistics.mean(sample.requests for sample in samples)
    return {"rung": "measured", "requests_per_s": rates, "mean_batch": batches, "ok": min(rates.values()) > 0}


def link(check: Check) -> Figures:
    """Bytes a second up and down, of large copies from pinned memory; and of rows, gathered and sent by the engine."""
    size = check.times(256, 32) * 2**20
    host = torch.empty(size, dtype=torch.uint8, pin_memory=check.cuda).fill_(1)
    there = torch.empty(size, dtype=torch.uint8, device=check.device)
    found: Figures = {"what": "host link" if check.cuda else "copies within host memory: there is no link here"}
    for name, copy in (("up", lambda: there.copy_(host)), ("down", lambda: host.copy_(there))):
        found[f"{name}_gb_per_s"] = size / _seconds(check, copy) / 1e9
    with opened(check.profile, check.device) as backend:
        engine, profile = backend.nodes[0].engine, check.profile
        count = min(engine._staging.rows, profile.pool.pages * profile.rows_per_page, profile.population.items)
        rng = np.random.default_rng(1)
        row, slot = rng.integers(0, profile.population.items, count), np.arange(count)
        seconds = _seconds(check, lambda: engine._fill(row.astype(np.int32), slot.astype(np.int32)))
        found["rows_gb_per_s"] = count * profile.row_bytes / seconds / 1e9
    found["ok"] = all(found[f"{name}_gb_per_s"] > 0 for name in ("up", "down", "rows"))
    return found


def attention(check: Check) -> Figures:
    """Attention of a hit over pages, against the larger of what its bytes and its operations take on this device."""
    model, profile = check.profile.model, check.profile
    cached, length, candidates = _sizes(profile)
    dtype, page_tokens = getattr(torch, model.dtype), profile.tokens_per_page
    width, heads = model.heads * (model.qk_dim + model.v_dim), model.heads
    used = -(-cached // page_tokens)
    pages = np.arange(used, dtype=np.int32)[None]
    held, whole, asked = (np.array([n], np.int32) for n in (cached, length, candidates))
    at = places(held, held, whole, asked, pages, page_tokens)
    tokens = int(at.starts[-1])
    draw = lambda *shape: torch.randn(*shape, device=check.device).to(dtype)  # noqa: E731  # one line
    q, fresh, pool = draw(tokens, heads * model.qk_dim), draw(tokens, width), draw(used * page_tokens, width)
    table, before, starts = (torch.from_numpy(a).to(check.device) for a in (pages, held, at.starts))
    longest = (length - cached, candidates)
    layout = Layout(table, before, starts, page_tokens, longest, heads, model.qk_dim, model.v_dim)
    took = 1e3 * _seconds(check, lambda: attend(q, fresh, pool, layout, False))
    moved = (cached + tokens) * width * dtype.itemsize + tokens * heads * model.v_dim * 4
    flops = 2.0 * width * (tokens * cached + (length - cached) ** 2 / 2 + candidates * (length - cached))
    side = check.times(4096, 512)
    a, b = draw(side, side), draw(side, side)
    block = torch.empty(check.times(1 << 28, 1 << 24), dtype=torch.uint8, device=check.device)
    other = torch.empty_like(block)
    rate = 2.0 * side**3 / _seconds(check, lambda: torch.mm(a, b))
    bandwidth = 2.0 * block.numel() / _seconds(check, lambda: other.copy_(block))
    floor = 1e3 * max(moved / bandwidth, flops / rate)
    return {
        "kernel": "triton" if check.cuda else "reference in torch",
        "attention_ms": took,
        "floor_ms": floor,
        "over_floor": took / floor,
        "measured_tflops": rate / 1e12,
        "measured_memory_gb_per_s": bandwidth / 1e9,
        "ok": bool(took > 0 and floor > 0),
    }


def overlap(check: Check) -> Figures:
    """Whether refills run beside compute: together they take less than one after the other."""
    if not check.cuda:
        return {"applies": False, "why": "copies on a CPU take the thread that computes", "ok": True}
    with opened(check.profile, check.device) as backend:
        engine, profile = backend.nodes[0].engine, check.profile
        _, length, candidates = _sizes(profile)
        request = one_request(engine, 0, length, candidates)
        plan = make_plan(profile)
        rows = min(len(plan.refill_row), profile.population.items)
        plan.counts[REFILLS], plan.refill_row[:rows], plan.refill_slot[:rows] = rows, np.arange(rows), np.arange(rows)

        def both() -> None:
            engine.refill(plan)
            engine._score(*request)

        parts = (lambda: engine.refill(plan), lambda: engine._score(*request), both)
        copy_ms, compute_ms, both_ms = (1e3 * _seconds(check, part) for part in parts)
    saved = (copy_ms + compute_ms - both_ms) / min(copy_ms, compute_ms)
    found = {"copy_ms": copy_ms, "compute_ms": compute_ms, "both_ms": both_ms, "overlapped_share": saved}
    return found | {"applies": True, "ok": saved > 0.1}


def calibration(check: Check) -> Figures:
    """A cost model of this device; the profile with it is written beside the JSON."""
    from helm_gym import profile as profiles

    result = calibrate(check.profile, seeds=check.times(2, 1), device=check.device)
    check.profile = dataclasses.replace(check.profile, cost=result.cost)
    check.out.mkdir(parents=True, exist_ok=True)
    profiles.save(check.profile, check.out / "calibrated.yaml")
    figures = dataclasses.asdict(result.cost) | {"held_out_error": result.held_out_error, "samples": result.samples}
    return figures | {"ok": bool(result.samples > 0 and abs(result.held_out_error) < 0.25)}


def latency_over_alpha(check: Check) -> Figures:
    """Mean and P99 service time on the measured rung over a grid of splits, after a warm-up."""
    rows, intervals = [], check.times(16, 3)
    state = steady(check.profile, 1)
    with opened(check.profile, check.device) as backend:
        for alpha in ALPHAS:
            split = np.full((1, 1), alpha)
            backend.reset(state, np.array([1]), split)
            reports = [backend.step(split, state) for _ in range(2 * intervals)][intervals:]
            names = ("interval_service_ms", "service_p99_ms", "emb_hit_rate", "kv_hit_rate")
            rows.append({"alpha": alpha} | {name: float(np.mean([r[name] for r in reports])) for name in names})
    best = min(rows, key=lambda row: row["interval_service_ms"])
    found = {"rung": "measured", "arrival_rate_rps": float(state.values[0, INDEX["arrival_rate_rps"]])}
    return found | {"rows": rows, "alpha_star": best["alpha"], "ok": best["interval_service_ms"] > 0}


def surrogate_log(check: Check) -> Figures:
    """An episode of the measured rung as `helm-gym collect` logs it, for a surrogate of this device."""
    from surrogate_backend.data import log
    from surrogate_backend.data.collect import Plan as Collection
    from surrogate_backend.data.collect import collect

    profile, intervals = dataclasses.replace(check.profile, max_batch=1), check.times(60, 6)
    folder = check.out / "log"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier check
    collect(Collection(profile, "real", "train", intervals, seed=1), folder, episodes=1)
    written = log.episode_path(folder, 0).stat().st_size
    return {"folder": str(folder), "intervals": intervals, "bytes": written, "ok": written > 0}


STAGES: dict[str, Callable[[Check], Figures]] = {
    "correctness": correctness,
    "hit_and_miss": hit_and_miss,
    "link": link,
    "attention": attention,
    "overlap": overlap,
    "batch_sizes": batch_sizes,
    "calibration": calibration,
    "latency_over_alpha": latency_over_alpha,
    "surrogate_log": surrogate_log,
}


def _seconds(check: Check, work: Callable[[], Any]) -> float:
    """Median wall time of ``work``, with all that it gives to the device."""
    times = []
    for _ in range(check.times(20, 4)):
        if check.cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if check.cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
