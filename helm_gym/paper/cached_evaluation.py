"""What a reproduction has measured so far, in a folder: one that is interrupted goes on where it was.

Parts are kept until the reproduction is complete, and no longer: they are right for the code that made them.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym import files
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.evaluation import protocol
from helm_gym.evaluation.optimum import GRID, offline_optimum
from helm_gym.evaluation.results import Evaluation, Optimum
from helm_gym.evaluation.summary import by_seed
from helm_gym.observation import ObservationLayout
from helm_gym.paper import PARTS, Tick
from helm_gym.policies.opening import open_policy
from helm_gym.policy import Policy
from helm_gym.profile import Profile
from helm_gym.tasks import Task
from helm_gym.training import run_folder
from helm_gym.workload.regimes import make_path


class Parts:
    """Measurements of one reproduction, each made once.

    Args:
        folder: of the reproduction; parts lie in a folder of their own in it.
    """

    def __init__(self, folder: pathlib.Path, profile: Profile, seeds: Sequence[int]):
        self.profile, self.seeds = profile, tuple(seeds)
        self.layout = ObservationLayout(profile)
        self._folder = folder / PARTS

    def measure(self, task: Task, name: str, policy: Policy, tick: Tick) -> dict[str, NDArray[np.float64]]:
        """Runs the policy through the task's episodes unless that was done; its metrics by seed, (seeds,)."""
        path = self._folder / f"{task.name}-{task.horizon}-{name}.json"
        there = self._read(path)
        if there is None:
            run = self.evaluate(task, [policy], tick)
            there = {"by_seed": {metric: x.tolist() for metric, x in by_seed(run, run.policies[0]).items()}}
            files.write(path, json.dumps(self._key() | there))
        return {metric: np.array(values, np.float64) for metric, values in there["by_seed"].items()}

    def evaluate(self, task: Task, policies: Sequence[Policy], tick: Tick, references: bool = False) -> Evaluation:
        """``protocol.evaluate`` on the modelled rung, with the offline optimum found once."""
        found = self.optimum(task, tick)
        return protocol.evaluate(
            task,
            policies,
            profile=self.profile,
            seeds=self.seeds,
            references=references,
            progress=tick,
            optimum=found,
        )

    def optimum(self, task: Task, tick: Tick) -> Optimum:
        """The offline optimum of the task's episodes, settling included."""
        path = self._folder / f"{task.name}-{task.horizon}.safetensors"
        names = [field.name for field in dataclasses.fields(Optimum)]
        try:
            tensors, facts = run_folder.read_tensors(path)
            if facts == self._key():
                return Optimum(**{name: tensors[name] for name in names})
        except InvalidInputError:  # missing, or half of it
            pass
        intervals = task.settle + task.horizon
        total, done = len(GRID) * len(self.seeds) * intervals, 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            tick("offline optimum", min(done, total), total)

        workload = make_path(task.regime, self.profile, self.seeds, intervals)
        found = offline_optimum(task, self.profile, workload, self.seeds, advance=advance)
        run_folder.write_tensors(path, {name: getattr(found, name) for name in names}, self._key())
        return found

    def _key(self) -> dict[str, Any]:
        return {"profile_fingerprint": self.profile.fingerprint, "seeds": list(self.seeds)}

    def _read(self, path: pathlib.Path) -> dict[str, Any] | None:
        try:
            there = files.read_json(path, "Part")
        except InvalidInputError:
            return None
        ours = isinstance(there, dict) and {name: there.get(name) for name in self._key()} == self._key()
        return there if ours else None


def open_if_there(name: str, layout: ObservationLayout) -> Policy | None:
    """The policy of that name; None where this version has none, or ships none for the layout's profile."""
    try:
        return open_policy(name, layout)
    except (UnknownNameError, InvalidInputError):
        return None
