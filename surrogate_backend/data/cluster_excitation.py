"""Designed episodes of clusters: what a log must hold so that their surrogate can be learned from it and judged.

As with single nodes (excitation.py), all is fixed by the design's seed and the episode's number.

- ``train``: clusters of ``TRAIN_SIZES``, some of unequal nodes, some that lose one; every regime and ``excite``; splits
  that all nodes share or that each has of its own; and routing that changes between rules and weights. Each twice, with
  other requests.
- ``test``: clusters of ``TEST_SIZES``, none of which was trained on. Each setting is one path: under one schedule of
  splits and routing with several request seeds; at splits that all nodes hold, behind joint routing; and under pairs of
  a controller and a router, which are ranked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from helm_gym.cluster.routing import RULES, WEIGHTS
from helm_gym.cluster.topology import Cluster, Node, in_cluster
from helm_gym.errors import UnknownNameError
from helm_gym.profile import Profile
from helm_gym.workload.regimes import make_path
from helm_gym.workload.state import WorkloadPath, poisson_gaps
from surrogate_backend.data.excitation import excite, schedule_splits

TRAIN_SIZES = (2, 4, 8, 3, 16, 6, 4, 24, 8, 2, 1, 48)
TEST_SIZES = (5, 12, 32)
PAIRS = (
    *("static:0.3+joint", "static:0.5+joint", "static:0.6+joint", "static:0.8+joint", "static:0.6+kv-aware"),
    *("static:0.6+emb-aware", "static:0.6+consistent-hash", "miss-ratio-curve+joint", "three-layer-ppo+joint"),
)
SWEEP = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
REPEATS, SWEEP_SEEDS, PAIR_SEEDS, SWEEP_INTERVALS = 4, 1, 2, 100
_SWEPT = REPEATS + SWEEP_SEEDS * len(SWEEP)
PER_SETTING = _SWEPT + PAIR_SEEDS * len(PAIRS)
_REGIMES = ("excite", "burst", "excite", "mixed", "excite", "trend", "steady")  # 7 and 12 sizes: every pair comes up
_TEST_REGIMES = ("burst", "trend")
_DRIVERS = ("steps", "walk", "hold", "steps", "sweep")
_STREAM = 0x434C5553


@dataclasses.dataclass(frozen=True)
class ClusterEpisode:
    """One episode of a design.

    Attributes:
        number, group, setting, regime, driver, path, request_seed: as of a single node's (excitation.Episode); the path
            is the cluster's.
        schedule: target alpha, (intervals, nodes); None where a pair drives.
        rule: index into RULES, (intervals,); weights: (intervals, 3). None where a pair drives.
    """

    number: int
    group: str
    setting: int
    regime: str
    driver: str
    cluster: Cluster
    path: WorkloadPath
    request_seed: int
    schedule: NDArray[np.float64] | None
    rule: NDArray[np.int64] | None
    weights: NDArray[np.float64] | None


def episode(design: str, number: int, profile: Profile, intervals: int, seed: int) -> ClusterEpisode:
    """Episode ``number`` of a design.

    Raises:
        UnknownNameError: no such design.
    """
    if design not in DESIGNS:
        raise UnknownNameError("design", design, DESIGNS)
    return DESIGNS[design](number, profile, intervals, seed)


def episodes_for(settings: int, profile: Profile) -> int:
    """How many episodes of the test design judge so many settings."""
    return settings * PER_SETTING


def _train(number: int, profile: Profile, intervals: int, seed: int) -> ClusterEpisode:
    setting, again = divmod(number, 2)
    rng = np.random.default_rng([seed, setting, _STREAM])
    size, regime = TRAIN_SIZES[setting % len(TRAIN_SIZES)], _REGIMES[setting % len(_REGIMES)]
    cluster = _cluster(size, rng)
    path_seed, request_seed = (int(s) for s in rng.integers(2**40, 2**41, 2))
    path = _path(regime, profile, cluster, intervals, path_seed)
    driver = _DRIVERS[setting % len(_DRIVERS)]
    schedule = _splits(driver, size, rng, profile, intervals)
    rule, weights = _routing(rng, intervals)
    return ClusterEpisode(
        number, "train", setting, regime, driver, cluster, path, request_seed + again, schedule, rule, weights
    )


def _test(number: int, profile: Profile, intervals: int, seed: int) -> ClusterEpisode:
    setting, place = divmod(number, PER_SETTING)
    rng = np.random.default_rng([seed, setting, _STREAM + 1])
    size = TEST_SIZES[setting % len(TEST_SIZES)]
    regime = _TEST_REGIMES[setting // len(TEST_SIZES) % len(_TEST_REGIMES)]
    cluster = Cluster((Node(size),))
    path_seed, first = (int(s) for s in rng.integers(2**42, 2**43, 2))
    path = _path(regime, profile, cluster, intervals, path_seed)
    schedule = _splits("steps", size, rng, profile, intervals)
    rule, weights = _routing(rng, intervals)
    given = (number, "repeat", setting, regime, "steps", cluster, path)
    if place < REPEATS:
        return ClusterEpisode(*given, first + place, schedule, rule, weights)
    if place < _SWEPT:
        again, which = divmod(place - REPEATS, len(SWEEP))
        split, rule = np.full((SWEEP_INTERVALS, size), SWEEP[which]), np.full(SWEEP_INTERVALS, RULES.index("score"))
        joint = np.ones((SWEEP_INTERVALS, len(WEIGHTS)))
        given = (number, "sweep", setting, regime, "hold", cluster, _held(path))
        return ClusterEpisode(*given, first + again, split, rule, joint)
    again, which = divmod(place - _SWEPT, len(PAIRS))
    given = (number, "policy", setting, regime, PAIRS[which], cluster, path)
    return ClusterEpisode(*given, first + again, None, None, None)


def _held(path: WorkloadPath) -> WorkloadPath:
    """The path's first parameters, for SWEEP_INTERVALS."""
    values, shape = np.repeat(path.values[:, :1], SWEEP_INTERVALS, axis=1), (1, SWEEP_INTERVALS)
    return WorkloadPath(values, poisson_gaps(*shape, path.gaps_s.shape[2]), np.zeros(shape, np.int64), (("held",),))


DESIGNS: dict[str, Callable[[int, Profile, int, int], ClusterEpisode]] = {"train": _train, "test": _test}


def _cluster(size: int, rng: np.random.Generator) -> Cluster:
    """A cluster of ``size`` nodes under some load; a third of those with two nodes or more have two kinds."""
    nodes: tuple[Node, ...] = (Node(size),)
    if size > 1 and rng.random() < 1 / 3:
        few = int(rng.integers(1, size))
        other = Node(few, memory=float(rng.choice([0.5, 0.75, 1.0])), speed=float(rng.choice([0.6, 1.0, 1.5, 2.0])))
        nodes = (Node(size - few), other)
    losses = int(size > 1 and rng.random() < 0.25)
    return Cluster(nodes, load=float(rng.uniform(0.35, 0.75)), losses=losses)


def _path(regime: str, profile: Profile, cluster: Cluster, intervals: int, seed: int) -> WorkloadPath:
    excited = regime == "excite"
    path = excite(profile, intervals, seed) if excited else make_path(regime, profile, [seed], intervals)
    return in_cluster(path, cluster, profile, [seed])


def _splits(driver: str, size: int, rng: np.random.Generator, profile: Profile, intervals: int) -> NDArray[np.float64]:
    """Targets (intervals, nodes): all nodes' alike, apart by a distance of each its own, or each on its own."""
    kind = rng.random()
    if kind < 1 / 3:
        return np.stack([schedule_splits(driver, rng, profile, intervals) for _ in range(size)], axis=1)
    common = schedule_splits(driver, rng, profile, intervals)[:, None]
    apart = rng.normal(0.0, 0.12, size) if kind < 2 / 3 else np.zeros(size)
    return np.clip(common + apart, profile.pool.min_alpha, profile.pool.max_alpha)


def _routing(rng: np.random.Generator, intervals: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rules (intervals,) and weights (intervals, 3) that are held for 24 to 80 intervals; the joint cost most often."""
    rule, weights = np.zeros(intervals, np.int64), np.ones((intervals, len(WEIGHTS)))
    start = 0
    while start < intervals:
        stop = start + int(rng.integers(24, 80))
        kind = rng.random()
        if kind < 0.15:
            rule[start:stop] = rng.integers(1, len(RULES))
        elif kind < 0.3:
            weights[start:stop] = [(1, 0, 0), (0, 1, 0), (1, 1, 0.25)][int(rng.integers(3))]
        elif kind < 0.55:
            weights[start:stop] = (1.0 + rng.uniform(-1.0, 1.0, len(WEIGHTS))) ** 2
        start = stop
    return rule, weights
