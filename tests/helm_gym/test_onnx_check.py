"""What strangers hand over as policies: refused by one rule each, soon and in little memory; honest files pass."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from helm_gym.errors import HelmError, RefusedError
from helm_gym.policies import onnx_check
from helm_gym.policies.onnx_check import OPERATORS, RULES, Walked, probe, probing
from helm_gym.policies.onnx_check.walk import _inputs, follow_graph
from helm_gym.policies.onnx_policy import OnnxPolicy
from tests.helm_gym.hostile import ENDS, HOSTILE, LAYOUT, model, node, stamped, weight
from tests.helm_gym.test_onnx_walk import check_against_onnxruntime

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = ROOT / "agents/shipped/three_layer_ppo/cpu-small/policy.onnx"
# Only fakes can break these: a graph cannot forget, and the walk refuses first what depends on the batch
FAKED = {"deterministic", "batch", "time"}
LONGEST_S = 20.0


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """How each hostile file was refused, opened in a process with 2 GB and 20 seconds."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = {name: folder / name / "policy.onnx" for name in [*HOSTILE, "at_the_limit"]}
    for name, path in paths.items():
        path.parent.mkdir()
        if name in HOSTILE:
            HOSTILE[name][1](path)
    paths["at_the_limit"].write_bytes(stamped(at_the_limit()))
    command = [sys.executable, str(ROOT / "tests/helm_gym/opening.py"), *map(str, paths.values())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=True)
    said = json.loads(done.stdout)
    return {name: said[str(path)] for name, path in paths.items()}


def at_the_limit() -> onnx.ModelProto:
    """As large a policy as may be: half a MiB a row, all of it alive to the end."""
    wide = [node("Mul", ["mean", f"w{k}"], [f"m{k}"]) for k in range(12)]
    return model(
        [*wide, node("Concat", [f"m{k}" for k in range(12)], ["all"], axis=1), node("MatMul", ["all", "fold"], ["x"])],
        [
            *(weight(f"w{k}", np.full((1, 5000), k / 12)) for k in range(12)),
            weight("fold", np.full((60_000, 1), 1e-6)),
        ],
        action="x",
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_its_rule(name: str, attempts: dict[str, dict[str, Any]]) -> None:
    said = attempts[name]
    assert said["rule"] == HOSTILE[name][0], said
    assert said["seconds"] < LONGEST_S
    assert len(said["sentence"]) <= 500 and said["sentence"].isprintable(), said
    assert said["sentence"].startswith("Policy ") and said["sentence"].endswith(f" (rule {said['rule']})")


def test_the_largest_policy_that_passes_decides_for_many_rows_within_the_same_bounds(
    attempts: dict[str, dict[str, Any]],
) -> None:
    assert attempts["at_the_limit"]["sentence"] == "decided for 1024 rows", attempts["at_the_limit"]


def test_every_rule_refuses_something() -> None:
    assert {rule for rule, _ in HOSTILE.values()} | FAKED == set(RULES)


def test_the_documents_name_the_rules_and_operators_that_there_are() -> None:
    text = (ROOT / "docs/policies.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", text, re.MULTILINE)) == RULES
    listed = text.partition("**Operators**")[2].partition("\n\n")[0]
    assert set(re.findall(r"[A-Z][A-Za-z0-9]+", listed.partition(":")[2])) == set(OPERATORS)


# Sessions that no graph can make


class Session:
    """Answers by the mean, and by whatever else ``answer`` says."""

    def __init__(self, answer: Callable[[Any, int], Any]):
        self.answer, self.calls = answer, 0

    def run(self, outputs: Any, inputs: dict[str, Any], options: Any) -> list[Any]:
        self.calls += 1
        action = inputs["obs"].mean(axis=1, keepdims=True) + self.answer(inputs["obs"], self.calls)
        return [action.astype(np.float32), inputs["state"]]


@pytest.mark.parametrize(
    ("rule", "answer"),
    [
        ("deterministic", lambda seen, calls: 0.01 * calls),
        ("batch", lambda seen, calls: seen.mean()),
        ("batch", lambda seen, calls: 0.01 * len(seen)),
        ("batch", lambda seen, calls: 0.01 * np.arange(len(seen))[:, None]),
        ("finite", lambda seen, calls: np.where(seen[:, :1] > 0.99, np.nan, 0)),
    ],
)
def test_answers_that_are_not_a_row_s_own_are_refused(rule: str, answer: Callable[[Any, int], Any]) -> None:
    with pytest.raises(RefusedError) as refused:
        probe(Session(answer), Walked(LAYOUT.width, 2, 1, 1, 1, 1), LAYOUT.low, LAYOUT.high)
    assert refused.value.rule == rule


def test_what_takes_too_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = weight("wide", np.ones((1, 700)))
    steps = [node("MatMul", [f"p{k}", "big"], [f"p{k + 1}"]) for k in range(80)]
    slow = model(
        [node("Mul", ["mean", "wide"], ["p0"]), *steps, node("ReduceMean", ["p80"], ["x"], axes=[1])],
        [wide, weight("big", np.zeros((700, 700)))],
        action="x",
    )
    monkeypatch.setattr(probing, "PROBE_SECONDS", 0.02)
    with pytest.raises(RefusedError, match=r"took more than 0\.02 seconds") as refused:
        onnx_check.check(stamped(slow), LAYOUT)
    assert refused.value.rule == "time"
    monkeypatch.undo()
    monkeypatch.setattr(probing, "MAX_ROW_MS", 0.0)
    with pytest.raises(RefusedError, match="a decision of one row takes"):
        onnx_check.check(stamped(model()), LAYOUT)
    monkeypatch.undo()
    monkeypatch.setattr(probing, "MAX_PROBE_BYTES", -1)
    with pytest.raises(RefusedError, match="decisions for 256 rows took"):
        onnx_check.check(stamped(model()), LAYOUT)


# What may be


def test_functions_are_followed_and_decide_as_they_would(tmp_path: pathlib.Path) -> None:
    """A function with an attribute of its own, called from another one."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    bent = node("LeakyRelu", ["a"], ["b"])
    bent.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    made = model(
        [node("twice", ["mean"], ["x"], domain="own", slope=0.5)],
        action="x",
    )
    inner = node("bent", ["v"], ["w"], domain="own")
    inner.attribute.add(name="slope", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    made.functions.append(helper.make_function("own", "bent", ["a"], ["b"], [bent], opsets, ["slope"]))
    body = [node("Neg", ["u"], ["v"]), inner]
    made.functions.append(helper.make_function("own", "twice", ["u"], ["w"], body, opsets, ["slope"]))
    made.opset_import.append(helper.make_opsetid("own", 1))
    (tmp_path / "f.onnx").write_bytes(stamped(made))
    policy = OnnxPolicy(tmp_path / "f.onnx", LAYOUT)
    seen = np.stack([LAYOUT.low, LAYOUT.high])
    action, _ = policy.act(seen, policy.initial_state(2))
    wanted = -seen.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(action, np.where(wanted < 0, 0.5 * wanted, wanted), rtol=1e-5)
    assert policy.checked.walked.nodes == 5

    content = (tmp_path / "f.onnx").read_bytes()
    changed = onnx.ModelProto.FromString(content)
    changed.functions[1].node[0].op_type = "Abs"
    with pytest.raises(RefusedError, match="its checksum differs"):
        onnx_check.check(changed.SerializeToString(), LAYOUT)


@pytest.mark.parametrize("edit", ["opset", "ir", "metadata", "output"])
def test_the_checksum_covers_all_of_the_file(edit: str) -> None:
    made = onnx.ModelProto.FromString(stamped(model()))
    if edit == "opset":
        made.opset_import[0].version = 18
    elif edit == "ir":
        made.ir_version = 9
    elif edit == "metadata":
        made.metadata_props[0].value += "0"
    else:
        made.graph.output[0].name = "acting"
    with pytest.raises(RefusedError) as refused:
        onnx_check.check(made.SerializeToString(), LAYOUT)
    assert refused.value.rule == "checksum"


def test_a_link_to_a_policy_is_opened(tmp_path: pathlib.Path) -> None:
    (tmp_path / "link.onnx").symlink_to(SHIPPED)
    assert OnnxPolicy(tmp_path / "link.onnx", LAYOUT).checked.facts["agent"] == "three-layer-ppo"


def test_it_says_what_a_decision_costs() -> None:
    walked = onnx_check.check(stamped(model()), LAYOUT).walked
    # 46 products; ten operations for each of the two copies' elements; 4 bytes for each of 1 + 1 + 2
    assert walked == Walked(LAYOUT.width, 2, 1, 3, 46 + 10 * (1 + 2), 4 * 4)
    assert len(ENDS) == 3


# Networks as torch exports them


def _networks() -> dict[str, tuple[Any, int]]:
    """Modules ``forward(obs, state) -> action, state_out`` by name, with the width of their state."""
    import torch
    from torch import Tensor, nn

    d = LAYOUT.width
    Pair = tuple[Tensor, Tensor]

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                *(nn.Linear(d, 32), nn.Tanh(), nn.Linear(32, 32), nn.GELU(), nn.LayerNorm(32)),
                *(nn.BatchNorm1d(32), nn.Dropout(0.1), nn.SiLU(), nn.Linear(32, 1)),
            )

        def forward(self, obs: Tensor, state: Tensor) -> Pair:
            return torch.tanh(self.net(obs)), state

    class Cell(nn.Module):
        def __init__(self, gru: bool) -> None:
            super().__init__()
            self.cell: Any = nn.GRUCell(d, 16) if gru else nn.LSTMCell(d, 16)
            self.head, self.gru = nn.Linear(16, 1), gru

        def forward(self, obs: Tensor, state: Tensor) -> Pair:
            if self.gru:
                h = self.cell(obs, state)
                return self.head(h).clamp(-1, 1), h
            h, c = self.cell(obs, state.chunk(2, 1))
            return self.head(h).clamp(-1, 1), torch.cat([h, c], 1)

    class Sequence(nn.Module):
        """An nn.LSTM or nn.GRU over the last four observations, which are the state."""

        def __init__(self, kind: Any) -> None:
            super().__init__()
            self.net, self.head = kind(d, 8, batch_first=True), nn.Linear(8, 1)

        def forward(self, obs: Tensor, state: Tensor) -> Pair:
            past = torch.cat([state.view(-1, 3, d), obs.unsqueeze(1)], 1)
            return torch.tanh(self.head(self.net(past)[0][:, -1])), past[:, 1:].reshape(obs.shape[0], -1)

    class Transformer(nn.Module):
        """PyTorch's own encoder layer, whose attention is laid out (steps, lanes, ...) inside."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.places = nn.Linear(d, 16), nn.Parameter(torch.randn(4, 16))
            self.layer, self.head = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), nn.Linear(16, 1)

        def forward(self, obs: Tensor, state: Tensor) -> Pair:
            past = torch.cat([state.view(-1, 3, d), obs.unsqueeze(1)], 1)
            return torch.tanh(self.head(self.layer(self.embed(past) + self.places).mean(1))), past[:, 1:].flatten(1)

    class Attention(nn.Module):
        """Written by hand, batch first, with a token of its own, a causal mask and torch's fused attention."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.parts, self.head = nn.Linear(d, 16), nn.Linear(16, 48), nn.Linear(16, 1)
            self.token = nn.Parameter(torch.randn(1, 1, 16))
            self.register_buffer("mask", torch.tril(torch.ones(5, 5)).bool())

        def forward(self, obs: Tensor, state: Tensor) -> Pair:
            b = obs.shape[0]
            past = torch.cat([state.reshape(b, 3, d), obs.unsqueeze(1)], 1)
            x = torch.cat([self.token.expand(b, -1, -1), self.embed(past)], 1)
            q, k, v = (part.view(b, 5, 4, 4).transpose(1, 2) for part in self.parts(x).chunk(3, -1))
            own = (q @ k.transpose(-1, -2) / 2.0).masked_fill(~self.mask, float("-inf")).softmax(-1) @ v
            fused = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            y = (own + fused).transpose(1, 2).reshape(b, 5, 16)
            return torch.tanh(self.head(y[:, -1])), past[:, 1:].flatten(1)

    class Choice(nn.Module):
        """The best of nine steps, by a convolution over the past; without state of its own beside it."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv1d(d, 8, 3, padding=1), nn.Linear(8, 9)
            self.register_buffer("steps", torch.linspace(-1, 1, 9))

        def forward(self, obs: Tensor, state: Tensor) -> Pair:
            past = torch.cat([state.view(-1, 3, d), obs.unsqueeze(1)], 1)
            best = self.head(torch.relu(self.conv(past.transpose(1, 2))).amax(-1)).argmax(1)
            scaled = nn.functional.normalize(obs, dim=1).std(1, keepdim=True) + torch.zeros(obs.shape[0], 1)
            return (self.steps[best].unsqueeze(1) + 0.1 * scaled).clamp(-1, 1), past[:, 1:].flatten(1)

    class Stateless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(d, 1)

        def forward(self, obs: Tensor, state: Tensor) -> Pair:
            return self.net(obs).clamp(-1, 1), state

    torch.manual_seed(0)
    return {
        "mlp": (Mlp(), 2),
        "gru_cell": (Cell(gru=True), 16),
        "lstm_cell": (Cell(gru=False), 32),
        "gru": (Sequence(nn.GRU), 3 * d),
        "lstm": (Sequence(nn.LSTM), 3 * d),
        "transformer": (Transformer(), 3 * d),
        "attention": (Attention(), 3 * d),
        "choice": (Choice(), 3 * d),
        "stateless": (Stateless(), 0),
    }


NETWORKS = ("mlp", "gru_cell", "lstm_cell", "gru", "lstm", "transformer", "attention", "choice", "stateless")


def _export(network: Any, state: int, path: pathlib.Path, dynamo: bool) -> None:
    import torch

    shapes = {0: torch.export.Dim("lanes")}
    how: dict[str, Any] = {"dynamo": True, "dynamic_shapes": (shapes, shapes), "external_data": False, "verbose": False}
    names = ("obs", "state", "action", "state_out")
    if not dynamo:
        how = {"dynamo": False, "dynamic_axes": {name: {0: "lanes"} for name in names}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter is deprecated, and both talk
        example = (torch.rand(2, LAYOUT.width), torch.rand(2, state))
        torch.onnx.export(network.eval(), example, str(path), input_names=names[:2], output_names=names[2:], **how)


def check_export(name: str, path: pathlib.Path, dynamo: bool) -> None:
    """An honest export passes, decides as the module does, and every value in it is as the walk foretells."""
    import torch

    network, width = _networks()[name]
    _export(network, width, path, dynamo)
    made = onnx.load(path)
    checked = onnx_check.check(stamped(made), LAYOUT)
    assert checked.walked.state == width
    rng = np.random.default_rng(5)
    seen = rng.uniform(LAYOUT.low, LAYOUT.high, (7, LAYOUT.width)).astype(np.float32)
    state = rng.normal(size=(7, width)).astype(np.float32)
    found = checked.session.run(("action", "state_out"), {"obs": seen, "state": state})
    with torch.no_grad():
        wanted = network.eval()(torch.from_numpy(seen), torch.from_numpy(state))
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-5)
    flat, _ = onnx_check.inspect(made, LAYOUT, onnx_check.DELTA)
    values, _ = follow_graph(flat.graph, _inputs(flat.graph))
    check_against_onnxruntime(flat, values, {"obs": LAYOUT.width, "state": width})


@pytest.mark.parametrize("name", NETWORKS)
def test_what_torch_exports_passes(name: str, tmp_path: pathlib.Path) -> None:
    check_export(name, tmp_path / "x.onnx", dynamo=False)


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_what_torch_s_newer_exporter_makes_passes(name: str, tmp_path: pathlib.Path) -> None:
    check_export(name, tmp_path / "x.onnx", dynamo=True)


# Bytes that were changed


def _mutate(data: st.DataObject) -> None:
    content = bytearray(SHIPPED.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["flip", "cut", "drop", "repeat", "splice"]))
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        if kind == "flip" and content:
            content[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + data.draw(st.integers(1, 40))]
        elif kind == "repeat":
            content[at:at] = content[at : at + data.draw(st.integers(1, 200))]
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    for stamp_again in (False, True):
        try:
            if stamp_again:  # so that it is the graph that is looked at
                content = bytearray(stamped(onnx_check.parse(bytes(content))))
            onnx_check.check(bytes(content), LAYOUT)
        except HelmError as error:
            assert len(str(error)) <= 400 and str(error).isprintable()


CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=60, suppress_health_check=CHECKS)
@given(st.data())
def test_changed_bytes_end_in_one_sentence(data: st.DataObject) -> None:
    _mutate(data)


@pytest.mark.long
@settings(max_examples=2000, suppress_health_check=CHECKS)
@given(st.data())
def test_many_more_changed_bytes_end_in_one_sentence(data: st.DataObject) -> None:
    _mutate(data)
