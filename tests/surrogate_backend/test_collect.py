"""Collection as one who runs it meets it: killed, interrupted, in company, and never with a reported row lost."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import multiprocessing
import os
import pathlib
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helm_gym import profile as profiles
from helm_gym.errors import HelmError, IncompatibleError, InvalidInputError, UnknownNameError
from helm_gym.profile import Interval, Profile
from helm_gym.workload.traces import Trace
from surrogate_backend.data import collect as collecting
from surrogate_backend.data import log
from surrogate_backend.data.collect import Plan, collect, run_episode
from surrogate_backend.data.log import read_log

INTERVALS, EPISODES = 20, 14
# What a user's script does, on the profile and in the folder that it is given; it says which episodes are done.
SCRIPT = f"""
import pathlib, sys
from helm_gym import profile
from surrogate_backend.data.collect import Plan, collect

def say(done, wanted, intervals):
    print(done, flush=True)

if __name__ == "__main__":
    plan = Plan(profile.load(sys.argv[1]), "modelled", "train", {INTERVALS}, 0)
    collect(plan, pathlib.Path(sys.argv[2]), {EPISODES}, workers=int(sys.argv[3]), progress=say)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """cpu-small with short intervals and few users."""
    profile = profiles.load("cpu-small")
    population = dataclasses.replace(profile.population, users=1000, items=20_000)
    return dataclasses.replace(profile, name="small", interval=Interval(10, 20), population=population)


@pytest.fixture
def plan(small: Profile) -> Plan:
    return Plan(small, "modelled", "train", INTERVALS, 0)


@pytest.fixture(scope="module")
def unbroken(small: Profile, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What an undisturbed collection writes."""
    folder = tmp_path_factory.mktemp("unbroken")
    collect(Plan(small, "modelled", "train", INTERVALS, 0), folder, EPISODES)
    return folder


@pytest.fixture
def start(small: Profile, tmp_path: pathlib.Path) -> Callable[[pathlib.Path, int], subprocess.Popen]:
    script, profile = tmp_path / "script.py", tmp_path / "small.yaml"
    script.write_text(SCRIPT, encoding="utf-8")
    profiles.save(small, profile)

    def run(folder: pathlib.Path, workers: int) -> subprocess.Popen:
        command = [sys.executable, str(script), str(profile), str(folder), str(workers)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run


def rows(path: pathlib.Path) -> pa.Table:
    """An episode without what differs from day to day."""
    return pq.ParquetFile(path).read().drop(["date", "machine"])


def assert_same_log(folder: pathlib.Path, other: pathlib.Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in other.iterdir())
    assert (folder / "log.json").read_text() == (other / "log.json").read_text()
    for path in log.files(folder):
        assert rows(path).equals(rows(other / path.name)), path.name


def children(pid: int) -> list[int]:
    found = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in found.split()]


def has_ended(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_killed_at_any_moment_it_goes_on_and_no_reported_row_is_lost(
    start: Callable[[pathlib.Path, int], subprocess.Popen], unbroken: pathlib.Path, plan: Plan, tmp_path: pathlib.Path
) -> None:
    folder, rng, reported, orphans = tmp_path / "log", random.Random(3), 0, []
    for workers, reports in ((2, 4), (1, 3)):
        process = start(folder, workers)
        assert process.stdout is not None
        for number, line in enumerate(process.stdout):
            assert int(line) >= reported, "an episode that was reported is there no more"
            reported = int(line)
            if number == reports:
                break
        time.sleep(rng.uniform(0.0, 0.03))
        orphans += children(process.pid)
        process.kill()
        rest, errors = process.communicate()
        assert "Traceback" not in errors
        reported = max([reported, *map(int, rest.split())])
        whole = [rows(path) for path in log.files(folder)]
        assert reported <= len(whole) < EPISODES and all(table.num_rows == INTERVALS for table in whole)
    assert eventually(lambda: all(map(has_ended, orphans))), "a worker outlives its collection"
    assert collect(plan, folder, EPISODES) == EPISODES - len(whole)
    assert_same_log(folder, unbroken)


def test_workers_write_the_log_that_one_process_writes(
    plan: Plan, unbroken: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    reports: list[tuple[int, int, int]] = []
    threads: set[str] = set()

    def progress(done: int, wanted: int, intervals: int) -> None:
        reports.append((done, wanted, intervals))
        for child in multiprocessing.active_children():
            environment = pathlib.Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0")
            threads.update(v.decode() for v in environment if v.startswith(b"OMP_NUM_THREADS="))

    assert collect(plan, tmp_path / "log", EPISODES, workers=2, progress=progress) == EPISODES
    assert_same_log(tmp_path / "log", unbroken)
    assert reports[0] == (0, EPISODES, 0)
    assert reports[1:] == [(done, EPISODES, INTERVALS) for done in range(1, EPISODES + 1)]
    assert threads == {"OMP_NUM_THREADS=1"} and os.environ["OMP_NUM_THREADS"] == "2"


def test_a_worker_that_dies_ends_the_collection_with_a_sentence(plan: Plan, tmp_path: pathlib.Path) -> None:
    def kill(done: int, wanted: int, intervals: int) -> None:
        if done == 2:
            multiprocessing.active_children()[0].kill()

    with pytest.raises(HelmError, match=r"A worker process died, .*; what was reported is on disk"):
        collect(dataclasses.replace(plan, intervals=100), tmp_path / "log", 40, workers=2, progress=kill)
    assert len(log.files(tmp_path / "log")) >= 2 and not list(tmp_path.glob("log/*.tmp"))
    assert not multiprocessing.active_children()


def test_a_mistake_that_a_worker_finds_comes_back_as_its_sentence(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistake(plan: Plan, numbers: list[int]) -> list[pa.Table]:
        raise UnknownNameError("policy", "pdi", ["pid"])

    monkeypatch.setattr(collecting, "serve", mistake)
    with pytest.raises(HelmError) as caught:
        collecting._serve_apart(plan, [0])
    returned = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(returned, HelmError) and str(returned) == "Unknown policy 'pdi'; did you mean 'pid'?"


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_ends_it_quietly(workers: int, small: Profile, tmp_path: pathlib.Path) -> None:
    profiles.save(small, tmp_path / "small.yaml")
    command = [sys.executable, "-m", "helm_gym.cli.main", "collect", "--quiet", "--workers", str(workers)]
    command += ["--episodes", "400", "--profile", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "log")]
    # A group of its own, that the interrupt reaches whole, as one from a keyboard does.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that were started in the background ignore interrupts, and so would this process.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert eventually(lambda: len(list(tmp_path.glob("log/*.parquet"))) >= 2)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "" and errors.strip() in ("", "Aborted!", "Aborted.")


def test_two_collections_fill_a_folder_together(plan: Plan, unbroken: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The other one is at an episode: it is left alone, waited for, and taken over when the other lets go of it."""
    folder = tmp_path / "log"
    log.write_manifest(folder, plan.manifest())
    other = log.claim(folder, 1)
    assert other is not None and run_episode(plan, folder, 1) == 0
    added: list[int] = []
    thread = threading.Thread(target=lambda: added.append(collect(plan, folder, EPISODES)))
    thread.start()
    assert eventually(lambda: len(list(folder.glob("*.parquet"))) == EPISODES - 1)
    assert thread.is_alive() and (folder / "episode-000001.tmp").exists()
    other.release()
    thread.join(30)
    assert added == [EPISODES]
    assert_same_log(folder, unbroken)


def test_what_another_collection_finishes_is_not_served_again(plan: Plan, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "log"
    log.write_manifest(folder, plan.manifest())
    reports: list[tuple[int, int, int]] = []

    def finish(done: int, wanted: int, intervals: int) -> None:
        reports.append((done, wanted, intervals))
        if done == 1:
            assert run_episode(plan, folder, 1) == INTERVALS

    assert collect(plan, folder, 3, progress=finish) == 2
    assert reports == [(0, 3, 0), (1, 3, INTERVALS), (2, 3, 0), (3, 3, INTERVALS)]


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(
    plan: Plan, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "log"
    log.write_manifest(folder, plan.manifest())
    for left in ("episode-000000.tmp", "episode-000007.tmp", "notes.tmp"):
        (folder / left).write_bytes(b"half an epi")
    living = log.claim(folder, 5)
    assert living is not None
    assert collect(plan, folder, 1) == 1
    assert sorted(p.name for p in folder.glob("*.tmp")) == ["episode-000005.tmp", "notes.tmp"]
    with living:
        living.write(log.to_parquet(rows(folder / "episode-000000.parquet")))
    assert (folder / "episode-000005.parquet").exists() and len(rows(folder / "episode-000000.parquet")) == INTERVALS


def test_a_longer_collection_adds_and_a_shorter_one_has_nothing_to_do(plan: Plan, tmp_path: pathlib.Path) -> None:
    counts = [collect(plan, tmp_path / "log", episodes) for episodes in (2, 3, 1, 3)]
    assert counts == [2, 1, 0, 0]


def test_a_folder_of_another_plan_is_refused_with_what_differs(plan: Plan, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "log"
    assert collect(plan, folder, 1) == 1
    trace = Trace("made-up", np.arange(300) * 0.02, np.full(300, 100), None)
    for changes, differs in (
        ({"seed": 4}, "a log of seed 0 and not 4;"),
        ({"design": "test", "intervals": 3}, "a log of design 'train' and not 'test', intervals 20 and not 3;"),
        ({"backend": "real"}, "backend 'modelled' and not 'real'"),
        ({"profile": dataclasses.replace(plan.profile, max_step=0.2)}, "a log of profile_fingerprint '"),
        ({"trace": trace}, "trace None and not 'made-up "),
    ):
        with pytest.raises(InvalidInputError) as caught:
            collect(dataclasses.replace(plan, **changes), folder, 1)
        assert differs in str(caught.value) and str(folder) in str(caught.value)
    assert len(list(read_log(folder, plan.profile))) == 1


def test_a_trace_belongs_to_the_plan_by_what_it_holds(small: Profile, tmp_path: pathlib.Path) -> None:
    arrivals = np.arange(300) * 0.02
    first = Plan(small, "modelled", "train", 2, 0, Trace("made-up", arrivals, np.full(300, 100), None))
    assert collect(first, tmp_path / "log", 17) == 17
    *_, last = read_log(tmp_path / "log", small)
    assert last.constants["regime"] == "trace" and np.ptp(last.gaps_s[1]) < 1e-9, "arrivals as even as recorded"
    other = dataclasses.replace(first, trace=Trace("made-up", arrivals**2, np.full(300, 100), None))
    with pytest.raises(InvalidInputError, match="trace 'made-up "):
        collect(other, tmp_path / "log", 17)
    for plan, sentence in (
        (dataclasses.replace(first, design="test"), "takes no recorded arrivals"),
        (dataclasses.replace(first, trace=Trace("short", np.arange(3.0), np.full(3, 9), None)), "needs more than 10"),
    ):
        with pytest.raises(InvalidInputError, match=sentence):
            collect(plan, tmp_path / "other", 2)
        assert not (tmp_path / "other").exists()


def test_mistakes_are_named_before_anything_is_written(plan: Plan, tmp_path: pathlib.Path) -> None:
    for changes in ({"backend": "surrogate"}, {"backend": "modeled"}, {"design": "tset"}):
        with pytest.raises(UnknownNameError):
            collect(dataclasses.replace(plan, **changes), tmp_path / "log", 1)
    assert not (tmp_path / "log").exists()
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "log"):
        with pytest.raises(InvalidInputError, match=r"cannot be written \(.*\); make room, or give another folder"):
            collect(plan, folder, 1)


@pytest.mark.parametrize("content", ["", "[]", "nonsense", '"text"'])
def test_a_folder_whose_plan_cannot_be_read_is_refused(content: str, plan: Plan, tmp_path: pathlib.Path) -> None:
    (tmp_path / "log.json").write_text(content)
    with pytest.raises(InvalidInputError, match=r"log\.json .*; take another folder"):
        collect(plan, tmp_path, 1)


def test_episodes_without_a_plan_are_not_added_to(plan: Plan, tmp_path: pathlib.Path) -> None:
    assert collect(plan, tmp_path / "log", 1) == 1
    (tmp_path / "log" / "log.json").unlink()
    with pytest.raises(InvalidInputError, match=r"holds episodes and no log\.json"):
        collect(plan, tmp_path / "log", 2)


def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(
    plan: Plan, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert collect(plan, tmp_path / "log", 1) == 1

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(InvalidInputError, match=r"episode-000001\.parquet cannot be written \(No space left"):
            collect(plan, tmp_path / "log", 3)
    assert [p.name for p in sorted((tmp_path / "log").iterdir())] == ["episode-000000.parquet", "log.json"]
    assert collect(plan, tmp_path / "log", 3) == 2


def test_what_is_served_in_turns_is_what_is_served_alone(small: Profile, tmp_path: pathlib.Path) -> None:
    """A round of held splits and one of policies; a round that was cut off is finished in turns too."""
    plan, folder = Plan(small, "modelled", "test", 6, 0), tmp_path / "turns"
    log.write_manifest(folder, plan.manifest())
    first, splits, policies = 0, range(17, 26), range(44, 52)
    assert plan.rounds([first, *splits, *policies]) == [(first,), tuple(splits), tuple(policies)]
    for numbers in (splits, policies):
        for number, table in zip(numbers, collecting.serve(plan, numbers), strict=True):
            (alone,) = collecting.serve(plan, [number])
            assert table.equals(alone) and set(table["episode"].to_pylist()) == {number}
    assert run_episode(plan, folder, 18) == 100
    assert collect(plan, folder, 26) == 25
    assert len(log.files(folder)) == 26


def test_the_measured_rung_is_logged_as_such(small: Profile, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("torch")
    assert collect(Plan(small, "real", "train", 2, 0), tmp_path / "log", 1) == 1
    (measured,) = read_log(tmp_path / "log", small)
    assert measured.constants["rung"] == "measured" and (measured.service_ms > 0).all()
    assert measured.telemetry["speed"].min() > 0 and json.loads((tmp_path / "log/log.json").read_text())


def test_without_ray_there_is_a_sentence(plan: Plan, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(IncompatibleError, match=r"Ray is not installed; install helm-gym\[ray\]"):
        collect(plan, tmp_path / "log", 1, ray=True)


@pytest.mark.long
def test_ray_writes_the_log_that_one_process_writes(plan: Plan, unbroken: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("ray")
    assert collect(plan, tmp_path / "log", EPISODES, ray=True) == EPISODES
    assert_same_log(tmp_path / "log", unbroken)
