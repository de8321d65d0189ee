"""Threshold, ShadowGradient and MissBytes."""

from __future__ import annotations

import numpy as np
import pytest

from baselines.rules import (
    MissBytes,
    MissBytesSettings,
    ShadowGradient,
    ShadowGradientSettings,
    Threshold,
    ThresholdSettings,
)
from tests.conformance.policy import PolicyConformance, make_layout, observe, settle

LAYOUT = make_layout()


class TestThreshold(PolicyConformance):
    name = "threshold"


class TestShadowGradient(PolicyConformance):
    name = "shadow-gradient"


class TestMissBytes(PolicyConformance):
    name = "miss-bytes"


@pytest.mark.parametrize(
    ("emb", "kv", "direction"),
    [(0.99, 0.9, 0), (0.5, 0.9, 1), (0.99, 0.05, -1), (0.2, 0.3, 1), (0.9, 0.0, -1)],
    ids=["both well", "EMB starves", "KV starves", "EMB starves more", "KV starves more"],
)
def test_threshold_moves_towards_the_starving_side(emb: float, kv: float, direction: int) -> None:
    policy = Threshold(LAYOUT, ThresholdSettings(emb_low=0.92, kv_low=0.35))
    seen = observe(LAYOUT, emb_hit_rate=emb, kv_hit_rate=kv)
    action, _ = policy.act(seen, policy.initial_state(1))
    assert np.sign(action[0, 0]) == direction


def test_shadow_gradient_follows_the_side_where_a_page_is_worth_more() -> None:
    up = {"emb_gain": 0.3, "emb_loss": 0.35, "kv_gain": 0.1, "kv_loss": 0.1}
    down = {"emb_gain": 0.1, "emb_loss": 0.1, "kv_gain": 0.3, "kv_loss": 0.35}
    policy = ShadowGradient(LAYOUT, ShadowGradientSettings(emb_weight=1.0))
    assert settle(policy, LAYOUT, **up)[-1] == pytest.approx(0.95)
    assert settle(policy, LAYOUT, **down)[-1] == pytest.approx(0.05)


def test_shadow_gradient_rests_where_neither_way_pays() -> None:
    at_optimum = {"emb_gain": 0.2, "emb_loss": 0.3, "kv_gain": 0.2, "kv_loss": 0.3}
    assert set(settle(ShadowGradient(LAYOUT, ShadowGradientSettings(emb_weight=1.0)), LAYOUT, **at_optimum)) == {0.5}


def test_shadow_gradient_is_not_moved_by_one_noisy_window() -> None:
    policy = ShadowGradient(LAYOUT, ShadowGradientSettings(emb_weight=1.0))
    quiet, noisy = observe(LAYOUT, emb_gain=0.1, kv_loss=0.2), observe(LAYOUT, emb_gain=0.45, kv_loss=0.2)
    state = policy.initial_state(1)
    for seen in (quiet, quiet, quiet, noisy):
        action, state = policy.act(seen, state)
        assert action[0, 0] == 0.0


def test_miss_bytes_gives_the_pool_to_whom_misses_more() -> None:
    policy = MissBytes(LAYOUT)
    more_rows = settle(policy, LAYOUT, emb_miss=0.5, kv_recomputed=0.1)[-1]
    more_kv = settle(policy, LAYOUT, emb_miss=0.01, kv_recomputed=0.6)[-1]
    assert more_rows > 0.8 and more_kv < 0.2


def test_miss_bytes_counts_bytes() -> None:
    profile = LAYOUT.profile
    rows, tokens, weight = 20.0, 100.0, 0.02
    emb, kv = rows * profile.row_bytes, weight * tokens * profile.kv_bytes_per_token
    seen = {"emb_miss": rows / 200, "kv_recomputed": tokens / profile.model.max_history}
    target = settle(MissBytes(LAYOUT, MissBytesSettings(kv_weight=weight)), LAYOUT, **seen)[-1]
    assert target == pytest.approx(emb / (emb + kv), abs=1e-4)
