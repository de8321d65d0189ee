"""Fitting a cluster's surrogate: the nodes' network on whole episodes, what a router prefers where nothing waits."""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import helm_gym
from helm_gym.cluster.routing import RULES
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.provenance import describe_machine, versions
from surrogate_backend import checkpoint, fit
from surrogate_backend.clusters.kernels.inputs import (
    ATTRACTION,
    LEAST_COST_MS,
    NEXT,
    NODES,
    OUTPUTS,
    REST,
    SIZES,
    TIED,
    USERS,
)
from surrogate_backend.clusters.layout import DRAWN, KIND, size_scale
from surrogate_backend.data import cluster_dataset
from surrogate_backend.data.cluster_dataset import Dataset
from surrogate_backend.data.cluster_log import LoggedCluster, read_clusters
from surrogate_backend.data.dataset import WINDOWED
from surrogate_backend.layout import CACHE_OUTPUTS, HURDLED
from surrogate_backend.network import Networks, growth, outputs
from surrogate_backend.noise import FIELDS, fit_noise

SETTINGS = fit.Settings(steps=1800, batch=6)
PREFERENCE = 1.0  # weight of each part of the preference's loss
LEAST_DRAWN = 5.0  # requests of an interval, for a node's attraction to be seen


def fit_clusters(
    profile: Profile,
    logs: Sequence[pathlib.Path],
    out: pathlib.Path,
    settings: fit.Settings = SETTINGS,
    progress: fit.Progress | None = None,
) -> dict[str, Any]:
    """Fits a surrogate of clusters to logs of them and writes it to ``out``. Returns its card.

    Raises:
        InvalidInputError: a log that cannot be used, or too few episodes to hold some out; clusters of more than one
            catalogue or number of interests.
    """
    started = time.perf_counter()
    episodes = [e for folder in logs for e in read_clusters(folder, profile)]
    data = cluster_dataset.from_episodes(profile, episodes)
    every = fit.HELD_OUT_EVERY
    held = np.array([e.constants["setting"] % every == every - 1 for e in episodes])
    if not held.any() or held.all():
        raise InvalidInputError(f"The logs hold too few settings; at least {every} are needed to hold one out.")
    shared = {(e.cluster.catalogue, e.cluster.interests, e.cluster.interest_share) for e in episodes}
    if len(shared) > 1:
        raise InvalidInputError("The logs hold clusters of different catalogues or interests; fit one to each.")
    training, held_out = data.take(np.flatnonzero(~held)), data.take(np.flatnonzero(held))
    kept = [e for e, out in zip(episodes, held, strict=True) if not out]
    pairs = fit.pairs_of(
        (e.constants["rung"], e.constants["setting"], e.constants["cluster"], e.workload.tobytes()) for e in kept
    )
    if not pairs:
        raise InvalidInputError("The logs serve no setting twice, so noise is unknown; collect the design 'train'.")
    fit.check_length(episodes[0].intervals, profile.interval.window // profile.interval.requests)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    net = Networks(SIZES, USERS, NODES, OUTPUTS)
    history = fit.train(net, training, held_out, profile, settings, out, progress, losses)
    tensors = {f"net.{name}": value.detach().numpy() for name, value in net.state_dict().items()}
    tensors |= _noise(net, training, kept, pairs, profile)
    catalogue, interests, share = shared.pop()
    sizes = sorted({e.nodes for e in episodes})
    card: dict[str, Any] = {
        "format": checkpoint.FORMAT,
        "kind": KIND,
        "profile": profile.name,
        "profile_fingerprint": profile.fingerprint,
        "cluster": {"catalogue": catalogue, "interests": interests, "interest_share": share},
        "nodes": sizes,
        "sizes": dataclasses.asdict(net.sizes),
        "settings": dataclasses.asdict(settings),
        "logs": fit.described(episodes),
        "held_out": history,
        "fitted": {
            "seconds": round(time.perf_counter() - started, 1),
            "machine": describe_machine(),
            "versions": versions() | {"helm-gym": helm_gym.__version__},
            "date": datetime.date.today().isoformat(),
        },
    }
    values = np.concatenate([e.workload for e in episodes])
    alpha = np.concatenate([e.telemetry["alpha"][e.alive] for e in episodes])
    tensors |= {
        "range.low": values.min(0).astype(np.float32),
        "range.high": values.max(0).astype(np.float32),
        "range.alpha": np.array([alpha.min(), alpha.max()], np.float32),
        "range.nodes": np.array([sizes[0], sizes[-1]], np.float32),
        "hurdle": _hurdle(net, training),
    }
    checkpoint.save(out, checkpoint.Checkpoint(tensors, card))
    return card


def losses(
    net: Networks, data: Dataset, profile: Profile, generator: torch.Generator | None
) -> tuple[Tensor, dict[str, float]]:
    """As fit.losses, of the nodes that were given requests, each by how many; and the preference's."""
    raw = net(data.x, data.row_rung, data.kept)
    means, spreads, knots = outputs(raw, data.estimates)
    windows, total, parts = profile.interval.window // profile.interval.requests, torch.zeros(()), {}
    now, over_window = data.requests[data.warmup :], _window(data.requests, windows)[data.warmup :]
    alive = data.kept[data.warmup :, :, 0]
    for name, target in data.targets.items():
        mean = reported(means[name], data.requests, name, windows)[data.warmup :]
        weight = alive if name in fit.ABSOLUTE else over_window if name in WINDOWED else now
        if target.dim() == 3:
            weight = weight[..., None]
        if name in fit.ABSOLUTE:
            each = 0.5 * ((mean - target) / fit.ABSOLUTE[name]) ** 2
        else:
            scale = (target.abs() * weight).mean() / weight.mean() + 1e-3
            each = fit.likelihood(mean, _spread(spreads[name], target)[data.warmup :], target, scale)
        part = (each * weight).mean() / weight.mean()
        parts[name] = part.item()
        total = total + fit.WEIGHT.get(name, 1.0) * part
    sampled = data.services
    if generator is not None:
        sampled = sampled[..., torch.randint(sampled.shape[-1], (fit.SAMPLED,), generator=generator)]
    each = fit.pinball_loss(knots[data.warmup :], sampled, means["service"].detach()[data.warmup :])
    pinball = (each * now).mean() / now.mean()
    parts["quantiles"] = pinball.item()
    total = total + fit.QUANTILES * pinball
    for name, part in _preference(raw.caches[data.warmup :], data).items():
        parts[name] = part.item()
        total = total + PREFERENCE * part
    return total, parts


def _spread(spread: Tensor, target: Tensor) -> Tensor:
    return spread if spread.dim() == target.dim() else spread[..., None]


def _window(x: Tensor, intervals: int) -> Tensor:
    """Running sum over ``intervals`` along the first axis."""
    total = x.cumsum(0)
    before = torch.zeros_like(total)
    before[intervals:] = total[:-intervals]
    return total - before


def reported(mean: Tensor, requests: Tensor, name: str, windows: int) -> Tensor:
    """As the log reports it: a window's mean over requests, or the interval's. (T, rows) or with the grid."""
    if name not in WINDOWED:
        return mean
    counts = requests.view(*requests.shape, *[1] * (mean.dim() - 2))
    return _window(mean * counts, windows) / _window(counts, windows).clamp(min=1.0)


def preference(said: Tensor, episode: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Log share of each node (T, rows), and what its episode's nodes say together (T, episodes, 3).

    Args:
        said: (T, rows, CACHE_OUTPUTS + ROUTED); alive: (T, rows).
    """
    own = said[..., CACHE_OUTPUTS:]
    count = int(episode.max()) + 1

    def over_nodes(x: Tensor) -> Tensor:
        return x.new_zeros(len(x), count, *x.shape[2:]).index_add(1, episode, x)

    attraction = torch.where(alive > 0, growth(own[..., ATTRACTION]), torch.zeros(()))
    share = attraction / over_nodes(attraction).clamp(min=1e-9)[:, episode]
    mask = alive[..., None]
    together = over_nodes(own[..., [TIED, NEXT, REST]] * mask) / over_nodes(mask).clamp(min=1.0)
    return torch.log(share.clamp(min=1e-9)), together


def _preference(said: Tensor, data: Dataset) -> dict[str, Tensor]:
    alive = data.kept[data.warmup :, :, 0]
    log_share, together = preference(said, data.episode, alive)
    drawn = data.preferred / data.preferred.sum().clamp(min=1.0)
    tied, following, rest = data.apart.unbind(-1)
    scored = data.scored / data.scored.sum().clamp(min=1.0)
    said_tied = torch.sigmoid(together[..., 0]).clamp(1e-4, 1 - 1e-4)
    entropy = tied * torch.log(said_tied) + (1.0 - tied) * torch.log(1.0 - said_tied)
    near, far = torch.log(following + LEAST_COST_MS), torch.log((rest - following).clamp(min=0.0) + LEAST_COST_MS)
    return {
        "attraction": -(log_share * drawn).sum(),
        "tied": -(entropy * scored).sum(),
        "next": (((together[..., 1] - near) ** 2) * scored).sum(),
        "rest": (((together[..., 2] - far) ** 2) * scored).sum(),
    }


def _noise(
    net: Networks, data: Dataset, episodes: Sequence[LoggedCluster], pairs: Sequence[tuple[int, int]], profile: Profile
) -> dict[str, NDArray[np.float32]]:
    """The noise of nodes from episodes that differ by their requests alone (noise.py), and that of their attraction."""
    windows = profile.interval.window // profile.interval.requests
    differences: list[NDArray[np.float64]] = []
    deviations: dict[str, list[NDArray[np.float64]]] = {rule: [] for rule in DRAWN}
    for first, second in pairs:
        one, other = (data.take([k]) for k in (first, second))
        residuals = [_residuals(net, part, windows) for part in (one, other)]
        served = (one.requests > 0).all(0) & (other.requests > 0).all(0)
        differences.append(((residuals[0] - residuals[1]) / np.sqrt(2.0))[:, served.numpy()])
        for part, k in ((one, first), (other, second)):
            found = _deviations(net, part)
            for rule, kept in deviations.items():
                kept.append(np.where((episodes[k].rule == RULES.index(rule))[:, None], found, np.nan))
    noise = fit_noise(np.concatenate(differences, axis=1), windows)
    return {f"noise.{name}": value for name, value in noise._asdict().items()} | {
        f"attraction.{rule}": _persistent(arrays) for rule, arrays in deviations.items()
    }


def _hurdle(net: Networks, data: Dataset) -> NDArray[np.float32]:
    with torch.no_grad():
        means, _, _ = outputs(net(data.x, data.row_rung, data.kept), data.estimates)
    alive = data.kept[data.warmup :, :, 0] > 0
    said = {name: means[name][data.warmup :][alive] for name in HURDLED}
    return fit.fit_hurdle(said, {name: data.targets[name][alive] for name in HURDLED})


def _residuals(net: Networks, data: Dataset, windows: int) -> NDArray[np.float64]:
    """Of the means over a window, over its spreads: (T, rows, noise.FIELDS)."""
    with torch.no_grad():
        means, spreads, _ = outputs(net(data.x, data.row_rung, data.kept), data.estimates)
    counts, columns = data.requests[data.warmup :], dict[str, Tensor]()
    for name, target in data.targets.items():
        if name in fit.ABSOLUTE:
            continue
        error = target - reported(means[name], data.requests, name, windows)[data.warmup :]
        if name not in WINDOWED:
            error = _window(error * counts, windows) / _window(counts, windows).clamp(min=1.0)
        z = error / _spread(spreads[name], target)[data.warmup :]
        if name == "predicted":
            columns |= {f"predicted_{at}": z[..., k] for at, k in (("low", 1), ("middle", 4), ("high", 7))}
        else:
            columns[name] = z
    return torch.stack([columns[name] for name in FIELDS], -1).numpy().astype(np.float64)


def _deviations(net: Networks, data: Dataset) -> NDArray[np.float64]:
    """How far each node drew more requests than its share, relative to that and to ``size_scale``: (T, rows)."""
    with torch.no_grad():
        raw = net(data.x, data.row_rung, data.kept).caches[data.warmup :]
        log_share, _ = preference(raw, data.episode, data.kept[data.warmup :, :, 0])
    preferred = data.preferred.numpy().astype(np.float64)
    expected = np.exp(log_share.numpy().astype(np.float64)) * preferred.sum(axis=1, keepdims=True)
    relative = (preferred - expected) / np.maximum(expected, 1.0) / size_scale(preferred.shape[1])
    return np.asarray(np.where(expected > LEAST_DRAWN, relative, np.nan))


def _persistent(deviations: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    """Standard deviation of a node's lasting attraction (relative), and its persistence from one interval to the next.

    Args:
        deviations: (T, rows) each, NaN where there is none. What is new in each interval is left out: it is what a
            sample of requests brings.
    """

    def covariance(lag: int) -> float:
        products = np.concatenate([(d[:-lag] * d[lag:]).ravel() for d in deviations])
        found = products[np.isfinite(products)]
        return float(found.mean()) if len(found) else 0.0

    near, far = covariance(1), covariance(9)
    if near <= 0.0:
        return np.array([0.0, 0.9], np.float32)
    persistence = float(np.clip(far / near, 0.05, 0.999)) ** (1 / 8)
    return np.array([np.sqrt(near / persistence), persistence], np.float32)
