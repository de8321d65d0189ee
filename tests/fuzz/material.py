"""Files that commands are given: good ones, odd ones and hostile ones, under names that are odd themselves."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil

from helm_gym import profile as profiles
from helm_gym.profile import Interval
from tests.fuzz.warm import ROOT

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:{k // 60:02d}:{k % 60:02d}.{(7919 * k) % 1000:03d}0000,{100 + k % 900},{k % 50}\n"
    for k in range(900)
)
MOONCAKE = "".join(
    json.dumps({"timestamp": 1000 * k, "input_length": 500 + k, "output_length": 9, "hash_ids": [k % 7, k]}) + "\n"
    for k in range(900)
)
DEEP = "[" * 100_000
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 10)
)
NAMES = ("\x1b[31mred\x1b[0m", "two\nlines", "\u202etxt.exe", "[/red]", "sp ace", "\udcff", "x" * 200, "-dash")


def quick_profile() -> profiles.Profile:
    """A profile that is quick to serve; its runs and logs are its own."""
    profile = profiles.load("cpu-small")
    population = dataclasses.replace(profile.population, users=1000, items=20_000)
    return dataclasses.replace(profile, name="small", interval=Interval(10, 20), population=population)


def write_material(folder: pathlib.Path) -> list[str]:
    """Fills ``folder``; returns the paths, relative to it, good ones first."""
    small = profiles.load("cpu-small")
    files: dict[str, str | bytes] = {
        "cluster.yaml": "nodes: [{count: 2}]\n",
        "trace.csv": AZURE,
        "trace.jsonl": MOONCAKE,
        "scores.json": json.dumps({"task": "burst-v0", "rung": "modelled", "seeds": [0], "machine": "", "date": "",
                                   "policies": [{"name": "runs/ppo"}]}),
        "broken.yaml": "name: [1",
        "latin.yaml": b"name: caf\xe9",
        "bomb.yaml": BOMB,
        "deep.yaml": DEEP,
        "deep.json": DEEP,
        "broken.json": "{",
        "empty.onnx": b"",
        "empty.csv": "",
        "broken.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\nmany,1,2\n",
        "deep.jsonl": DEEP,
        "broken.journal": "{",
        "broken.db": "no database",
        "runs/begun/.run.json.tmp": "{",
        "runs/half/run.json": '{"format"',
        "runs/deep/run.json": DEEP,
        "runs/other/thesis.tex": "",
        "logs/broken/log.json": "{",
        "logs/broken/episode-000000.parquet": b"PAR1",
    }  # fmt: skip
    for name in NAMES:
        files[f"{name}.yaml"] = f"name: {name!r}"
        files[f"{name}.onnx"] = b"\x08\x0a"
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    profiles.save(quick_profile(), folder / "small.yaml")
    profiles.save(_with(small, users=2**26, items=2**30), folder / "huge.yaml")
    shipped = ROOT / "agents" / "shipped"
    for name, source in {"ppo": "ppo", "pid": "pid", "router": "router", NAMES[0]: "three_layer_ppo"}.items():
        shutil.copytree(shipped / source / "cpu-small", folder / "runs" / name)
    shutil.copy(shipped / "pid" / "cpu-small" / "policy.onnx", folder / "policy.onnx")
    for suffix in ("yaml", "onnx", "csv", "json", "journal"):
        os.mkfifo(folder / f"pipe.{suffix}")
        (folder / f"zero.{suffix}").symlink_to("/dev/zero")
        (folder / f"folder.{suffix}").mkdir()
        (folder / f"loop.{suffix}").symlink_to(f"loop.{suffix}")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _with(profile: profiles.Profile, **population: int) -> profiles.Profile:
    changed = dataclasses.replace(profile.population, **population)
    return dataclasses.replace(profile, name="huge", population=changed)
