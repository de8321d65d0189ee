"""The lanes that on-policy agents learn in, with seeds and rewards of their own."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from agents.network import Features
from agents.node_lanes import NodeLanes
from agents.on_policy import OnPolicySettings
from helm_gym.control_loop import Step
from helm_gym.envs.sb3 import PartitionVecEnv
from helm_gym.envs.vector import LanesVectorEnv
from helm_gym.policy import Floats
from helm_gym.training.trainable import Training

_EPISODES = 0  # the purpose of a training's generator; agents/sb3.py has others
_LEAST_SEED = 2**32  # of training episodes; tasks publish small seeds, and validation and tuning use small ones


class TrainingEnv(PartitionVecEnv):
    """The lanes that an agent trains in: its features, its reward, and seeds of their own.

    Subclasses override ``reward`` and ``to_action``, and set ``action_space`` for actions that are not a change of
    target.

    Args:
        training: whose task, profile and seed; its settings are ``OnPolicySettings``.
        features: what the network sees.

    Attributes:
        round: of the present episodes.
        seconds: spent in the environment so far.
    """

    def __init__(self, training: Training, features: Features):
        settings: OnPolicySettings = training.settings
        self.training, self.settings, self.features = training, settings, features
        super().__init__(
            settings.lanes,
            task=training.task,
            profile=training.profile,
            backend=settings.backend,
            intervals=settings.episode,
        )
        self.observation_space = spaces.Box(-np.inf, np.inf, (features.width,), np.float32)
        self.round, self.seconds = -1, 0.0
        self._seen = self._memory = features.initial_state(0)

    def _open(self, num_envs: int, **arguments: Any) -> LanesVectorEnv:
        if self.settings.cluster:
            return NodeLanes(num_envs, cluster=self.settings.cluster, **arguments)
        return super()._open(num_envs, **arguments)

    def reward(self, served: Step) -> NDArray[np.float64]:
        """What an interval is worth, (lanes,): bounded, since heavy tails of queueing drown what can be learned."""
        weights, s = self.training.task.weights, self.settings
        mean, tail, late, moved = served.terms  # in the order of reward.TERMS
        cost = np.minimum(mean, 3) + s.excess_price * np.clip(tail / weights.tail - 1, 0, 3)
        return -(cost + s.slo_price * late / weights.slo + s.move_price * moved / weights.move)

    def to_action(self, chosen: NDArray[Any]) -> Floats:
        """What the policy chose, as changes of target (lanes, 1) in [-1, 1]."""
        return chosen

    def reset(self) -> Floats:
        """Starts the next round's episodes."""
        started = time.perf_counter()
        self._start(None)
        self.seconds += time.perf_counter() - started
        return self._seen

    def step_wait(self) -> VecEnvStepReturn:
        started = time.perf_counter()
        served = self.lanes.serve(self.to_action(self._actions))
        self._outcome = served
        reward = self.reward(served)
        self._seen, self._memory = self.features(served.observation[:, 0], self._memory)
        self._returns += reward
        self._length += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = self.lanes.ended
        if ended:
            for info, last, total in zip(infos, self._seen, self._returns.tolist(), strict=True):
                info["terminal_observation"] = last
                info["TimeLimit.truncated"] = True
                info["episode"] = {"r": round(total, 6), "l": self._length}
            self._start(None)
        self.seconds += time.perf_counter() - started
        return self._seen, reward.astype(np.float32), np.full(self.num_envs, ended), infos

    def _start(self, seeds: object) -> None:
        self.round += 1
        drawn = self.training.generator(_EPISODES, self.round).integers(_LEAST_SEED, 2**63, size=self.num_envs)
        super()._start(drawn.tolist())
        memory = self.features.initial_state(self.num_envs)
        self._seen, self._memory = self.features(self._outcome.observation[:, 0], memory)

    def survey(self, random: np.random.Generator) -> Floats:
        """Features (samples, width) of one episode a lane under a random walk of the target, which sees every split."""
        self.round = -1
        seen, chosen = [self.reset()], np.zeros((self.num_envs, 1), np.float32)
        for step in range(self.settings.episode - 1):
            if step % 8 == 0:
                chosen = random.uniform(-1, 1, chosen.shape).astype(np.float32)
            features, self._memory = self.features(self.lanes.serve(chosen).observation[:, 0], self._memory)
            seen.append(features)
        self.round = -1
        return np.concatenate(seen)
