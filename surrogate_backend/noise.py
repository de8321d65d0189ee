"""The noise of an interval, from a log that serves each setting twice: what stays for long, and what is new each time.

Two episodes of one setting differ by noise alone, whatever a fit's errors are. Their differences, over the spreads that
the networks predict, field by field, are split by their autocovariance at lags that no two windows share: ``slow`` has
common persistence and stays because the users of an episode stay; ``fast`` is the rest. Sampling (kernels/fields.py)
draws the fast part by its Cholesky factor, service first, whose draw is what the interval's single requests came to:
what a controller sees of users, hits and misses then goes with the latency.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FIELDS = (
    *("service", "history", "unique", "returning", "predicted_low", "predicted_middle", "predicted_high"),
    *("kv_hit", "emb_hit", "recomputed", "emb_gain", "emb_loss", "kv_gain", "kv_loss"),
)
SERVICE = FIELDS.index("service")
SLOW = 4  # independent factors of the slow part


class Noise(NamedTuple):
    """Attributes:
    fast: float32 (fields, fields), lower triangular, of an interval's own noise in units of spreads.
    slow: float32 (fields, SLOW), loadings of the persistent factors, each of variance one.
    persistence: float32 (1,), of those factors from one interval to the next.
    """

    fast: NDArray[np.float32]
    slow: NDArray[np.float32]
    persistence: NDArray[np.float32]


def fit_noise(differences: NDArray[np.float64], window: int) -> Noise:
    """Fits both parts.

    Args:
        differences: (T, pairs, fields), between two episodes of a setting, of means over a window of ``window``
            intervals in units of spreads, divided by the square root of two.
        window: intervals.
    """
    z = np.clip(differences, -6.0, 6.0)

    def covariance(lag: int) -> NDArray[np.float64]:
        a, b = z[: len(z) - lag], z[lag:]
        product = np.einsum("tlf,tlg->fg", a, b) / (a.shape[0] * a.shape[1])
        return np.asarray(0.5 * (product + product.T))

    near, far = covariance(window + 1), covariance(3 * window + 1)
    ratio = float(np.clip(np.trace(far) / max(np.trace(near), 1e-9), 0.05, 0.999))
    persistence = ratio ** (1.0 / (2 * window))
    lasting = _psd(near / persistence ** (window + 1))
    values, vectors = np.linalg.eigh(lasting)
    top = np.argsort(values)[::-1][:SLOW]
    slow = vectors[:, top] * np.sqrt(values[top])
    # A window's mean of independent draws has a ``window``-th of an interval's variance.
    fast = _psd(covariance(0) - slow @ slow.T) * window
    factor = np.linalg.cholesky(fast + 1e-4 * np.eye(len(fast)))
    return Noise(factor.astype(np.float32), slow.astype(np.float32), np.array([persistence], np.float32))


def _psd(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)
