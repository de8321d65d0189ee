"""The learned router: its training, its two forms, and what is refused in its place."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import onnx
import pytest

import agents
from agents.multi_agent.episodes import Episodes
from agents.multi_agent.router import LAYOUT, LearnedRouter, Settings
from helm_gym import profile as profiles
from helm_gym.cluster.router_observation import RouterLayout
from helm_gym.cluster.routing import Router, weights_of
from helm_gym.errors import HelmError, IncompatibleError, InvalidInputError, UnknownNameError
from helm_gym.play import open_entrant
from helm_gym.policies import from_run, onnx_export, run_export
from helm_gym.policies.onnx_check.metadata import ROUTER_LAYOUT, facts_of
from helm_gym.policies.onnx_policy import OnnxRouter
from helm_gym.policies.opening import open_policy
from helm_gym.policies.router_opening import open_router
from helm_gym.training import run_folder, trainable
from helm_gym.training.run_folder import Run
from tests.agents.trainings import scalars_of, short_task
from tests.conformance.policy import PolicyConformance, make_layout

NODES, ROUTER = make_layout(), RouterLayout()
SMALL: dict[str, Any] = {
    "controller": "static:0.6",
    "nodes": 2,
    "large": 3,
    "candidates": 3,
    "elite": 2,
    "episodes": 2,
    "intervals": 4,
    "validation": 4,
    "validate_every": 1,
}
STEPS = 3 * 3 * 2 * 4  # three rounds


def make_tensors(**of_columns: float) -> dict[str, Any]:
    """A router whose wish for ``load`` follows these columns; its biases are those of weights 1, 1 and 1."""
    weight = np.zeros((3, ROUTER.width), np.float32)
    for name, value in of_columns.items():
        weight[2, ROUTER.column(name)] = value
    plain = {"mean": np.zeros(ROUTER.width, np.float32), "scale": np.ones(ROUTER.width, np.float32)}
    return {**plain, "0.weight": weight, "0.bias": np.zeros(3, np.float32), LAYOUT: np.array([ROUTER.version])}


def train_small(folder: pathlib.Path, progress: trainable.Report | None = None, steps: int = STEPS) -> Run:
    return trainable.train("router", short_task(), profiles.load("cpu-small"), folder, 0, steps, SMALL, progress)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("runs") / "router"
    train_small(folder)
    return folder


@pytest.fixture(scope="module")
def file(folder: pathlib.Path) -> pathlib.Path:
    run_export.export(folder, folder.parent / "router.onnx")
    return folder.parent / "router.onnx"


class OfRouters(PolicyConformance):
    actions = 3

    @pytest.fixture(scope="class")
    @classmethod
    def layout(cls) -> Any:
        return ROUTER


class TestLearned(OfRouters):
    name = "learned"

    @pytest.fixture(scope="class")
    @classmethod
    def policy(cls) -> Any:
        return open_router("learned", NODES)


class TestExported(OfRouters):
    @pytest.fixture(scope="class")
    @classmethod
    def policy(cls, file: pathlib.Path) -> Any:
        cls.name = str(file)
        return open_router(cls.name, NODES)


def test_it_follows_what_the_nodes_report_without_haste() -> None:
    router = LearnedRouter(NODES, Settings(smoothing=0.5), make_tensors(utilisation_mean=1.0))
    seen = np.zeros((1, ROUTER.width), np.float32)
    action, state = router.act(seen, router.initial_state(1))
    np.testing.assert_array_equal(action, [[0, 0, 0]])  # the first decision is what it wants, at once
    seen[:, ROUTER.column("utilisation_mean")] = 0.8
    loads = []
    for _ in range(20):
        action, state = router.act(seen, state)
        loads.append(float(weights_of(action)[0, 2]))
    assert loads[0] == pytest.approx(1.4**2) and loads[-1] == pytest.approx(1.8**2, rel=1e-3)
    assert (np.diff(loads) >= 0).all()


@pytest.mark.parametrize("nodes", [2, 5])
def test_one_router_serves_clusters_of_any_size(nodes: int, file: pathlib.Path) -> None:
    episodes = Episodes(short_task(), NODES, "static:0.6", 4)
    for router in (open_router("learned", NODES), open_router(str(file), NODES)):
        served = episodes.play(router, nodes, 3)
        assert served.seen.shape == (4, ROUTER.width) and 0 < served.mean_ms < served.p99_ms
        assert served.cost == episodes.play(router, nodes, 3).cost
    episodes.close()


def test_the_file_beside_the_shipped_router_decides_the_same() -> None:
    shipped = from_run.shipped_folder("router", "agents", NODES) / "policy.onnx"
    assert (
        run_export.check(open_router("learned", NODES), OnnxRouter(shipped, NODES), NODES, "mixed-v0")
        <= run_export.TOLERANCE
    )


def test_a_run_keeps_what_validated_best_and_is_a_router(folder: pathlib.Path, file: pathlib.Path) -> None:
    run = run_folder.read_run(folder)
    assert (run.status, run.agent) == ("done", "router") and run.facts["seconds"] > 0
    opened, exported = open_router(str(folder), NODES), open_router(str(file), NODES)
    assert isinstance(opened, Router) and opened.name == str(folder) and isinstance(exported, OnnxRouter)
    assert open_entrant(f"static:0.6+{folder}", NODES, in_cluster=True).name == f"static:0.6+{folder}"
    assert (folder / run_folder.TENSORBOARD).is_dir()
    assert len(list((folder / run_folder.CHECKPOINTS).iterdir())) == 2


def test_a_training_that_was_killed_ends_as_an_unbroken_one(tmp_path: pathlib.Path, folder: pathlib.Path) -> None:
    def stop_at(last: int) -> trainable.Report:
        def progress(done: int, total: int, words: str) -> None:
            if done >= last:
                raise KeyboardInterrupt

        return progress

    for last in (STEPS // 6, STEPS // 2):
        with pytest.raises(KeyboardInterrupt):
            train_small(tmp_path / "killed", stop_at(last))
    train_small(tmp_path / "killed")
    assert_same(tmp_path / "killed", folder)


def test_a_finished_training_that_is_given_more_steps_ends_as_an_unbroken_one(
    tmp_path: pathlib.Path, folder: pathlib.Path
) -> None:
    """Nothing in it depends on the number of all steps."""
    for steps in (STEPS // 3, 2 * STEPS // 3, STEPS):
        assert train_small(tmp_path / "x", steps=steps).status == "done"
    assert_same(tmp_path / "x", folder)


def assert_same(run: pathlib.Path, unbroken: pathlib.Path) -> None:
    for name in (run_folder.POLICY, f"{run_folder.CHECKPOINTS}/{STEPS:012d}.safetensors"):
        ours, theirs = (run_folder.read_tensors(path / name)[0] for path in (run, unbroken))
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            np.testing.assert_array_equal(value, theirs[key])
    assert scalars_of(run) == scalars_of(unbroken)


def test_another_layout_of_the_router_s_observation_is_refused(tmp_path: pathlib.Path, file: pathlib.Path) -> None:
    with pytest.raises(IncompatibleError, match="router's layout 7 there and 1 here"):
        LearnedRouter(NODES, Settings(), {**make_tensors(), LAYOUT: np.array([7])})
    model = onnx.load(file)
    (tmp_path / "other.onnx").write_bytes(onnx_export.stamp(model, facts_of(model) | {ROUTER_LAYOUT: "7"}))
    with pytest.raises(IncompatibleError, match="router's layout 7 there and 1 here"):
        open_router(str(tmp_path / "other.onnx"), NODES)


def test_what_is_no_router_is_refused_in_its_place_and_a_router_in_a_policy_s(
    tmp_path: pathlib.Path, folder: pathlib.Path, file: pathlib.Path
) -> None:
    pid = pathlib.Path(agents.__file__).parent / "shipped/pid/cpu-small"
    (tmp_path / "none.onnx").write_bytes(b"\x80\x04\x95 pickled")
    wrong: list[tuple[Any, type[HelmError], str]] = [
        (lambda: open_router(str(pid), NODES), InvalidInputError, "is no router"),
        (lambda: open_router(str(pid / "policy.onnx"), NODES), InvalidInputError, "its action is 'delta'; 'routing'"),
        (lambda: open_router(str(tmp_path / "none.onnx"), NODES), InvalidInputError, "no ONNX file"),
        (lambda: open_router(str(tmp_path / "gone"), NODES), InvalidInputError, "is no folder or file"),
        (lambda: open_policy(str(folder), NODES), InvalidInputError, "is a router"),
        (lambda: open_policy(str(file), NODES), InvalidInputError, "its action is 'routing'; 'delta'"),
        (lambda: Settings(load=5.0), InvalidInputError, "0 to 4"),
        (lambda: Settings(elite=0), InvalidInputError, "elite"),
    ]
    for attempt, error, words in wrong:
        with pytest.raises(error, match=words):
            attempt()


def test_a_column_that_a_router_does_not_see_is_said(tmp_path: pathlib.Path) -> None:
    overrides = {**SMALL, "columns": "utilization_mean"}
    with pytest.raises(UnknownNameError, match="did you mean 'utilisation_mean'"):
        trainable.train("router", short_task(), NODES.profile, tmp_path / "x", 0, STEPS, overrides)
