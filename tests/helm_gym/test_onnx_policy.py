"""Policies as ONNX files: what is exported acts as it did, and what is no policy is refused with one sentence."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from helm_gym import profile as profiles
from helm_gym.cli.main import app
from helm_gym.errors import HelmError, IncompatibleError, InvalidInputError
from helm_gym.evaluation import protocol
from helm_gym.observation import ObservationLayout
from helm_gym.policies import onnx_export
from helm_gym.policies.onnx_graph import Graph
from helm_gym.policies.onnx_policy import OnnxPolicy
from helm_gym.policy import Floats, Policy
from helm_gym.tasks import find_task
from helm_gym.training import run_folder, trainable
from tests.conformance.policy import PolicyConformance, follow, make_layout, observations

LAYOUT = make_layout()
Edit = Callable[[onnx.ModelProto], None]


def make_model(layout: ObservationLayout = LAYOUT) -> onnx.ModelProto:
    """Moves by the mean of what it has seen so far; its state is that mean's sum and count."""
    graph = Graph("mean", layout, state=2)
    seen = graph.op("Sub", graph.column("emb_gain"), graph.column("kv_gain"))
    total = graph.op("Add", graph.columns("state", 0, 1), seen)
    count = graph.op("Add", graph.columns("state", 1, 2), graph.fill(1.0))
    return graph.model(graph.clip(graph.op("Div", total, count), -1.0, 1.0), graph.concatenate(total, count))


def write(path: pathlib.Path, model: onnx.ModelProto, **facts: Any) -> pathlib.Path:
    known = onnx_export.origin_facts(LAYOUT, routes=False) | facts
    stamped = onnx_export.stamp(model, {name: value for name, value in known.items() if value is not None})
    path.write_bytes(stamped)
    return path


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return write(tmp_path / "mean.onnx", make_model())


class TestOnnx(PolicyConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def policy(cls, layout: ObservationLayout, tmp_path_factory: pytest.TempPathFactory) -> Policy:
        path = write(tmp_path_factory.mktemp("onnx") / "mean.onnx", make_model())
        cls.name = str(path)
        return OnnxPolicy(path, layout)


def test_the_graph_does_what_it_says(file: pathlib.Path) -> None:
    policy, seen = OnnxPolicy(file, LAYOUT), observations(LAYOUT)
    actions, states = follow(policy, seen, policy.initial_state(len(seen[0])))
    worth = np.stack([o[:, LAYOUT.column("emb_gain")] - o[:, LAYOUT.column("kv_gain")] for o in seen])
    np.testing.assert_allclose(np.stack(actions)[-1, :, 0], worth.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(states[-1][:, 0], worth.sum(axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("facts", "error", "sentence"),
    [
        ({"layout_version": 2}, IncompatibleError, "observation layout 2 there and 1 here"),
        ({"requests": 100}, IncompatibleError, "requests an interval 100 there and 50 here"),
        ({"profile": "h200", "profile_fingerprint": "f"}, IncompatibleError, "profile 'h200' there"),
        ({"action": "absolute"}, InvalidInputError, "its action is 'absolute'"),
        ({"window": None}, InvalidInputError, "does not say its window"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(
    tmp_path: pathlib.Path, facts: dict[str, Any], error: type[HelmError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        OnnxPolicy(write(tmp_path / "x.onnx", make_model(), **facts), LAYOUT)


def _rename(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "observation"
    for node in model.graph.node:
        node.input[:] = ["observation" if name == "obs" else name for name in node.input]


def _narrow(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 45


def _widen_state(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 3


def _unnamed_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Teleport"


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("If", ["condition"], ["x"], then_branch=body, else_branch=body))


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (_rename, "its inputs are observation, state; obs and state are needed"),
        (_narrow, r"'obs' is float32 of shape \[lanes, 45\]; \[lanes, 46\] is needed"),
        (_widen_state, r"'state_out' is \[lanes, 2\] and 'state' \[lanes, 3\]; both must be the same"),
        (_unnamed_operator, "operator 'Teleport' is not in the list"),
        (_external, "keeps its weights in another file"),
        (_loop, "branches or loops"),
    ],
)
def test_a_graph_that_is_no_policy_is_refused(tmp_path: pathlib.Path, edit: Edit, sentence: str) -> None:
    model = make_model()
    edit(model)
    with pytest.raises(InvalidInputError, match=sentence):
        OnnxPolicy(write(tmp_path / "x.onnx", model), LAYOUT)


def test_a_file_that_is_no_model_is_refused(tmp_path: pathlib.Path, file: pathlib.Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read: No such file"):
        OnnxPolicy(tmp_path / "none.onnx", LAYOUT)
    for content in (b"", b"\x80\x04\x95 pickled", file.read_bytes()[:-40]):
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"is no ONNX file|no checksum|checksum differs"):
            OnnxPolicy(tmp_path / "x.onnx", LAYOUT)


def test_a_weight_that_was_changed_is_noticed(tmp_path: pathlib.Path, file: pathlib.Path) -> None:
    model = onnx.load(file)
    other = next(k for k, tensor in enumerate(model.graph.initializer) if tensor.data_type == TensorProto.FLOAT)
    model.graph.initializer[other].CopyFrom(numpy_helper.from_array(np.float32(7), model.graph.initializer[other].name))
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(InvalidInputError, match="its checksum differs"):
        OnnxPolicy(tmp_path / "changed.onnx", LAYOUT)


def _nan_later(graph: Graph) -> tuple[str, str]:
    """Behind the decisions that are tried on opening."""
    count = graph.op("Add", "state", graph.constant(1.0))
    return graph.op("Log", graph.op("Sub", graph.constant(20.5), count)), count  # log of less than nought


def _infinite_state(graph: Graph) -> tuple[str, str]:
    return graph.fill(0.0), graph.op("Mul", graph.op("Add", "state", graph.constant(1.0)), graph.constant(100.0))


class ThreeActions:
    name = "three"

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, 1), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        return np.zeros((3 * len(state), 1), np.float32), state


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (_nan_later, ("returned actions of nan", "interval 20", "lane 0 (seed 7)", "Observed")),
        (_infinite_state, ("returned a state of inf", "lane 0 (seed 7)", "Observed")),
        (None, ("returned actions of shape (6, 1)", "interval 0", "(2, 1) is needed", "Observed")),
    ],
)
def test_what_is_no_decision_stops_the_evaluation(
    tmp_path: pathlib.Path, body: Callable[[Graph], tuple[str, str]] | None, words: tuple[str, ...]
) -> None:
    policy: Policy = ThreeActions()  # of a file, it would be refused on opening
    if body is not None:
        graph = Graph("bad", LAYOUT, state=1)
        policy = OnnxPolicy(write(tmp_path / "bad.onnx", graph.model(*body(graph))), LAYOUT)
    task = dataclasses.replace(find_task("burst-v0"), warmup=4, settle=2, horizon=24)
    with pytest.raises(HelmError) as stopped:
        protocol.evaluate(task, [policy], seeds=(7, 8), references=False)
    assert all(word in str(stopped.value) for word in (policy.name, *words)), stopped.value


def test_a_run_and_its_export_are_scored_alike(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The way of a user: train, export with a card, evaluate the run, the file and the folder that would be shipped."""
    run, shipped = tmp_path / "pid", tmp_path / "shipped"
    profile = profiles.load("cpu-small")
    trainable.train("pid", find_task("mixed-v0"), profile, run, overrides={"kp": "0.07"})

    def helm(*arguments: object) -> Any:
        app([str(a) for a in arguments] + ["--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    evaluate = ("--task", "burst-v0", "--seeds", "3-3", "--horizon", "20", "--quiet")
    judged = helm("evaluate", run, *evaluate)
    (tmp_path / "burst.json").write_text(json.dumps(judged))
    out = shipped / "policy.onnx"
    facts = helm("export", run, "--out", out, "--card", "--scores", tmp_path / "burst.json")
    assert facts["agent"] == "pid" and json.loads(facts["settings"])["kp"] == 0.07
    assert 0 <= facts["largest_difference"] <= 1e-5

    figures = ("mean_latency_ms", "p99_ms", "alpha_gap", "cost", "moved_bytes")
    (exported, opened), run_s = helm("evaluate", out, shipped, *evaluate)["policies"], judged["policies"][0]
    assert {name: opened[name] for name in figures} == {name: run_s[name] for name in figures}
    # float32 in the graph, float64 in Python: once in a while a split is another page.
    assert exported["mean_latency_ms"]["value"] == pytest.approx(run_s["mean_latency_ms"]["value"], rel=0.01)
    assert exported["alpha_gap"]["value"] == pytest.approx(run_s["alpha_gap"]["value"], abs=0.002)
    card = json.loads((shipped / run_folder.CARD).read_text())
    assert card["scores"]["burst-v0"]["rung"] == "modelled" and card["scores"]["burst-v0"]["seeds"] == [3]
    assert card["scores"]["burst-v0"]["p99_ms"] == judged["policies"][0]["p99_ms"]


def test_an_export_that_acts_otherwise_is_not_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agents.pid import PID
    from helm_gym.policies import run_export

    def off(layout: ObservationLayout, settings: Any, tensors: Any) -> onnx.ModelProto:
        graph = Graph("pid", layout, state=4)
        return graph.model(graph.fill(0.0), "state")

    monkeypatch.setattr("agents.pid.PID", dataclasses.replace(PID, graph=off))
    trainable.train("pid", find_task("mixed-v0"), profiles.load("cpu-small"), tmp_path / "pid")
    with pytest.raises(HelmError, match="differs from it by"):
        run_export.export(tmp_path / "pid", tmp_path / "policy.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pid"]


def test_what_cannot_be_a_graph_says_so(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agents.pid import PID
    from helm_gym.policies import run_export

    monkeypatch.setattr("agents.pid.PID", dataclasses.replace(PID, graph=None))
    trainable.train("pid", find_task("mixed-v0"), profiles.load("cpu-small"), tmp_path / "pid")
    with pytest.raises(InvalidInputError, match="'pid' cannot be a graph and runs in Python only"):
        run_export.export(tmp_path / "pid", tmp_path / "policy.onnx")
