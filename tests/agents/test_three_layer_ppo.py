"""The three-layer controller: each layer does its part, leaves the others alone, and is in the graph as it acts."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

from agents.three_layer_ppo import adapter, recovery
from agents.three_layer_ppo.curves import curves_split
from agents.three_layer_ppo.graph import draw
from agents.three_layer_ppo.policy import LEARNS, Seen, ThreeLayerPolicy
from agents.three_layer_ppo.settings import LAYERS, Settings
from helm_gym.backend import open_backend
from helm_gym.control_loop import ControlLoop
from helm_gym.errors import InvalidInputError
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Floats
from helm_gym.tasks import find_task
from helm_gym.telemetry import ALPHA_GRID
from helm_gym.training.run_folder import Tensors
from tests.agents.trainings import train_small
from tests.conformance.policy import ROWS, PolicyConformance, follow, make_layout, observations, observe

LAYOUT = make_layout()
TARGET, BOUNDS = LAYOUT.column("target_alpha"), (LAYOUT.profile.pool.min_alpha, LAYOUT.profile.pool.max_alpha)
GRIP = 1 + adapter.WIDTH + recovery.GRIP


def random_tensors(settings: Settings, size: float = 0.3) -> Tensors:
    rng = np.random.default_rng(3)
    width, hidden = Seen(LAYOUT, settings).width, settings.hidden
    tensors = {"mean": rng.random(width), "scale": 0.5 + rng.random(width)}
    for k, (inputs, outputs) in enumerate([(width, hidden), (hidden, hidden), (hidden, 1)]):
        tensors[f"{k}.weight"] = size * rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
        tensors[f"{k}.bias"] = size * rng.standard_normal(outputs)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def make_policy(layers: str = ",".join(LAYERS), **changes: float) -> ThreeLayerPolicy:
    settings = dataclasses.replace(Settings(), layers=layers, **changes)
    return ThreeLayerPolicy(LAYOUT, settings, random_tensors(settings))


def curves(alpha: float) -> Floats:
    """Simulated curves whose least is at ``alpha``, (grid,)."""
    return (0.25 + 0.5 * (np.array(ALPHA_GRID) - alpha) ** 2).astype(np.float32)


@functools.cache
def serve(task: str, seeds: tuple[int, ...], intervals: int) -> tuple[list[Floats], list[np.ndarray]]:
    """Observations (lanes, D) on the modelled rung at a split that is held, and their segments."""
    backend = open_backend("modelled", LAYOUT.profile, lanes=len(seeds))
    loop = ControlLoop(find_task(task), backend, intervals=intervals)
    step, seen, segments = loop.reset(seeds), [], []
    while not step.done:
        step = loop.step(np.zeros((len(seeds), 1, 1)))
        assert loop.path is not None
        seen.append(step.observation[:, 0])
        segments.append(loop.path.segment[:, loop.t - 1])
    backend.close()
    return seen, segments


class TestShippedThreeLayerPpo(PolicyConformance):
    name = "three-layer-ppo"


@pytest.mark.parametrize("layers", ["base", "adapter", "recovery", "base,recovery", "base,adapter,recovery"])
def test_graph_and_compiled_policy_are_one_function(layers: str) -> None:
    """Over whatever can be observed, each on its own states."""
    policy = make_policy(layers)
    model = draw(LAYOUT, policy.settings, random_tensors(policy.settings))
    onnx.checker.check_model(model, full_check=True)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ours = theirs = policy.initial_state(ROWS)
    for seen in observations(LAYOUT, 40):
        action, ours = policy.act(seen, ours)
        action_, theirs = session.run(["action", "state_out"], {"obs": seen, "state": theirs})
        np.testing.assert_allclose(action_, action, atol=1e-5)
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_the_base_policy_is_the_network_that_was_trained() -> None:
    """What PPO learned with is what acts: features, network and pull, in numpy."""
    policy = make_policy("base")
    seen, state = Seen(LAYOUT, policy.settings), policy.initial_state(ROWS)
    memory = seen.initial_state(ROWS)
    for observation in observations(LAYOUT):
        features, memory = seen(observation, memory)
        action, state = policy.act(observation, state)
        lean = policy.settings.pull / LAYOUT.profile.max_step * features[:, -1:]
        wanted = np.clip(policy.network(features) + lean, -1.0, 1.0)
        target = observation[:, [TARGET]] + LAYOUT.profile.max_step * wanted
        reached = np.clip(target, *BOUNDS) - observation[:, [TARGET]]
        np.testing.assert_allclose(action, np.clip(reached / LAYOUT.profile.max_step, -1, 1), atol=1e-4)


def test_the_curves_split_is_where_a_curve_is_least() -> None:
    for alpha in (0.2, 0.45, 0.8):
        assert abs(curves_split(curves(alpha), 0.01) - alpha) < 0.03


def test_a_layer_that_is_left_out_learns_nothing_and_changes_nothing_of_those_before_it() -> None:
    seen = observations(LAYOUT)
    whole, pair, alone = make_policy(), make_policy("base,adapter"), make_policy("adapter")
    watching = make_policy("recovery")
    states = {p: follow(p, seen, p.initial_state(ROWS))[1] for p in (whole, pair, alone, watching)}
    weights, watched = slice(1, 1 + adapter.WIDTH), slice(1 + adapter.WIDTH, LEARNS)
    for all_three, two, one, recovery_only in zip(*states.values(), strict=True):
        np.testing.assert_array_equal(one[:, weights], two[:, weights])
        np.testing.assert_array_equal(recovery_only[:, watched], all_three[:, watched])
        assert not one[:, watched].any() and not one[:, LEARNS:].any() and not recovery_only[:, weights].any()


def test_the_adapter_is_silent_while_the_recovery_grips() -> None:
    """Then it neither learns nor corrects: bursts are not what a workload is like in the long run."""
    policy, weights = make_policy("adapter,recovery"), slice(1, 1 + adapter.WIDTH)
    state = policy.initial_state(1)
    for alpha in (0.7, 0.7, 0.7):
        _, state = policy.act(observe(LAYOUT, target_alpha=0.5, predicted=curves(alpha)), state)
    assert state[0, GRIP] == 0 and state[0, weights].any()
    wave = observe(LAYOUT, target_alpha=0.5, predicted=curves(0.3), returning_share=0.95, mean_history=0.6, load=0.45)
    before = state
    _, state = policy.act(wave, state)
    assert state[0, GRIP] == 1
    np.testing.assert_array_equal(state[:, weights], before[:, weights])


def test_the_adapter_learns_what_the_curves_say_and_is_bounded_and_resettable() -> None:
    policy, context = make_policy("adapter"), {"returning_share": 0.5, "mean_history": 0.5, "load": 0.35}
    places = slice(1, 1 + adapter.WIDTH)

    def serve(curve: Floats, state: Floats, times: int) -> tuple[float, Floats]:
        for _ in range(times):
            seen = observe(LAYOUT, predicted=curve, target_alpha=0.5, **context)
            action, state = policy.act(seen, state)
        return float(action[0, 0]), state

    first, _ = serve(curves(0.7), policy.initial_state(1), 1)
    later, state = serve(curves(0.7), policy.initial_state(1), 400)
    assert first < later  # its prior is below the curves' split in this context
    extreme, state = serve(curves(0.1), state, 2000)
    assert np.abs(state[:, places]).max() <= policy.settings.bound + 1e-6
    assert abs(extreme) * LAYOUT.profile.max_step <= policy.settings.reach + 1e-6
    state[:, places] = 0.0
    assert serve(curves(0.7), state, 1)[0] == pytest.approx(first, abs=1e-6)


def test_the_recovery_notices_bursts_within_a_window_and_lets_go() -> None:
    """Four intervals are a window of telemetry: the fifth sees nothing from before the burst."""
    policy = make_policy("recovery")
    seen, segments = serve("burst-v0", (2000, 2001), 240)
    state, grips = policy.initial_state(len(seen[0])), []
    for observation in seen:
        _, state = policy.act(observation, state)
        grips.append(state[:, GRIP])
    grip, segment = np.stack(grips, 1), np.stack(segments, 1)
    edges = np.argwhere(np.diff(segment, axis=1) != 0) + np.array([0, 1])
    starts = [(lane, t) for lane, t in edges if t + 6 < segment.shape[1]]
    noticed = np.mean([grip[lane, t : t + 6].max() > 0.5 for lane, t in starts])
    assert len(starts) >= 10 and noticed >= 0.7
    assert (grip == 0).mean() > 0.3


def test_the_recovery_is_quiet_in_a_steady_workload() -> None:
    policy = make_policy("recovery")
    seen, _ = serve("steady-v0", (2000, 2001), 120)
    state, grips = policy.initial_state(2), []
    for observation in seen:
        _, state = policy.act(observation, state)
        grips.append(state[:, GRIP])
    assert np.mean(grips) < 0.1


def test_a_jump_moves_the_target_at_full_speed_and_is_not_undone() -> None:
    calm = {"returning_share": 0.5, "mean_history": 0.33, "load": 0.27, "predicted": curves(0.7)}
    wave = {"returning_share": 0.95, "mean_history": 0.6, "load": 0.45, "predicted": curves(0.3)}
    policy, target, targets = make_policy("recovery", jump=1.0), 0.7, []
    state = policy.initial_state(1)
    for t in range(60):
        action, state = policy.act(observe(LAYOUT, target_alpha=target, **(wave if t >= 40 else calm)), state)
        target += float(action[0, 0]) * LAYOUT.profile.max_step
        targets.append(target)
    assert max(targets[:40]) - min(targets[:40]) < 0.02
    assert targets[41] < 0.55 and max(targets[45:]) < 0.36


def test_where_bursts_come_faster_than_pages_move_the_target_rests() -> None:
    """Every six intervals the workload turns; following would be on the wrong side each time."""
    sides = (
        {"returning_share": 0.5, "mean_history": 0.33, "load": 0.27, "predicted": curves(0.7)},
        {"returning_share": 0.95, "mean_history": 0.6, "load": 0.45, "predicted": curves(0.3)},
    )

    def targets(period: int) -> np.ndarray:
        policy, target, seen = make_policy("recovery", jump=1.0), 0.6, []
        state = policy.initial_state(1)
        for t in range(360):
            action, state = policy.act(observe(LAYOUT, target_alpha=target, **sides[t // period % 2]), state)
            target += float(action[0, 0]) * LAYOUT.profile.max_step
            seen.append(target)
        return np.array(seen[180:])

    assert np.ptp(targets(40)) > 0.3
    assert np.ptp(targets(6)) < 0.1 and abs(targets(6).mean() - 0.5) < 0.12


def test_without_an_alarm_the_target_stays_still_near_the_split_and_follows_from_afar() -> None:
    alone, calmed = make_policy("base"), make_policy("base,recovery")

    def share_done(present: float) -> float:
        seen = observe(LAYOUT, target_alpha=present, predicted=curves(0.5), returning_share=0.5)
        (wanted, _), (done, _) = (p.act(seen, p.initial_state(1)) for p in (alone, calmed))
        assert 0.001 < abs(wanted[0, 0]) < 1
        return float(done[0, 0] / wanted[0, 0])

    asked = float(curves_split(curves(0.5), calmed.settings.sharpness))
    assert share_done(asked - 0.2 * calmed.settings.still) == pytest.approx(0.04, abs=0.01)
    assert share_done(asked - calmed.settings.still) == pytest.approx(1.0, abs=0.01)


def test_training_makes_a_policy_that_opens_from_its_folder(tmp_path: pathlib.Path) -> None:
    run = train_small(tmp_path / "run", "three-layer-ppo")
    policy = open_policy(str(tmp_path / "run"), LAYOUT)
    assert run.status == "done" and run.settings["layers"] == "base,adapter,recovery"
    actions, _ = follow(policy, observations(LAYOUT), policy.initial_state(ROWS))
    assert np.isfinite(np.stack(actions)).all()


@pytest.mark.parametrize(
    ("setting", "value"), [("layers", "base,adaptor"), ("hold", 0.0), ("trust", 1.5), ("rest_at", 0.1)]
)
def test_settings_that_cannot_be_are_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=setting):
        Settings(**{setting: value})  # type: ignore[arg-type]
