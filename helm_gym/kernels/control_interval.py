"""The control loop's compiled passes over all lanes and nodes: action, allocation, observation, cost.

Each reads its arrays once and writes into arrays that it is given; their callers put mistakes into sentences.
Modules that are loaded without a loop come here through ``helm_gym.kernels.lazy``.
"""

from __future__ import annotations

import numpy as np

from helm_gym.kernels.jit import kernel
from helm_gym.observation_schema import COLUMNS, FAST, PLACES
from helm_gym.reward import COST_FIELDS
from helm_gym.telemetry import COLUMN

# The declared columns as arrays, frozen into the machine code: where each comes from, and its bounds.
_SOURCE = np.array([COLUMN[c.field] + k for c in COLUMNS for k in range(c.width)])
_LOW = np.array([c.low for c in COLUMNS for _ in range(c.width)], np.float64)
_HIGH = np.array([c.high for c in COLUMNS for _ in range(c.width)], np.float64)
_COUNT = len(_SOURCE)
_LOGS = np.array([PLACES[c.name].start for c in COLUMNS if c.log_top])
_PER_TOP = np.array([1.0 / np.log1p(c.log_top) for c in COLUMNS if c.log_top])
_LOG_COUNT = len(_LOGS)
_RATIOS = np.array([PLACES[c.name].start for c in COLUMNS if c.over])
_OVER = np.array([COLUMN[c.over] for c in COLUMNS if c.over])
_RATIO_COUNT = len(_RATIOS)
_FAST = np.array([PLACES[name].start for name in FAST])
_FAST_COUNT = len(_FAST)
_LEAST = 1e-6  # of a ratio's two sides
_COST_COLUMNS = np.array([COLUMN[name] for name in COST_FIELDS])
_TERM_COUNT = len(_COST_COLUMNS)


@kernel
def _clip(x, low, high):
    """NaN stays NaN, as with ``numpy.clip``: a backend's mistake must not look like a measurement."""
    x = low if x < low else x
    return high if x > high else x


@kernel
def next_target(target, action, absolute, low, high, step, out):
    """``out`` (lanes, nodes): the targets that ``action`` (lanes, nodes, 1) asks for; False if one is not finite."""
    finite = True
    for lane in range(target.shape[0]):
        for node in range(target.shape[1]):
            a = np.float64(action[lane, node, 0])
            finite &= np.isfinite(a)
            a = _clip(a, -1.0, 1.0)
            if absolute:
                out[lane, node] = low + 0.5 * (a + 1.0) * (high - low)
            else:
                out[lane, node] = _clip(target[lane, node] + a * step, low, high)
    return finite


@kernel
def finite(value, values):
    """Whether ``value`` and all of ``values`` (rows, columns) are."""
    good = np.isfinite(value)
    for row in range(values.shape[0]):
        for k in range(values.shape[1]):
            good &= np.isfinite(values[row, k])
    return good


@kernel
def to_pages(allocation, low, high, pages, out):
    """``out`` (lanes, nodes): whole pages of ``allocation``; False if one is not within [low, high] or not finite."""
    within = True
    for lane in range(allocation.shape[0]):
        for node in range(allocation.shape[1]):
            alpha = allocation[lane, node]
            within &= (alpha >= low) & (alpha <= high)
            out[lane, node] = np.int64(np.rint(alpha * pages))
    return within


@kernel
def within(values, low, high, positive):
    """Whether values (lanes, parameters) are numbers from ``low`` to ``high``, and above 0 in column ``positive``."""
    good = True
    for lane in range(values.shape[0]):
        for k in range(values.shape[1]):
            good &= (values[lane, k] >= low[k]) & (values[lane, k] <= high[k])
        good &= values[lane, positive] > 0.0
    return good


@kernel
def observe(values, per_scale, memory, out):
    """``out`` (lanes, nodes, width) from telemetry (lanes, nodes, WIDTH).

    per_scale: (source columns,), one over each one's scale.
    memory: (lanes, nodes, fast), the fast-moving columns of the last interval, NaN in the first; replaced by these.
    """
    for lane in range(values.shape[0]):
        for node in range(values.shape[1]):
            row, shown, last = values[lane, node], out[lane, node], memory[lane, node]
            for j in range(_COUNT):  # of all, so that it compiles to vector instructions; logs and ratios follow
                shown[j] = _clip(row[_SOURCE[j]] * per_scale[j], _LOW[j], _HIGH[j])
            for k in range(_LOG_COUNT):
                j = _LOGS[k]
                x = row[_SOURCE[j]] * per_scale[j]
                shown[j] = _clip(np.log1p(0.0 if x < 0.0 else x) * _PER_TOP[k], _LOW[j], _HIGH[j])
            for k in range(_RATIO_COUNT):
                j = _RATIOS[k]
                x, over = row[_SOURCE[j]], row[_OVER[k]]
                ratio = (_LEAST if x < _LEAST else x) / (_LEAST if over < _LEAST else over)
                shown[j] = _clip(np.log10(ratio), _LOW[j], _HIGH[j])
            for k in range(_FAST_COUNT):
                now = shown[_FAST[k]]
                change = np.float32(0.0) if np.isnan(last[k]) else now - last[k]
                shown[_COUNT + k] = _clip(change, np.float32(-1.0), np.float32(1.0))
                last[k] = now


@kernel
def compute_cost(values, coefficients, reward, terms):
    """``terms`` (terms, lanes) and ``reward`` (lanes,), their negative sum, from telemetry (lanes, nodes, WIDTH).

    coefficients: (terms,), see ``reward.cost_coefficients``.
    """
    for lane in range(values.shape[0]):
        cost = 0.0
        for k in range(_TERM_COUNT):
            term = 0.0
            for node in range(values.shape[1]):
                term += abs(values[lane, node, _COST_COLUMNS[k]]) * coefficients[k]
            term /= values.shape[1]
            terms[k, lane] = term
            cost += term
        reward[lane] = -cost


@kernel
def outcome(values, per_scale, memory, coefficients, observation, reward, terms):
    """``observe`` and ``compute_cost`` in one call: calling is most of what either takes for a single lane."""
    observe(values, per_scale, memory, observation)
    compute_cost(values, coefficients, reward, terms)
