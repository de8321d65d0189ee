"""Bootstrap intervals of a board's entries: of policies over episodes, of methods over training seeds and episodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from helm_gym.evaluation.statistics import CONFIDENCE, RESAMPLES, Figure, iqm, ratio_of_gains

Values = NDArray[np.float64]
Scale = tuple[Values, Values]
Indices = NDArray[np.int64]

_SEED = 15  # of every bootstrap: the same scores, the same interval
_ENDS = (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE))
_BATCH = 100  # resamples at a time: what they take stays in the processor's caches
_MOST_KEPT = 20_000


def generator() -> np.random.Generator:
    """A bootstrap's, the same for each."""
    return np.random.default_rng(_SEED)


class Intervals:
    """Latency and score of entries with their intervals, each computed once: an entry's figures never change."""

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, bytes, tuple[int, ...]], tuple[Figure, Figure]] = {}

    def of(self, entries: Sequence[Values], scale: Scale | None) -> list[tuple[Figure, Figure]]:
        """(latency, score) of each entry; the score is NaN where there is no scale.

        Args:
            entries: latency by episode, (members, episodes), of each.
            scale: latency by episode of what is 0 and of what is 1, (episodes,) each.
        """
        under = b"" if scale is None else np.concatenate(scale).tobytes()
        keys = [(values.tobytes(), under, values.shape) for values in entries]
        new = {key: values for key, values in zip(keys, entries, strict=True) if key not in self._kept}
        if len(self._kept) + len(new) > _MOST_KEPT:
            self._kept.clear()
            new = dict(zip(keys, entries, strict=True))
        policies = [key for key, values in new.items() if len(values) == 1]
        if policies:
            self._kept |= zip(policies, _over_episodes(np.stack([new[key][0] for key in policies]), scale), strict=True)
        for key, values in new.items():
            if len(values) > 1:
                self._kept[key] = _over_members(values, scale)
        return [self._kept[key] for key in keys]


def _over_episodes(policies: Values, scale: Scale | None) -> list[tuple[Figure, Figure]]:
    """Policies, (entries, episodes), with the same resamples of the episodes for all of them."""

    def resampled(samples: tuple[Values, ...], statistic: Callable[..., Values]) -> list[Figure]:
        value = statistic(*samples, axis=-1)
        if policies.shape[1] < 2:
            return [Figure(float(each)) for each in value]
        with np.errstate(invalid="ignore"):  # an end between two infinite resamples
            interval = stats.bootstrap(
                samples,
                statistic,
                paired=True,
                axis=-1,
                vectorized=True,
                n_resamples=RESAMPLES,
                batch=_BATCH,
                confidence_level=CONFIDENCE,
                method="percentile",
                rng=generator(),
            ).confidence_interval
        return [Figure(*map(float, ends)) for ends in zip(value, interval.low, interval.high, strict=True)]

    latency = resampled((policies,), iqm)
    if scale is None:
        return [(figure, Figure(math.nan)) for figure in latency]
    null, oracle = (np.broadcast_to(each, policies.shape) for each in scale)
    shares = resampled((null, policies, oracle), _share)
    return [(figure, _bounded(share, policies.shape[1])) for figure, share in zip(latency, shares, strict=True)]


def _share(null: Values, policy: Values, oracle: Values, axis: int) -> Values:
    return ratio_of_gains(iqm(null - policy, axis), iqm(null - oracle, axis))


def _bounded(share: Figure, episodes: int) -> Figure:
    """As ``statistics.captured_share``: no score where the oracle's gain cannot be told from nothing."""
    known = math.isfinite(share.value) and (episodes < 2 or math.isfinite(share.low + share.high))
    return share if known else Figure(math.nan)


def _over_members(method: Values, scale: Scale | None) -> tuple[Figure, Figure]:
    null, oracle = scale if scale is not None else (np.zeros(method.shape[1]),) * 2
    latency, share = crossed_bootstrap(
        [method],
        lambda members, episodes: _latency_and_share(method, null, oracle, members[0], episodes),
    )
    return latency, _bounded(share, method.shape[1]) if scale is not None else Figure(math.nan)


def _latency_and_share(method: Values, null: Values, oracle: Values, members: Indices, episodes: Indices) -> Values:
    drawn = _grid(method, members, episodes)
    gain = iqm((null[episodes][:, None, :] - drawn).reshape(len(drawn), -1))
    best = iqm(null[episodes] - oracle[episodes])
    return np.stack([iqm(drawn.reshape(len(drawn), -1)), ratio_of_gains(gain, best)])


def _grid(method: Values, members: Indices, episodes: Indices) -> Values:
    """(resamples, members, episodes) of a method's figures."""
    return method[members[:, :, None], episodes[:, None, :]]


def difference_of_methods(first: Values, second: Values) -> Figure:
    """IQM of the first's figures less that of the second's, (members, episodes) each, paired by episode.

    The interval covers other training seeds of each, and other episodes, which are the same for both.
    """

    def statistic(members: Sequence[Indices], episodes: Indices) -> Values:
        one, other = (
            iqm(_grid(values, drawn, episodes).reshape(len(episodes), -1))
            for values, drawn in zip((first, second), members, strict=True)
        )
        return (one - other)[None]

    (found,) = crossed_bootstrap([first, second], statistic)
    return found


def crossed_bootstrap(
    methods: Sequence[Values], statistic: Callable[[Sequence[Indices], Indices], Values]
) -> list[Figure]:
    """Percentile intervals where members and episodes are both drawn again (the pigeonhole bootstrap, Owen 2007).

    A training seed that is bad is bad in all episodes, and a hard episode is hard for all members: each is drawn as a
    whole. Members are drawn within their method, episodes for all methods together.

    Args:
        methods: (members, episodes) of each.
        statistic: of indices of members, (resamples, members) of each method, and of episodes, (resamples, episodes);
            returns (figures, resamples).
    """
    rng, episodes = generator(), methods[0].shape[1]
    own = statistic([np.arange(len(method))[None] for method in methods], np.arange(episodes)[None])[:, 0]
    drawn = []
    for _ in range(RESAMPLES // _BATCH):
        columns = rng.integers(0, episodes, (_BATCH, episodes))
        members = [rng.integers(0, len(method), (_BATCH, len(method))) for method in methods]
        drawn.append(statistic(members, columns))
    with np.errstate(invalid="ignore"):  # an end between two infinite resamples
        low, high = np.percentile(np.concatenate(drawn, axis=1), _ENDS, axis=1)
    return [Figure(*map(float, ends)) for ends in zip(own, low, high, strict=True)]
