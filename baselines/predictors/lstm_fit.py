"""Fitting the LSTM: whole episodes as sequences, the mean absolute error as loss, a checkpoint an epoch."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from baselines.predictors.examples import Examples
from baselines.predictors.features import WorkloadFeatures
from helm_gym.training.run_folder import Tensors
from helm_gym.training.trainable import Training

_INITIAL, _EPOCH = 1, 2  # purposes of the training's generator; examples.py has another
_SETTLE = 8  # intervals at a sequence's start in which nothing can be known of what was before


def fit(training: Training, examples: Examples) -> Tensors:
    """Trains, or goes on training, and returns the tensors of the epoch that was best on held-out episodes.

    All that is random in an epoch is drawn from the run's seed and the epoch's number, so a resumed fit ends with the
    weights of an unbroken one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with another number of threads sums round differently
    try:
        _Fit(training, examples).run()
    finally:
        torch.set_num_threads(threads)
    tensors, kept = training.best_policy()
    training.facts |= {"validation": kept}
    return tensors


class _Fit:
    def __init__(self, training: Training, examples: Examples):
        self.training, self.settings = training, training.settings
        features = WorkloadFeatures(training.layout)
        self.x, self.y = _sequences(features, examples.part(held_out=False))
        self.held_x, self.held_y = _sequences(features, examples.part(held_out=True))
        flat = self.x.reshape(-1, features.width)
        self.mean, self.scale = flat.mean(dim=0), flat.std(dim=0).clamp_min(0.02)
        self.x, self.held_x = ((x - self.mean) / self.scale for x in (self.x, self.held_x))
        torch.manual_seed(int(training.generator(_INITIAL).integers(2**31)))
        self.network = nn.LSTM(features.width, self.settings.hidden, batch_first=True)
        self.head = nn.Linear(self.settings.hidden, 1)
        nn.init.constant_(self.head.bias, float(self.y.median()))
        self.parameters = [*self.network.parameters(), *self.head.parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, weight_decay=self.settings.weight_decay)

    def run(self) -> None:
        there = self.training.restore()
        first = 0
        if there is not None:
            first = there.step
            self._load(there.tensors)
        for epoch in range(first, self.settings.epochs):
            self._epoch(epoch)
            with torch.no_grad():
                error = float(self._loss(self.held_x, self.held_y))
            self.training.report_policy(epoch + 1, error, self._acting())
            self.training.save(epoch + 1, self._state())
            words = f"epoch {epoch + 1} of {self.settings.epochs}, held-out error {error:.4f}"
            self.training.progress(self.training.steps, self.training.steps, words)

    def _epoch(self, epoch: int) -> None:
        generator = self.training.generator(_EPOCH, epoch)
        updates = math.ceil(len(self.x) / self.settings.batch)
        for number, chosen in enumerate(np.array_split(generator.permutation(len(self.x)), updates)):
            done = (epoch + number / updates) / self.settings.epochs
            for group in self.optimiser.param_groups:
                group["lr"] = self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
            x = self.x[chosen]
            noise = generator.standard_normal(x.shape, np.float32)
            loss = self._loss(x + self.settings.noise * torch.from_numpy(noise), self.y[chosen])
            self.optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()

    def _loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = self.head(self.network(x)[0])[..., 0]
        return (predicted - y)[:, _SETTLE:].abs().mean()

    def _acting(self) -> Tensors:
        """What ``LstmPolicy`` is made of."""
        inputs, recurrent, *biases, head, head_bias = self.parameters
        tensors = {
            "mean": self.mean,
            "scale": self.scale,
            "inputs": inputs,
            "recurrent": recurrent,
            "bias": biases[0] + biases[1],
            "head": head[0],
            "head_bias": head_bias,
        }
        return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}

    def _state(self) -> Tensors:
        """Weights and Adam's moments: with the epoch's number, all that the rest of the fit depends on."""
        tensors = {f"weight.{k}": p.detach().numpy() for k, p in enumerate(self.parameters)}
        for number, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"moment.{number}.{slot}": value.numpy() for slot, value in slots.items()}
        return tensors

    def _load(self, tensors: Tensors) -> None:
        with torch.no_grad():
            for k, parameter in enumerate(self.parameters):
                parameter.copy_(torch.from_numpy(tensors[f"weight.{k}"]))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("moment."):
                _, number, slot = name.split(".")
                state.setdefault(int(number), {})[slot] = torch.from_numpy(value)
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})


def _sequences(features: WorkloadFeatures, examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(features(examples.observation)), torch.from_numpy(examples.alpha_star)
