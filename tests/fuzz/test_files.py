"""Whatever a file holds that a command reads, the command ends within seconds, with a sentence or with its work.

Each kind of file has good examples; one of their files is made wrong (tests/fuzz/mutation.py) and given to a command
that reads it. To add a kind is to add a line to ``KINDS``.
"""

from __future__ import annotations

import functools
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helm_gym import profile as profiles
from helm_gym.cluster.topology import Cluster
from helm_gym.workload.fitted import FittedRegime
from helm_gym.workload.synthesis import Synthesis, synthesize, write_log
from tests.fuzz.conftest import Run
from tests.fuzz.material import AZURE, BOMB, DEEP, MOONCAKE, quick_profile
from tests.fuzz.mutation import Content, Kind, extreme, mutated, put
from tests.fuzz.test_command_line import EXAMPLES
from tests.fuzz.warm import ROOT, WALL_S

pytestmark = pytest.mark.long

SHORT = ("--task", "burst-v0", "--seeds", "1", "--horizon", "1", "--quiet", "--json")
PLAYED = ("evaluate", "static:0.5", *SHORT[2:], "--task", "trace-v0", "--profile", "small.yaml", "--trace")
SHIPPED = sorted(card.parent for card in ROOT.glob("[ab]*/shipped/*/*/card.json"))  # of agents and baselines
ROUTER = "router"
BOMBS = {"bomb": BOMB, "deep": DEEP, "keys": "? " * 100_000, "self": "&a [*a]", "escape": "\x1b[2J: 1"}


def _profile(folder: pathlib.Path) -> None:
    profiles.save(quick_profile(), folder / "small.yaml")


def _read(folder: pathlib.Path, into: str = "") -> dict[str, bytes]:
    return {
        str(pathlib.Path(into) / path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _interactions(how: str) -> Kind:
    """An interaction log in one of the formats that ``workload synthesize`` writes."""

    def files() -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            log = synthesize(Synthesis(requests=300), np.random.default_rng(0))
            write_log(log, pathlib.Path(folder, "log.x"), how)
            return _read(pathlib.Path(folder))

    return Kind(
        f"log-{how}",
        files,
        (
            ("workload", "describe", "log.x", "--session", "60", "--json"),
            ("workload", "describe", "log.x", "--skip-bad"),
            ("workload", "fit", "log.x", "new.yaml", "--windows", "3"),
        ),
    )


def _run_kind(folder: pathlib.Path) -> Kind:
    """A shipped policy's folder; a training's has the same files under another name."""
    name = folder.parent.name
    policy = "static:0.5+run" if name == ROUTER else "run"
    cluster = ("--cluster", "2") if name == ROUTER else ()
    return Kind(
        f"run-{name}",
        lambda: {key: value for key, value in _read(folder, "run").items() if not key.endswith(".onnx")},
        (("evaluate", policy, *SHORT, *cluster), ("export", "run", "--out", "new.onnx")),
    )


KINDS = (
    Kind(
        "profile",
        lambda: {f"{name}.yaml": (profiles.PROFILES / f"{name}.yaml").read_bytes() for name in ("cpu-small",)},
        (
            ("evaluate", "static:0.5", *SHORT, "--profile", "cpu-small.yaml"),
            ("evaluate", "pid", *SHORT, "--profile", "cpu-small.yaml", "--backend", "surrogate"),
            ("evaluate", "static:0.5", *SHORT, "--profile", "cpu-small.yaml", "--backend", "real"),
            ("train", "pid", "--out", "new", "--profile", "cpu-small.yaml"),
        ),
        way=functools.partial(extreme, profiles.Profile),
    ),
    Kind(
        "cluster",
        lambda: {
            "cluster.yaml": b"nodes: [{count: 2}, {count: 1, memory: 0.5, speed: 2}]\ncatalogue: 4.0\ninterests: 8\n"
            b"interest_share: 0.9\nload: 0.5\noutages: [{node: 1, start: 1, intervals: 2}]\nlosses: 1\n"
        },
        (("evaluate", "static:0.5+joint", *SHORT, "--cluster", "cluster.yaml", "--profile", "small.yaml"),),
        _profile,
        functools.partial(extreme, Cluster),
    ),
    *map(_run_kind, SHIPPED),
    Kind(
        "scores",
        lambda: {"scores.json": b'{"task": "burst-v0", "rung": "modelled", "seeds": [0], "machine": "", "date": "", '
                 b'"policies": [{"name": "run", "mean_latency_ms": {"value": 1.0}}], "pairs": []}'},
        (("export", "run", "--out", "new/new.onnx", "--card", "--scores", "scores.json"),),
        lambda folder: shutil.copytree(ROOT / "agents" / "shipped" / "pid" / "cpu-small", folder / "run"),
    ),
    Kind(
        "trace-csv",
        lambda: {"trace.csv": AZURE.encode()},
        ((*PLAYED, "trace.csv"),),
        _profile,
    ),
    Kind(
        "trace-jsonl",
        lambda: {"trace.jsonl": MOONCAKE.encode()},
        ((*PLAYED, "trace.jsonl"),),
        _profile,
    ),
    *map(_interactions, ("amazon-csv", "amazon-jsonl", "recbole", "yambda")),
    Kind(
        "fitted",
        lambda: {
            "fitted.yaml": b"log: a\nrequests: 500\nwindows:\n"
            + b"- {rate: 1, hot_share: 0.5, hot_users: 9, turnover: 0.1, new_share: 0.5, mean_history: 90, "
            b"delta_tokens: 4, item_zipf: 0.9}\n" * 2
        },
        (("evaluate", "static:0.5", "--task", "fitted:fitted.yaml", *SHORT[2:], "--profile", "small.yaml"),),
        _profile,
        functools.partial(extreme, FittedRegime),
    ),
    Kind(
        "onnx",
        lambda: {"policy.onnx": (ROOT / "agents/shipped/pid/cpu-small/policy.onnx").read_bytes()},
        (("evaluate", "policy.onnx", *SHORT),),
    ),
    Kind(
        "checkpoint",
        lambda: _read(ROOT / "surrogate_backend/checkpoints/cpu-small-v2", "checkpoint"),
        (("fidelity", "checkpoint", "logs", "--quiet"),),
        good=False,  # a log of the profile takes minutes
    ),
)  # fmt: skip


def check_kind(kind: Kind, run: Run, files: dict[str, bytes], prepare: Any = None) -> None:
    @st.composite
    def cases(draw: st.DrawFn) -> tuple[str, Content, tuple[str, ...]]:
        name = draw(st.sampled_from(sorted(files)))
        return (
            name,
            draw(mutated(files[name], pathlib.Path(name).suffix, kind.way)),
            draw(st.sampled_from(kind.commands)),
        )

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), phases=(Phase.generate,))
    @given(cases())
    def check(case: tuple[str, Content, tuple[str, ...]]) -> None:
        wrong, content, command = case

        def fill(folder: pathlib.Path) -> None:
            (prepare or kind.prepare)(folder)
            for name, good in files.items():
                put(folder / name, content if name == wrong else good)

        outcome = run(command, fill)
        shown = content[-1500:] if isinstance(content, bytes) else content
        assert not outcome.complaints(), f"helm-gym {command} with {wrong} as {shown!r}\n{outcome.stderr[-3000:]}"

    check()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.good], ids=lambda kind: kind.name)
def test_what_is_right_is_taken(kind: Kind, run: Run) -> None:
    def fill(folder: pathlib.Path) -> None:
        kind.prepare(folder)
        for name, content in kind.files().items():
            put(folder / name, content)

    outcome = run(kind.commands[0], fill, WALL_S)
    assert outcome.status == 0, outcome.stderr


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_a_file_that_is_wrong_ends_well(kind: Kind, run: Run) -> None:
    check_kind(kind, run, kind.files())


def made(run: Run, *commands: tuple[str, ...]) -> dict[str, bytes]:
    """What commands leave in a fresh folder with a quick profile in it."""
    found: dict[str, bytes] = {}

    def again(folder: pathlib.Path) -> None:
        _profile(folder)
        for name, content in found.items():
            put(folder / name, content)

    for command in commands:
        place: list[pathlib.Path] = []

        def prepare(folder: pathlib.Path, place: list[pathlib.Path] = place) -> None:
            again(folder)
            place.append(folder)

        outcome = run(command, prepare, WALL_S)
        assert outcome.status == 0, outcome.stderr
        found = _read(place[0])
    return found


def test_a_log_that_is_wrong_ends_well(run: Run) -> None:
    collect = ("collect", "--out", "log", "--profile", "small.yaml", "--intervals", "4", "--episodes", "2", "--quiet")
    kind = Kind(
        "log",
        dict,
        (("fit", "log", "--out", "new", "--profile", "small.yaml", "--steps", "1", "--quiet"), (*collect[:-2], "3")),
    )
    check_kind(kind, run, made(run, collect))


def test_a_broken_off_training_that_is_wrong_ends_well(run: Run) -> None:
    train = ("train", "ppo", "--out", "run", "--steps", "256", "--quiet", "--set", "lanes=4", "--set", "n_steps=16",
             "--set", "episode=16", "--set", "hidden=4", "--set", "batch_size=32")  # fmt: skip
    files = made(run, train)
    files = {name: content for name, content in files.items() if "tensorboard" not in name}
    files["run/run.json"] = files["run/run.json"].replace(b'"status": "done"', b'"status": "training"')
    check_kind(Kind("training", dict, (train, ("evaluate", "run", *SHORT))), run, files)


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("option", ["--profile", "--cluster"])
def test_known_bombs_are_defused(run: Run, option: str, content: str) -> None:
    arguments = ("evaluate", "static:0.5+joint" if option == "--cluster" else "pid", *SHORT, option, "x.yaml")
    outcome = run(arguments, lambda folder: put(folder / "x.yaml", content.encode()))
    assert outcome.status == 2 and not outcome.complaints()
