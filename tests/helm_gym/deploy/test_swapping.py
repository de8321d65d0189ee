"""Swaps, roll-back and trials: nothing worse stays, and what a policy has learned goes on where it may."""

from __future__ import annotations

import hashlib
import pathlib
import threading
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from helm_gym.deploy import Controller, ControlSettings
from helm_gym.deploy.canary import Evidence
from helm_gym.errors import HelmError, InvalidInputError, RefusedError
from helm_gym.policies.onnx_graph import Graph
from tests.helm_gym.deploy.driving import LAYOUT, PATIENT, PROFILE, SHIPPED, Plant, mover, write

PID = SHIPPED / "pid" / "cpu-small" / "policy.onnx"
PPO = SHIPPED / "ppo" / "cpu-small" / "policy.onnx"


def sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def count(controller: Controller, node: int = 0) -> float:
    """How many decisions a ``mover`` has kept in its state."""
    runner = controller._nodes[node].runner
    assert runner is not None
    return round(float(runner.state[0, 0]) * 1e3)


@pytest.fixture
def up(tmp_path: pathlib.Path) -> pathlib.Path:
    return write(tmp_path / "up.onnx", mover(0.1))


@pytest.fixture
def down(tmp_path: pathlib.Path) -> pathlib.Path:
    return write(tmp_path / "down.onnx", mover(-0.1))


def test_a_swap_takes_over_and_rolls_back(up: pathlib.Path, down: pathlib.Path) -> None:
    with Controller(PROFILE, up, mode="active", settings=PATIENT) as controller:
        plant = Plant(controller)
        for _ in range(5):
            plant.step()
        high = plant.alpha
        replay = controller.swap(down, sha256(down))
        assert replay.decisions >= 5
        assert replay.divergence == pytest.approx(0.2)
        assert count(controller) == 0, "another policy's state is not taken over"
        assert plant.step().target_alpha == pytest.approx(high - 0.01)
        told = controller.status()
        assert told["policy"]["sha256"] == sha256(down)
        assert told["former"]["sha256"] == sha256(up)
        controller.roll_back()
        assert plant.step().target_alpha == pytest.approx(high)
        assert count(controller) == 6, "it goes on where it was"
        controller.roll_back()
        assert plant.step().target_alpha < high


def test_the_state_survives_a_swap_of_the_same_file(up: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with Controller(PROFILE, up, mode="active", settings=PATIENT) as controller:
        plant = Plant(controller)
        for _ in range(4):
            plant.step()
        again = tmp_path / "again.onnx"
        again.write_bytes(up.read_bytes())
        controller.swap(again)
        assert count(controller) == 4
        assert controller.status()["former"] is None
        plant.step()
        assert count(controller) == 5


def _damage(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _other_clock(path: pathlib.Path) -> None:
    write(path, mover(0.1), requests=100)


def _other_layout(path: pathlib.Path) -> None:
    write(path, mover(0.1), layout_version=99)


def _other_profile(path: pathlib.Path) -> None:
    write(path, mover(0.1), profile="h200", profile_fingerprint="0" * 16)


def _raises(path: pathlib.Path) -> None:
    """A graph that is sound on the bounds of what may be observed, as far as its check tries."""
    model = mover(0.1)
    model.graph.node[0].op_type = "Teleport"
    write(path, model)


def _truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def _empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "rule"),
    [
        (_damage, None),
        (_truncate, None),
        (_empty, None),
        (_other_clock, "made-for"),
        (_other_layout, "made-for"),
        (_other_profile, "made-for"),
        (_raises, None),
        (pathlib.Path.unlink, "file"),
    ],
)
def test_a_file_that_may_not_decide_is_refused_and_nothing_changes(
    up: pathlib.Path, down: pathlib.Path, harm: Callable[[pathlib.Path], None], rule: str | None
) -> None:
    with Controller(PROFILE, up, mode="active", settings=PATIENT) as controller:
        plant = Plant(controller)
        plant.step()
        harm(down)
        with pytest.raises(RefusedError) as refused:
            controller.swap(down)
        assert rule in (None, refused.value.rule)
        assert plant.step().target_alpha == pytest.approx(0.52)
        assert count(controller) == 2
        told = controller.status()
        assert told["interventions"] == {"swap_refused": 1}
        assert told["policy"]["sha256"] == sha256(up)
        with pytest.raises(InvalidInputError, match="no former policy"):
            controller.roll_back()


def test_a_wrong_checksum_is_refused(up: pathlib.Path, down: pathlib.Path) -> None:
    with Controller(PROFILE, up, settings=PATIENT) as controller:
        with pytest.raises(RefusedError, match="its SHA-256 is"):
            controller.swap(down, sha256(up))
        controller.swap(down, sha256(down).upper())


def test_a_policy_that_is_too_slow_is_refused_before_it_decides(up: pathlib.Path, tmp_path: pathlib.Path) -> None:
    graph = Graph("slow", LAYOUT, state=0)
    value = graph.op("MatMul", "obs", graph.constant(np.full((LAYOUT.width, 512), 1e-3)))
    for _ in range(40):
        value = graph.op("MatMul", value, graph.constant(np.eye(512))) if _ < 2 else graph.op("Tanh", value)
    slow = write(tmp_path / "slow.onnx", graph.model(graph.clip(graph.columns(value, 0, 1), -1.0, 1.0), "state"))
    with Controller(PROFILE, up, settings=PATIENT) as controller:
        object.__setattr__(controller.settings, "deadline_s", 1e-6)
        try:
            with pytest.raises(RefusedError, match="the deadline is") as refused:
                controller.swap(slow)
        finally:
            object.__setattr__(controller.settings, "deadline_s", 5.0)
        assert refused.value.rule == "time"


def test_swaps_in_the_middle_of_decisions_lose_none(up: pathlib.Path, down: pathlib.Path) -> None:
    with Controller(PROFILE, up, nodes=2, mode="active", settings=PATIENT) as controller:
        plants, done = [Plant(controller, node) for node in (0, 1)], threading.Event()
        failures: list[object] = []

        def serve(plant: Plant) -> None:
            try:
                while not done.is_set():
                    before = plant.alpha
                    decision = plant.step()
                    if decision.reason is not None or abs(decision.target_alpha - before) > 0.011:
                        failures.append(decision)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=serve, args=(plant,)) for plant in plants]
        for thread in threads:
            thread.start()
        for k in range(12):
            controller.swap(down if k % 2 == 0 else up)
            controller.roll_back()
            controller.set_mode("shadow" if k % 3 else "active", k % 2)
            controller.status()
        done.set()
        for thread in threads:
            thread.join(20)
        assert not failures
        assert min(plant.k for plant in plants) > 12


# --- trials ---


def serve(plants: list[Plant], intervals: int, p99: Callable[[Plant], float], **arguments: object) -> None:
    for _ in range(intervals):
        for plant in plants:
            plant.step({"sojourn_p99_ms": p99(plant)}, **arguments)


def noisy(rng: np.random.Generator, harm: float = 0.0) -> Callable[[Plant], float]:
    """A P99 of 40 ms at a split of .5, which grows as the split moves away; the same noise for all is paired out."""
    return lambda plant: 40.0 * float(np.exp(rng.normal(0, 0.1))) * (1.0 + harm * abs(plant.alpha - 0.5))


def test_a_worse_policy_on_trial_rolls_back_by_itself(up: pathlib.Path, down: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    still = up.with_name("still.onnx")
    write(still, mover(0.0))
    with Controller(PROFILE, still, nodes=4, mode="active", settings=PATIENT) as controller:
        plants = [Plant(controller, node) for node in range(4)]
        serve(plants, 30, noisy(rng))
        controller.set_mode("canary", 0)
        controller.swap(down)
        assert controller.status()["candidate"]["sha256"] == sha256(down)
        serve(plants, 200, noisy(rng, harm=2.0))
        assert [controller.mode(k) for k in range(4)] == ["active"] * 4
        told = controller.status()
        assert told["interventions"]["canary_worse"] == 1
        assert told["policy"]["sha256"] == sha256(still)
        assert told["candidate"] is None
        assert {plant.alpha for plant in plants[1:]} == {0.5}, "the others never ran it"
        assert any("p99 is worse" in note for note in told["notes"])


def test_a_policy_that_is_no_worse_stays_on_trial_until_it_is_promoted(up: pathlib.Path) -> None:
    rng = np.random.default_rng(1)
    still = up.with_name("still.onnx")
    write(still, mover(0.0))
    with Controller(PROFILE, still, nodes=3, mode="active", settings=PATIENT) as controller:
        plants = [Plant(controller, node) for node in range(3)]
        controller.set_mode("canary", 2)
        controller.swap(up)
        serve(plants, 400, noisy(rng))
        assert controller.mode(2) == "canary"
        assert controller.status()["trial"]["figures"]["p99"]["windows"] > 50
        controller.promote()
        assert controller.status()["policy"]["sha256"] == sha256(up)
        assert controller.status()["former"]["sha256"] == sha256(still)
        serve(plants, 60, noisy(rng))
        assert {plant.alpha for plant in plants} == {PROFILE.pool.max_alpha}


@pytest.mark.parametrize(
    ("arguments", "figure"), [({"errors": 5, "requests": 50}, "errors"), ({"memory_bytes": 2e9}, "memory")]
)
def test_errors_and_memory_end_a_trial_too(up: pathlib.Path, arguments: dict[str, float], figure: str) -> None:
    with Controller(PROFILE, up, nodes=2, mode="shadow", settings=PATIENT) as controller:
        plants = [Plant(controller, node) for node in range(2)]
        controller.set_mode("canary", 0)
        for _ in range(80):
            plants[0].step(**arguments)
            plants[1].step(**({"memory_bytes": 1e9} if figure == "memory" else {"requests": 50}))
        assert controller.mode(0) == "shadow"
        assert any(f"{figure} is worse" in note for note in controller.status()["notes"])
        serve(plants, 20, lambda plant: 40.0)
        assert plants[0].alpha == pytest.approx(0.5), "it goes back to the split at which it came"


def test_a_policy_that_fails_on_trial_is_rolled_back_at_once(tmp_path: pathlib.Path, up: pathlib.Path) -> None:
    limits = ControlSettings(deadline_s=5.0, reversals=2)
    graph = Graph("alternates", LAYOUT, state=1)
    turned = graph.op("Where", graph.op("Greater", graph.columns("state", 0, 1), graph.constant(0.0)), graph.fill(-1.0), graph.fill(1.0))  # fmt: skip  # noqa: E501
    path = write(tmp_path / "alternates.onnx", graph.model(turned, graph.op("Identity", turned)))
    with Controller(PROFILE, up, nodes=2, mode="active", settings=limits) as controller:
        plants = [Plant(controller, node) for node in range(2)]
        controller.set_mode("canary", 1)
        controller.swap(path)
        for _ in range(10):
            for plant in plants:
                plant.step()
        told = controller.status()
        assert told["interventions"]["alternating"] == 3
        assert told["interventions"]["canary_faults"] == 1
        assert controller.mode(1) == "active"
        assert told["nodes"][1]["level"] == "policy"


def test_nodes_that_always_differed_are_compared_by_the_change() -> None:
    """A node with twice the P99 of the others, before as after, is no reason to roll back."""
    rng = np.random.default_rng(2)
    with Controller(PROFILE, PID, nodes=2, mode="shadow", settings=PATIENT) as controller:
        plants = [Plant(controller, node) for node in range(2)]
        loaded = lambda plant: (80.0 if plant.node == 0 else 40.0) * float(np.exp(rng.normal(0, 0.05)))  # noqa: E731
        serve(plants, 64, loaded)
        controller.set_mode("canary", 0)
        serve(plants, 200, loaded)
        assert controller.mode(0) == "canary"


def test_an_idle_node_on_trial_is_not_judged_by_its_last_reading_again_and_again() -> None:
    with Controller(PROFILE, PID, nodes=2, mode="shadow", settings=PATIENT) as controller:
        plants = [Plant(controller, node) for node in range(2)]
        controller.set_mode("canary", 0)
        serve(plants[:1], 4, lambda plant: 4000.0)
        serve(plants[1:], 4, lambda plant: 40.0)
        for _ in range(100):
            plants[0].step({"sojourn_p99_ms": 4000.0}, requests=0)
            plants[1].step({"sojourn_p99_ms": 40.0})
        assert controller.mode(0) == "canary"
        serve(plants, 60, lambda plant: 4000.0 if plant.node == 0 else 40.0)
        assert controller.mode(0) == "shadow"


def test_nobody_to_compare_with_is_refused() -> None:
    with Controller(PROFILE, PID, nodes=2, settings=PATIENT) as controller:
        with pytest.raises(InvalidInputError, match="compare those on trial"):
            controller.set_mode("canary")
        controller.set_mode("canary", 0)
        with pytest.raises(InvalidInputError, match="compare those on trial"):
            controller.set_mode("canary", 1)
        with pytest.raises(InvalidInputError, match="no node 7"):
            controller.set_mode("off", 7)
    with Controller(PROFILE, PID, settings=PATIENT) as controller, pytest.raises(InvalidInputError, match="on trial"):
        controller.promote()


def test_the_statistical_rule_keeps_its_level() -> None:
    """Of 2,000 trials of 300 windows in which one is as likely worse as better, few are ever found to be worse."""
    rng = np.random.default_rng(3)
    level, found = 0.05, 0
    for _ in range(2000):
        against = np.cumsum(rng.random(300) < 0.5)
        for n in range(5, 301, 5):  # looked at again and again
            evidence = Evidence()
            evidence.windows, evidence.against = n, int(against[n - 1])
            if evidence.value >= 1 / level:
                found += 1
                break
    assert found <= 2000 * level
    evidence, windows = Evidence(), 0
    while evidence.value < 3 / level:
        evidence.add(True)
        windows += 1
    assert windows == 9


def test_every_shipped_policy_may_be_swapped_in() -> None:
    with Controller(PROFILE, PID, mode="active", settings=PATIENT) as controller:
        plant = Plant(controller)
        for path in sorted(SHIPPED.glob("*/cpu-small/policy.onnx")):
            if path.parent.parent.name == "router":
                with pytest.raises(RefusedError, match="its action is 'routing'"):
                    controller.swap(path)
                continue
            controller.swap(path, sha256(path))
            for _ in range(5):
                assert plant.step().reason is None


def test_a_pickled_model_is_never_opened(tmp_path: pathlib.Path) -> None:
    with Controller(PROFILE, PID, settings=PATIENT) as controller:
        for content in (b"PK\x03\x04 no archive", b"\x80\x04K\x01.", onnx.ModelProto().SerializeToString()):
            path = tmp_path / "strange.onnx"
            path.write_bytes(content)
            with pytest.raises(HelmError):
                controller.swap(path)
