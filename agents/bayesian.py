"""Contextual Bayesian optimisation: a Gaussian process over split and context that lives in the policy's state."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.errors import InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Floats, towards
from helm_gym.ranges import Within
from helm_gym.training.search_space import Trial, settings_only_agent

CONTEXT = ("returning_share", "mean_history", "load")  # what the split does not change
_TYPICAL = np.array([0.5, 0.5, 0.35])  # of them, about which the prior optimum is linear
GRID = np.linspace(0.1, 0.9, 33)
ENTRIES = 24  # of the ring
_CONSTANT = 1.0  # prior standard deviation of the log cost's level
_UNUSED = 1e6  # noise variance of an entry that is not filled: as if it were not there
# A row's state: what is being summed up (count, alpha, log cost, unsettledness, context), how unsettled the caches
# are, entries written so far, and the ring: alpha, log cost, noise variance and context of each entry.
_SUMS, _RESTLESS, _WRITTEN, _RING = slice(0, 7), 7, 8, slice(9, None)
_ENTRY = 3 + len(CONTEXT)

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Hyper-parameters.

    Attributes:
        block: decisions that one entry of the ring averages.
        confidence: standard deviations below the mean that are hoped for; 0 never explores.
        inertia: log cost that a move of the whole pool must gain.
        prior_alpha: where the cost is least in a typical context, before anything is learned.
        per_returning, per_history, per_load: by how much a column of the context above the typical moves that place.
        prior_depth: curvature of the log cost about it.
        alpha_std: prior standard deviation of what the split does to the log cost, beside the prior mean.
        context_std: that of what the context does by itself.
        alpha_length, context_length: over which the two correlate.
        noise: standard deviation of one decision's log cost.
        warming: share of the caches' unsettledness that is left after a decision.
        restless_noise: standard deviation of the log cost of caches that have moved at full speed for long.
    """

    block: Annotated[int, Within(1, 10_000)] = 5
    confidence: float = 1.61
    inertia: float = 0.0739
    prior_alpha: float = 0.567
    per_returning: float = -0.557
    per_history: float = 0.171
    per_load: float = -0.248
    prior_depth: float = 0.919
    alpha_std: float = 0.0403
    context_std: float = 0.3
    alpha_length: float = 0.562
    context_length: float = 0.362
    noise: float = 0.164
    warming: float = 0.9
    restless_noise: float = 0.776

    def __post_init__(self) -> None:
        positive = ("alpha_length", "context_length", "noise")
        if self.block < 1 or min(getattr(self, name) for name in positive) <= 0:
            raise InvalidInputError(
                f"Bayesian optimisation needs a block of at least 1, and {', '.join(positive)} above 0."
            )

    @staticmethod
    def space(trial: Trial) -> dict[str, Any]:
        return {
            "block": trial.suggest_int("block", 2, 12),
            "confidence": trial.suggest_float("confidence", 0.0, 2.0),
            "inertia": trial.suggest_float("inertia", 0.005, 0.5, log=True),
            "prior_alpha": trial.suggest_float("prior_alpha", 0.45, 0.75),
            "per_returning": trial.suggest_float("per_returning", -1.2, 0.0),
            "per_history": trial.suggest_float("per_history", -0.6, 0.2),
            "per_load": trial.suggest_float("per_load", -1.4, 0.0),
            "prior_depth": trial.suggest_float("prior_depth", 0.2, 10.0, log=True),
            "alpha_std": trial.suggest_float("alpha_std", 0.03, 1.0, log=True),
            "alpha_length": trial.suggest_float("alpha_length", 0.1, 0.8, log=True),
            "context_length": trial.suggest_float("context_length", 0.03, 0.6, log=True),
            "noise": trial.suggest_float("noise", 0.03, 0.5, log=True),
            "restless_noise": trial.suggest_float("restless_noise", 0.03, 1.0, log=True),
        }


class Bayesian:
    """Learns while it serves what a split costs in a context, and goes where the cost may be least.

    The cost is an interval's mean service time, in logarithms: of what a node can see it is the least noisy that the
    split rules, and queueing only amplifies it. A Gaussian process over (alpha, context) explains it,

        log cost ~ GP(prior_depth (alpha - optimum(z))^2,  1 + context_std^2 k(z, z') + alpha_std^2 k(z, z') k(a, a'))

    with squared-exponential k, from the last ``ENTRIES`` blocks of decisions (Krause and Ong, Contextual Gaussian
    process bandit optimization, NeurIPS 2011). The next target has the least lower confidence bound on a grid, with
    what a move costs added. Just after a move a cost says little about the split, since the caches are still cold: it
    counts with more noise.

    ``optimum`` is linear in the context. Without it there is nothing to learn from in time: an episode has room for
    some eighty blocks, and exploring costs more than they gain (burst-v0, modelled rung, cpu-small, seeds 1000 ...
    1015, 2026-11-25: 12% more cost than static .65 at ``confidence`` .5, and 1% more at 0).

    The defaults are the best of 100 trials of `helm-gym tune bayesian --task mixed-v0 --backend surrogate`, which began
    with a least-squares fit of ``optimum`` to the offline one (2026-11-25, cpu-small, two cores of an AMD EPYC). On the
    modelled rung, seeds 5000 ... 5031, they cost .807 [.772, .843] of static .5, .013 [.006, .020] less than at first.

    A ring of a fixed size is all that it remembers, so an act is a solve of one small system a row. It cannot be one
    graph of operators, and is not exported.
    """

    def __init__(self, layout: ObservationLayout, settings: Settings | None = None):
        self.name = "bayesian"
        self.layout = layout
        self.settings = s = settings or Settings()
        self._alpha, self._target, self._moved, self._service, self._trend = (
            layout.column(name) for name in ("alpha", "target_alpha", "moved", "service_mean", "service_trend")
        )
        self._context = np.array([layout.column(name) for name in CONTEXT])
        self._slopes = np.array([s.per_returning, s.per_history, s.per_load])

    def initial_state(self, rows: int) -> Floats:
        return np.zeros((rows, 9 + ENTRIES * _ENTRY), np.float32)

    def act(self, observation: Floats, state: Floats) -> tuple[Floats, Floats]:
        context = observation[:, self._context].astype(np.float64)
        following = self._remember(observation, context, state.astype(np.float64))
        bound = self._lower_bound(context, following[:, _RING].reshape(-1, ENTRIES, _ENTRY), following[:, _WRITTEN])
        present = observation[:, self._target].astype(np.float64)
        target = GRID[(bound + self.settings.inertia * np.abs(GRID - present[:, None])).argmin(axis=1)]
        return towards(self.layout, observation, target), following.astype(np.float32)

    def _remember(self, observation: Floats, context: Array, state: Array) -> Array:
        """The next state: one more decision in the sums, and a full block in the ring in place of the oldest."""
        s, following = self.settings, state.copy()
        restless = s.warming * state[:, _RESTLESS] + (1 - s.warming) * np.abs(observation[:, self._moved])
        # The interval's mean service time: the window's, times ten to their logarithm's difference.
        service = np.log(np.maximum(observation[:, self._service], 1e-3)) + np.log(10) * observation[:, self._trend]
        rows = len(state)
        now = np.column_stack([np.ones(rows), observation[:, self._alpha], service, restless, context])
        sums = state[:, _SUMS] + now
        full = sums[:, 0] >= s.block
        means = sums[full] / s.block
        noise = s.noise**2 / s.block + (s.restless_noise * means[:, 3]) ** 2
        ring = following[:, _RING].reshape(rows, ENTRIES, _ENTRY)  # a copy: the slice is not contiguous
        oldest = state[full, _WRITTEN].astype(np.int64) % ENTRIES
        ring[full, oldest] = np.column_stack([means[:, 1:3], noise, means[:, 4:]])
        following[:, _RING] = ring.reshape(rows, -1)
        following[:, _SUMS] = np.where(full[:, None], 0.0, sums)
        following[:, _RESTLESS] = restless
        # Counts on to twice the ring and back to once: which entry is the oldest, and whether all are filled.
        written = state[:, _WRITTEN] + full
        following[:, _WRITTEN] = np.where(written >= 2 * ENTRIES, ENTRIES, written)
        return following

    def _lower_bound(self, context: Array, ring: Array, written: Array) -> Array:
        """Lower confidence bound of the log cost on the grid in this context, (rows, grid)."""
        s = self.settings
        alpha, cost, noise, seen = ring[..., 0], ring[..., 1], ring[..., 2], ring[..., 3:]
        noise = np.where(np.arange(ENTRIES) < written[:, None], noise, _UNUSED)
        alike = _alike(seen[:, :, None] - seen[:, None, :], s.context_length)
        splits = np.exp(-0.5 * ((alpha[:, :, None] - alpha[:, None, :]) / s.alpha_length) ** 2)
        prior = _CONSTANT**2 + alike * (s.context_std**2 + s.alpha_std**2 * splits)
        prior[:, np.arange(ENTRIES), np.arange(ENTRIES)] += noise
        alike = _alike(seen - context[:, None], s.context_length)[:, :, None]
        splits = np.exp(-0.5 * ((alpha[:, :, None] - GRID) / s.alpha_length) ** 2)
        cross = _CONSTANT**2 + alike * (s.context_std**2 + s.alpha_std**2 * splits)
        surprise = cost - self._prior(alpha, seen)
        # One solve for the mean's weights and the variance's: the noise on the diagonal conditions it well.
        solved = np.linalg.solve(prior, np.concatenate([surprise[:, :, None], cross], axis=2))
        mean = self._prior(GRID, context[:, None]) + np.einsum("reg,re->rg", cross, solved[:, :, 0])
        variance = _CONSTANT**2 + s.context_std**2 + s.alpha_std**2 - (cross * solved[:, :, 1:]).sum(axis=1)
        return np.asarray(mean - s.confidence * np.sqrt(np.maximum(variance, 0.0)))

    def _prior(self, alpha: Array, context: Array) -> Array:
        """Prior mean of the log cost at ``alpha`` (..., n) in contexts (..., n or 1, context)."""
        optimum = self.settings.prior_alpha + (context - _TYPICAL) @ self._slopes
        return np.asarray(self.settings.prior_depth * (alpha - optimum) ** 2)


def _alike(difference: Array, length: float) -> Array:
    """Squared-exponential correlation of contexts that differ by ``difference`` (..., context)."""
    return np.asarray(np.exp(-0.5 * (difference**2).sum(axis=-1) / length**2))


BAYESIAN = settings_only_agent("bayesian", Settings, Bayesian)
