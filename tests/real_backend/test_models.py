"""Models of one's own: what is imported is served with the source's scores, or refused with the reason.

The source is Meta's published layer (generative-recommenders, modules/stu.py and ops/pytorch), written out in float64:
all tokens of a request at once, no cache.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import pickle
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from helm_gym import profile as profiles
from helm_gym.backend import open_backend
from helm_gym.cli.main import app
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Model, Profile
from helm_gym.workload.regimes import make_path
from real_backend.engine import Engine
from real_backend.hstu.importing import Choices, import_model
from real_backend.hstu.model import HSTU
from real_backend.hstu.weights import META
from tests.real_backend.test_engine import Manager, small
from tests.real_backend.test_hstu import buffer, naive_scores, run

State = dict[str, torch.Tensor]
D, HEADS, QK, V = 8, 2, 4, 6


def stack(layers: int, group: bool, seed: int, prefix: str = "_stu_layers") -> State:
    """A state dict of Meta's STUStack, with weights that make every part of a layer matter."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape, mean=0.0, scale=0.3: mean + scale * torch.randn(shape, generator=g)  # noqa: E731  # one line
    norms = HEADS if group else HEADS * V
    return {
        f"{prefix}.{i}.{name}": value
        for i in range(layers)
        for name, value in {
            "_uvqk_weight": draw(D, 2 * HEADS * (V + QK), scale=0.5),
            "_uvqk_beta": draw(2 * HEADS * (V + QK)),
            "_input_norm_weight": draw(D, mean=1.0),
            "_input_norm_bias": draw(D),
            "_output_weight": draw(3 * HEADS * V, D),
            "_output_norm_weight": draw(norms, mean=1.0),
            "_output_norm_bias": draw(norms),
        }.items()
    }


def meta_stack(state: State, x: torch.Tensor, targets: int, n: int, group: bool, alpha: float = QK**-0.5) -> np.ndarray:
    """STUStack's output at the targets, for one request: every layer over all tokens, in float64."""
    x, length = x.double(), len(x)
    ids = torch.arange(length).clamp(max=length - targets)
    seen = torch.eye(length, dtype=torch.bool) | (ids[:, None] > ids)
    norm = torch.nn.functional.layer_norm
    for i in range(1 + max(int(name.split(".")[-2]) for name in state)):
        w = {name.rpartition(".")[2]: t.double() for name, t in state.items() if f"_stu_layers.{i}." in name}
        projected = norm(x, (D,), w["_input_norm_weight"], w["_input_norm_bias"], 1e-6) @ w["_uvqk_weight"]
        u, v, q, k = (projected + w["_uvqk_beta"]).split([HEADS * V, HEADS * V, HEADS * QK, HEADS * QK], 1)
        u = torch.nn.functional.silu(u)
        q, k, v = q.view(length, HEADS, QK), k.view(length, HEADS, QK), v.view(length, HEADS, V)
        attention = torch.nn.functional.silu(torch.einsum("xha,yha->hxy", q, k) * alpha) / n * seen
        o = torch.einsum("hxy,yhv->xhv", attention, v)
        if group:
            normed = torch.nn.functional.group_norm(
                o, HEADS, w["_output_norm_weight"], w["_output_norm_bias"], 1e-6
            ).reshape(length, -1)
            o = o.reshape(length, -1)
        else:
            o = o.reshape(length, -1)
            normed = norm(o, (HEADS * V,), w["_output_norm_weight"], w["_output_norm_bias"], 1e-6)
        x = x + torch.cat([u, o, u * normed], 1) @ w["_output_weight"]
    return x[length - targets :].numpy()


def dot_scores(outputs: np.ndarray, rows: torch.Tensor) -> np.ndarray:
    """Meta's L2NormPostprocessor, and the dot product with the candidates' rows."""
    normed = outputs / np.maximum(np.linalg.norm(outputs, axis=1, keepdims=True), 1e-6)
    return np.asarray((normed * rows.double().numpy()).sum(1))


def written(path: pathlib.Path, state: State, **metadata: Any) -> pathlib.Path:
    safetensors.torch.save_file(state, path, {name: str(value) for name, value in metadata.items()})
    return path


def base(**model: Any) -> Profile:
    """A machine on which the small models of this file fit."""
    profile = small(model=dataclasses.replace(small().model, **model))
    return dataclasses.replace(profile, pool=dataclasses.replace(profile.pool, pages=600))


@settings(max_examples=12, deadline=None)
@given(
    layers=st.integers(1, 3),
    group=st.booleans(),
    alpha=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 1000),
    visits=st.integers(1, 6),
)
def test_an_imported_stack_scores_as_its_source_does(tmp_path_factory, layers, group, alpha, seed, visits):
    """Through the whole engine: pages, batches, hits, evictions, the host tier."""
    folder = tmp_path_factory.mktemp("model")
    state, rng = stack(layers, group, seed, "_hstu_transducer._stu_module._stu_layers"), np.random.default_rng(seed)
    file = written(folder / "stack.safetensors", state, **({} if alpha is None else {"attn_alpha": alpha}))
    table = torch.from_numpy(rng.normal(size=(500, D)).astype(np.float32))
    safetensors.torch.save_file({"table": table}, folder / "items.safetensors")
    choices = Choices(heads=HEADS, attention_n=37)
    import_model(file, folder / "mine.yaml", base(), choices, folder / "items.safetensors")
    profile = profiles.load(folder / "mine.yaml")
    assert (profile.model.norm, profile.model.head, profile.model.positions) == (
        "group" if group else "layer",
        "dot",
        "none",
    )
    engine = Engine(profile)
    manager = Manager(profile, rng)
    for _ in range(visits):
        plan, batch, requests = manager.plan(rng.permutation(6)[: rng.integers(1, 4)].tolist())
        scores, read = engine.execute(plan, batch).numpy(), 0
        for history, asked in requests:
            if not len(asked):
                continue
            rows = table[np.concatenate([history, asked])]
            outputs = meta_stack(state, rows, len(asked), 37, group, alpha or QK**-0.5)
            expected = dot_scores(outputs, rows[len(history) :])
            np.testing.assert_allclose(scores[read : read + len(asked)], expected, atol=1e-5)
            read += len(asked)


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize(("head", "positions"), [("linear", "absolute"), ("dot", "none")])
def test_a_round_trip_keeps_every_bit(tmp_path, norm, head, positions):
    model = Model(2, 2, D, QK, V, 24, 6, seed=9, norm=norm, head=head, positions=positions, attention_n=41)
    net = HSTU(model)
    file = written(tmp_path / "net.safetensors", net.state_dict(), num_heads=2, attention_n=41)
    once = import_model(file, tmp_path / "once.yaml", base(), Choices())
    again = import_model(tmp_path / "once.safetensors", tmp_path / "again.yaml", base(), Choices())
    assert dataclasses.replace(again.model, weights="", seed=9) == dataclasses.replace(model, weights="")
    loaded = Engine(profiles.load(tmp_path / "again.yaml")).hstu
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), loaded.parameters(), strict=True))
    request = [(torch.randn(9, D), torch.randn(3, D), 0)]
    assert torch.equal(run(net, request, buffer(model, 1))[0], run(loaded, request, buffer(model, 1))[0])
    assert once.fingerprint == again.fingerprint != base().fingerprint


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_bfloat16_stays_within_a_hundredth_and_does_not_tie_scores(norm):
    """Of the largest score, against the same weights in float32; float32 sums leave 128 candidates 128 scores."""
    model = Model(3, 4, 64, 32, 32, 200, 128, dtype="bfloat16", seed=4, norm=norm)
    net = HSTU(model)
    net.load_state_dict({name: p.bfloat16().float() for name, p in net.state_dict().items()})
    history, asked = torch.randn(200, 64).bfloat16(), torch.randn(128, 64).bfloat16()
    kv = buffer(model, 1).bfloat16()
    whole = run(net, [(history, asked, 0)], kv)[0]
    exact = HSTU(dataclasses.replace(model, dtype="float32"))
    exact.load_state_dict(net.state_dict())
    expected = run(exact, [(history.float(), asked.float(), 0)], buffer(model, 1))[0]
    within = 1e-2 * float(expected.abs().max())
    np.testing.assert_allclose(whole, expected, atol=within)
    assert (whole - expected).abs().mean() < 4e-3 < 0.01 * expected.std()
    np.testing.assert_allclose(run(net, [(history, asked, 190)], kv)[0], whole, atol=within)
    assert len(whole.unique()) == 128 and whole.dtype == torch.float32
    naive = naive_scores(exact, torch.cat((history[:40], asked[:6])).float().numpy(), 40)
    few = run(exact, [(history[:40].float(), asked[:6].float(), 0)], buffer(model, 1))[0]
    np.testing.assert_allclose(few, naive, atol=1e-5)


def test_a_large_table_is_mapped_and_keeps_its_type(tmp_path):
    """Rows come up converted; the pages of the file that nothing reads stay on the disk."""
    rows = torch.arange(500.0)[:, None].expand(500, D).half().contiguous()
    safetensors.torch.save_file({"table": rows}, tmp_path / "items.safetensors")
    file = written(tmp_path / "s.safetensors", stack(1, True, 0))
    import_model(file, tmp_path / "mine.yaml", base(), Choices(attention_n=30), tmp_path / "items.safetensors")
    profile = profiles.load(tmp_path / "mine.yaml")
    engine = Engine(profile)
    assert engine.table.dtype == torch.float16 and profile.population.items == 500
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "items.safetensors") in maps.read_text()
    engine._fill(np.array([499, 3], np.int32), np.array([0, 7], np.int32))
    assert engine.rows[0].tolist() == [499.0] * D and engine.rows[7].tolist() == [3.0] * D


def test_a_profile_of_ones_own_runs_on_both_rungs(tmp_path):
    file = written(tmp_path / "s.safetensors", stack(2, True, 0))
    import_model(file, tmp_path / "mine.yaml", profiles.load("cpu-small"), Choices(attention_n=704))
    profile = profiles.load(tmp_path / "mine.yaml")
    assert profile.cost.machine == "of cpu-small, not calibrated"
    path = make_path("steady", profile, [1], 1)
    for name in ("modelled", "real"):
        backend = open_backend(name, profile)
        backend.reset(path.at(0), np.array([1]), np.full((1, 1), 0.5))
        assert backend.step(np.full((1, 1), 0.5), path.at(0))["service_mean_ms"] > 0


def without(state: State, name: str) -> State:
    return {key: value for key, value in state.items() if not key.endswith(name)}


@pytest.mark.parametrize(
    ("state", "metadata", "sentence"),
    [
        ({"x._timestamp_embeddings_weight": torch.ones(3, D)}, {}, "time relative to the query"),
        ({"_rel_attn_bias._ts_w": torch.ones(3)}, {}, "time relative to the query"),
        ({"e._position_embeddings_weight": torch.ones(3, D)}, {}, "counted from the end of the history"),
        ({"p._contextual_weight": torch.ones(3, D)}, {}, "contextual tokens, which see all"),
        ({"_attention_layers.0._uvqk": torch.ones(3, D)}, {}, "research variant"),
        ({"something.else": torch.ones(3)}, {}, "'something.else' is no parameter of this HSTU"),
        ({}, {"contextual_seq_len": 2}, "contextual_seq_len is not 0"),
        ({}, {"max_attn_len": 100}, "a window of the history is not built"),
        ({}, {"causal": "False"}, "causal is false"),
        ({}, {"target_aware": "False"}, "target_aware is false"),
        ({}, {"attn_alpha": "-1"}, "attn_alpha is '-1', not a number above 0"),
        ({"head": torch.ones(D)}, {}, "of head_bias it has none where (1,) is needed"),
        ({"position": torch.ones(24, D)}, {}, "of candidate it has none"),
        ({"_stu_layers.0._uvqk_beta": torch.ones(3)}, {}, "of layers.0.uvqk_bias it has (3,) where (40,)"),
        ({"_stu_layers.2._uvqk_beta": torch.ones(40)}, {}, "layer 1 has no norm_weight (Meta: _input_norm_weight)"),
        ({"_stu_layers.0._uvqk_beta": torch.full((40,), math.nan)}, {}, "not finite"),
        ({"_stu_layers.0._uvqk_beta": torch.ones(40, dtype=torch.int64)}, {}, "is torch.int64"),
        ({"layers.0.uvqk_bias": torch.ones(40)}, {}, "two tensors are layers.0.uvqk_bias"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_what_cannot_be_served_is_refused_with_the_reason(tmp_path, state, metadata, sentence):
    file = written(tmp_path / "s.safetensors", stack(1, True, 0) | state, **metadata)
    with pytest.raises(InvalidInputError) as refused:
        import_model(file, tmp_path / "mine.yaml", base(), Choices(attention_n=30))
    assert sentence in str(refused.value) and len(str(refused.value)) <= 500
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize(
    ("group", "choices", "sentence"),
    [
        (True, Choices(), "give --attention-n, the max_seq_len"),
        (False, Choices(attention_n=30), "does not tell how many heads there are; give --heads"),
        (False, Choices(heads=5, attention_n=30), "are not 5 heads"),
        (True, Choices(heads=4, attention_n=30), "are not 4 heads"),
    ],
)
def test_what_shapes_do_not_tell_is_asked_for(tmp_path, group, choices, sentence):
    file = written(tmp_path / "s.safetensors", stack(1, group, 0))
    with pytest.raises(InvalidInputError, match=sentence):
        import_model(file, tmp_path / "mine.yaml", base(), choices)


def test_nothing_is_unpickled(tmp_path):
    class Mine:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pathlib.Path.touch, (tmp_path / "ran",))

    for content in (pickle.dumps(Mine()), b"", b"\xff" * 64, (1 << 40).to_bytes(8, "little")):
        (tmp_path / "weights.pt").write_bytes(content)
        told = CliRunner().invoke(app, ["model", "show", str(tmp_path / "weights.pt")])
        assert told.exit_code == 2 and "give a safetensors file" in told.stderr.replace("\n", " ")
    assert not (tmp_path / "ran").exists()


def test_tables_of_another_shape_are_refused(tmp_path):
    file = written(tmp_path / "s.safetensors", stack(1, True, 0))
    for tensors, sentence in (
        ({"table": torch.ones(5, D + 1)}, "shape"),
        ({"table": torch.ones(5, D, dtype=torch.int32)}, "int32"),
        ({"rows": torch.ones(5, D)}, "one tensor named 'table'"),
    ):
        safetensors.torch.save_file(tensors, tmp_path / "t.safetensors")
        with pytest.raises(InvalidInputError, match=sentence):
            import_model(file, tmp_path / "m.yaml", base(), Choices(attention_n=30), tmp_path / "t.safetensors")


def test_weights_of_another_model_are_refused_when_they_are_opened(tmp_path):
    file = written(tmp_path / "s.safetensors", stack(1, True, 0))
    profile = import_model(file, tmp_path / "mine.yaml", base(), Choices(attention_n=30))
    model = dataclasses.replace(profile.model, layers=2, weights=str(tmp_path / "mine.safetensors"))
    with pytest.raises(InvalidInputError, match=r"of layers\.1\.norm_bias it has none where \(8,\) is needed"):
        Engine(dataclasses.replace(profile, model=model, pool=dataclasses.replace(profile.pool, page_bytes=640)))


def test_the_command_line_imports_and_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path / "s.safetensors", stack(2, False, 0))
    arguments = ["--heads", "2", "--attention-n", "704", "--json"]
    shown = CliRunner().invoke(app, ["model", "show", str(file), *arguments])
    assert shown.exit_code == 0 and json.loads(shown.stdout)["model"]["layers"] == 2, shown.stderr
    refused = CliRunner().invoke(app, ["model", "import", str(file), *arguments])
    assert refused.exit_code == 2 and "needs --out" in refused.stderr
    done = CliRunner().invoke(app, ["model", "import", str(file), *arguments, "--out", "sub/mine.yaml"])
    assert done.exit_code == 0, done.stderr
    profile = profiles.load(tmp_path / "sub" / "mine.yaml")
    assert profile.model.weights == str(tmp_path / "sub" / "mine.safetensors")
    assert {f"layers.1.{name}" for name in META} <= safetensors.torch.load_file(profile.model.weights).keys()
