"""`helm-gym reproduce`: the paper's table and figures on short episodes, and going on where it was interrupted."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from helm_gym import paper, tasks
from helm_gym import profile as profiles
from helm_gym.paper import cached_evaluation, fig14, fig15, table3, unseen
from helm_gym.paper.cached_evaluation import Parts
from helm_gym.workload.regimes import make_path
from tests.helm_gym.test_cli import helm

SEEDS = 2
METHODS = ("static:0.5", "miss-ratio-curve", "oracle", "lstm-of-tomorrow")


def short_task(name: str) -> tasks.Task:
    return dataclasses.replace(tasks.find_task(name), warmup=4, settle=4, horizon=12)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (table3, fig14, fig15, unseen):
        monkeypatch.setattr(module, "find_task", short_task)
    monkeypatch.setattr(table3, "METHODS", METHODS)
    monkeypatch.setattr(fig15, "INTERVALS", 48)


def reproduce(name: str, out: pathlib.Path) -> Any:
    result = helm("reproduce", name, "--seeds", str(SEEDS), "--out", out, "--json", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.suffix for path in out.iterdir()) == [".json", ".md", ".png", ".svg"]
    return json.loads(result.stdout)


def test_table3_has_a_row_for_every_strategy_that_is_there(tmp_path: pathlib.Path) -> None:
    made = reproduce("table3", tmp_path)
    rows = {row["method"]: row for row in made["rows"]}
    assert list(rows) == list(METHODS[:-1]) and made["missing"] == [METHODS[-1]]
    assert made["rung"] == "modelled" and made["seeds"] == [0, 1] and made["machine"] and made["date"]
    for row in rows.values():
        assert row["gap"].keys() == {"steady", "trend", "burst"}
        for regime, interval in row["gap_interval"].items():
            assert interval["low"] <= row["gap"][regime] == interval["value"] <= interval["high"]
    assert rows["oracle"]["oracle"] and rows["oracle"]["decision_us"] is None
    assert rows["miss-ratio-curve"]["decision_us"] > rows["static:0.5"]["decision_us"] > 0
    assert rows["static:0.5"]["paper"]["gap"] == {"steady": 0.108, "trend": 0.061, "burst": 0.072}
    text = (tmp_path / "table3.md").read_text(encoding="utf-8")
    assert "Not there yet for this profile: lstm-of-tomorrow." in text
    assert f"| static:0.5 | {rows['static:0.5']['gap']['steady']:.3f} [" in text and "0.108 / 0.061 / 0.072" in text


def test_its_gap_is_the_distance_of_the_split_from_the_optimum(tmp_path: pathlib.Path) -> None:
    """For a split that never moves it can be told without running it."""
    made = Parts(tmp_path, profiles.load("cpu-small"), range(SEEDS))
    task = dataclasses.replace(short_task("steady-v0"), start_alpha=0.5)
    policy = cached_evaluation.open_if_there("static:0.5", made.layout)
    assert policy is not None
    measured = made.measure(task, "static:0.5", policy, lambda *_: None)
    star = made.optimum(task, lambda *_: None).alpha_star[:, task.settle :]
    np.testing.assert_allclose(measured["alpha_gap"], np.abs(star - 0.5).mean(axis=1), atol=1e-9)


def test_an_interrupted_reproduction_goes_on(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile, begun = profiles.load("cpu-small"), []

    class Stage:
        def __init__(self, label: str):
            begun.append(label)
            if label == "table3: trend, oracle":
                raise KeyboardInterrupt

        def __enter__(self) -> Any:
            return lambda *_: None

        def __exit__(self, *_: object) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        paper.reproduce("table3", profile, SEEDS, Stage, tmp_path)
    shutil.copytree(tmp_path, tmp_path.parent / "before")
    measured = []
    evaluate = Parts.evaluate
    monkeypatch.setattr(
        Parts,
        "evaluate",
        lambda self, task, policies, tick: measured.append(task.name) or evaluate(self, task, policies, tick),
    )
    monkeypatch.setattr(table3, "draw", lambda figures: None)
    made = paper.reproduce("table3", profile, SEEDS, lambda label: Quiet(), tmp_path)
    # The oracle's, which had not been run, and all of what comes behind it.
    assert measured[:1] == ["trend-v0"] and set(measured[1:]) == {"burst-v0"}
    assert [row["method"] for row in made.figures["rows"]] == list(METHODS[:-1])


class Quiet:
    def __enter__(self) -> Any:
        return lambda *_: None

    def __exit__(self, *_: object) -> None:
        pass


def test_parts_of_other_seeds_are_not_taken(tmp_path: pathlib.Path) -> None:
    task, profile = short_task("steady-v0"), profiles.load("cpu-small")
    stars = [Parts(tmp_path, profile, seeds).optimum(task, lambda *_: None).alpha_star for seeds in ((0, 1), (2, 3))]
    assert np.abs(stars[0] - stars[1]).max() > 0


def test_fig15_says_what_four_hours_are(tmp_path: pathlib.Path) -> None:
    made = reproduce("fig15", tmp_path)
    assert made["intervals"] == 48 and made["intervals_of_four_hours"] == pytest.approx(
        14_400 / made["interval_s"], rel=0.01
    )
    assert 0.02 < made["interval_s"] < 1.0  # 50 requests at some hundreds or thousands a second
    follows = made["policies"]["miss-ratio-curve"]
    assert 0 < follows["gap"]["value"] < 0.5 and -1 <= follows["correlation"]["value"] <= 1
    assert "The window is scaled" in (tmp_path / "fig15.md").read_text(encoding="utf-8")


def test_unseen_changes_the_bursts_and_compares_with_the_best_static_of_each(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ("a third as long",)
    monkeypatch.setattr(unseen, "GENERATORS", {name: unseen.GENERATORS[name] for name in kinds})
    made = reproduce("unseen", tmp_path)
    assert [row["bursts"] for row in made["rows"]] == list(kinds)
    for row in made["rows"]:
        assert row["best_static"].startswith("static:")
        for figures in row["policies"].values():
            assert figures["cost_over_best_static_worst"] >= figures["cost_over_best_static"]["value"]
    assert "| a third as long |" in (tmp_path / "unseen.md").read_text(encoding="utf-8")


def test_bursts_are_stretched_scaled_and_ramped() -> None:
    path = make_path("burst", profiles.load("cpu-small"), (5,), 120)
    short, shallow, ramped = unseen.stretched(path, 1 / 3, 40), unseen.scaled(path, 0.5), unseen.ramped(path)
    assert len(set(short.segment[0].tolist())) == len(set(path.segment[0].tolist()))
    spans = [np.ptp(p.values[0], axis=0) for p in (path, shallow)]
    np.testing.assert_allclose(spans[1], 0.5 * spans[0])
    steps = [np.abs(np.diff(p.values[0], axis=0)).max(axis=0) for p in (path, ramped)]
    assert (steps[1] <= steps[0] / 10 + 1e-9).all()
