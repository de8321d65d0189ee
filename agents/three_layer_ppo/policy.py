"""The three layers as one policy: one compiled pass over rows, and the same as a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from agents.network import Mlp, Windows
from agents.three_layer_ppo import adapter, base, curves, recovery
from agents.three_layer_ppo.settings import Settings
from helm_gym.kernels.jit import kernel
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats
from helm_gym.training.run_folder import Tensors

if TYPE_CHECKING:
    pass

_ADAPTER, _RECOVERY = adapter.WIDTH, recovery.WIDTH
LEARNS = 1 + _ADAPTER + _RECOVERY  # what stands before the older windows in a row's state: whether it has started, ...
_SHARPNESS, _PULL, _MAX_STEP, _MIN, _MAX = range(5)


class Seen:
    """What the base policy's network sees: windows of observations, and how far off the curves' split is.

    State: that of ``Windows``.
    """

    def __init__(self, layout: ObservationLayout, settings: Settings):
        self.windows = Windows(layout, settings.windows)
        self.width = self.windows.width + 1
        curve = layout.column("predicted")
        assert isinstance(curve, slice)  # it is several columns
        self._curve, self._target = curve.start, layout.column("target_alpha")
        self._sharpness = settings.sharpness

    def initial_state(self, rows: int) -> Floats:
        return self.windows.initial_state(rows)

    def __call__(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        older, following = self.windows(observation, state)
        features = np.empty((len(observation), self.width), np.float32)
        features[:, :-1] = older
        _distances(observation, self._curve, self._target, self._sharpness, features)
        return features, following


@kernel
def _distances(observation, curve, target, sharpness, out):
    for row in range(observation.shape[0]):
        split = curves.curves_split(observation[row, curve : curve + len(curves.GRID)], sharpness)
        out[row, -1] = split - observation[row, target]


@kernel
def _decide(observation, state, action, following, memory, columns, has, network, common, learning, watching):
    """``action`` (rows, 1) and ``following`` (rows, S) from ``observation`` (rows, D) and ``state`` (rows, S).

    memory: the network's features, and (2, hidden) for its layers.
    columns: where curve and target stand, then the adapter's context, then the recovery's signals.
    has: which of the layers decide, (3,).
    """
    features, hidden = memory
    width = observation.shape[1]
    curve, target = columns[0], columns[1]
    context, signals = columns[2 : 2 + len(adapter.CONTEXT)], columns[2 + len(adapter.CONTEXT) :]
    for row in range(observation.shape[0]):
        seen, kept, to_come = observation[row], state[row], following[row]
        started = kept[0] > 0.0
        present = seen[target]
        predicted = seen[curve : curve + len(curves.GRID)]
        asked = curves.curves_split(predicted, common[_SHARPNESS])
        old, new = kept[1 + _ADAPTER : LEARNS], to_come[1 + _ADAPTER : LEARNS]
        wanted, grip = np.float64(present), np.float32(0.0)
        to_come[0] = 1.0
        if has[2]:
            grip = recovery.watch(seen, signals, predicted, asked, started, old, new, watching)
        if has[0]:
            for j in range(width):
                features[j] = seen[j]
            for j in range(state.shape[1] - LEARNS):
                features[width + j] = kept[LEARNS + j] if started else seen[j % width]
            for j in range(state.shape[1] - LEARNS):
                to_come[LEARNS + j] = features[j]
            features[-1] = asked - present
            lean = common[_PULL] / common[_MAX_STEP] * (asked - present)
            wanted += common[_MAX_STEP] * base.base_action(features, network, hidden, lean)
        split = asked
        if has[1]:
            known, learned = kept[1 : 1 + _ADAPTER], to_come[1 : 1 + _ADAPTER]
            split = adapter.learn(seen, context, asked, 1.0 - grip, known, learned, learning)
            split = min(max(split, common[_MIN]), common[_MAX])
            wanted = adapter.correct(wanted, split, 1.0 - grip, learning)
        if has[2]:
            wanted = recovery.jump(present, wanted, asked, split, started, old, new, common[_SHARPNESS], watching)
        wanted = min(max(wanted, common[_MIN]), common[_MAX])
        action[row, 0] = min(max((wanted - present) / common[_MAX_STEP], -1.0), 1.0)


class ThreeLayerPolicy:
    """Base policy, adapter and recovery, each of which may be left out (``settings.layers``).

        target = present + base's change                      frozen, learned by PPO
        target = target + bounded pull to the learned split   learned while serving, silent while the recovery grips
        target = present + pace of the above + jump           as the workload jumps, or does not

    State: whether it has started; the adapter's weights; the recovery's (``recovery.WIDTH``); the base policy's older
    windows. A layer that is left out keeps noughts.

    Raises:
        KeyError, ValueError: tensors that are not those of the base policy's network.
    """

    def __init__(self, layout: ObservationLayout, settings: Settings, tensors: Tensors):
        self.name = "three-layer-ppo"
        self.layout, self.settings = layout, settings
        self.windows = Windows(layout, settings.windows)
        self.network = Mlp(tensors, self.windows.width + 1, outputs=1)
        if len(self.network.layers) != 3:
            raise ValueError(f"{len(self.network.layers)} layers in place of 3")
        pool, curve = layout.profile.pool, layout.column("predicted")
        assert isinstance(curve, slice)
        names = ("target_alpha", *adapter.CONTEXT, *recovery.NOISE)
        self._columns = np.array([curve.start, *(layout.column(name) for name in names)], np.int64)
        self._has = np.array([layer in settings.chosen for layer in ("base", "adapter", "recovery")])
        self._network = tuple(np.ascontiguousarray(x) for layer in self.network.layers for x in layer)
        self._common = np.array(
            [settings.sharpness, settings.pull, layout.profile.max_step, pool.min_alpha, pool.max_alpha]
        )
        self._learning = adapter.adapter_parameters(settings)
        self._watching = recovery.recovery_parameters(settings)
        self._older = (settings.windows - 1) * layout.width
        hidden = len(self.network.layers[0][1])
        self._memory = np.empty(self.windows.width + 1, np.float32), np.empty((2, hidden), np.float32)

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, LEARNS + self._older), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        action, following = np.empty((len(observation), 1), np.float32), np.zeros_like(state)
        _decide(
            observation, state, action, following, self._memory, self._columns, self._has, self._network,
            self._common, self._learning, self._watching,
        )  # fmt: skip
        return action, following
