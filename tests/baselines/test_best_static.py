"""The best static split of training episodes."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from helm_gym import profile as profiles
from helm_gym.policies.opening import open_policy
from helm_gym.tasks import find_task
from helm_gym.training import run_folder, trainable
from tests.conformance.policy import make_layout, settle

LAYOUT = make_layout()


def test_it_holds_the_split_with_the_least_sojourn_on_its_episodes(tmp_path: pathlib.Path) -> None:
    task = dataclasses.replace(find_task("burst-v0"), warmup=10, settle=5, horizon=20)
    run = trainable.train("best-static", task, profiles.load("cpu-small"), tmp_path, seed=3, steps=4 * 25)
    served = {float(name.rpartition("_")[2]): ms for name, ms in run.facts.items() if name.startswith("sojourn_ms_")}
    assert len(served) == 9 and max(served.values()) > 1.2 * min(served.values())
    held = settle(open_policy(str(tmp_path), LAYOUT), LAYOUT, 0.05)
    assert held[-1] == pytest.approx(run_folder.read_tensors(tmp_path / run_folder.POLICY)[0]["alpha"][0], abs=1e-6)
    assert abs(held[-1] - min(served, key=lambda alpha: served[alpha])) <= 0.05 + 1e-6
    assert np.ptp(held[-20:]) == 0
