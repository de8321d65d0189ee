"""What a GPU machine has to show: the score law, the calibration, and latency against alpha; one JSON file.

Each stage writes the file when it ends, so that a run that is cut off keeps what it has. Run it by gpu_check.sh;
``--device cpu --profile cpu-small`` tries the same lines without a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from helm_gym import files
from helm_gym import profile as profiles
from helm_gym.profile import Profile, load
from helm_gym.provenance import describe_machine, versions
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import INDEX
from real_backend.calibration import calibrate
from real_backend.engine import Engine, MicroBatch
from real_backend.measured import MeasuredBackend
from real_backend.memory.layout import FILLS, TOKENS, Plan, make_plan


def score_law(profile: Profile, device: str, intervals: int) -> dict[str, float]:
    """Serves random requests under a random alpha, and every micro-batch again on an engine that caches nothing."""
    profile = dataclasses.replace(
        profile,
        model=dataclasses.replace(profile.model, dtype="float32"),
        pool=dataclasses.replace(profile.pool, page_bytes=profile.pool.page_bytes * 4 // profile.bytes_per_element),
    )
    backend, bare = MeasuredBackend(profile, device=device), Engine(profile, device)
    served = backend.nodes[0].engine.timed_execute
    worst = hits = count = 0.0

    def checked(plan: Plan, batch: MicroBatch) -> Any:
        nonlocal worst, hits, count
        result = served(plan, batch)
        if plan is backend.nodes[0].probe_plan:
            return result
        expected = bare.execute(*_without_cache(profile, backend, plan, batch))
        worst = float(np.maximum(worst, (result[0] - expected).abs().max()))  # unlike max(), lets a NaN through
        hits += float((plan.cached[: len(batch.length)] > 0).sum())
        count += len(batch.length)
        return result

    path = make_path("mixed", profile, [77], intervals)
    backend.reset(path.at(0), np.array([77]), np.full((1, 1), 0.5))
    backend.nodes[0].engine.timed_execute = checked  # type: ignore[method-assign]  # watched, not replaced
    rng = np.random.default_rng(5)
    for t in range(intervals):
        alpha = rng.uniform(profile.pool.min_alpha, profile.pool.max_alpha)
        backend.step(np.full((1, 1), alpha), path.at(t))
    return {"largest_difference": worst, "requests": count, "kv_hits": hits}


def _without_cache(
    profile: Profile, backend: MeasuredBackend, plan: Plan, batch: MicroBatch
) -> tuple[Plan, MicroBatch]:
    """The same requests as misses of everything: all rows fetched, the whole history computed, nothing kept."""
    again, q = make_plan(profile), backend._requests
    rows = []
    for b, length in enumerate(batch.length):
        r = plan.request[b]
        rows += [backend._traffic.items[0, q.user[0, r], :length], q.candidates[0, r, : batch.candidates[b]]]
    wanted = np.concatenate(rows)
    unique, where = np.unique(wanted, return_inverse=True)
    n, size = len(wanted), len(batch.length)
    again.slots[:n], again.counts[TOKENS] = where, n
    again.fill_row[: len(unique)], again.fill_slot[: len(unique)] = unique, np.arange(len(unique))
    again.counts[FILLS] = len(unique)
    again.cached[:size] = again.stored[:size] = 0
    return again, batch._replace(pages=np.full_like(batch.pages, -1))


def latency_against_alpha(profile: Profile, device: str, intervals: int) -> dict[str, Any]:
    """Mean and P99 service time on the measured rung over a grid of splits, after as long a warm-up."""
    backend = MeasuredBackend(profile, device=device)
    rows, path = [], make_path("steady", profile, [1], 1)
    for alpha in (0.1, 0.3, 0.5, 0.7, 0.9):
        backend.reset(path.at(0), np.array([1]), np.full((1, 1), alpha))
        reports = [backend.step(np.full((1, 1), alpha), path.at(0)) for _ in range(2 * intervals)][intervals:]
        fields = ("interval_service_ms", "service_p99_ms", "emb_hit_rate", "kv_hit_rate")
        rows.append({"alpha": alpha} | {name: float(np.mean([r[name] for r in reports])) for name in fields})
    best = min(rows, key=lambda row: row["interval_service_ms"])
    rate = path.values[0, 0, INDEX["arrival_rate_rps"]]
    return {"rung": "measured", "arrival_rate_rps": rate, "rows": rows, "alpha_star": best["alpha"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--profile", default="h200", help="a shipped profile or a YAML file")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/gpu_check.json"))
    parser.add_argument("--intervals", type=int, default=24, help="per stage; an interval is 50 requests")
    options = parser.parse_args()
    profile = dataclasses.replace(load(options.profile), device=options.device)
    fitted: list[Profile] = [profile]

    def fit() -> dict[str, Any]:
        result = calibrate(profile, seeds=2)
        fitted[0] = dataclasses.replace(profile, cost=result.cost)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        profiles.save(fitted[0], options.out.with_suffix(".yaml"))
        return dataclasses.asdict(result.cost) | {"held_out_error": result.held_out_error, "samples": result.samples}

    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "score_law": lambda: score_law(profile, options.device, max(2, options.intervals // 4)),
        "calibration": fit,
        "latency_against_alpha": lambda: latency_against_alpha(fitted[0], options.device, options.intervals),
    }
    done: dict[str, Any] = {
        "machine": describe_machine(options.device),
        "versions": versions(),
        "profile": profile.name,
        "date": time.strftime("%Y-%m-%d"),
    }
    for name, stage in stages.items():
        started = time.perf_counter()
        try:
            done[name] = stage()
        except Exception as error:  # the stages after it may still work, and the file must say what did not
            done[name] = {"failed": f"{type(error).__name__}: {error}"}
        done[name]["seconds"] = round(time.perf_counter() - started, 1)
        files.write(options.out, json.dumps(done, indent=2) + "\n")
        print(f"{name}: {json.dumps(done[name])}", flush=True)
    law = done["score_law"]
    return int("failed" in law or not law["largest_difference"] <= 1e-4 or any("failed" in done[s] for s in stages))


if __name__ == "__main__":
    raise SystemExit(main())
