"""Studies: what they survive, how several processes share them, and which are not gone on with."""

from __future__ import annotations

import multiprocessing
import pathlib
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from optuna.trial import TrialState

from agents.tuning import result, search, storage, study
from agents.tuning.search import Candidates, Plan
from helm_gym.errors import HelmError, InvalidInputError
from tests.agents.tunings import Bowl, make_plan, trials_of, tried, tune_bowl_and_tell


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bowl: type[Bowl]
) -> None:
    journals = (str(tmp_path / f"{name}.journal") for name in ("whole", "broken"))
    whole, broken = (make_plan(tmp_path, trials=14, storage=journal) for journal in journals)
    search.search(whole)
    serve, calls = bowl.relative_costs, 0

    def interrupted(self: Bowl, policy: Any, seeds: Sequence[int]) -> NDArray[np.float64]:
        nonlocal calls
        calls += 1
        if calls % 4 == 0:
            raise KeyboardInterrupt
        return serve(self, policy, seeds)

    monkeypatch.setattr(bowl, "relative_costs", interrupted)
    interrupts = 0
    while True:
        try:
            search.search(broken)
            break
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts >= 3
    assert sum(trial.state is TrialState.FAIL for trial in trials_of(broken)) == interrupts
    assert tried(broken) == tried(whole) and len(tried(whole)) == 14


def test_a_study_with_more_trials_wanted_goes_on_and_one_with_all_is_not_touched(
    tmp_path: pathlib.Path, bowl: type[Bowl]
) -> None:
    result.tune(make_plan(tmp_path, trials=5))
    figures = result.tune(make_plan(tmp_path, trials=7))
    assert figures["trials"]["complete"] + figures["trials"]["pruned"] == 7
    assert result.tune(make_plan(tmp_path, trials=7)) == figures


def start(plan: Plan, pause_s: float = 0.005) -> tuple[ForkServerProcess, Connection]:
    """A search in a process of its own that is at its first trial."""
    context = multiprocessing.get_context("forkserver")  # modules are loaded once for all
    context.set_forkserver_preload(["tests.agents.tunings"])
    here, there = context.Pipe()
    process = context.Process(target=tune_bowl_and_tell, args=(plan, there, pause_s), daemon=True)
    process.start()
    assert here.recv() == "begun"
    return process, here


def test_a_search_that_is_killed_loses_at_most_a_trial_a_kill(tmp_path: pathlib.Path, bowl: type[Bowl]) -> None:
    plan, whole = (make_plan(tmp_path / name, trials=16) for name in ("killed", "whole"))
    rng, over = np.random.default_rng(5), 0
    for kill in range(2):
        process, _ = start(plan)
        time.sleep(rng.uniform(0.05, 0.4))
        process.kill()
        process.join()
        ended = [trial for trial in trials_of(plan) if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        assert len(ended) >= over
        over = len(ended)
        running = sum(trial.state is TrialState.RUNNING for trial in trials_of(plan))
        assert running <= 1, f"kill {kill}"
    search.search(plan)
    search.search(whole)
    states = [trial.state for trial in trials_of(plan)]
    assert states.count(TrialState.FAIL) <= 2 and TrialState.RUNNING not in states
    assert tried(plan) == tried(whole) and len(tried(plan)) == 16


def test_two_workers_share_a_storage_and_one_finishes_for_the_other(tmp_path: pathlib.Path) -> None:
    plan = make_plan(tmp_path, trials=20)
    (first, _), (second, told) = start(plan, 0.05), start(plan, 0.05)
    while len({trial.user_attrs.get(study.OWNER, {}).get("pid") for trial in trials_of(plan)} - {None}) < 2:
        time.sleep(0.05)
    first.kill()
    assert told.recv() == "through"
    first.join()
    second.join()
    trials = trials_of(plan)
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(ended) == 20
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert {trial.user_attrs[study.OWNER]["pid"] for trial in trials} == {first.pid, second.pid}


def test_workers_of_one_command_share_its_trials(tmp_path: pathlib.Path) -> None:
    plan = make_plan(tmp_path, trials=6)
    seen: list[int] = []
    found = search.search(plan, workers=2, progress=lambda what, done, total: seen.append(done))
    assert len(study.over(found)) == 6 and seen[-1] == 6 and seen == sorted(seen)
    assert not multiprocessing.active_children()


def test_workers_that_all_die_are_reported(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forkserver = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(search.multiprocessing, "get_context", lambda kind: forkserver)
    monkeypatch.setattr(search, "_work_there", _die)
    with pytest.raises(HelmError, match=r"All 2 workers died \(exit codes \[7, 7\]\)"):
        search.search(make_plan(tmp_path), workers=2)


def _die(*_: object) -> None:
    raise SystemExit(7)


def test_a_journal_file_is_a_storage(tmp_path: pathlib.Path, bowl: type[Bowl]) -> None:
    plan = make_plan(tmp_path, storage=str(tmp_path / "deep" / "x.journal"))
    search.search(plan)
    assert len(tried(plan)) == 8


def test_a_trial_of_another_machine_is_given_up_after_a_long_silence(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bowl: type[Bowl]
) -> None:
    plan = make_plan(tmp_path, trials=3)
    found = search.search(plan)
    more = make_plan(tmp_path, trials=4)
    trial = study.take(found, more.trials)
    assert trial is not None
    trial.set_user_attr(study.OWNER, {"machine": "elsewhere", "pid": 1, "born": "1"})
    study.retry_abandoned(found)
    assert found.trials[trial.number].state is TrialState.RUNNING
    trial.set_user_attr(study.SEEN, time.time() - 3600)
    search.search(more)
    assert found.trials[trial.number].state is TrialState.FAIL
    study.finish(found, trial, 0.0)  # it was alive after all: too late, the retry counts
    assert len(study.over(found)) == 4


def test_a_study_of_another_search_is_not_gone_on_with(tmp_path: pathlib.Path, bowl: type[Bowl]) -> None:
    search.search(make_plan(tmp_path, trials=2))
    with pytest.raises(InvalidInputError, match="is another search: seeds 2 there and 8 here; give another --study"):
        search.search(make_plan(tmp_path, trials=2, seeds=8))


def test_a_study_is_not_gone_on_with_when_what_it_measures_has_changed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bowl: type[Bowl]
) -> None:
    """Another surrogate, say: costs would not compare."""
    search.search(make_plan(tmp_path, trials=1))
    monkeypatch.setattr(bowl, "reference", 2.1)
    with pytest.raises(InvalidInputError, match=r"reference cost 2 and not 2\.1: .* have changed since"):
        search.search(make_plan(tmp_path, trials=2))


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("nosuchdb://host/x", "cannot be opened"),
        ("sqlite:////dev/null/x.db", "cannot be opened"),
        ("just-a-name", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_named(place: str, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        storage.open_storage(place)


def test_passwords_are_not_shown() -> None:
    assert storage.hide_password("postgresql://me:secret@host/x") == "postgresql://me:***@host/x"


def test_a_trial_that_is_tried_again_draws_as_no_other(tmp_path: pathlib.Path, bowl: type[Bowl]) -> None:
    """Of several under way at once, an early one dies: its retry takes its place and not that of a later one."""
    plan = make_plan(tmp_path, trials=6)
    found = search.search(make_plan(tmp_path, trials=1))
    candidates, under_way = Candidates(plan), []
    for _ in range(3):
        trial = study.take(found, plan.trials)
        assert trial is not None
        candidates.propose(trial)
        under_way.append(trial)
    study.give_back(found, under_way[0].number)
    for trial in under_way[1:]:
        study.finish(found, trial, 2.0)
    search.search(plan)
    draws = [tuple(params.values()) for params in tried(plan)]
    assert len(set(draws)) == len(draws) == 6
    assert tuple(under_way[0].params.values()) in draws
