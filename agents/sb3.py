"""The training loop that Stable-Baselines3's on-policy algorithms share: checkpoints, resuming, validation.

A training is cut into *rounds*: one episode in every lane. All that is random in a round (episodes' seeds, torch's and
numpy's generators) is seeded by the run's seed and the round's number, and checkpoints lie between rounds. So a resumed
training draws what an unbroken one would have drawn, and ends with the same weights.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import set_random_seed
from torch import nn

from agents.node_lanes import NodeLanes
from agents.training_env import TrainingEnv
from helm_gym.envs.partition_vector import PartitionVectorEnv
from helm_gym.envs.vector import LanesVectorEnv
from helm_gym.errors import HelmError
from helm_gym.policy import Policy
from helm_gym.training import run_folder
from helm_gym.training.run_folder import Tensors
from helm_gym.training.scalars import open_scalars
from helm_gym.training.trainable import Checkpoint, Training

_NETWORK, _SURVEY, _ROUNDS = 1, 2, 3  # purposes of a training's generators; agents/training_env.py has another
VALIDATION_SEEDS = range(30_000, 30_064)
_LEAST_CLUSTERS = 8
_LARGEST_WEIGHT = 1e4  # of a network that can have learned something


class FrozenScale(BaseFeaturesExtractor):
    """``(x - mean) / scale``: statistics that are part of the policy and do not change while it learns."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, observation_space: spaces.Box):
        width = observation_space.shape[0]
        super().__init__(observation_space, width)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.scale

    def set_from(self, seen: np.ndarray) -> None:
        """Statistics of features (samples, width)."""
        self.mean.copy_(torch.from_numpy(seen.mean(axis=0)))
        # A column that hardly ever moves must not be blown up when it does.
        self.scale.copy_(torch.from_numpy(np.maximum(seen.std(axis=0), 0.02)))


def make_ppo(env: TrainingEnv, seed: int) -> PPO:
    """SB3's PPO with the environment's settings."""
    s = env.settings
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=lambda left: s.learning_rate * left,
        n_steps=s.n_steps,
        batch_size=min(s.batch_size, s.lanes * s.n_steps),
        n_epochs=s.n_epochs,
        gamma=s.gamma,
        gae_lambda=s.gae_lambda,
        clip_range=s.clip_range,
        ent_coef=s.ent_coef,
        vf_coef=s.vf_coef,
        max_grad_norm=s.max_grad_norm,
        policy_kwargs={
            "features_extractor_class": FrozenScale,
            "net_arch": [s.hidden, s.hidden],
            "activation_fn": nn.Tanh,
            "log_std_init": s.log_std,
        },
        seed=seed,
        device="cpu",
    )


def mlp_actor(model: OnPolicyAlgorithm) -> Tensors:
    """The tensors of the deterministic policy, as ``network.Mlp`` names them."""
    policy = model.policy
    layers = [layer for layer in [*policy.mlp_extractor.policy_net, policy.action_net] if isinstance(layer, nn.Linear)]
    tensors = {name: getattr(policy.features_extractor, name).numpy().copy() for name in ("mean", "scale")}
    for k, layer in enumerate(layers):
        tensors[f"{k}.weight"] = layer.weight.detach().numpy().copy()
        tensors[f"{k}.bias"] = layer.bias.detach().numpy().copy()
    return tensors


def train_on_policy(
    training: Training,
    env: TrainingEnv,
    make_model: Callable[[TrainingEnv, int], OnPolicyAlgorithm],
    acting: Callable[[OnPolicyAlgorithm], Tensors],
    to_policy: Callable[[Tensors], Policy],
    validate: Callable[[Policy], float] | None = None,
) -> Tensors:
    """Trains, or goes on training, and returns the tensors of the policy that validated best.

    Args:
        env: closed at the end.
        make_model: of the environment and a seed; with ``FrozenScale`` for its features where they are to be scaled.
        acting: the tensors that the deterministic policy is made of.
        to_policy: makes a policy of them.
        validate: the cost of a policy; that on validation episodes of the surrogate where not given.
    """
    with contextlib.closing(env), _threads(1):
        rounds = _Rounds(training, env, acting, to_policy, validate or Validation(training).cost)
        model = make_model(env, int(training.generator(_NETWORK).integers(2**31)))
        there, extractor = training.restore(), model.policy.features_extractor
        if there is not None:
            _load(model, there)
            rounds.resume(there.facts)
        elif isinstance(extractor, FrozenScale):
            extractor.set_from(env.survey(training.generator(_SURVEY)))
        with contextlib.closing(_TensorBoard(training.folder / run_folder.TENSORBOARD, model.num_timesteps)) as board:
            model.set_logger(Logger(folder=None, output_formats=[board]))
            if model.num_timesteps < rounds.total:
                _learn(model, rounds)
        tensors, kept = training.best_policy()
        training.facts |= {"validation": kept, "env_share": rounds.env_share, "seconds": rounds.seconds}
    return tensors


def _learn(model: OnPolicyAlgorithm, rounds: _Rounds) -> None:
    """Raises HelmError where the training diverges."""
    try:
        remaining = rounds.total - model.num_timesteps
        model.learn(remaining, callback=rounds, reset_num_timesteps=False, log_interval=sys.maxsize)  # _Rounds logs
    except ValueError as error:  # torch's distributions refuse a mean that is not finite, or no spread
        largest = max(
            float(weights.detach().abs().max().nan_to_num(torch.inf)) for weights in model.policy.parameters()
        )
        if largest < _LARGEST_WEIGHT:
            raise
        raise HelmError(
            f"Training diverged at step {model.num_timesteps}: the network's weights reach {largest:.1g}; lower the "
            "learning_rate and give another --out."
        ) from error


class _TensorBoard(KVWriter):
    """SB3's scalars for TensorBoard, of a training that goes on behind ``step``."""

    def __init__(self, folder: pathlib.Path, step: int):
        self._writer = open_scalars(folder, step)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        for name, value in key_values.items():
            if "tensorboard" not in (key_excluded[name] or ()):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Validation:
    """Mean cost of a policy over the same episodes every time, on the backend and in the clusters that it trains in."""

    def __init__(self, training: Training):
        task, settings = training.task, training.settings
        nodes = settings.cluster or 1
        clusters = max(len(VALIDATION_SEEDS) // nodes, _LEAST_CLUSTERS)  # about as many nodes, in clusters or alone
        self._seeds = [seed for seed in VALIDATION_SEEDS[:clusters] for _ in range(nodes)]
        self._settle = task.settle
        arguments: dict[str, Any] = {"task": task, "profile": training.profile, "backend": settings.backend}
        arguments |= {"intervals": task.settle + task.horizon}
        if settings.cluster:
            self._lanes: LanesVectorEnv = NodeLanes(len(self._seeds), cluster=settings.cluster, **arguments)
        else:
            self._lanes = PartitionVectorEnv(len(self._seeds), **arguments)

    def cost(self, policy: Policy) -> float:
        step = self._lanes.start(self._seeds)
        state = policy.initial_state(len(self._seeds))
        costs = []
        while not step.done:
            action, state = policy.act(step.observation[:, 0], state)
            step = self._lanes.serve(action)
            costs.append(-step.reward.mean())
        return float(np.mean(costs[self._settle :]))


class _Rounds(BaseCallback):
    """Between updates: logs. Between rounds: validates, keeps the best policy, saves a checkpoint, seeds the next."""

    def __init__(
        self,
        training: Training,
        env: TrainingEnv,
        acting: Callable[[OnPolicyAlgorithm], Tensors],
        to_policy: Callable[[Tensors], Policy],
        validate: Callable[[Policy], float],
    ):
        super().__init__()
        self.training, self.env = training, env
        self._acting, self._to_policy, self._validate = acting, to_policy, validate
        self.per_round = env.settings.round
        self.rounds = -(-training.steps // self.per_round)
        self.total = self.rounds * self.per_round
        self._before, self._started = 0.0, time.perf_counter()
        self._behind = -1  # the round whose end was seen to
        self._logged = 0  # the step whose scalars are written
        self._words = ""

    @property
    def seconds(self) -> float:
        """Wall time of the training, that of interrupted processes up to their last checkpoint included."""
        return self._before + time.perf_counter() - self._started

    @property
    def env_share(self) -> float:
        return self.env.seconds / self.seconds

    def resume(self, facts: dict[str, float]) -> None:
        self._before, self.env.seconds = facts["seconds"], facts["env_seconds"]
        self._behind = self.env.round = int(facts["round"])
        self._logged = (self._behind + 1) * self.per_round

    def _on_training_start(self) -> None:
        self.model.ep_info_buffer = deque(maxlen=self.env.num_envs)  # a round's episodes: all end with it

    def _on_rollout_start(self) -> None:
        self._between()
        self.training.progress(self.num_timesteps, self.total, self._words)

    def _on_training_end(self) -> None:
        self._between()
        self.training.progress(self.total, self.total, self._words)

    def _on_step(self) -> bool:
        return True

    def _between(self) -> None:
        """The end of an update, perhaps of a round; SB3 has updated its weights with the last decisions."""
        model = self.model
        assert isinstance(model, OnPolicyAlgorithm)
        over, within = divmod(model.num_timesteps, self.per_round)
        ended = not within and over - 1 > self._behind
        if ended:
            self._validate_round(over - 1)
        if model.num_timesteps > self._logged:
            self._logged = model.num_timesteps
            model.dump_logs()
        if ended:  # after its scalars: a training that goes on from here writes those that come later
            self._save_round(over - 1)
        if not within:
            set_random_seed(int(self.training.generator(_ROUNDS, over).integers(2**31)))

    def _validate_round(self, number: int) -> None:
        assert isinstance(self.model, OnPolicyAlgorithm)
        if (number + 1) % self.env.settings.validate_every == 0 or number + 1 == self.rounds:
            tensors = self._acting(self.model)
            cost = self._validate(self._to_policy(tensors))
            best = self.training.report_policy(self.model.num_timesteps, cost, tensors)
            self.logger.record("validation/cost", cost)
            self._words = f"cost {cost:.4f}{', the best so far' * best}"

    def _save_round(self, number: int) -> None:
        assert isinstance(self.model, OnPolicyAlgorithm) and self.model.ep_info_buffer is not None
        self._behind = number
        self.model.ep_info_buffer.clear()
        facts: dict[str, float] = {"round": number, "updates": self.model._n_updates}
        facts |= {"seconds": self.seconds, "env_seconds": self.env.seconds}
        self.training.save(self.model.num_timesteps, _state(self.model), facts)


def _state(model: OnPolicyAlgorithm) -> Tensors:
    """Weights and the optimiser's state: with the round's seeds, all that the training's future depends on."""
    tensors = {f"policy.{name}": value.numpy() for name, value in model.policy.state_dict().items()}
    for index, slots in model.policy.optimizer.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{slot}": value.numpy() for slot, value in slots.items()}
    return tensors


def _load(model: OnPolicyAlgorithm, there: Checkpoint) -> None:
    tensors = there.tensors
    model.num_timesteps, model._n_updates = there.step, there.facts["updates"]
    model.policy.load_state_dict(
        {name.removeprefix("policy."): torch.from_numpy(v) for name, v in tensors.items() if name.startswith("policy.")}
    )
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, slot = name.split(".")
            state.setdefault(int(index), {})[slot] = torch.from_numpy(value)
    groups = model.policy.optimizer.state_dict()["param_groups"]
    model.policy.optimizer.load_state_dict({"state": state, "param_groups": groups})


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Networks this small are slower on more threads, and with another number of them sums round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
