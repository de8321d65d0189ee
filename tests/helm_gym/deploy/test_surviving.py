"""What survives a restart: the last good policy, modes, the kill switch, and adaptation state where it is young."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from helm_gym.deploy import Controller, ControlSettings
from helm_gym.errors import HelmError
from tests.helm_gym.deploy.driving import PATIENT, PROFILE, ROOT, Plant, mover, write
from tests.helm_gym.deploy.test_swapping import count, sha256

_SERVE = """
import pathlib, sys
from helm_gym.deploy import Controller, ControlSettings
from tests.helm_gym.deploy.driving import Plant
first, second, state = sys.argv[1:]
controller = Controller("cpu-small", first, 2, "shadow", ControlSettings(deadline_s=5.0, save_s=0.02), state)
plants = [Plant(controller, 0), Plant(controller, 1)]
controller.set_mode("active", 1)
controller.swap(second)
while True:
    for plant in plants:
        plant.step()
    print(plants[0].k, flush=True)
"""


@pytest.fixture
def files(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
    up, down = write(tmp_path / "up.onnx", mover(0.001)), write(tmp_path / "down.onnx", mover(-0.001))
    return up, down, tmp_path / "state"


Files = tuple[pathlib.Path, pathlib.Path, pathlib.Path]


def test_kill_9_and_restart_comes_back_with_the_last_good_policy(files: Files) -> None:
    up, down, state = files
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for kill in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(up), str(down), str(state)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline()
                end = time.monotonic() + 0.4 + 0.03 * kill
                while time.monotonic() < end:
                    assert process.stdout.readline()
            finally:
                process.send_signal(signal.SIGKILL)
        with Controller(PROFILE, up, 2, "shadow", PATIENT, state) as controller:
            told = controller.status()
            assert told["policy"]["sha256"] == sha256(down)
            assert told["former"]["sha256"] == sha256(up)
            assert [controller.mode(k) for k in (0, 1)] == ["shadow", "active"]
            assert count(controller, 0) > 0, "its state is that of at most save_s ago"
            assert controller.target(0) == 0.5
            target = controller.target(1)
            assert target is not None and target < 0.5
            assert Plant(controller, 1).step().reason is None


def test_what_was_learned_goes_on_where_it_is_young_and_of_the_same_policy(files: Files) -> None:
    up, down, state = files

    def run(policy: pathlib.Path, limits: ControlSettings = PATIENT, steps: int = 3) -> int:
        with Controller(PROFILE, policy, 1, "active", limits, state) as controller:
            before = count(controller)
            plant = Plant(controller)
            for _ in range(steps):
                plant.step()
            return int(before)

    assert run(up) == 0
    assert run(up) == 3
    assert run(up, ControlSettings(deadline_s=5.0, state_age_s=0.0)) == 0, "it is too old"
    kept = json.loads((state / "control.json").read_text())
    (state / "control.json").write_text(json.dumps(kept | {"saved_at": time.time() + 1e6}))
    assert run(up) == 0, "the wall clock went back: nobody knows how old it is"
    assert run(down) == 0, "another policy was asked for: a new start"
    with Controller(PROFILE, down, 1, "active", PATIENT, state) as controller:
        assert controller.status()["policy"]["sha256"] == sha256(down)
        assert controller.status()["former"] is None


def test_a_mode_that_is_given_anew_counts(files: Files) -> None:
    up, _, state = files
    with Controller(PROFILE, up, 1, "shadow", PATIENT, state) as controller:
        controller.set_mode("active")
    with Controller(PROFILE, up, 1, "shadow", PATIENT, state) as controller:
        assert controller.mode(0) == "active"
    with Controller(PROFILE, up, 1, "off", PATIENT, state) as controller:
        assert controller.mode(0) == "off"


def test_the_kill_switch_survives(files: Files) -> None:
    up, _, state = files
    with Controller(PROFILE, up, 1, "active", PATIENT, state) as controller:
        controller.kill()
    with Controller(PROFILE, up, 1, "active", PATIENT, state) as controller:
        assert Plant(controller).step().reason == "killed"
        controller.revive()
    with Controller(PROFILE, up, 1, "active", PATIENT, state) as controller:
        assert Plant(controller).step().reason is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 2}', "\x00" * 100])
def test_a_damaged_file_is_set_aside_and_service_starts(files: Files, content: str) -> None:
    up, down, state = files
    with Controller(PROFILE, up, 1, "active", PATIENT, state) as controller:
        controller.swap(down)
    (state / "control.json").write_text(content)
    with Controller(PROFILE, up, 1, "active", PATIENT, state) as controller:
        assert Plant(controller).step().reason is None
        assert controller.status()["policy"]["sha256"] == sha256(up)
        assert any("could not be read" in note for note in controller.status()["notes"])
    assert (state / "control.damaged").read_text() == content


def test_a_policy_that_was_damaged_in_the_folder_is_not_taken_up(files: Files) -> None:
    up, down, state = files
    with Controller(PROFILE, up, 1, "active", PATIENT, state) as controller:
        controller.swap(down)
    kept = state / f"{sha256(down)}.onnx"
    kept.write_bytes(kept.read_bytes()[:-1])
    with Controller(PROFILE, up, 1, "active", PATIENT, state) as controller:
        assert controller.status()["policy"]["sha256"] == sha256(up)
        assert any("its SHA-256 differs" in note for note in controller.status()["notes"])


def test_only_policies_that_are_named_stay_in_the_folder(files: Files, tmp_path: pathlib.Path) -> None:
    up, _, state = files
    with Controller(PROFILE, up, 1, "active", PATIENT, state) as controller:
        for k in range(4):
            controller.swap(write(tmp_path / f"{k}.onnx", mover(0.01 * k)))
        assert len(list(state.glob("*.onnx"))) == 2
        controller.roll_back()
        assert controller.status()["policy"]["name"] == "2.onnx"


def test_two_controllers_never_share_a_folder(files: Files) -> None:
    up, _, state = files
    with Controller(PROFILE, up, 1, "active", PATIENT, state), pytest.raises(HelmError, match="Another controller"):
        Controller(PROFILE, up, 1, "active", PATIENT, state)
    Controller(PROFILE, up, 1, "active", PATIENT, state).close()


def test_a_named_policy_and_its_swaps_survive(files: Files) -> None:
    up, _, state = files
    with Controller(PROFILE, "pid", 1, "active", PATIENT, state) as controller:
        for _ in range(3):
            Plant(controller).step()
        controller.swap(up)
    with Controller(PROFILE, "pid", 1, "active", PATIENT, state) as controller:
        assert controller.status()["policy"]["sha256"] == sha256(up)
        controller.roll_back()
        assert controller.status()["policy"]["name"] == "pid"
        assert Plant(controller).step().reason is None
