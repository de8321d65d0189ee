"""What does not fit is refused with figures, before it is allocated; what fits takes about what was said."""

from __future__ import annotations

import dataclasses
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest

from helm_gym import machine_memory
from helm_gym import profile as profiles
from helm_gym.backend import open_backend
from helm_gym.cluster.topology import Cluster, Node
from helm_gym.errors import InvalidInputError
from helm_gym.evaluation import protocol
from helm_gym.profile import Profile
from helm_gym.tasks import find_task
from helm_gym.workload.regimes import make_path

SMALL = profiles.load("cpu-small")
GIB = 2.0**30


def larger(profile: Profile, **population: int) -> Profile:
    return dataclasses.replace(profile, population=dataclasses.replace(profile.population, **population))


@pytest.mark.parametrize(
    ("profile", "lanes", "nodes"),
    [
        (SMALL, 1, 1),
        (SMALL, 5, 1),
        (larger(SMALL, users=30_000, items=400_000), 2, 1),
        (profiles.load("h200"), 1, 1),
        (larger(SMALL, users=1000, items=20_000), 2, 4),
    ],
    ids=["cpu-small", "lanes", "population", "h200", "cluster"],
)
def test_a_backend_takes_about_what_is_estimated(profile: Profile, lanes: int, nodes: int) -> None:
    cluster = Cluster((Node(nodes),)) if nodes > 1 else None
    backend = open_backend("modelled", profile, lanes, cluster)
    seeds = list(range(lanes))
    backend.reset(make_path("steady", profile, seeds, 1).at(0), np.array(seeds), np.full((lanes, nodes), 0.5))
    parts = [*backend._parts(), backend._plan, backend._requests]  # type: ignore[attr-defined]  # all that it holds
    held = {id(array): array.nbytes for part in parts for array in part}
    taken = sum(held.values())
    assert taken <= backend.spec.memory_bytes <= 1.6 * taken + 40 * profile.population.items


def test_more_than_there_is_is_refused_with_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "available_bytes", lambda: 16 * GIB)
    with pytest.raises(InvalidInputError) as refused:
        open_backend("modelled", larger(SMALL, users=2**26, items=2**30))
    told = "Backend 'modelled' on profile 'cpu-small', 1 lane, needs about 231.9 GiB of memory, and 15.0 GiB are free; "
    assert str(refused.value).startswith(told) and "lower population.users" in str(refused.value)
    with pytest.raises(InvalidInputError, match=r"1 lane of 1,024 nodes, needs about .* GiB"):
        open_backend("modelled", SMALL, cluster=Cluster((Node(1024),)))
    with pytest.raises(InvalidInputError, match=r"100,000 lanes, needs about"):
        open_backend("modelled", SMALL, lanes=100_000)


def test_the_measured_rung_counts_its_pool_and_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = dataclasses.replace(SMALL.pool, pages=2**20)
    monkeypatch.setattr(machine_memory, "available_bytes", lambda: 4 * GIB)
    with pytest.raises(InvalidInputError, match=r"HSTU on profile 'cpu-small' needs about 16\.\d GiB of memory"):
        open_backend("real", dataclasses.replace(SMALL, pool=pool))


def test_an_evaluation_too_long_for_the_memory_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "available_bytes", lambda: 1 * GIB)
    task = dataclasses.replace(find_task("burst-v0"), horizon=100_000)
    with pytest.raises(InvalidInputError, match=r"on 10,000 seeds, 100,040 intervals each, needs about .* GiB"):
        protocol.evaluate(task, [], seeds=range(10_000))


def test_the_limits_of_container_and_process_count(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "_CGROUP", tmp_path)
    free = machine_memory.available_bytes()
    assert 0 < free < np.inf
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_memory.available_bytes() == pytest.approx(free, rel=0.2)
    for name, text in (("max", "3000\n"), ("current", "2000\n"), ("stat", "anon 5\ninactive_file 500\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert machine_memory.available_bytes() == 1500
    code = "from helm_gym import machine_memory as m; print(m.available_bytes())"
    limit = int(2 * GIB)
    told = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert 1 * GIB < float(told.stdout) < limit
