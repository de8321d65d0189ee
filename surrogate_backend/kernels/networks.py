"""The networks, compiled, for a block of lanes: weights are scalars, lanes are vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from surrogate_backend.kernels.functions import F, kernel
from surrogate_backend.kernels.inputs import CACHES, USERS
from surrogate_backend.layout import CACHE_OUTPUTS, RUNGS, USER_OUTPUTS, Sizes

_LAYERS = (
    *("users.encode", "users.gate", "users_head", "users_out"),
    *("caches.encode", "caches.gate", "caches_head", "caches_out"),
)


class Widths(NamedTuple):
    """What networks have of rows and units; inputs and outputs filled up with zeros to multiples of four.

    Attributes:
        users, inputs: of the users' network's inputs, and of the caches' without the users' hidden state.
        said: of the caches' network's outputs.
        user_hidden, hidden, layer: see layout.Sizes.
        weights: in all.
        outputs: of ``run_networks``.
        state: hidden states, the users' and then the caches'.
        scratch: rows.
    """

    users: int
    inputs: int
    said: int
    user_hidden: int
    hidden: int
    layer: int
    weights: int
    outputs: int
    state: int
    scratch: int


def widths(users: int, caches: int, caches_out: int, sizes: Sizes) -> Widths:
    """Of networks with so many inputs and outputs."""
    u, i, s = (-(-count // 4) * 4 for count in (users, caches, caches_out))
    own, hidden, layer = sizes.user_hidden, sizes.hidden, sizes.layer
    rows_units = (
        *((u, layer), (layer, 2 * own), (layer + own, layer), (layer, USER_OUTPUTS)),
        *((i + own, layer), (layer, 2 * hidden), (layer + hidden, layer), (layer, s)),
    )
    weights = sum((rows + 1) * units for rows, units in rows_units)
    scratch = 2 * layer + 3 * max(own, hidden) + own
    return Widths(u, i, s, own, hidden, layer, weights, USER_OUTPUTS + s, own + hidden, scratch)


WIDTHS = widths(USERS, CACHES, CACHE_OUTPUTS, Sizes())
INPUTS, OUTPUTS, WEIGHTS, STATE, SCRATCH = WIDTHS.inputs, WIDTHS.outputs, WIDTHS.weights, WIDTHS.state, WIDTHS.scratch


def pack(
    tensors: Mapping[str, NDArray[np.float32]],
    rung: str,
    users: int = USERS,
    caches: int = CACHES,
    caches_out: int = CACHE_OUTPUTS,
    sizes: Sizes = Sizes(),  # noqa: B008  # frozen
) -> NDArray[np.float32]:
    """The weights of a checkpoint (``net.*``) for one rung, flat.

    Args:
        users, caches, caches_out, sizes: see ``widths``.
    """
    filled, parts = widths(users, caches, caches_out, sizes), []
    for name in _LAYERS:
        weight, bias = tensors[f"net.{name}.weight"], tensors[f"net.{name}.bias"]
        if name == "caches_head":
            bias = bias + tensors["net.rung"][RUNGS.index(rung)]
        elif name == "users.encode":
            weight = np.pad(weight, ((0, filled.users - users), (0, 0)))
        elif name == "caches.encode":
            weight = np.insert(weight, [caches] * (filled.inputs - caches), 0.0, axis=0)
        elif name == "caches_out":
            own = tensors["net.rung_out"][RUNGS.index(rung)]
            missing = filled.said - caches_out
            weight, bias = np.pad(weight + own[:-1], ((0, 0), (0, missing))), np.pad(bias + own[-1], (0, missing))
        parts += [weight.ravel(), bias]
    flat = np.concatenate(parts).astype(F)
    assert flat.shape == (filled.weights,)
    return flat


@kernel
def _bias(w, at, units, y, row, n, m):
    y, w = y[row * m :], w[at:]
    if m == 1:
        for j in range(units):
            y[j] = w[j]
        return
    for j in range(units):
        for k in range(n):
            y[j * m + k] = w[j]


@kernel
def _add(w, at, inputs, units, x, first, y, row, n, m):
    """Adds ``inputs`` rows of ``x`` from ``first``, by the weights at ``at``, to ``units`` rows of ``y`` from ``row``.

    Four inputs to four units at a time, so that what is loaded serves four times; both counts are multiples of four.
    """
    # Neither steps of four nor rows that start elsewhere than at 0: both keep the loops from becoming vectors.
    x, y, w = x[first * m :], y[row * m :], w[at:]
    if m == 1:  # units are the vector
        many = min(units, len(y))  # a count that the compiler knew it would unroll, and lose the vector
        for g in range(inputs // 4):
            b, c, d, e, i = x[4 * g], x[4 * g + 1], x[4 * g + 2], x[4 * g + 3], 4 * g * units
            p, q, r, s = w[i:], w[i + units :], w[i + 2 * units :], w[i + 3 * units :]
            for j in range(many):
                y[j] = (((y[j] + p[j] * b) + q[j] * c) + r[j] * d) + s[j] * e
        return
    for g in range(inputs // 4):
        i, a = 4 * g, 4 * g * m
        for h in range(units // 4):
            p, q = i * units + 4 * h, 4 * h * m
            for k in range(n):
                b, c, d, e = x[a + k], x[a + m + k], x[a + 2 * m + k], x[a + 3 * m + k]
                y[q + k] = (((y[q + k] + w[p] * b) + w[p + units] * c) + w[p + 2 * units] * d) + w[p + 3 * units] * e
                part = ((y[q + m + k] + w[p + 1] * b) + w[p + units + 1] * c) + w[p + 2 * units + 1] * d
                y[q + m + k] = part + w[p + 3 * units + 1] * e
                part = ((y[q + 2 * m + k] + w[p + 2] * b) + w[p + units + 2] * c) + w[p + 2 * units + 2] * d
                y[q + 2 * m + k] = part + w[p + 3 * units + 2] * e
                part = ((y[q + 3 * m + k] + w[p + 3] * b) + w[p + units + 3] * c) + w[p + 2 * units + 3] * d
                y[q + 3 * m + k] = part + w[p + 3 * units + 3] * e


@kernel
def _copy(x, y, row, rows, n, m):
    x, y = x[row * m :], y[row * m :]
    if m == 1:
        rows, n, m = 1, rows, rows  # rows of one column are one row, whose loop becomes vectors
    for j in range(rows):
        for k in range(n):
            y[j * m + k] = x[j * m + k]


@kernel
def _softsign(y, row, units, n, m):
    y = y[row * m :]
    if m == 1:
        units, n, m = 1, units, units  # rows of one column are one row, whose loop becomes vectors
    for j in range(units):
        for k in range(n):
            y[j * m + k] = y[j * m + k] / (F(1.0) + abs(y[j * m + k]))


@kernel
def _recur(t, gates_at, hidden, first, units, to, n, m):
    """h = (1 - z) h + z new, z and new in rows of ``t`` from ``gates_at``; softsign(h) into rows from ``to``."""
    gates, fresh, out = t[gates_at * m :], t[(gates_at + units) * m :], t[to * m :]
    hidden = hidden[first * m :]
    if m == 1:
        units, n, m = 1, units, units  # rows of one column are one row, whose loop becomes vectors
    for j in range(units):
        for k in range(n):
            gate = gates[j * m + k]
            gate = F(0.5) + F(0.5) * (gate / (F(1.0) + abs(gate)))
            h = hidden[j * m + k]
            h = (F(1.0) - gate) * h + gate * fresh[j * m + k]
            hidden[j * m + k] = h
            out[j * m + k] = h / (F(1.0) + abs(h))


@kernel
def run_networks(w, x, hidden, t, v, out, widths, n, m):
    """One interval of ``n`` lanes of a block: moves ``hidden`` (STATE rows) on and fills ``out`` (outputs rows).

    w: of ``pack``; x: inputs, filled up with rows of 0; t and v: scratch rows; widths: a constant of the
    caller, which is compiled in.
    """
    users, inputs, said_rows = widths.users, widths.inputs, widths.said
    layer, own, caches = widths.layer, widths.user_hidden, widths.hidden
    # One layer's weights behind the other's, each (inputs + 1, units), the last row the bias.
    u_gate = (users + 1) * layer
    u_head = u_gate + (layer + 1) * 2 * own
    u_out = u_head + (layer + own + 1) * layer
    c_encode = u_out + (layer + 1) * USER_OUTPUTS
    c_gate = c_encode + (inputs + own + 1) * layer
    c_head = c_gate + (layer + 1) * 2 * caches
    c_out = c_head + (layer + caches + 1) * layer
    # Scratch: encoding and hidden state (or head) of one network, its gates, and the users' hidden state.
    e, h = 0, layer
    g = layer + max(caches, own)
    p = g + 2 * max(caches, own)
    s = p + layer
    _bias(w, users * layer, layer, t, e, n, m)
    _add(w, 0, users, layer, x, 0, t, e, n, m)
    _softsign(t, e, layer, n, m)
    _bias(w, u_gate + layer * 2 * own, 2 * own, v, g, n, m)
    _add(w, u_gate, layer, 2 * own, t, e, v, g, n, m)
    _recur(v, g, hidden, 0, own, s, n, m)
    _bias(w, u_head + (layer + own) * layer, layer, v, p, n, m)
    _add(w, u_head, layer, layer, t, e, v, p, n, m)
    _copy(v, t, s, own, n, m)
    _add(w, u_head + layer * layer, own, layer, t, s, v, p, n, m)
    _softsign(v, p, layer, n, m)
    _bias(w, u_out + layer * USER_OUTPUTS, USER_OUTPUTS, out, 0, n, m)
    _add(w, u_out, layer, USER_OUTPUTS, v, p, out, 0, n, m)

    _bias(w, c_encode + (inputs + own) * layer, layer, v, e, n, m)
    _add(w, c_encode, inputs, layer, x, 0, v, e, n, m)
    _add(w, c_encode + inputs * layer, own, layer, t, s, v, e, n, m)
    _softsign(v, e, layer, n, m)
    _bias(w, c_gate + layer * 2 * caches, 2 * caches, t, g, n, m)
    _add(w, c_gate, layer, 2 * caches, v, e, t, g, n, m)
    _recur(t, g, hidden, own, caches, h, n, m)
    _bias(w, c_head + (layer + caches) * layer, layer, t, e, n, m)
    _add(w, c_head, layer, layer, v, e, t, e, n, m)
    _copy(t, v, h, caches, n, m)
    _add(w, c_head + layer * layer, caches, layer, v, h, t, e, n, m)
    _softsign(t, e, layer, n, m)
    _bias(w, c_out + layer * said_rows, said_rows, out, USER_OUTPUTS, n, m)
    _add(w, c_out, layer, said_rows, t, e, out, USER_OUTPUTS, n, m)
