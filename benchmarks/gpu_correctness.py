"""The stage of gpu_check that holds scores against others: caches, types and devices never change one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.gpu_setting import Check, Figures, of_dtype, opened, steady
from helm_gym.profile import Profile
from helm_gym.workload.state import INDEX
from real_backend.engine import Engine, MicroBatch
from real_backend.hstu.model import HSTU
from real_backend.hstu.pages import Layout, Paged, places
from real_backend.measured import MeasuredBackend
from real_backend.memory.layout import FILLS, TOKENS, Plan, make_plan

LEAST_HITS = 0.4  # of the requests that correctness is tried on
WITHIN = {"float32": 1e-4, "bfloat16": 1e-2}  # of the largest score
_COMPARED = 3  # requests that are held against the model on the CPU, which takes seconds for each


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
