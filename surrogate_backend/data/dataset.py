"""From a log to what the networks are fitted to: inputs along whole episodes, and targets on each interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from surrogate_backend.data.log import LoggedEpisode
from surrogate_backend.kernels.inputs import follow
from surrogate_backend.layout import RUNGS

FIELD_OF = {  # target -> field of telemetry; refilled rows from their bytes
    "service": "interval_service_ms",
    "kv_hit": "kv_hit_rate",
    "emb_hit": "emb_hit_rate",
    "recomputed": "kv_recomputed_tokens",
    "emb_gain": "emb_gain_ms",
    "emb_loss": "emb_loss_ms",
    "kv_gain": "kv_gain_ms",
    "kv_loss": "kv_loss_ms",
    "emb_empty": "emb_empty_share",
    "kv_empty": "kv_empty_share",
    "backlog": "backlog_rows",
    "refilled": "h2d_background_bytes",
    "history": "mean_history",
    "unique": "unique_users",
    "returning": "returning_share",
    "predicted": "predicted_ms",
}
TIMED = frozenset(("service", "emb_gain", "emb_loss", "kv_gain", "kv_loss", "predicted"))  # over the machine's speed
# Reported over the window; the others are the interval's own.
WINDOWED = frozenset(FIELD_OF) - {"service", "emb_empty", "kv_empty", "backlog", "refilled"}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Episodes side by side, time first; scored intervals are the last ``T`` of ``warmup + T``.

    Attributes:
        x: (warmup + T, lanes, CACHES), inputs.
        estimates: (warmup + T, lanes, ESTIMATES), the fluid's.
        targets: by field, (T, lanes) or (T, lanes, grid); times over the machine's speed.
        services: (T, lanes, requests), service times in ascending order, ms over speed.
        rung: (lanes,), index into RUNGS.
        values, alpha: (lanes, T, parameters) and (lanes, T), as logged, for the range that was seen.
    """

    x: Tensor
    estimates: Tensor
    targets: dict[str, Tensor]
    services: Tensor
    rung: Tensor
    values: NDArray[np.float64]
    alpha: NDArray[np.float64]
    warmup: int

    @property
    def lanes(self) -> int:
        return self.x.shape[1]

    @property
    def intervals(self) -> int:
        return self.x.shape[0] - self.warmup

    def take(self, lanes: Sequence[int] | NDArray[np.int64]) -> Dataset:
        """Some of the episodes."""
        at = torch.as_tensor(np.asarray(lanes, np.int64))
        return dataclasses.replace(
            self,
            x=self.x[:, at],
            estimates=self.estimates[:, at],
            targets={name: target[:, at] for name, target in self.targets.items()},
            services=self.services[:, at],
            rung=self.rung[at],
            values=self.values[at.numpy()],
            alpha=self.alpha[at.numpy()],
        )


def from_episodes(profile: Profile, episodes: Sequence[LoggedEpisode]) -> Dataset:
    """Puts episodes of one length side by side."""
    if not episodes:
        raise InvalidInputError("The log holds no episode to learn from; collect some with `helm-gym collect`.")
    lengths = {(e.intervals, e.constants["warmup"]) for e in episodes}
    if len(lengths) > 1:
        raise InvalidInputError(
            f"Episodes differ in length ({', '.join(str(n) for n, _ in sorted(lengths))} intervals) or warm-up; "
            "collect them with the same --intervals."
        )
    warmup = episodes[0].constants["warmup"]
    values = np.stack([e.workload for e in episodes])
    alpha = np.stack([e.telemetry["alpha"] for e in episodes])
    moved = np.stack([e.telemetry["moved_pages"] for e in episodes]) / profile.pool.page_moves_per_interval
    start = np.array([round(e.constants["start_alpha"] * profile.pool.pages) / profile.pool.pages for e in episodes])
    x, estimates = follow(
        profile,
        np.concatenate([np.repeat(values[:, :1], warmup, axis=1), values], axis=1),
        np.concatenate([np.repeat(start[:, None], warmup, axis=1), alpha], axis=1),
        np.concatenate([np.zeros((len(start), warmup)), moved], axis=1),
    )
    return Dataset(
        x=torch.from_numpy(x.swapaxes(0, 1).copy()),
        estimates=torch.from_numpy(estimates.swapaxes(0, 1).copy()),
        targets=_targets(profile, episodes),
        services=_tensor(np.stack([np.sort(e.service_ms / e.telemetry["speed"][:, None], axis=1) for e in episodes])),
        rung=torch.tensor([RUNGS.index(e.constants["rung"]) for e in episodes]),
        values=values,
        alpha=alpha,
        warmup=warmup,
    )


def window(x: Tensor, intervals: int) -> Tensor:
    """Running mean over ``intervals`` along axis -2 (time, lanes last); the first ones over what there is."""
    total = x.cumsum(-2)
    before = torch.zeros_like(total)
    before[..., intervals:, :] = total[..., :-intervals, :]
    counts = torch.arange(1, x.shape[-2] + 1, dtype=x.dtype).clamp(max=intervals)
    return (total - before) / counts[:, None]


def _targets(profile: Profile, episodes: Sequence[LoggedEpisode]) -> dict[str, Tensor]:
    def field(name: str) -> Tensor:
        arrays = []
        for e in episodes:
            values = e.telemetry[FIELD_OF[name]]
            if name == "refilled":
                values = values / profile.row_bytes
            if name in TIMED:
                speed = e.telemetry["speed"]
                values = values / (speed if values.ndim == 1 else speed[:, None])
            arrays.append(values)
        return _tensor(np.stack(arrays))

    return {name: field(name) for name in FIELD_OF}


def _tensor(x: NDArray[np.float64]) -> Tensor:
    """(lanes, T, ...) -> float32 (T, lanes, ...)."""
    return torch.from_numpy(np.ascontiguousarray(x.swapaxes(0, 1), np.float32))
