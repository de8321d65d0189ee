"""The policies that are shipped: their cards, their two forms, and their names."""

from __future__ import annotations

import pathlib

import pytest

from agents import export
from helm_gym import policy, runs
from helm_gym import profile as profiles
from helm_gym.observation import ObservationLayout
from helm_gym.onnx_policy import OnnxPolicy
from helm_gym.training import find_trainable

ROOT = pathlib.Path(__file__).parents[2]
CARDS = (card for package in ("agents", "baselines") for card in ROOT.glob(f"{package}/shipped/*/*/card.json"))
FOLDERS = sorted(card.parent for card in CARDS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: "/".join(folder.parts[-2:]))
def test_a_shipped_policy_is_whole(folder: pathlib.Path) -> None:
    """On a fresh clone it opens by its name, and its file decides what it decides."""
    run, profile = runs.read_run(folder), profiles.load(folder.name)
    layout = ObservationLayout(profile)
    assert run.status == "done" and run.machine and run.origin == runs.Origin.of(layout)
    named = policy.open_policy(run.agent, layout)
    assert named.name == run.agent
    if find_trainable(run.agent).graph is not None:
        exported = OnnxPolicy(folder / "policy.onnx", layout)
        assert export.check(named, exported, layout, run.task) <= export.TOLERANCE
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2**20


def test_the_paper_s_controller_is_shipped() -> None:
    assert {folder.parent.name for folder in FOLDERS} >= {"ppo", "three_layer_ppo"}
