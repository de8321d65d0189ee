"""Training of the router by the cross-entropy method: candidates on the same episodes, the next ones around the best.

There is no gradient through a cluster, an episode costs a second and there are few numbers to find; so candidates are
compared on paired episodes (Rubinstein and Kroese, The Cross-Entropy Method, 2004), and none of them is a network.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.multi_agent.episodes import Episodes
from agents.multi_agent.router import LAYOUT, LearnedRouter, Settings, columns, graph_of
from helm_gym.cluster.router_observation import RouterLayout
from helm_gym.cluster.routing import WEIGHTS
from helm_gym.training import run_folder
from helm_gym.training.run_folder import Tensors
from helm_gym.training.scalars import open_scalars
from helm_gym.training.trainable import Trainable, Training

_LEAST_SEED = 2**32  # of training episodes; tasks publish small seeds, and validation uses small ones
_VALIDATION = 30_000
_SURVEY, _CANDIDATES, _EPISODES = 0, 1, 2  # purposes of a training's generators
_LARGE_EVERY = 4
_KEPT = 0.5  # of a round's distribution, in the next one's
_LEAST_SPREAD = 0.02  # of an action
_LEAST_SCALE = 0.1  # of a column: a burst moves it by far more than the few episodes that were surveyed
Values = NDArray[np.float64]


def _train(training: Training) -> Tensors:
    settings: Settings = training.settings
    episodes = Episodes(training.task, training.layout, settings.controller, settings.intervals)
    with contextlib.closing(episodes):
        return _Search(training, episodes).run()


class _Search:
    """The distribution that candidates are drawn from, and what becomes of it round by round.

    A candidate is (2, 1 + columns): biases and coefficients of the actions of ``emb`` and ``load``; that of ``kv`` is
    held, since only the weights' ratios decide.
    """

    def __init__(self, training: Training, episodes: Episodes):
        self.training, self.episodes = training, episodes
        self.settings: Settings = training.settings
        self.layout = RouterLayout()
        self.columns = columns(self.layout, self.settings)
        s = self.settings
        self.start = np.sqrt([s.kv, s.emb, s.load]) - 1.0  # the inverse of routing.weights_of
        self.mean = np.zeros((len(WEIGHTS) - 1, 1 + len(self.columns)))
        self.mean[:, 0] = self.start[1:]
        self.spread = np.full_like(self.mean, s.spread / 3)
        self.spread[:, 0] = s.spread
        self.per_round = s.round
        self.rounds = -(-training.steps // s.round)
        self.total = self.rounds * s.round
        self.round, self.before, self.started = 0, 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.started

    def run(self) -> Tensors:
        there = self.training.restore()
        if there is None:
            self._survey()
            self._validate()
        else:
            self.mean, self.spread = there.tensors["search.mean"], there.tensors["search.spread"]
            self.scaling = {name: there.tensors[name] for name in ("mean", "scale")}
            self.round, self.before = int(there.facts["round"]), there.facts["seconds"]
        with open_scalars(self.training.folder / run_folder.TENSORBOARD, self.round * self.per_round) as board:
            while self.round < self.rounds:
                self._round(board)
        tensors, kept = self.training.best_policy()
        self.training.facts |= {"validation": kept, "seconds": self.seconds}
        return tensors

    def tensors(self, candidate: Values) -> dict[str, NDArray[Any]]:
        """Those of the router that a candidate stands for."""
        weight = np.zeros((len(WEIGHTS), self.layout.width), np.float32)
        weight[1:, self.columns] = candidate[:, 1:]
        bias = np.concatenate([self.start[:1], candidate[:, 0]]).astype(np.float32)
        return {**self.scaling, "0.weight": weight, "0.bias": bias, LAYOUT: np.array([self.layout.version])}

    def _router(self, candidate: Values) -> LearnedRouter:
        return LearnedRouter(self.training.layout, self.settings, self.tensors(candidate))

    def _survey(self) -> None:
        """What columns are like under the first weights; a coefficient is what a usual change of them is worth."""
        width = self.layout.width
        self.scaling = {"mean": np.zeros(width, np.float32), "scale": np.ones(width, np.float32)}
        router, seeds = self._router(self.mean), self.training.generator(_SURVEY)
        drawn = seeds.integers(_LEAST_SEED, 2**63, size=self.settings.episodes)
        seen = np.concatenate([self.episodes.play(router, self.settings.nodes, int(seed)).seen for seed in drawn])
        self.scaling = {"mean": seen.mean(axis=0), "scale": np.maximum(seen.std(axis=0), np.float32(_LEAST_SCALE))}

    def _round(self, board: Any) -> None:
        """Tries the round's candidates, the distribution's mean first, and moves the distribution to the best."""
        s, number = self.settings, self.round
        noise = self.training.generator(_CANDIDATES, number).standard_normal((s.candidates, *self.mean.shape))
        noise[0] = 0.0
        candidates = self.mean + noise * self.spread
        seeds = self.training.generator(_EPISODES, number).integers(_LEAST_SEED, 2**63, size=s.episodes)
        costs = np.empty((s.candidates, s.episodes))
        for k, candidate in enumerate(candidates):
            costs[k] = self._play(candidate, [int(seed) for seed in seeds], number * s.episodes)
            done = number * self.per_round + (k + 1) * s.episodes * s.intervals
            self.training.progress(
                done, self.total, f"round {number + 1}, cost {costs[: k + 1].mean(axis=1).min():.4f}"
            )
        cost = costs.mean(axis=1)
        best = candidates[np.argsort(cost)[: s.elite]]
        self.mean = _KEPT * self.mean + (1 - _KEPT) * best.mean(axis=0)
        self.spread = np.maximum(_KEPT * self.spread + (1 - _KEPT) * best.std(axis=0), _LEAST_SPREAD)
        self.round += 1
        step = self.round * self.per_round
        scalars = {"cost/mean": cost[0], "cost/best": cost.min(), "spread": self.spread[:, 0].mean()}
        scalars |= {f"bias/{name}": self.mean[k, 0] for k, name in enumerate(WEIGHTS[1:])}
        for name, value in scalars.items():
            board.add_scalar(name, value, step)
        if self.round % s.validate_every == 0 or self.round == self.rounds:
            board.add_scalar("cost/validation", self._validate(), step)
        board.flush()
        found = {"search.mean": self.mean, "search.spread": self.spread, **self.scaling}
        self.training.save(step, found, {"round": self.round, "seconds": self.seconds})

    def _validate(self) -> float:
        """Cost of the distribution's mean on episodes that are always the same; the start's comes first."""
        seeds = [_VALIDATION + k for k in range(self.settings.validation)]
        cost = float(np.mean(self._play(self.mean, seeds)))
        self.training.report_policy(self.round * self.per_round, cost, self.tensors(self.mean))
        return cost

    def _play(self, candidate: Values, seeds: list[int], first: int = 0) -> list[float]:
        """Cost of each seed's episode; ``first`` is the number of the first, which says how large its cluster is."""
        s, router = self.settings, self._router(candidate)
        sizes = [
            s.large if number % _LARGE_EVERY == _LARGE_EVERY - 1 else s.nodes
            for number in range(first, first + len(seeds))
        ]
        return [self.episodes.play(router, nodes, seed).cost for nodes, seed in zip(sizes, seeds, strict=True)]


ROUTER = Trainable(
    "router",
    Settings,
    steps=4_800,
    train=_train,
    policy=LearnedRouter,
    graph=graph_of,
    routes=True,
    round=lambda chosen, task: chosen.round,
    continues=True,
)
