"""Every reference entry scores on development episodes what it scored.

Where that changes for a good reason, the task's version changes with it; then
`python -m tests.leaderboard.test_reference_entries` writes reference_entries.json anew.
"""

from __future__ import annotations

import json
import pathlib

import pytest

from helm_gym.policies.opening import open_policy
from leaderboard import evaluating
from leaderboard.evaluating import DEVELOPMENT, RANKING, Season
from leaderboard.submissions import REFERENCES

FILE = pathlib.Path(__file__).with_name("reference_entries.json")
SEASON = Season(1, tasks=("burst-v0",), development=2, horizon=24)


def scores() -> dict[str, list[float]]:
    """Mean latency of each entry's episodes (ms)."""
    seeds, layout = SEASON.seeds("burst-v0", DEVELOPMENT, b""), SEASON.layout()
    policies = [open_policy(name, layout) for name in REFERENCES]
    run = evaluating.run(SEASON, "burst-v0", seeds, RANKING, policies, None)
    return {e.policy: [row["mean_latency_ms"] for row in evaluating.episodes_of(run, e)] for e in run.policies}


def test_every_reference_entry_scores_what_it_scored() -> None:
    kept, found = json.loads(FILE.read_text(encoding="utf-8")), scores()
    assert set(found) == set(kept) == set(REFERENCES)
    for name, wanted in kept.items():  # other processors round otherwise, and a split is a whole number of pages
        assert found[name] == pytest.approx(wanted, rel=1e-3), name


if __name__ == "__main__":
    FILE.write_text(json.dumps(scores(), indent=1) + "\n", encoding="utf-8")
