"""The stages of gpu_check: each measures one thing on one device, and says whether what must hold does.

A stage returns figures and ``ok``; a stage that measured nothing is not ok. On a CPU the same lines run, and what only
a GPU can show says so (``applies: false``).
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_correctness import correctness
from benchmarks.gpu_setting import Check, Figures, opened, steady
from helm_gym.profile import Profile
from helm_gym.workload.state import INDEX
from real_backend.calibration import calibrate
from real_backend.hstu.pages import Layout, attend, places
from real_backend.memory.layout import REFILLS, make_plan
from real_backend.operations import count_operations, one_request

ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
SIZES = (1, 2, 4, 8)


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

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=check.device).to(dtype)

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
