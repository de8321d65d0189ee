"""gpu_check runs end to end without a GPU, keeps what it has when it is cut off, and cannot pass empty."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch

from benchmarks import gpu_check, gpu_correctness, gpu_setting
from benchmarks.gpu_setting import Check, sized
from benchmarks.gpu_stages import STAGES
from helm_gym import profile as profiles
from real_backend.engine import memory_bytes
from real_backend.hstu.model import HSTU

SMALL = ["--device", "cpu", "--profile", "cpu-small", "--quick", "--out"]


def test_it_runs_end_to_end_on_a_cpu(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "check.json"
    code = gpu_check.main([*SMALL, str(out)])
    done = json.loads(out.read_text())
    stages = done["stages"]
    assert done["complete"] and list(stages) == list(STAGES)
    assert not [name for name, figures in stages.items() if "failed" in figures]
    for dtype in ("float32", "bfloat16"):
        law = stages["correctness"][dtype]
        assert law["ok"] and law["requests"] >= 200 and law["hit_share"] >= 0.4
    assert stages["correctness"]["float32"]["largest_difference_to_cpu"] < 1e-4
    # How long things take on a shared machine is not this test's to judge.
    assert done["passed"] is all(figures["ok"] for figures in stages.values()) and code == int(not done["passed"])
    assert done["device"] == "cpu" and stages["overlap"]["applies"] is False
    assert "no link here" in stages["link"]["what"]
    calibrated = profiles.load(tmp_path / "check" / "calibrated.yaml")
    assert calibrated.cost.base_ms != profiles.load("cpu-small").cost.base_ms
    assert list((tmp_path / "check" / "log").glob("*.parquet"))


def check(tmp_path: pathlib.Path) -> Check:
    return Check(profiles.load("cpu-small"), "cpu", True, tmp_path)


def test_scores_that_a_cache_changes_do_not_pass(tmp_path, monkeypatch):
    """Positions counted from the end of the history, say: what is cached is stale at the next visit."""
    right = HSTU.forward

    def stale(self, x, seq, kv=None):
        seq.position = seq.position.flip(0)
        return right(self, x, seq, kv)

    monkeypatch.setattr(HSTU, "forward", stale)
    found = gpu_correctness.correctness(check(tmp_path))
    assert not found["ok"] and found["bfloat16"]["largest_difference"] > 0.05


def test_too_few_hits_do_not_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_correctness, "LEAST_HITS", 0.99)
    found = gpu_correctness.correctness(check(tmp_path))
    assert not found["ok"] and found["float32"]["largest_difference"] < 1e-4


@pytest.mark.parametrize("missing", list(STAGES))
def test_a_file_with_a_stage_missing_or_failed_has_not_passed(missing):
    whole = {name: {"ok": True} for name in STAGES}
    assert gpu_check.passed({"complete": True, "stages": whole})
    assert not gpu_check.passed({"complete": False, "stages": whole})
    for instead in ({}, {"ok": False}, {"ok": None}, {"failed": "RuntimeError"}):
        assert not gpu_check.passed({"complete": True, "stages": whole | {missing: instead}})
    assert not gpu_check.passed({"complete": True, "stages": {}}) and not gpu_check.passed({})


def test_what_is_cut_off_keeps_what_it_has_and_has_not_passed(tmp_path, monkeypatch):
    def cut(_: Check) -> None:
        raise KeyboardInterrupt

    first, second, third = list(STAGES)[:3]
    monkeypatch.setitem(STAGES, first, lambda _: {"ok": True, "figure": 1.5})
    monkeypatch.setitem(STAGES, second, lambda _: 1 / 0)
    monkeypatch.setitem(STAGES, third, cut)
    with pytest.raises(KeyboardInterrupt):
        gpu_check.main([*SMALL, str(tmp_path / "c.json")])
    done = json.loads((tmp_path / "c.json").read_text())
    assert done["stages"][first]["figure"] == 1.5 and "ZeroDivisionError" in done["stages"][second]["failed"]
    assert list(done["stages"]) == [first, second] and not done["complete"] and not done["passed"]


def test_some_stages_alone_are_not_a_check(tmp_path, monkeypatch):
    monkeypatch.setitem(STAGES, "link", lambda _: {"ok": True, "up_gb_per_s": float("nan")})
    assert gpu_check.main([*SMALL, str(tmp_path / "c.json"), "--only", "link"]) == 1
    done = json.loads((tmp_path / "c.json").read_text())
    assert done["stages"]["link"]["up_gb_per_s"] is None and not done["complete"]


@pytest.mark.parametrize("name", [n for n in profiles.names() if profiles.load(n).device == "cuda"])
def test_a_gpu_profile_is_checked_at_a_size_that_a_machine_holds(name):
    whole = profiles.load(name)
    small = sized(whole, 8e9)
    host, device = memory_bytes(small)
    assert device < 20e9 and host < 24e9 and small.population.items * small.row_bytes <= 8e9
    assert small.model == whole.model and small.pool.pages * small.pool.page_bytes > 0.5e9
    assert gpu_setting.of_dtype(small, "float32").tokens_per_page == small.tokens_per_page
    assert sized(profiles.load("cpu-small"), 8e9) == profiles.load("cpu-small")


def test_a_large_table_is_drawn_once_and_mapped_by_every_engine(tmp_path, monkeypatch):
    from real_backend.engine import Engine

    monkeypatch.setattr(gpu_setting, "_DRAWN_BYTES", 2**20)
    one = check(tmp_path)
    gpu_setting.with_table(one)
    first, second = Engine(one.profile), Engine(one.profile)
    assert first.table.shape == (100_000, 64) and torch.equal(first.table[-5:], second.table[-5:])
    assert first.table.std() == pytest.approx(1.0, abs=0.01) and first.table[0].ne(first.table[4096]).any()
