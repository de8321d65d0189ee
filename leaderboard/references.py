"""What scores are counted from: the static splits and the oracle, on the episodes of one task.

They take minutes. Some episodes at a time are finished and kept, so that a worker that was killed goes on from there.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from helm_gym import files
from helm_gym import profile as profiles
from helm_gym.control_loop import draw_path
from helm_gym.errors import HelmError
from helm_gym.evaluation.gains import static_name
from helm_gym.evaluation.optimum import GRID, cut_optimum, offline_optimum
from helm_gym.policies.opening import open_policy
from helm_gym.telemetry import ALPHA_GRID
from leaderboard.evaluating import Tick, episodes_of, run, where
from leaderboard.records import canonical
from leaderboard.season import Season

ORACLE = "oracle"
AT_A_TIME = 2  # episodes; what a kill loses
_MAX_PART_BYTES = 2**24

Rows = list[dict[str, float]]


@dataclasses.dataclass(frozen=True)
class References:
    """What scores are counted from.

    Attributes:
        episodes: by rung, by reference, each episode's figures.
        alpha_star: (episodes, intervals) of the scored intervals.
        where: on what they were obtained.
    """

    episodes: dict[str, dict[str, Rows]]
    alpha_star: list[list[float]]
    where: dict[str, Any]

    def log(self) -> bytes:
        return canonical({"alpha_star": self.alpha_star}).encode()


def evaluate(
    season: Season, task: str, seeds: Sequence[int], rungs: Sequence[str], parts: pathlib.Path, tick: Tick | None = None
) -> References:
    """The static splits and the oracle on these episodes, the offline optimum looked for once for all rungs.

    Args:
        parts: a folder for what is finished; it is made, and is the caller's to remove.
    """
    found = [_kept(season, task, seeds, first, rungs, parts, tick) for first in range(0, len(seeds), AT_A_TIME)]
    names = found[0].episodes[rungs[0]]
    episodes: dict[str, dict[str, Rows]] = {
        rung: {name: [row for part in found for row in part.episodes[rung][name]] for name in names} for rung in rungs
    }
    return References(episodes, [star for part in found for star in part.alpha_star], where())


def _kept(
    season: Season,
    task: str,
    seeds: Sequence[int],
    first: int,
    rungs: Sequence[str],
    parts: pathlib.Path,
    tick: Tick | None,
) -> References:
    """The episodes from ``first`` on: read, where they were finished here by the same versions, or played."""
    path, here = parts / f"{first}.json", where()
    try:
        told = files.read_json(path, "Part", _MAX_PART_BYTES)
        if told["where"] | {"date": ""} == here | {"date": ""}:
            return References(**told)
    except (HelmError, KeyError, TypeError):
        pass
    chosen = seeds[first : first + AT_A_TIME]
    label = f"episodes {first + 1} to {first + len(chosen)} of {len(seeds)}"
    made = _play(season, task, chosen, rungs, label, tick)
    files.write(path, canonical(dataclasses.asdict(made)))
    return made


def _play(
    season: Season, task: str, seeds: Sequence[int], rungs: Sequence[str], label: str, tick: Tick | None
) -> References:
    asked, profile, layout = season.task(task), profiles.load(season.profile), season.layout()
    path = draw_path(asked, profile, seeds, asked.settle + asked.horizon)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        told("offline optimum", done, len(GRID) * len(seeds) * path.intervals)

    def told(stage: str, done: int, total: int) -> None:
        if tick is not None:
            tick(f"{label}, {stage}", done, total)

    optimum = offline_optimum(asked, profile, path, seeds, advance=advance)
    inside = [float(a) for a in ALPHA_GRID if profile.pool.min_alpha - 1e-9 <= a <= profile.pool.max_alpha + 1e-9]
    names = [*map(static_name, inside), ORACLE]
    episodes = {}
    for rung in rungs:
        policies = [open_policy(name, layout) for name in names]
        there = run(season, task, seeds, rung, policies, told, optimum=optimum, path=path)
        episodes[rung] = {each.policy: episodes_of(there, each) for each in there.policies}
    star = cut_optimum(optimum, slice(asked.settle, None)).alpha_star
    return References(episodes, np.round(star, 4).tolist(), where())
