"""Pid."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import onnxruntime
import pytest

import agents
from agents.pid import PID, Pid, Settings
from helm_gym.errors import InvalidInputError
from helm_gym.policies.onnx_policy import OnnxPolicy
from helm_gym.policies.opening import open_policy
from helm_gym.policy import towards
from helm_gym.training import run_folder
from tests.conformance.policy import ROWS, PolicyConformance, make_layout, observations, observe, settle

LAYOUT = make_layout()
EMB_WINS = {"emb_gain": 0.4, "emb_loss": 0.4}
KV_WINS = {"kv_gain": 0.4, "kv_loss": 0.4}


class TestPid(PolicyConformance):
    name = "pid"


def test_it_starts_without_a_bump() -> None:
    policy = Pid(LAYOUT)
    balanced = observe(LAYOUT, target_alpha=0.37, emb_gain=0.2, kv_gain=0.2)
    action, _ = policy.act(balanced, policy.initial_state(1))
    assert action[0, 0] == pytest.approx(0.0, abs=1e-5)


def test_it_moves_towards_the_larger_marginal_until_the_bound() -> None:
    assert settle(Pid(LAYOUT), LAYOUT, 0.5, 300, **EMB_WINS)[-1] == pytest.approx(0.95, abs=1e-5)
    assert settle(Pid(LAYOUT), LAYOUT, 0.5, 300, **KV_WINS)[-1] == pytest.approx(0.05, abs=1e-5)


def test_it_rests_where_the_marginals_meet() -> None:
    """Marginals of a curve with its least cost at .7: EMB's fall as it grows, KV's rise."""
    policy, target = Pid(LAYOUT), 0.3
    state = policy.initial_state(1)
    targets = []
    for _ in range(300):
        worth = 0.3 - (target - 0.7), 0.3 + (target - 0.7)
        action, state = policy.act(observe(LAYOUT, target_alpha=target, emb_gain=worth[0], kv_gain=worth[1]), state)
        target = float(np.clip(target + 0.1 * action[0, 0], 0.05, 0.95))
        targets.append(target)
    np.testing.assert_allclose(targets[-50:], 0.7, atol=0.01)


def test_its_integral_does_not_wind_up() -> None:
    """After hours at the bound it comes back as fast as after a minute."""

    def decisions_to_return(held: int) -> int:
        policy = Pid(LAYOUT)
        state = policy.initial_state(1)
        for _ in range(held):
            _, state = policy.act(observe(LAYOUT, target_alpha=0.95, **EMB_WINS), state)
        target = 0.95
        for count in range(1000):
            action, state = policy.act(observe(LAYOUT, target_alpha=target, **KV_WINS), state)
            target = float(np.clip(target + 0.1 * action[0, 0], 0.05, 0.95))
            if target < 0.9:
                return count
        return 1000

    assert decisions_to_return(5000) == decisions_to_return(60) < 20


def test_its_compiled_pass_has_the_bits_of_its_formula_in_numpy() -> None:
    s, pool, max_step = Settings(kp=0.1, ki=0.05, kd=0.3, slope_filter=0.2, floor=0.1), LAYOUT.profile.pool, 0.1
    policy, rng = Pid(LAYOUT, s), np.random.default_rng(0)
    state = policy.initial_state(2000)
    for _ in range(6):
        seen = (LAYOUT.low + (LAYOUT.high - LAYOUT.low) * rng.random((2000, LAYOUT.width))).astype(np.float32)
        action, following = policy.act(seen, state)
        names = ("emb_gain", "emb_loss", "kv_gain", "kv_loss", "target_alpha")
        emb_gain, emb_loss, kv_gain, kv_loss, present = (seen[:, LAYOUT.column(name)] for name in names)
        emb, kv = emb_gain + emb_loss, kv_gain + kv_loss
        error = (emb - kv) / (emb + kv + s.floor)
        integral, last, slope, started = state.T
        last = np.where(started > 0, last, error)
        slope = slope + s.slope_filter * (error - last - slope)
        fast = s.kp * error + s.kd * slope
        integral = np.where(started > 0, integral, present - fast) + s.ki * error
        wanted = integral + fast
        reached = np.clip(np.clip(wanted, present - max_step, present + max_step), pool.min_alpha, pool.max_alpha)
        np.testing.assert_array_equal(action, towards(LAYOUT, seen, reached))
        np.testing.assert_array_equal(following[:, :3].T, [integral + reached - wanted, error, slope])
        state = following
    seen[:, LAYOUT.column("emb_gain")] = np.nan
    assert np.isnan(policy.act(seen, state)[0]).all(), "a backend's mistake must not look like a decision"


def test_its_graph_does_what_it_does() -> None:
    """With every term at work, from the first decision on and at the ends of what can be observed."""
    settings = Settings(kp=0.1, ki=0.05, kd=0.3, slope_filter=0.2, floor=0.1)
    assert PID.graph is not None
    graph = onnxruntime.InferenceSession(PID.graph(LAYOUT, settings, {}).SerializeToString())
    policy = Pid(LAYOUT, settings)
    state = drawn = policy.initial_state(ROWS)
    for observation in observations(LAYOUT, 30):
        action, state = policy.act(observation, state)
        drawn_action, drawn = graph.run(["action", "state_out"], {"obs": observation, "state": drawn})
        np.testing.assert_allclose(drawn_action, action, atol=1e-5)
        np.testing.assert_allclose(drawn, state, atol=1e-5)


def test_its_plain_name_opens_the_shipped_settings_and_the_file_beside_them_does_the_same() -> None:
    folder = pathlib.Path(agents.__path__[0]) / "shipped" / "pid" / "cpu-small"
    card = run_folder.read_run(folder)
    policy: Any = open_policy("pid", LAYOUT)
    assert policy.settings == Settings(**card.settings)
    exported = OnnxPolicy(folder / "policy.onnx", LAYOUT)
    states = [p.initial_state(ROWS) for p in (policy, exported)]
    for observation in observations(LAYOUT):
        decided = [p.act(observation, state) for p, state in zip((policy, exported), states, strict=True)]
        states = [following for _, following in decided]
        np.testing.assert_allclose(decided[1][0], decided[0][0], atol=1e-5)


def test_without_a_shipped_policy_it_has_its_defaults() -> None:
    profile = dataclasses.replace(LAYOUT.profile, name="elsewhere")
    policy: Any = open_policy("pid", type(LAYOUT)(profile))
    assert policy.settings == Settings()


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="floor above 0"):
        Settings(floor=0.0)
