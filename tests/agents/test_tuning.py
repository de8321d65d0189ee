"""Searches: what they try, and what they leave behind."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from optuna.trial import TrialState

from agents.pid import Settings
from agents.tuning import result, search, study
from agents.tuning.objective import Objective, reference_name
from agents.tuning.search import Candidates
from baselines.simple import Static
from helm_gym import profile as profiles
from helm_gym.errors import HelmError, InvalidInputError, UnknownNameError
from helm_gym.policies.opening import open_policy
from helm_gym.tasks import all_tasks, find_task
from helm_gym.training import run_folder, trainable
from helm_gym.training.search_space import Searchable
from helm_gym.training.trainable import Trainable, find_trainable
from tests.agents.tunings import Bowl, make_plan, short_task, tried
from tests.conformance.policy import make_layout

LAYOUT = make_layout()
PROFILE = profiles.load("cpu-small")
SEARCHED = [name for name in trainable.agents() if isinstance(find_trainable(name).settings(), Searchable)]


class Recorder:
    """A trial that proposes what it is given, and keeps the ranges."""

    def __init__(self, values: dict[str, Any]):
        self.values, self.inside = values, dict[str, bool]()

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.inside[name] = low <= self.values[name] <= high and (low > 0 or not log)
        return float(self.values[name])

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        self.inside[name] = low <= self.values[name] <= high
        return int(self.values[name])

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.inside[name] = self.values[name] in choices
        return self.values[name]


@pytest.mark.parametrize("name", SEARCHED)
def test_a_search_space_holds_the_defaults(name: str) -> None:
    """They are the first trial: outside of it, the search would begin with a warning and end without them."""
    defaults = find_trainable(name).settings()
    trial = Recorder(dataclasses.asdict(defaults))
    assert dataclasses.replace(defaults, **defaults.space(trial)) == defaults
    assert trial.inside and all(trial.inside.values()), trial.inside


def test_costs_are_relative_to_the_reference_seed_by_seed() -> None:
    task = short_task()
    objective = Objective(task, PROFILE, "modelled")
    reference = open_policy(reference_name(task), LAYOUT)
    np.testing.assert_array_equal(objective.relative_costs(reference, range(1000, 1003)), 1.0)
    other = Static(LAYOUT, 0.9)
    together = objective.relative_costs(other, [1000, 1001, 1002])
    assert (together != 1.0).all()
    np.testing.assert_allclose(objective.relative_costs(other, [1002]), together[2:])
    np.testing.assert_array_equal(objective.relative_costs(other, [1000, 1001, 1002]), together)
    objective.close()


@pytest.mark.parametrize("backend", ["modelled", "surrogate"])
def test_a_search_leaves_a_run_that_opens_as_the_best(tmp_path: pathlib.Path, backend: str) -> None:
    plan = make_plan(tmp_path, trials=4, backend=backend)
    figures = result.tune(plan)
    assert json.loads((tmp_path / result.TUNE).read_text()) == figures
    run = run_folder.read_run(tmp_path)
    assert (run.agent, run.status, run.settings) == ("pid", "done", figures["best"]["settings"])
    assert run.facts["tuning"]["budget"] == {"trials": 4, "seeds_a_trial": 2, "steps": None}
    policy: Any = open_policy(str(tmp_path), LAYOUT)
    assert policy.settings == Settings(**figures["best"]["settings"])
    assert figures["rung"] == {"trials": backend, "fresh": "modelled"} and sum(figures["trials"].values()) == 4
    assert {path.name for path in tmp_path.glob("*.png")} >= {"history.png", "slice.png", "parallel.png"}
    public = {seed for task in all_tasks() for seed in task.seeds} | set(range(32))
    assert public.isdisjoint(plan.trial_seeds) and public.isdisjoint(plan.fresh_seeds)
    assert set(plan.trial_seeds).isdisjoint(plan.fresh_seeds)


def test_the_best_is_the_best_on_seeds_that_no_trial_has_seen(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bowl: type[Bowl]
) -> None:
    """kp near 0 is best on the trials' seeds, by luck; near .3 it is best on all others."""
    plan = make_plan(tmp_path, trials=12, top=12)

    def lucky(self: Bowl, policy: Any, seeds: Sequence[int]) -> NDArray[np.float64]:
        best = 0.0 if seeds[0] in plan.trial_seeds else 0.3
        return np.full(len(seeds), 1.0 + (policy.settings.kp - best) ** 2)

    monkeypatch.setattr(bowl, "relative_costs", lucky)
    figures = result.tune(plan)
    searched = min(figures["top"], key=lambda entry: entry["searched"])
    assert figures["best"]["settings"]["kp"] == max(entry["settings"]["kp"] for entry in figures["top"])
    assert searched["settings"]["kp"] < 0.1 < figures["best"]["settings"]["kp"]
    assert searched["fresh"]["value"] > figures["best"]["fresh"]["value"]


def test_it_never_ends_with_worse_than_it_began_with(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bowl: type[Bowl]
) -> None:
    def best_is_default(self: Bowl, policy: Any, seeds: Sequence[int]) -> NDArray[np.float64]:
        return np.full(len(seeds), 1.0 if policy.settings == Settings() else 2.0)

    monkeypatch.setattr(bowl, "relative_costs", best_is_default)
    figures = result.tune(make_plan(tmp_path))
    assert figures["best"] == figures["began_with"] and figures["best"]["trial"] is None
    assert figures["best"]["settings"] == dataclasses.asdict(Settings())


def test_what_is_clearly_worse_is_given_up_early(tmp_path: pathlib.Path, bowl: type[Bowl]) -> None:
    """Seeds are paired, so eight of them tell; what is given up has cost one block and still counts as a trial."""
    plan = make_plan(tmp_path, trials=8, seeds=24)
    trials = search.search(plan).trials
    assert len(trials) == 8
    pruned = [trial for trial in trials if trial.state is TrialState.PRUNED]
    assert len(pruned) >= 2
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    assert {len(trial.intermediate_values) for trial in complete} == {24}
    assert {len(trial.intermediate_values) for trial in pruned} == {8}
    far = [abs(trial.params["kp"] - 0.2) for trial in pruned]
    assert min(far) > min(abs(trial.params["kp"] - 0.2) for trial in complete)


class _Held:
    """Always at the alpha of its tensor."""

    def __init__(self, layout: Any, settings: Any, tensors: Any):
        self.name, self._static = "held", Static(layout, float(tensors["alpha"][0]))
        self.initial_state, self.act = self._static.initial_state, self._static.act


@dataclasses.dataclass(frozen=True)
class _HeldSettings:
    alpha: float = 0.5

    @staticmethod
    def space(trial: Any) -> dict[str, Any]:
        return {"alpha": trial.suggest_float("alpha", 0.1, 0.9)}


def test_an_agent_that_is_trained_is_trained_for_each_trial_and_anew_for_fresh_seeds(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[float, int, int]] = []

    def train(given: trainable.Training) -> dict[str, NDArray[np.float32]]:
        trained.append((given.settings.alpha, given.seed, given.steps))
        return {"alpha": np.array([given.settings.alpha], np.float32)}

    held = Trainable("held", _HeldSettings, 100, train, _Held)
    monkeypatch.setattr(trainable, "find_trainable", lambda name: held)
    plan = make_plan(tmp_path, agent="held", trials=4, top=1, steps=50, seed=3)
    figures = result.tune(plan)
    assert [steps for _, _, steps in trained] == [50] * 6
    assert [seed for _, seed, _ in trained] == [3] * 4 + [4] * 2
    best = np.float32(figures["best"]["settings"]["alpha"])
    assert run_folder.read_tensors(tmp_path / run_folder.POLICY)[0]["alpha"] == best
    assert run_folder.read_run(tmp_path).steps == 50


def test_a_trial_that_fails_is_a_bad_one_unless_it_is_the_first(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bowl: type[Bowl]
) -> None:
    """Some settings make a training diverge; when the settings that it began with do, all would."""
    serve = bowl.relative_costs

    def diverges(self: Bowl, policy: Any, seeds: Sequence[int]) -> NDArray[np.float64]:
        if policy.settings.kp > limit:
            raise HelmError("Training diverged.")
        return serve(self, policy, seeds)

    monkeypatch.setattr(bowl, "relative_costs", diverges)
    limit = 0.01
    plan = make_plan(tmp_path)
    with pytest.raises(HelmError, match="diverged"):
        search.search(plan)
    limit = 0.15
    trials = search.search(plan).trials
    failed = [trial for trial in trials if trial.user_attrs.get(study.ERROR) == "Training diverged."]
    assert failed and {trial.state for trial in failed} == {TrialState.PRUNED}
    assert min(trial.params["kp"] for trial in failed) > 0.15
    assert len(tried(plan)) == plan.trials


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"agent": "pdi"}, UnknownNameError, "did you mean 'pid'?"),
        ({"backend": "real"}, UnknownNameError, "known: modelled, surrogate"),
        ({"fixed": {"kpp": "1"}}, UnknownNameError, "did you mean 'kp'?"),
        ({"fixed": {"kp": "much"}}, InvalidInputError, "kp must be a finite number, not 'much'"),
        ({"steps": 5}, InvalidInputError, "nothing to train"),
        ({"task": find_task("trace-v0")}, InvalidInputError, "tune on another"),
    ],
)
def test_a_search_that_cannot_be_is_refused(
    tmp_path: pathlib.Path, changes: dict[str, Any], error: type[HelmError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence.replace("?", r"\?")):
        Candidates(make_plan(tmp_path, **changes))


def test_settings_that_are_held_are_not_searched(tmp_path: pathlib.Path, bowl: type[Bowl]) -> None:
    plan = make_plan(tmp_path, trials=4, fixed={"kd": "0.25"})
    assert result.tune(plan)["best"]["settings"]["kd"] == 0.25
    assert all("kd" not in params for params in tried(plan))
