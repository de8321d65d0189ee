"""A policy of one's own, as docs/policies.md shows it: from torch, Stable-Baselines3 and as a rule, to its figures."""

from __future__ import annotations

import json
import pathlib
import re
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from helm_gym import profile as profiles
from helm_gym.cli.main import app
from helm_gym.cluster.router_observation import RouterLayout
from helm_gym.errors import InvalidInputError, RefusedError
from helm_gym.policies import onnx_export
from helm_gym.policies.onnx_check.metadata import facts_of
from helm_gym.policies.opening import open_policy
from helm_gym.policies.router_opening import open_router
from tests.helm_gym.hostile import LAYOUT, model

ROOT = pathlib.Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/policies.md").read_text(encoding="utf-8"), re.DOTALL)
FILES = {"mine.onnx": 0, "sb3.onnx": 1, "rule.onnx": 2}  # what each block writes


def helm(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize("name", FILES)
def test_what_the_document_shows_becomes_a_policy(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "document"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter says what it does not need
        exec(compile(BLOCKS[FILES[name]], name, "exec"), space)

    refused = helm("evaluate", name, "--task", "burst-v0")
    assert refused.exit_code == 2 and "has no checksum" in refused.stderr and "helm-gym export" in refused.stderr
    done = helm("export", name, "--out", "policy.onnx", "--name", "mine", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["name"], facts["action"], facts["profile"]) == ("mine", "delta", "cpu-small")
    judged = helm(
        "evaluate", "policy.onnx", "--task", "burst-v0", "--seeds", "1", "--horizon", "10", "--json", "--quiet"
    )
    assert judged.exit_code == 0, judged.output
    assert json.loads(judged.stdout)["policies"][0]["mean_latency_ms"]["value"] > 0

    policy = open_policy("policy.onnx", LAYOUT)
    seen = np.stack([LAYOUT.low, LAYOUT.high])
    action, _ = policy.act(seen, policy.initial_state(2))
    if name == "sb3.onnx":
        wanted, _ = space["model"].predict(seen, deterministic=True)
        np.testing.assert_allclose(action, np.clip(wanted, -1, 1), atol=1e-5)
        space["model"].save("model.zip")
        for arguments in (("evaluate", "model.zip", "--task", "burst-v0"), ("evaluate", "model", "--task", "burst-v0"),
                          ("evaluate", "pid+model.zip", "--task", "burst-v0", "--cluster", "2"),
                          ("export", "model.zip", "--out", "x.onnx")):  # fmt: skip
            told = helm(*arguments)
            assert told.exit_code == 2 and "is a model of Stable-Baselines3" in told.stderr, told.output
            assert "torch.onnx.export" in told.stderr and "docs/policies.md" in told.stderr


def test_other_files_are_told_apart(tmp_path: pathlib.Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pt")
    (tmp_path / "x.txt").write_text("alpha = 0.5")
    for name, words in (("x.pt", "is a file of torch.save"), ("x.txt", "is no policy; give a run folder")):
        with pytest.raises(InvalidInputError, match=words):
            open_policy(str(tmp_path / name), LAYOUT)
        with pytest.raises(InvalidInputError, match=words):
            open_router(str(tmp_path / name), LAYOUT)
        assert words in helm("export", tmp_path / name, "--out", tmp_path / "y.onnx").stderr


def _write(path: pathlib.Path, made: onnx.ModelProto) -> pathlib.Path:
    onnx.save(made, path)
    return path


def _renamed(made: onnx.ModelProto) -> onnx.ModelProto:
    made.graph.input[0].name = "observation"
    made.graph.node[0].input[0] = "observation"
    return made


@pytest.mark.parametrize(
    ("made", "rule", "words"),
    [
        (
            model(lanes=1),
            "fixed-batch",
            "'obs' takes 1 lanes and no other number; name the first axis in dynamic_shapes",
        ),
        (_renamed(model()), "signature", "its inputs are observation, state; obs and state are needed"),
        (model(state="S"), "signature", "the width of its input 'state' is 'S'; a number is needed"),
    ],
)
def test_what_a_file_lacks_is_said(tmp_path: pathlib.Path, made: onnx.ModelProto, rule: str, words: str) -> None:
    file, out = _write(tmp_path / "x.onnx", made), tmp_path / "policy.onnx"
    with pytest.raises(RefusedError, match=re.escape(words)) as refused:
        onnx_export.export_file(file, out, LAYOUT, "burst-v0")
    assert refused.value.rule == rule and str(file) in str(refused.value) and not out.exists()
    told = helm("export", file, "--out", out)
    assert told.exit_code == 2 and words in told.stderr


def test_only_what_lasts_a_recorded_episode_is_written(tmp_path: pathlib.Path) -> None:
    """Its state grows past what floats hold, behind the decisions that are tried on every opening."""
    from tests.helm_gym.hostile import node, weight

    growing = model(
        [node("Add", ["state", "one_f"], ["s"]), node("Mul", ["s", "ten"], ["more"])],
        [weight("one_f", 1.0), weight("ten", 10.0)],
        following="more",
    )
    with pytest.raises(RefusedError, match=r"is not finite at decision 3\d of a recorded episode"):
        onnx_export.export_file(_write(tmp_path / "x.onnx", growing), tmp_path / "p.onnx", LAYOUT, "burst-v0")
    assert not (tmp_path / "p.onnx").exists()


def test_writing_a_file_again_keeps_its_graph_and_what_it_says(tmp_path: pathlib.Path) -> None:
    """Also what an exporter noted of the machine that it ran on goes, and the card beside it follows."""
    shipped = ROOT / "agents/shipped/ppo/cpu-small"
    old = onnx.load(shipped / "policy.onnx")
    for entry in old.metadata_props:
        if entry.key == "checksum":
            entry.value = "b223bb59"  # of the first kind
    old.graph.node[0].doc_string = "/home/somebody/secret.py"
    old.graph.node[0].metadata_props.add(key="stack", value="/home/somebody/secret.py")
    file = _write(tmp_path / "policy.onnx", old)
    (tmp_path / "card.json").write_bytes((shipped / "card.json").read_bytes())
    assert helm("export", file, "--out", file, "--card").exit_code == 0
    assert file.read_bytes() == (shipped / "policy.onnx").read_bytes()
    assert (tmp_path / "card.json").read_bytes() == (shipped / "card.json").read_bytes()
    assert (
        json.loads((tmp_path / "card.json").read_text())["facts"]["checksum"] == facts_of(onnx.load(file))["checksum"]
    )

    told = helm("export", file, "--out", tmp_path / "elsewhere" / "x.onnx", "--card")
    assert told.exit_code == 2 and "No card.json lies beside" in told.stderr
    told = helm("export", file, "--out", tmp_path / "x.onnx", "--profile", "h200")
    assert told.exit_code == 2 and "profile 'cpu-small' there and 'h200' here" in told.stderr


def test_a_router_s_graph_becomes_a_router(tmp_path: pathlib.Path) -> None:
    from helm_gym.policies.onnx_graph import Graph

    graph = Graph("even", RouterLayout(), state=0, actions=3)
    made = graph.model(graph.concatenate(*[graph.fill(0.25)] * 3), "state")
    file = _write(tmp_path / "x.onnx", made)
    facts = onnx_export.export_file(file, tmp_path / "router.onnx", LAYOUT, "mixed-v0")
    assert facts["action"] == "routing" and facts["router_layout_version"] == str(RouterLayout().version)
    router = open_router(str(tmp_path / "router.onnx"), LAYOUT)
    action, _ = router.act(np.zeros((2, RouterLayout().width), np.float32), router.initial_state(2))
    np.testing.assert_array_equal(action, np.full((2, 3), 0.25, np.float32))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--task", "trace-v0"), "plays one recording"),
        (("--task", "brust-v0"), "did you mean 'burst-v0'"),
        (("--profile", "cpu-smal"), "did you mean 'cpu-small'"),
        (("--scores", "x.json", "--card"), "--scores are of a run"),
    ],
)
def test_a_mistake_of_export_s_is_one_sentence(options: tuple[str, ...], sentence: str, tmp_path: pathlib.Path) -> None:
    file = _write(tmp_path / "x.onnx", model())
    told = helm("export", file, "--out", tmp_path / "p.onnx", *options)
    assert told.exit_code == 2 and sentence in told.stderr and not (tmp_path / "p.onnx").exists()
    refused = helm("export", tmp_path, "--out", tmp_path / "p.onnx", "--name", "x")
    assert refused.exit_code == 2 and "--name is for an ONNX file" in refused.stderr
    assert profiles.load("cpu-small").name == LAYOUT.profile.name
