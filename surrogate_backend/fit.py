"""Fitting: the networks are trained on whole episodes, free-running, and stored with its noise, range and card."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import helm_gym
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.provenance import describe_machine, versions
from helm_gym.training.scalars import open_scalars
from surrogate_backend import checkpoint
from surrogate_backend.data import dataset
from surrogate_backend.data.dataset import WINDOWED, Dataset, window
from surrogate_backend.data.log import LoggedEpisode, read_log
from surrogate_backend.layout import ENDS, HURDLED, LEVELS, RUNGS, Sizes, check_profile
from surrogate_backend.network import Networks, outputs
from surrogate_backend.noise import FIELDS, fit_noise

Progress = Callable[[int, int, dict[str, float]], None]  # steps done, steps in all, losses
# Of a net on a dataset; with a generator, on a sample of the requests. Returns the sum, and its part by field.
Loss = Callable[[Networks, Any, Profile, torch.Generator | None], tuple[Tensor, dict[str, float]]]
HELD_OUT_EVERY = 16  # settings
WEIGHT = {
    "service": 3.0,
    "emb_hit": 2.0,
    "kv_hit": 2.0,
    "emb_gain": 0.5,
    "emb_loss": 0.5,
    "kv_gain": 0.5,
    "kv_loss": 0.5,
}
ABSOLUTE = {"emb_empty": 0.22, "kv_empty": 0.07, "backlog": 220.0, "refilled": 110.0}  # spread of fields without one
QUANTILES, SAMPLED = 30.0, 6  # weight of the quantiles' loss, and requests of an interval that it looks at


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to fit.

    Attributes:
        steps: of the optimiser, at most.
        batch: episodes a step.
        rate: of Adam, at its highest.
        seed: of weights and batches.
        threads: of torch.
        measured_share: of a batch that comes from measured episodes, where the log has both rungs.
        patience: evaluations without a better held-out loss before it stops.
        evaluate_every: steps.
    """

    steps: int = 1800
    batch: int = 16
    rate: float = 6e-3
    seed: int = 0
    threads: int = 2
    measured_share: float = 0.3
    patience: int = 8
    evaluate_every: int = 100


def fit(
    profile: Profile,
    logs: Sequence[pathlib.Path],
    out: pathlib.Path,
    settings: Settings = Settings(),  # frozen
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fits a checkpoint to logs of ``profile``, of either rung or both, and writes it to ``out``. Returns its card.

    Raises:
        InvalidInputError: a log that cannot be used, or too few episodes to hold some out.
    """
    started = time.perf_counter()
    check_profile(profile)
    episodes = [e for folder in logs for e in read_log(folder, profile)]
    data = dataset.from_episodes(profile, episodes)
    held = np.array([e.constants["setting"] % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 for e in episodes])
    if not held.any() or held.all():
        raise InvalidInputError(
            f"The logs hold {len({e.constants['setting'] for e in episodes})} settings; at least {HELD_OUT_EVERY} are "
            "needed, for every sixteenth is held out."
        )
    training, held_out = data.take(np.flatnonzero(~held)), data.take(np.flatnonzero(held))
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    net = Networks(Sizes())
    history = train(net, training, held_out, profile, settings, out, progress, losses)

    pairs = _pairs([e for e, out in zip(episodes, held, strict=True) if not out])
    if not pairs:
        raise InvalidInputError("The logs serve no setting twice, so noise is unknown; collect the design 'train'.")
    check_length(training.intervals, profile.interval.window // profile.interval.requests)
    residuals = _residuals(net, training, profile)
    first, second = np.array(pairs).T
    noise = fit_noise(
        (residuals[:, first] - residuals[:, second]) / np.sqrt(2.0),
        profile.interval.window // profile.interval.requests,
    )
    card = {
        "format": checkpoint.FORMAT,
        "profile": profile.name,
        "profile_fingerprint": profile.fingerprint,
        "sizes": dataclasses.asdict(net.sizes),
        "settings": dataclasses.asdict(settings),
        "logs": described(episodes),
        "held_out": history,
        "fitted": {
            "seconds": round(time.perf_counter() - started, 1),
            "machine": describe_machine(),
            "versions": versions() | {"helm-gym": helm_gym.__version__},
            "date": datetime.date.today().isoformat(),
        },
    }
    tensors = {f"net.{name}": value.detach().numpy() for name, value in net.state_dict().items()}
    tensors |= {f"noise.{name}": value for name, value in noise._asdict().items()}
    tensors |= {
        "range.low": data.values.min((0, 1)).astype(np.float32),
        "range.high": data.values.max((0, 1)).astype(np.float32),
        "range.alpha": np.array([data.alpha.min(), data.alpha.max()], np.float32),
        "hurdle": fit_hurdle(_said(net, training), {name: training.targets[name] for name in HURDLED}),
    }
    checkpoint.save(out, checkpoint.Checkpoint(tensors, card))
    return card


def check_length(intervals: int, windows: int) -> None:
    """Raises InvalidInputError for episodes too short to tell noise that lasts from noise that is new (fit_noise)."""
    least = 4 * windows + 2
    if intervals < least:
        raise InvalidInputError(
            f"Episodes of {intervals} intervals are too short; collect them with --intervals {least} or more."
        )


def pairs_of(keys: Iterable[Hashable]) -> list[tuple[int, int]]:
    """Places of two that have one key, which no third has until they are paired."""
    pairs: list[tuple[int, int]] = []
    at: dict[Hashable, int] = {}
    for place, key in enumerate(keys):
        if key in at:
            pairs.append((at.pop(key), place))
        else:
            at[key] = place
    return pairs


def _pairs(episodes: Sequence[LoggedEpisode]) -> list[tuple[int, int]]:
    """Places of two episodes of one log that differ by their requests alone."""
    return pairs_of(
        (e.constants["rung"], e.constants["setting"], e.constants["driver"], e.workload.tobytes()) for e in episodes
    )


def described(episodes: Sequence[Any]) -> list[dict[str, Any]]:
    """How many episodes and intervals of which rung were logged, where and when."""
    keys = ("rung", "machine", "date", "code_version")
    counts: Counter[tuple[str, ...]] = Counter()
    for e in episodes:
        counts[tuple(e.constants[key] for key in keys)] += e.intervals
    return [dict(zip(keys, key, strict=True)) | {"intervals": count} for key, count in counts.items()]


def train(
    net: Networks,
    training: Any,
    held_out: Any,
    profile: Profile,
    settings: Settings,
    out: pathlib.Path,
    progress: Progress | None,
    loss_of: Loss,
) -> dict[str, float]:
    """Trains in place and leaves the weights of the best held-out loss; returns the losses there."""
    generator = torch.Generator().manual_seed(settings.seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=settings.rate)
    best, kept, since = float("inf"), copy.deepcopy(net.state_dict()), 0
    found: dict[str, float] = {}
    with open_scalars(out / "tensorboard", 0) as board:
        for step in range(1, settings.steps + 1):
            warm = min(1.0, step / 50)
            decay = 0.5 + 0.5 * np.cos(np.pi * step / settings.steps)
            optimiser.param_groups[0]["lr"] = settings.rate * warm * (decay + 0.005)
            batch = training.take(_draw(training, settings, generator))
            loss, _ = loss_of(net, batch, profile, generator)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 20.0)
            optimiser.step()
            board.add_scalar("loss/training", loss.item(), step)
            if step % settings.evaluate_every == 0 or step == settings.steps:
                with torch.no_grad():
                    value, parts = loss_of(net, held_out, profile, None)
                for name, part in parts.items():
                    board.add_scalar(f"held_out/{name}", part, step)
                if value.item() < best:
                    best, kept, since = value.item(), copy.deepcopy(net.state_dict()), 0
                    found = {"loss": best, "step": step, **parts}
                else:
                    since += 1
                if since >= settings.patience:
                    break
            if progress is not None:
                progress(step, settings.steps, {"held_out": best})
    net.load_state_dict(kept)
    return found


def _draw(data: Any, settings: Settings, generator: torch.Generator) -> NDArray[np.int64]:
    """Episodes of a batch; both rungs in fixed shares where there are both."""
    order = torch.randperm(data.lanes, generator=generator).numpy()
    measured = data.rung.numpy()[order] == RUNGS.index("measured")
    if measured.all() or not measured.any():
        return order[: settings.batch]
    count = min(max(1, round(settings.measured_share * settings.batch)), int(measured.sum()))
    return np.concatenate([order[measured][:count], order[~measured][: settings.batch - count]])


def losses(
    net: Networks, data: Dataset, profile: Profile, generator: torch.Generator | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The loss of whole episodes from cold caches on, and its part by field.

    Means by weighted squares, so that they are means; spreads by Gaussian likelihood, given the means; quantiles by
    the pinball loss on single requests: all of an interval's, or with a ``generator`` a sample of them.
    """
    windows = profile.interval.window // profile.interval.requests
    means, spreads, knots = outputs(net(data.x, data.rung), data.estimates)
    total, parts = torch.zeros(()), {}
    for name, target in data.targets.items():
        mean = _reported(means[name], name, windows)[data.warmup :]
        if name in ABSOLUTE:
            part = (0.5 * ((mean - target) / ABSOLUTE[name]) ** 2).mean()
        else:
            spread = spreads[name][data.warmup :]
            part = likelihood(mean, spread, target, target.abs().mean() + 1e-3).mean()
        parts[name] = part.item()
        total = total + WEIGHT.get(name, 1.0) * part
    requests = data.services
    if generator is not None:
        requests = requests[..., torch.randint(requests.shape[-1], (SAMPLED,), generator=generator)]
    pinball = pinball_loss(knots[data.warmup :], requests, means["service"].detach()[data.warmup :]).mean()
    parts["quantiles"] = pinball.item()
    return total + QUANTILES * pinball, parts


def likelihood(mean: Tensor, spread: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """A mean's weighted squares, linear beyond five spreads, and a spread's Gaussian likelihood given the mean."""
    error = ((mean - target) / spread.detach()).abs()
    fitted = torch.where(error < 5.0, 0.5 * error**2, 5.0 * error - 12.5)
    z = ((mean.detach() - target) / spread).clamp(-8.0, 8.0)
    return fitted + torch.log(spread / scale) + 0.5 * z**2


def pinball_loss(knots: Tensor, requests: Tensor, mean: Tensor) -> Tensor:
    """Of quantiles over their mean (T, rows, KNOTS) on ``requests`` (T, rows, count), ms, over ``mean``: (T, rows)."""
    above = requests[..., None, :] / mean[..., None, None] - knots[..., None]
    levels = torch.as_tensor(LEVELS.clip(*ENDS), dtype=above.dtype)[:, None]
    # The nearer to an end, the rarer is what moves a quantile: weighed up, the ends are learned as fast as the middle.
    weight = (0.25 / (levels[:, 0] * (1.0 - levels[:, 0]))).clamp(max=40.0)
    return (weight * torch.maximum(levels * above, (levels - 1.0) * above).mean(-1)).sum(-1)


def _reported(mean: Tensor, name: str, windows: int) -> Tensor:
    """As the log reports it: over the window, or over the interval. (T, lanes) or with the grid behind."""
    if name not in WINDOWED:
        return mean
    if mean.dim() == 2:
        return window(mean, windows)
    return torch.stack([window(mean[..., k], windows) for k in range(mean.shape[-1])], -1)


def _residuals(net: Networks, data: Dataset, profile: Profile) -> NDArray[np.float64]:
    """Residuals of the means over a window, over its spreads: (T, lanes, noise.FIELDS)."""
    windows = profile.interval.window // profile.interval.requests
    parts = []
    for first in range(0, data.lanes, 64):
        part = data.take(np.arange(first, min(first + 64, data.lanes)))
        with torch.no_grad():
            means, spreads, _ = outputs(net(part.x, part.rung), part.estimates)
        columns = {}
        for name, target in part.targets.items():
            if name in ABSOLUTE:
                continue
            error = target - _reported(means[name], name, windows)[part.warmup :]
            if name not in WINDOWED:
                error = window(error, windows)
            z = error / spreads[name][part.warmup :]
            if name == "predicted":
                for at, where in (("low", 1), ("middle", 4), ("high", 7)):
                    columns[f"predicted_{at}"] = z[..., where]
            else:
                columns[name] = z
        parts.append(torch.stack([columns[name] for name in FIELDS], -1).numpy())
    return np.concatenate(parts, axis=1).astype(np.float64)


def _said(net: Networks, data: Dataset) -> dict[str, Tensor]:
    """What the networks say of the fields that are often zero: (T, lanes) each."""
    with torch.no_grad():
        means, _, _ = outputs(net(data.x, data.rung), data.estimates)
    return {name: means[name][data.warmup :] for name in HURDLED}


def fit_hurdle(said: Mapping[str, Tensor], logged: Mapping[str, Tensor]) -> NDArray[np.float32]:
    """Below which value each of ``HURDLED`` stands for zero, so that as few as can be are taken for the other."""
    found = []
    for name in HURDLED:
        mean, zero = said[name].flatten().numpy(), (logged[name].flatten() == 0.0).numpy()
        order = np.argsort(mean)
        right = np.concatenate([[0], np.cumsum(np.where(zero[order], 1, -1))])  # with the first k taken for zero
        k = int(right.argmax())
        found.append(0.0 if k == 0 else mean[order[k - 1]] if k == len(mean) else mean[order[k - 1 : k + 1]].mean())
    return np.array(found, np.float32)
