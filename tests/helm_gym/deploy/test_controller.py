"""The controller: the same targets as in evaluation, and a safe split whatever a policy or the telemetry does."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helm_gym.backend import open_backend
from helm_gym.control_loop import ControlLoop, start_warm
from helm_gym.deploy import Controller, ControlSettings
from helm_gym.deploy.settings import REASONS
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.play import Entrant, play
from helm_gym.policies.opening import open_policy
from helm_gym.tasks import find_task
from helm_gym.telemetry import AT, WIDTH
from tests.helm_gym.deploy.driving import LAYOUT, PATIENT, PROFILE, ROOT, SHIPPED, Broken, Own, Plant, hang, row, write
from tests.helm_gym.deploy.driving import mover as make_mover

SHIPPED_PID = str(SHIPPED / "pid" / "cpu-small" / "policy.onnx")
THREE_LAYERS = str(SHIPPED / "three_layer_ppo" / "cpu-small" / "policy.onnx")


@pytest.mark.parametrize("policy", ["pid", SHIPPED_PID, "three-layer-ppo", THREE_LAYERS, "miss-ratio-curve"])
def test_a_controller_gives_the_targets_that_evaluation_gives(policy: str) -> None:
    task, seeds, intervals = find_task("burst-v0"), [3], 30
    with contextlib.closing(open_backend("modelled", PROFILE)) as backend:
        loop = ControlLoop(task, backend, intervals=intervals)
        evaluated = []
        for step in play(loop, Entrant(open_policy(policy, LAYOUT)), seeds):
            evaluated.append((float(loop.target[0, 0]), step.telemetry.values.copy()))
        path = loop.path
    assert path is not None

    target = np.full((1, 1), task.start_alpha)
    with (
        contextlib.closing(open_backend("modelled", PROFILE)) as backend,
        Controller(PROFILE, policy, mode="active", settings=PATIENT) as controller,
    ):
        telemetry = start_warm(backend, task, path, seeds, target)
        served = []
        for t in range(intervals):
            decision = controller.decide(0, telemetry.values[0, 0], 0.15 * t)
            assert decision.reason is None
            target[0, 0] = decision.target_alpha
            telemetry = backend.step(target, path.at(t))
            served.append((target[0, 0], telemetry.values.copy()))
    assert [target for target, _ in served] == [target for target, _ in evaluated]
    for (_, ours), (_, theirs) in zip(served, evaluated, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len({target for target, _ in served}) > 3, "nothing was controlled"


FAULTS: dict[str, tuple[Callable[[], float], str]] = {
    "nan": (lambda: math.nan, "not_finite"),
    "infinity": (lambda: math.inf, "not_finite"),
    "raises": (lambda: 1 // 0, "error"),
    "hangs": (hang, "late"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_policy_that_fails_moves_nothing_and_is_replaced_by_pid(name: str) -> None:
    fault, reason = FAULTS[name]
    policy = Broken(fault)
    limits = ControlSettings(deadline_s=0.3 if reason == "late" else 5.0, faults=3)
    with Controller(PROFILE, policy, mode="active", settings=limits) as controller:
        plant = Plant(controller)
        assert plant.step().reason is None
        moved = plant.alpha
        assert moved > 0.5
        policy.broken = True
        started = time.monotonic()
        for _ in range(3):
            decision = plant.step()
            assert decision.reason == reason
            assert decision.target_alpha == moved, "the last safe split is held"
        assert time.monotonic() - started < 2.5, "a policy that hangs held the node"
        assert plant.step().reason == "pid"
        assert controller.status()["interventions"] == {reason: 3, "pid": 1}
        assert controller.status()["nodes"][0]["level"] == "pid"
        for _ in range(20):
            assert PROFILE.pool.min_alpha <= plant.step().target_alpha <= PROFILE.pool.max_alpha
        policy.broken = False
        time.sleep(3.1 if reason == "late" else 0.0)  # the thread that was left behind comes back
        controller.revive()
        assert plant.step().reason is None


def test_one_fault_alone_is_forgotten_and_the_state_is_that_before_it() -> None:
    policy = Broken(lambda: math.nan)
    with Controller(PROFILE, policy, mode="active", settings=PATIENT) as controller:
        plant = Plant(controller)
        for k in range(30):
            policy.broken = k % 3 > 0  # two in a row, and three were too many
            assert plant.step().reason == ("not_finite" if policy.broken else None)
        assert controller.status()["nodes"][0]["level"] == "policy"


def test_a_policy_that_alternates_between_extremes_is_found_out() -> None:
    with Controller(
        PROFILE, Own(lambda count: -1.0 if count % 2 else 1.0), mode="active", settings=PATIENT
    ) as controller:
        plant = Plant(controller)
        reasons = [plant.step().reason for _ in range(12)]
    assert reasons[:4] == [None] * 4
    assert reasons[4:7] == ["alternating"] * 3
    assert set(reasons[7:]) == {"pid"}


def test_a_policy_that_goes_one_way_and_comes_back_does_not_alternate() -> None:
    with Controller(PROFILE, Own(lambda count: -1.0 if count // 6 % 2 else 1.0), mode="active", settings=PATIENT) as c:
        plant = Plant(c)
        assert {plant.step().reason for _ in range(60)} == {None}


def test_an_onnx_graph_that_takes_longer_than_the_deadline_is_cut_off(tmp_path: pathlib.Path) -> None:
    from helm_gym.policies.onnx_graph import Graph

    graph = Graph("slow", LAYOUT, state=0)
    value = graph.op("MatMul", "obs", graph.constant(np.full((LAYOUT.width, 890), 1e-3)))
    square = graph.constant(np.eye(890))
    for _ in range(60):  # as many multiply-adds as are allowed, in 60 operators between which the watchdog may end it
        value = graph.op("Tanh", graph.op("MatMul", value, square))
    path = write(tmp_path / "slow.onnx", graph.model(graph.clip(graph.columns(value, 0, 1), -1.0, 1.0), "state"))
    with Controller(PROFILE, str(path), mode="active", settings=PATIENT) as controller:
        plant = Plant(controller)
        takes = min(plant.step().step_s for _ in range(5))
    deadline_s = takes / 8
    limits = ControlSettings(deadline_s=deadline_s, faults=1000)
    with pytest.raises(InvalidInputError, match="its decision takes"):
        Controller(PROFILE, str(path), settings=limits)
    with Controller(PROFILE, str(path), mode="active", settings=PATIENT) as controller:
        object.__setattr__(controller.settings, "deadline_s", 5.0)
        for node in controller._nodes:
            node._settings = limits
        object.__setattr__(controller, "settings", limits)
        time.sleep(0.3)  # the watchdog looks as often as the deadline is long, from its next look on
        plant = Plant(controller)
        decisions = [plant.step() for _ in range(30)]
    assert {d.reason for d in decisions} == {"late"}
    assert min(d.step_s for d in decisions) < takes * 0.8, "none was cut off before its end"


@pytest.mark.parametrize(
    ("telemetry", "reason"),
    [
        (None, "absent"),
        (np.zeros(3), "invalid"),
        ("no numbers", "invalid"),
        (row(target_alpha=math.nan), "telemetry_not_finite"),
        (row(emb_hit_rate=math.nan), "telemetry_not_finite"),
        (np.full(WIDTH, math.nan), "telemetry_not_finite"),
    ],
)
def test_telemetry_that_is_absent_or_broken_holds_the_split(telemetry: object, reason: str) -> None:
    limits = ControlSettings(deadline_s=5.0, static_alpha=0.55)
    with Controller(PROFILE, "pid", mode="active", settings=limits) as controller:
        plant = Plant(controller)
        plant.step()
        if isinstance(telemetry, np.ndarray) and len(telemetry) == WIDTH and np.isfinite(telemetry[AT.target_alpha]):
            telemetry[AT.target_alpha] = plant.alpha
        for k in range(8):
            decision = controller.decide(0, telemetry, 1.0)  # type: ignore[arg-type]  # that is what is tested
            assert decision.reason == reason
            assert decision.target_alpha == (plant.alpha if k < 2 else 0.55), "held, and from the third on static"
        assert plant.step().reason is None, "it heals by itself"
        assert controller.status()["interventions"][reason] == 8


def test_stale_telemetry_holds_the_split() -> None:
    with Controller(PROFILE, Own(lambda count: 1.0), mode="active", settings=PATIENT) as controller:
        assert controller.decide(0, row(), 100.0, measured_s=99.0).reason is None
        held = controller.target(0)
        decision = controller.decide(0, row(), 120.0, measured_s=105.0)
        assert (decision.reason, decision.target_alpha) == ("stale", held)
        assert controller.decide(0, row(), 120.0, measured_s=math.nan).reason == "stale"


def test_an_idle_node_holds_and_its_policy_does_not_advance_on_nothing() -> None:
    """An idle planner that computes NaN and never scales again: a public outage, as a scenario."""
    policies = [Own(lambda count: 0.1 * (count % 5)), Own(lambda count: 0.1 * (count % 5))]
    with (
        Controller(PROFILE, policies[0], mode="active", settings=PATIENT) as busy,
        Controller(PROFILE, policies[1], mode="active", settings=PATIENT) as lazy,
    ):
        working, idling = Plant(busy), Plant(lazy)
        for k in range(12):
            if k % 3 == 1:  # for a hundred intervals nothing comes, and means over nothing are NaN, or 0
                for n in range(100):
                    nothing = np.full(WIDTH, math.nan) if n % 2 else row(interval_service_ms=0, interval_sojourn_ms=0)
                    nothing[AT.target_alpha] = idling.alpha
                    decision = lazy.decide(0, nothing, 1.0, requests=0 if n % 2 else None)
                    assert (decision.reason, decision.target_alpha) == ("idle", idling.alpha)
            assert working.step()[:2] == idling.step()[:2]
        assert lazy.status()["interventions"] == {"idle": 400}


def test_a_clock_that_jumps_costs_nothing() -> None:
    limits = ControlSettings(deadline_s=5.0, cooldown_s=0.5)
    with Controller(PROFILE, Own(lambda count: 0.5), mode="active", settings=limits) as controller:
        alpha = 0.5
        for now in (1e9, 1.0, 1e12, -5.0, 7.0):
            decision = controller.decide(0, row(target_alpha=alpha), now)
            assert decision.reason is None
            alpha = decision.target_alpha
        assert alpha > 0.6
        assert controller.decide(0, row(target_alpha=alpha), 7.2).reason == "cooldown"
        assert controller.decide(0, row(target_alpha=alpha), 8.0).reason is None


@pytest.mark.parametrize(
    ("limits", "action", "reason", "end"),
    [
        (ControlSettings(deadline_s=5, min_emb_bytes=12 * 2**20), -1.0, "least_emb", 12 / 32),
        (ControlSettings(deadline_s=5, min_kv_bytes=8 * 2**20), 1.0, "least_kv", 24 / 32),
        (ControlSettings(deadline_s=5, max_step=0.02), 1.0, "step", PROFILE.pool.max_alpha),
    ],
)
def test_limits_of_the_guard(limits: ControlSettings, action: float, reason: str, end: float) -> None:
    with Controller(PROFILE, Own(lambda count: action), mode="active", settings=limits) as controller:
        plant = Plant(controller)
        splits = [plant.alpha, *(plant.step().target_alpha for _ in range(40))]
        assert splits[-1] == pytest.approx(end)
        assert controller.status()["interventions"][reason] > 0
        largest = limits.max_step if limits.max_step > 0 else PROFILE.max_step
        assert np.abs(np.diff(splits)).max() <= largest + 1e-9


def test_limits_that_leave_no_split_are_refused() -> None:
    for limits in (
        ControlSettings(min_emb_bytes=20 * 2**20, min_kv_bytes=20 * 2**20),
        ControlSettings(static_alpha=1.0),
    ):
        with pytest.raises(InvalidInputError, match=r"leave no split|out of bounds"):
            Controller(PROFILE, "pid", settings=limits)
    with pytest.raises(InvalidInputError, match="deadline_s must be"):
        ControlSettings(deadline_s=0)


def test_shadow_changes_nothing_and_tells_what_it_would_have_done() -> None:
    with Controller(PROFILE, "pid", mode="shadow", settings=PATIENT) as controller:
        plant = Plant(controller)
        decisions = [plant.step() for _ in range(20)]
        assert {d.target_alpha for d in decisions} == {0.5}
        assert len({d.shadow_alpha for d in decisions}) > 1
        assert [record.decision for record in controller.history(0)] == decisions
    with Controller(PROFILE, "pid", mode="off", settings=PATIENT) as controller:
        plant = Plant(controller)
        assert {plant.step() for _ in range(20)} == {(0.5, None, 0.0, None)}


def test_someone_else_may_move_the_split() -> None:
    with Controller(PROFILE, Own(lambda count: 0.1), mode="active", settings=PATIENT) as controller:
        assert controller.decide(0, row(target_alpha=0.5), 0.0).target_alpha == pytest.approx(0.51)
        assert controller.decide(0, row(target_alpha=0.8), 0.2).target_alpha == pytest.approx(0.81)


def test_the_kill_switch_stops_control_with_and_without_the_controller(tmp_path: pathlib.Path) -> None:
    limits = ControlSettings(deadline_s=5.0, static_alpha=0.4, save_s=0.01)
    with Controller(PROFILE, Own(lambda count: 1.0), 2, "active", limits, tmp_path) as controller:
        plants = [Plant(controller, node) for node in (0, 1)]
        for plant in plants:
            plant.step()
        controller.kill()
        for plant in plants:
            decisions = [plant.step() for _ in range(5)]
            assert {d.reason for d in decisions} == {"killed"}
            assert plant.alpha == 0.4
        controller.revive()
        assert plants[0].step().target_alpha > 0.4
        (tmp_path / "KILL").touch()
        deadline = time.monotonic() + 20
        while not controller.status()["killed"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert plants[0].step().reason == "killed"


def test_a_status_is_json_and_its_reasons_are_declared() -> None:
    with Controller("cpu-small", SHIPPED_PID, nodes=2, settings=PATIENT) as controller:
        Plant(controller).step()
        controller.decide(1, None, 0.0)
        told = json.loads(json.dumps(controller.status(), allow_nan=False))
    assert told["interventions"] == {"absent": 1}
    assert told["nodes"][1]["last"]["reason"] == "absent"
    assert len(told["policy"]["sha256"]) == 64
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    for reason, text in REASONS.items():
        assert f"| `{reason}` | {text} |" in page


def test_what_is_no_policy_for_a_node_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'pid'"):
        Controller(PROFILE, "pidd")
    with pytest.raises(InvalidInputError, match="no live node knows"):
        Controller(PROFILE, "oracle")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        Controller(PROFILE, tmp_path / "none.onnx")
    with pytest.raises(InvalidInputError, match=r"`helm-gym export` makes an .onnx file of a run"):
        Controller(PROFILE, str(SHIPPED / "pid" / "cpu-small"))
    with Controller(PROFILE, "pid") as controller:
        for node in (-1, 1):
            with pytest.raises(InvalidInputError, match="no node"):
                controller.decide(node, row())
    with pytest.raises(InvalidInputError, match="is no mode"):
        Controller(PROFILE, "pid", mode="on")
    with pytest.raises(InvalidInputError, match="is no policy"):
        Controller(PROFILE, 3)  # type: ignore[arg-type]  # that is what is tested


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.floats(width=32),
            st.sampled_from(["fine", "idle", "absent", "nan", "stale"]),
        ),
        max_size=30,
    )
)
def test_whatever_comes_the_target_is_a_split_within_bounds_and_a_step_away(
    script: list[tuple[float, str]],
) -> None:
    answers = iter([0.0] * 30 + [action for action, _ in script] + [0.0] * 100)
    limits = ControlSettings(deadline_s=5.0, min_emb_bytes=4 * 2**20, min_kv_bytes=4 * 2**20)
    with Controller(PROFILE, Own(lambda count: next(answers)), mode="active", settings=limits) as controller:
        alpha, now = 0.5, 0.0
        for _, kind in script:
            telemetry = None if kind == "absent" else row(alpha=alpha, target_alpha=alpha)
            if kind == "nan":
                telemetry[AT.queue_depth] = math.nan  # type: ignore[index]  # it is none in no other case
            old = now - 100.0 if kind == "stale" else None
            decision = controller.decide(0, telemetry, now, measured_s=old, requests=0 if kind == "idle" else 50)
            assert 4 / 32 <= decision.target_alpha <= 28 / 32
            assert abs(decision.target_alpha - alpha) <= PROFILE.max_step + 1e-9
            assert kind == "fine" or decision.reason is not None
            alpha, now = decision.target_alpha, now + 0.15


def test_the_state_of_a_mover_counts_its_decisions(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "mover.onnx", make_mover(0.0))
    with Controller(PROFILE, path, mode="active", settings=PATIENT) as controller:
        plant = Plant(controller)
        for _ in range(5):
            plant.step()
        assert controller._nodes[0].runner is not None
        assert controller._nodes[0].runner.state[0, 0] == pytest.approx(5e-3)
