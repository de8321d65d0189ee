"""From logs of clusters to what the nodes' network is fitted to: every node of an episode is a row, time first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from helm_gym.cluster.routing import RULES
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from surrogate_backend.clusters.kernels.inputs import Followed, follow
from surrogate_backend.data.cluster_log import LoggedCluster
from surrogate_backend.data.dataset import FIELD_OF, TIMED
from surrogate_backend.layout import RUNGS

SAMPLES = 32  # quantiles that stand for an interval's service times, of which a node has any number


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Episodes, and their nodes as rows; scored intervals are the last ``T`` of ``warmup + T``.

    Attributes:
        x: (warmup + T, rows, NODES); estimates: (warmup + T, rows, ESTIMATES).
        kept: (warmup + T, rows, 1), 0 while a node is lost.
        requests: (warmup + T, rows), how many each node was given; as if all alike in the warm-up.
        targets: by field, (T, rows) or (T, rows, grid).
        services: (T, rows, SAMPLES), ms, ascending; 0 where there was no request.
        preferred: (T, rows), requests that would have gone to each node if none had waited.
        apart: (T, episodes, 3): share of requests without a preference, cost (ms) of the next best node over the
            best's, and of all others' mean; 0 where ``scored``, (T, episodes), is not.
        episode: (rows,), the row's; rung: (rows,), index into RUNGS.
    """

    x: Tensor
    estimates: Tensor
    kept: Tensor
    requests: Tensor
    targets: dict[str, Tensor]
    services: Tensor
    preferred: Tensor
    apart: Tensor
    scored: Tensor
    episode: Tensor
    row_rung: Tensor
    rung: Tensor
    warmup: int

    @property
    def lanes(self) -> int:
        """Episodes."""
        return len(self.rung)

    def take(self, episodes: Sequence[int] | NDArray[np.int64]) -> Dataset:
        """Some of the episodes, with all their nodes."""
        chosen = torch.as_tensor(np.asarray(episodes, np.int64))
        at = torch.cat([torch.nonzero(self.episode == k)[:, 0] for k in chosen])
        renamed = torch.full((self.lanes,), -1)
        renamed[chosen] = torch.arange(len(chosen))
        return dataclasses.replace(
            self,
            x=self.x[:, at],
            estimates=self.estimates[:, at],
            kept=self.kept[:, at],
            requests=self.requests[:, at],
            targets={name: target[:, at] for name, target in self.targets.items()},
            services=self.services[:, at],
            preferred=self.preferred[:, at],
            apart=self.apart[:, chosen],
            scored=self.scored[:, chosen],
            episode=renamed[self.episode[at]],
            row_rung=self.row_rung[at],
            rung=self.rung[chosen],
        )


def from_episodes(profile: Profile, episodes: Sequence[LoggedCluster]) -> Dataset:
    """Puts episodes of one length side by side.

    Raises:
        InvalidInputError: no episode, or episodes of different lengths.
    """
    if not episodes:
        raise InvalidInputError("The log holds no episode to learn from; collect some with `helm-gym collect`.")
    if len({(e.intervals, e.constants["warmup"]) for e in episodes}) > 1:
        raise InvalidInputError("Episodes differ in length or warm-up; collect them with the same --intervals.")
    warmup = episodes[0].constants["warmup"]
    followed = [_follow(profile, e, warmup) for e in episodes]
    rows = np.repeat(np.arange(len(episodes)), [e.nodes for e in episodes])
    rung = torch.tensor([RUNGS.index(e.constants["rung"]) for e in episodes])

    def nodes(arrays: list[NDArray[np.floating]]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays, axis=1).astype(np.float32))

    def warm(value: float, arrays: list[NDArray[np.floating]]) -> Tensor:
        return nodes([np.pad(a, ((warmup, 0), (0, 0)), constant_values=value) for a in arrays])

    return Dataset(
        x=nodes([f.x for f in followed]),
        estimates=nodes([f.estimates for f in followed]),
        kept=warm(1.0, [e.alive.astype(np.float32) for e in episodes])[..., None],
        requests=warm(float(profile.interval.requests), [e.routed["requests"] for e in episodes]),
        targets={name: nodes([_target(profile, e, name) for e in episodes]) for name in FIELD_OF},
        services=nodes([_sampled(e) for e in episodes]),
        preferred=nodes([e.routed["preferred"] for e in episodes]),
        apart=torch.from_numpy(np.stack([_apart(e) for e in episodes], axis=1).astype(np.float32)),
        scored=torch.from_numpy(np.stack([_scored(e) for e in episodes], axis=1).astype(np.float32)),
        episode=torch.from_numpy(rows),
        row_rung=rung[rows],
        rung=rung,
        warmup=warmup,
    )


def _follow(profile: Profile, e: LoggedCluster, warmup: int) -> Followed:
    def warm(array: NDArray[Any], first: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([np.repeat(first[None], warmup, axis=0), array])

    pages = e.cluster.pages(profile)
    start = np.round(e.constants["start_alpha"] * pages) / pages
    return follow(
        profile,
        e.cluster,
        warm(e.workload, e.workload[0]),
        warm(e.telemetry["alpha"], start),
        warm(e.telemetry["moved_pages"] / profile.pool.page_moves_per_interval, np.zeros(e.nodes)),
        warm(e.alive, np.ones(e.nodes, bool)),
        warm(e.rule, e.rule[0]),
        warm(e.weights, e.weights[0]),
    )


def _target(profile: Profile, e: LoggedCluster, name: str) -> NDArray[np.float64]:
    values = e.telemetry[FIELD_OF[name]]
    if name == "refilled":
        values = values / profile.row_bytes
    if name in TIMED:
        speed = e.telemetry["speed"]
        values = values / (speed if values.ndim == 2 else speed[..., None])
    return values


def _sampled(e: LoggedCluster) -> NDArray[np.float64]:
    """Evenly spaced order statistics of each node's service times, (T, nodes, SAMPLES)."""
    count = e.routed["requests"].astype(np.int64)
    ordered = np.sort(e.service_ms / np.maximum(e.telemetry["speed"], 1e-9)[..., None], axis=-1)
    at = ((np.arange(SAMPLES) + 0.5) / SAMPLES * count[..., None]).astype(np.int64)
    sampled = np.take_along_axis(ordered, np.minimum(at, ordered.shape[-1] - 1), axis=-1)
    return np.where(count[..., None] > 0, sampled, 0.0)


def _scored(e: LoggedCluster) -> NDArray[np.bool_]:
    preferred = e.routed["preferred"].sum(axis=1)
    return (e.rule == RULES.index("score")) & (e.alive.sum(axis=1) > 1) & (preferred > 0)


def _apart(e: LoggedCluster) -> NDArray[np.float64]:
    """(T, 3): as ``Dataset.apart``; the mean of the others from the log's mean of all."""
    alive = e.alive.sum(axis=1)
    tied, following, mean = (e.routed[name][:, 0] for name in ("tied", "next_ms", "mean_ms"))
    rest = mean * alive / np.maximum(alive - 1, 1)
    return np.stack([tied, following, rest], axis=1) * _scored(e)[:, None]
