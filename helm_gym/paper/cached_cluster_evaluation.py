"""What a cluster's reproduction has measured so far: one part a pair, cluster and task, kept until it is complete."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym import files
from helm_gym.cluster.topology import Cluster
from helm_gym.errors import InvalidInputError
from helm_gym.evaluation import protocol
from helm_gym.evaluation.formatting import today
from helm_gym.evaluation.gains import over_seeds
from helm_gym.evaluation.summary import by_seed
from helm_gym.observation import ObservationLayout
from helm_gym.paper import PARTS, Tick
from helm_gym.play import open_entrant
from helm_gym.profile import Profile
from helm_gym.provenance import describe_machine, versions
from helm_gym.tasks import Task, find_task

HORIZON = 160  # scored intervals: a cluster's episode serves as many times the requests as it has nodes
Values = dict[str, NDArray[np.float64]]


def short_task(regime: str) -> Task:
    """The regime's task, a third as long."""
    return dataclasses.replace(find_task(f"{regime}-v0"), horizon=HORIZON)


class ClusterParts:
    """Measurements of one reproduction, each made once.

    Args:
        folder: of the reproduction; parts lie in a folder of their own in it.
        made_for: the profile that policies were made for, where ``profile`` differs from it in its population alone:
            they do not see a population at rest.
    """

    def __init__(self, folder: pathlib.Path, profile: Profile, made_for: Profile | None = None):
        self.profile, self.layout = profile, ObservationLayout(made_for or profile)
        self._folder = folder / PARTS

    def measure(self, task: Task, pair: str, cluster: Cluster, seeds: Sequence[int], tick: Tick) -> Values:
        """A pair's metrics by seed, (seeds,) each, on the modelled rung."""
        key = {
            "task": task.name,
            "horizon": task.horizon,
            "pair": pair,
            "cluster": dataclasses.asdict(cluster),
            "seeds": list(seeds),
            "profile_fingerprint": self.profile.fingerprint,
        }
        text = json.dumps(key, sort_keys=True)
        path = self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        try:
            there = files.read_json(path, "Part")
        except InvalidInputError:
            there = None
        if not isinstance(there, dict) or there.get("key") != json.loads(text):
            opened = [open_entrant(pair, self.layout, in_cluster=True)]
            run = protocol.evaluate(task, opened, profile=self.profile, seeds=seeds, progress=tick, cluster=cluster)
            there = {"key": key, "by_seed": {name: x.tolist() for name, x in by_seed(run, run.policies[0]).items()}}
            files.write(path, json.dumps(there))
        return {name: np.array(values, np.float64) for name, values in there["by_seed"].items()}


def figure(values: NDArray[np.float64]) -> dict[str, float | None]:
    """Interquartile mean over seeds with its interval."""
    return over_seeds(values).to_json()


def shared(profile: Profile) -> dict[str, Any]:
    """What every cluster figure names."""
    return {
        "rung": "modelled",
        "profile": profile.name,
        "machine": describe_machine("cpu"),
        "versions": versions(),
        "date": today(),
    }
