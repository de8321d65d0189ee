"""Every reference entry scores on each task's development episodes what it scored.

A change of code that moves a score fails here until the task has another version. The expected scores are in
reference_entries.json:

    python -m tests.leaderboard.test_reference_entries               # adds the tasks that it lacks
    python -m tests.leaderboard.test_reference_entries --overwrite   # all anew: a profile or an agent is shipped anew
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import pytest

from helm_gym.policies.opening import open_policy
from leaderboard import evaluating
from leaderboard.season import BOARD_TASKS, DEVELOPMENT, PROVISIONAL, RANKING, Season
from leaderboard.submissions import REFERENCES

FILE = pathlib.Path(__file__).with_name("reference_entries.json")
SHORT = Season(1, development=2, horizon=24)
WHOLE = dataclasses.replace(SHORT, horizon=None)  # as the board has them
COMMAND = "python -m tests.leaderboard.test_reference_entries"

Scores = dict[str, dict[str, list[float]]]  # by rung, by entry, mean latency of each episode (ms)


def scores(season: Season, task: str, *rungs: str) -> Scores:
    seeds, layout = season.seeds(task, DEVELOPMENT, b""), season.layout()
    found: Scores = {}
    for rung in rungs:
        run = evaluating.run(season, task, seeds, rung, [open_policy(name, layout) for name in REFERENCES], None)
        found[rung] = {
            each.policy: [row["mean_latency_ms"] for row in evaluating.episodes_of(run, each)] for each in run.policies
        }
    return found


def short(task: str) -> Scores:
    return scores(SHORT, task, RANKING, PROVISIONAL)


def whole(task: str) -> Scores:
    return scores(WHOLE, task, RANKING)


def differences(kept: Scores, found: Scores) -> list[str]:
    """Which entries score something else."""
    assert {rung: set(rows) for rung, rows in found.items()} == {rung: set(rows) for rung, rows in kept.items()}
    return [
        f"{name} ({rung}): {rows[name]} ms, not {wanted}"
        for rung, rows in found.items()
        for name, wanted in kept[rung].items()
        if rows[name] != pytest.approx(wanted, rel=1e-3)  # other processors round otherwise
    ]


def expected(length: str, task: str) -> Scores:
    kept = json.loads(FILE.read_text(encoding="utf-8"))[length]
    assert task in kept, f"{FILE.name} has no scores of {task}; write them with `{COMMAND}`"
    there: Scores = kept[task]
    return there


@pytest.mark.parametrize("task", BOARD_TASKS)
def test_every_reference_entry_scores_what_it_scored(task: str) -> None:
    moved = differences(expected("short", task), short(task))
    assert not moved, f"{task} must become another version: {'; '.join(moved)}"


@pytest.mark.long
@pytest.mark.parametrize("task", BOARD_TASKS)
def test_every_reference_entry_scores_what_it_scored_in_whole_episodes(task: str) -> None:
    moved = differences(expected("whole", task), whole(task))
    assert not moved, f"{task} must become another version: {'; '.join(moved)}"


def test_a_score_that_moves_is_found_whichever_it_is() -> None:
    kept = expected("short", BOARD_TASKS[0])
    assert differences(kept, kept) == []
    for rung, name in ((RANKING, "pid"), (PROVISIONAL, "static:0.5")):
        moved = json.loads(json.dumps(kept))
        moved[rung][name][1] *= 1.002
        (told,) = differences(kept, moved)
        assert told.startswith(f"{name} ({rung})")


def write(overwrite: bool) -> None:
    """Keeps the scores of tasks that are there, which only another version of the task may change."""
    kept = {} if overwrite or not FILE.exists() else json.loads(FILE.read_text(encoding="utf-8"))
    made = {
        length: {task: kept.get(length, {}).get(task) or compute(task) for task in BOARD_TASKS}
        for length, compute in (("short", short), ("whole", whole))
    }
    FILE.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(overwrite="--overwrite" in sys.argv[1:])
