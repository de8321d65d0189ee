"""Every byte and millisecond is in one book: the parts add up to the whole, by one rule on both rungs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helm_gym.backend import open_backend
from helm_gym.profile import KvMiss, Profile
from helm_gym.telemetry import ACCOUNTS, Accounts, Telemetry
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import INDEX, WorkloadState
from real_backend.memory.ledger import FREE_AT_S
from real_backend.memory.pricing import delay_ms
from tests.real_backend.machine import tiny_profile

ALPHAS = (0.3, 0.6, 0.2, 0.5, 0.05, 0.4, 0.6, 0.1)


def charging(batch: int = 1, modelled: bool = True, share: float = 0.3, chunk: int = 0) -> Profile:
    """A pool of which pages move to and fro, with a host tier that evicted users go down to, and a slow link."""
    base = tiny_profile(48, batch, host_users=6, budget=8, chunk_tokens=chunk)
    return dataclasses.replace(
        base,
        link=dataclasses.replace(base.link, modelled=modelled, background_share=share),
        cost=dataclasses.replace(base.cost, per_moved_row_ms=0.01),
        kv_miss=KvMiss("copy", 6),
    )


def served(name: str, profile: Profile) -> list[tuple[Telemetry, float, float]]:
    """Intervals under a moving alpha, the server never idle: (telemetry, s until it is free, speed of the link)."""
    state = make_path("steady", profile, [3], 1).at(0)
    values = state.values.copy()
    values[:, INDEX["arrival_rate_rps"]] = 1e5
    backend = open_backend(name, profile)
    backend.reset(WorkloadState(values, state.gaps_s), np.array([3]), np.full((1, 1), 0.4))
    seen, before = [], 0.0
    for alpha in ALPHAS * 2:
        speed = backend.speed
        telemetry = backend.step(np.full((1, 1), alpha), WorkloadState(values, state.gaps_s))
        free_at = float(backend._ledger.clock[0, FREE_AT_S])
        seen.append((telemetry, free_at - before, speed))
        before = free_at
    backend.close()
    return seen


@pytest.mark.parametrize("name", ["modelled", "real"])
@pytest.mark.parametrize(("batch", "chunk"), [(1, 0), (3, 0), (3, 6)])
@pytest.mark.parametrize("modelled", [True, False])
def test_the_parts_add_up_to_the_whole(name, batch, chunk, modelled):
    total = np.zeros(len(ACCOUNTS))
    for k, (telemetry, busy_s, _) in enumerate(served(name, charging(batch, modelled, chunk=chunk))):
        accounts = telemetry.accounts
        total += accounts.values[0, 0]
        parts = {part: accounts[part].item() for part, _, _ in ACCOUNTS}
        assert min(parts.values()) >= 0
        if k:  # the first interval starts idle
            assert busy_s * 1e3 == pytest.approx(sum(parts[part] for part in Accounts.SERVER_MS))
        waited = sum(parts[part] for part in ("rows_ms", "uploads_ms", "offloads_ms", "delay_ms"))
        assert telemetry["compute_ms"].item() == pytest.approx(parts["compute_ms"])
        assert telemetry["transfer_ms"].item() == pytest.approx(waited)
        assert telemetry["h2d_critical_bytes"].item() == parts["rows_bytes"] + parts["uploads_bytes"]
        assert telemetry["h2d_background_bytes"].item() == parts["refill_bytes"]
        assert telemetry["d2h_bytes"].item() == parts["offloads_bytes"] + parts["moved_down_bytes"]
        if batch == 1:
            assert telemetry.service_ms.sum() == pytest.approx(parts["compute_ms"] + waited)
    whole = dict(zip([part for part, _, _ in ACCOUNTS], total, strict=True))
    expected = {part for part in whole if part.endswith(("_bytes", "compute_ms", "rows_ms", "uploads_ms"))}
    expected |= {"moves_ms", "offloads_ms", "background_ms"}
    missing = [part for part in sorted(expected) if not whole[part] and part != "staged_bytes"]
    assert not missing
    if modelled or name == "modelled":  # a clock on a CPU sees no refill under way
        assert whole["delay_ms"] > 0


def test_both_rungs_price_the_same_traffic_by_the_same_rule():
    """Without background traffic what waits does not depend on how long computing takes."""
    profile = charging(share=0.0)
    for (modelled, _, _), (real, _, speed) in zip(served("modelled", profile), served("real", profile), strict=True):
        for part in ("rows_ms", "uploads_ms", "offloads_ms"):
            np.testing.assert_allclose(real.accounts[part] / speed, modelled.accounts[part], rtol=1e-9)
        for part in (part for part, unit, _ in ACCOUNTS if unit == "B"):
            np.testing.assert_array_equal(real.accounts[part], modelled.accounts[part])


@given(
    moving=st.floats(0, 100),
    waiting=st.floats(0, 100),
    share=st.floats(0, 1),
)
def test_background_traffic_delays_by_its_share_and_by_no_more_than_itself(moving, waiting, share):
    delay = delay_ms(moving, waiting, share)
    assert 0 <= delay <= waiting
    if share < 0.99 and waiting >= moving * share / (1 - share):  # it lasts longer than what it delays
        assert (moving + delay) * (1 - share) == pytest.approx(moving)


def test_a_move_holds_the_server_up_and_its_offloads_the_link():
    """With alpha at rest nothing moves; when it falls, rows move; when it rises, users go down in the background."""
    still = charging()
    rows = [t.accounts for t, _, _ in served("modelled", still)]
    fell = [a for a, alpha, before in zip(rows[1:], (ALPHAS * 2)[1:], ALPHAS * 2, strict=False) if alpha < before]
    rose = [a for a, alpha, before in zip(rows[1:], (ALPHAS * 2)[1:], ALPHAS * 2, strict=False) if alpha > before]
    assert sum(a["moved_rows_bytes"].item() for a in fell) > 0 == sum(a["moved_rows_bytes"].item() for a in rose)
    assert sum(a["moved_down_bytes"].item() for a in rose) > 0 == sum(a["moved_down_bytes"].item() for a in fell)
