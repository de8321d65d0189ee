"""What controllers are paid for: the surrogate follows the modelled rung through jumps of the workload and of alpha.

pytest tests/surrogate_backend/test_jumps.py -s    # prints the figures that the card has
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helm_gym.backend import open_backend
from helm_gym.profile import load
from helm_gym.telemetry import Telemetry
from helm_gym.workload.demand import rate_for_load
from helm_gym.workload.state import INDEX, WorkloadState, at_rest
from surrogate_backend import fit
from surrogate_backend.layout import HURDLED, moved_page_ms

PROFILE = load("cpu-small")
LANES, CALM, AFTER = 48, 48, 8  # intervals before a jump, and those behind it that count
BURSTS = {  # as in helm_gym.workload.regimes
    "wave": {"hot_share": 0.93, "hot_users": 75.0, "mean_history": 375.0, "turnover": 0.01},
    "flood": {"hot_share": 0.08, "new_share": 0.95},
    "viral": {"item_zipf": 1.2},
}
LOADS = {"wave": 0.85, "flood": 0.73, "viral": 0.76}


def states(kind: str) -> tuple[WorkloadState, WorkloadState]:
    """The calm and the burst, the same in all lanes."""
    values = np.stack([at_rest(PROFILE)] * 2)
    for name, value in BURSTS[kind].items():
        values[1, INDEX[name]] = value
    values[:, INDEX["arrival_rate_rps"]] = rate_for_load(PROFILE, values, np.array([0.55, LOADS[kind]]))
    gaps = np.full((LANES, PROFILE.interval.requests), np.nan)
    calm, burst = (WorkloadState(np.tile(row, (LANES, 1)), gaps) for row in values)
    return calm, burst


def served(name: str, kind: str, before: float, after: float) -> list[Telemetry]:
    """The intervals behind a jump of the workload, alpha asked for going from one split to another with it."""
    calm, burst = states(kind)
    backend = open_backend(name, PROFILE, lanes=LANES)
    backend.reset(calm, np.arange(LANES) + 40, np.full((LANES, 1), before))
    for _ in range(CALM):
        backend.step(np.full((LANES, 1), before), calm)
    found = [backend.step(np.full((LANES, 1), after), burst) for _ in range(AFTER)]
    backend.close()
    return found


def mean(found: list[Telemetry], name: str) -> float:
    return float(np.mean([telemetry[name] for telemetry in found]))


@pytest.mark.parametrize("kind", sorted(BURSTS))
def test_the_first_intervals_after_a_jump_are_those_of_the_modelled_rung(kind: str) -> None:
    """Under a split that is held; where alpha falls with the jump the surrogate is too fast, as its card says."""
    modelled, surrogate = (served(name, kind, 0.6, 0.6) for name in ("modelled", "surrogate"))
    off = {
        name: mean(surrogate, name) / mean(modelled, name) - 1.0
        for name in ("interval_service_ms", "interval_sojourn_ms")
    }
    print(f"{kind}: " + ", ".join(f"{name} {value:+.1%}" for name, value in off.items()))
    assert abs(off["interval_service_ms"]) < 0.04
    assert abs(off["interval_sojourn_ms"]) < 0.2


def test_what_is_zero_on_the_modelled_rung_is_exactly_zero() -> None:
    """EMB's empty slots and what waits to fill them: none while pages leave it, some while they come."""
    for after, some in ((0.35, False), (0.8, True)):
        for name in ("modelled", "surrogate"):
            empty = np.stack([telemetry["emb_empty_share"] for telemetry in served(name, "wave", 0.6, after)[2:]])
            assert (empty > 0.0).all() if some else (empty == 0.0).all(), (name, after)


def test_pages_that_emb_gives_up_hold_the_server_up() -> None:
    calm, _ = states("wave")
    lanes = np.full((LANES, 1), 0.6)
    apart, together = (
        WorkloadState(calm.values, np.full((LANES, PROFILE.interval.requests), gap)) for gap in (1.0, 1e-9)
    )
    backend = open_backend("surrogate", PROFILE, lanes=LANES)
    backend.reset(calm, np.arange(LANES), lanes)
    for _ in range(CALM):
        last = backend.step(lanes, apart).service_ms[:, 0, -1].copy()  # type: ignore[index]  # all that is left to do
    moved = backend.step(lanes - 0.1, together)
    backend.close()
    assert (moved["emb_empty_share"] == 0.0).all()
    waited = moved.sojourn_ms[:, 0, 0] - moved.service_ms[:, 0, 0]  # type: ignore[index]  # this backend has both
    assert waited - last == pytest.approx(-moved["moved_pages"][:, 0] * moved_page_ms(PROFILE), rel=2e-2)


def test_a_hurdle_tells_zeros_from_the_rest() -> None:
    logged = {name: torch.tensor([0.0, 0.0, 0.0, 5.0, 6.0]) for name in HURDLED}
    apart = {name: torch.tensor([0.1, 0.3, 0.2, 2.0, 3.0]) for name in HURDLED}
    assert fit.fit_hurdle(apart, logged) == pytest.approx(np.full(len(HURDLED), 1.15))
    never = {name: torch.ones(5) for name in HURDLED}
    assert (fit.fit_hurdle(apart, never) == 0.0).all(), "what is never zero has no hurdle"
    always = {name: torch.zeros(5) for name in HURDLED}
    assert (fit.fit_hurdle(apart, always) >= 3.0).all()
