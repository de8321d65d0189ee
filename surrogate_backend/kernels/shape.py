"""How service times spread within an interval: the quantiles that the cost model gives for hits and misses.

A request that hits the KV cache computes its new tokens alone, one that misses its whole history too. Within either
kind, histories spread as the population's do (log-normally, up to the model's maximum). The networks correct the
quantiles; alone they are within some ten per cent, in the tail too, for what makes a request slow is known.
"""

from __future__ import annotations

from surrogate_backend.kernels.functions import F, growth, kernel
from surrogate_backend.layout import ENDS, KNOTS, LEVELS

_LEVELS = LEVELS.clip(*ENDS).astype(F)


@kernel
def _normal_quantile(p):
    """Within .06 of the normal distribution's quantile from .005 to .995, and bounded beyond."""
    x = p * (F(1.0) - p)
    return (F(2.0) * p - F(1.0)) * (F(0.0906) + F(1.1222) * x) / (F(0.0318) + x)


@kernel
def shape(scalars, history, fresh_tokens, hit_rate, recomputed, missed_rows, out, n, m):
    """Fills KNOTS rows: service times (ms) at ``LEVELS``, ascending but for what joins hits and misses.

    One row each of ``n`` lanes: mean history, new tokens that are not recomputed, KV hit rate, recomputed tokens and
    missed embedding rows a request. scalars: fluid.Constants'.
    """
    base_ms, per_token, per_pair, per_context = scalars[7], scalars[8], scalars[9], scalars[10]
    latency_ms, row_ms, sigma, longest = scalars[11], scalars[12], scalars[13], scalars[14]
    for i in range(KNOTS):
        level, quantile = _LEVELS[i], out[i * m :]
        for k in range(n):
            hit, again, fresh = min(max(hit_rate[k], F(0.01)), F(0.99)), recomputed[k], fresh_tokens[k]
            missing = level > hit
            share = F(1.0) - hit if missing else hit
            length = again / share if missing else max(history[k] - again, F(1.0)) / share
            p = (level - hit) / share if missing else level / share
            p = min(max(p, F(0.002)), F(0.998))
            # Log-normal around a mean of ``length``, which lies above its median.
            length = min(length * growth(sigma * (_normal_quantile(p) - F(0.5) * sigma)), longest)
            tokens = fresh + length if missing else fresh
            per_new = per_token + per_pair * length + row_ms * missed_rows[k] / (fresh + again)
            quantile[k] = base_ms + latency_ms + tokens * per_new + per_context * length
