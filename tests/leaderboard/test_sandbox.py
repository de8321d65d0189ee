"""Policies of strangers run where they can do nothing else, and decide what they decide outside."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from helm_gym.errors import IncompatibleError, RefusedError
from helm_gym.policies.onnx_policy import OnnxPolicy
from helm_gym.policy import Policy
from leaderboard.sandbox import Limits, PolicyFault, SandboxedPolicy, confine, missing, policy
from tests.helm_gym.hostile import HOSTILE, LAYOUT, model, stamped
from tests.leaderboard.escaping import ATTEMPTS

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = (ROOT / "agents/shipped/three_layer_ppo/cpu-small/policy.onnx").read_bytes()
# One of a kind: test_onnx_check has them all, by the same function, and each takes a process here.
HOSTILE_HERE = ("pickle", "external_absolute", "claimed_gigabyte", "many_messages", "loop", "nan", "least_integer")
# The others are no regular files, which is told before there are bytes.
HOSTILE_BYTES = sorted(name for name, (rule, _) in HOSTILE.items() if rule not in ("file", "size"))
ALONE = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {missing()}")


@pytest.fixture(scope="module")
def sandboxed() -> Iterator[SandboxedPolicy]:
    with SandboxedPolicy(SHIPPED, LAYOUT) as opened:
        yield opened


def observations(rows: int) -> np.ndarray:
    between = np.random.default_rng(1).random((rows, LAYOUT.width))
    return (LAYOUT.low + between * (LAYOUT.high - LAYOUT.low)).astype(np.float32)


def test_it_decides_what_the_same_file_decides_outside(sandboxed: SandboxedPolicy) -> None:
    outside = OnnxPolicy.from_bytes(SHIPPED, LAYOUT, "outside")
    assert isinstance(sandboxed, Policy) and sandboxed.confined
    assert sandboxed.facts == outside.checked.facts
    for rows in (1, 20, 700):
        seen, state, other = observations(rows), sandboxed.initial_state(rows), outside.initial_state(rows)
        for _ in range(3):
            action, state = sandboxed.act(seen, state)
            expected, other = outside.act(seen, other)
            assert np.array_equal(action, expected) and np.array_equal(state, other)


def test_nothing_can_be_opened_started_or_signalled(tmp_path: pathlib.Path) -> None:
    kept = tmp_path / "board.db"
    kept.write_text("hidden seeds")
    command = [sys.executable, "-m", "tests.leaderboard.escaping", str(kept)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=ALONE, timeout=60, check=False)
    ended = json.loads(done.stdout)
    assert {name for name in ended if ended[name] != "EPERM"} == set(), ended
    assert set(ended) == {*ATTEMPTS, "thread"}
    assert kept.read_text() == "hidden seeds"


@pytest.mark.parametrize(
    "name", [name if name in HOSTILE_HERE else pytest.param(name, marks=pytest.mark.long) for name in HOSTILE_BYTES]
)
def test_hostile_files_are_refused_in_there_by_the_same_rules(name: str, tmp_path: pathlib.Path) -> None:
    rule, write = HOSTILE[name]
    write(tmp_path / "policy.onnx")
    with pytest.raises(RefusedError) as refused:
        SandboxedPolicy((tmp_path / "policy.onnx").read_bytes(), LAYOUT)
    assert refused.value.rule == rule and str(refused.value).isprintable()


def test_its_environment_is_empty_and_its_memory_holds_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELM_GYM_SECRET", "season key")
    with SandboxedPolicy(stamped(model()), LAYOUT) as opened:
        told = pathlib.Path(f"/proc/{opened._child.pid}/environ").read_bytes()
        assert b"season key" not in told and b"PYTHONPATH" in told
        status = pathlib.Path(f"/proc/{opened._child.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status


def test_one_that_does_not_answer_in_time_is_ended() -> None:
    opened = SandboxedPolicy(stamped(model()), LAYOUT, limits=Limits(decide_s=0.2))
    os.kill(opened._child.pid, signal.SIGSTOP)
    with pytest.raises(PolicyFault, match="within its time") as fault:
        opened.act(observations(2), opened.initial_state(2))
    assert fault.value.reason == "time"
    assert opened._child.poll() is not None


def test_one_that_ends_while_it_decides_is_a_fault_of_its_own() -> None:
    opened = SandboxedPolicy(stamped(model()), LAYOUT)
    opened._child.kill()
    with pytest.raises(PolicyFault, match="by signal 9") as fault:
        opened.act(observations(2), opened.initial_state(2))
    assert fault.value.reason == "crash"


def test_more_memory_than_there_may_be_is_refused_within() -> None:
    with pytest.raises((PolicyFault, RefusedError)) as fault:
        SandboxedPolicy(SHIPPED, LAYOUT, limits=Limits(memory_bytes=2**20)).close()
    assert "Traceback" not in str(fault.value)


def test_it_ends_with_whoever_started_it() -> None:
    code = (
        "import os, pathlib, sys, time\n"
        "from tests.leaderboard.test_sandbox import LAYOUT, SHIPPED\n"
        "from leaderboard.sandbox import SandboxedPolicy\n"
        "print(SandboxedPolicy(SHIPPED, LAYOUT)._child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=ALONE, check=False
    )
    child, until = int(done.stdout), time.monotonic() + 20
    while pathlib.Path(f"/proc/{child}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not pathlib.Path(f"/proc/{child}").exists()


def test_a_kernel_without_a_sandbox_runs_no_stranger_s_file_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "landlock_abi", lambda: 0)
    assert missing() == ["Landlock (a kernel from 5.13 on with lsm=landlock)"]
    with pytest.raises(IncompatibleError, match=r"cannot confine a stranger's file: it lacks Landlock"):
        SandboxedPolicy(SHIPPED, LAYOUT)
    with SandboxedPolicy(SHIPPED, LAYOUT, unconfined=True) as opened:
        assert not opened.confined and policy.missing()
        assert opened.act(observations(1), opened.initial_state(1))[0].shape == (1, 1)
