"""The ensemble, compiled, for a block of lanes: weights are scalars, lanes are vectors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from surrogate_backend.kernels.functions import F, kernel
from surrogate_backend.kernels.inputs import CACHES, USERS
from surrogate_backend.layout import CACHE_FIELDS, CACHE_OUTPUTS, RUNGS, USER_OUTPUTS, Sizes

_SIZES = Sizes()
MEMBERS, LAYER = _SIZES.members, _SIZES.layer
USER_HIDDEN, HIDDEN = _SIZES.user_hidden, _SIZES.hidden
_SERVICE = CACHE_FIELDS.index("service")
STATE = MEMBERS * (USER_HIDDEN + HIDDEN)  # rows: users' hidden states, then caches'
_USERS, INPUTS, _SAID = (-(-count // 4) * 4 for count in (USERS, CACHES, CACHE_OUTPUTS))  # filled up with zeros
OUTPUTS = USER_OUTPUTS + _SAID + 2  # the last two: least and largest of what members say of the service time

_LAYERS = (
    *("users.encode", "users.gate", "users_head", "users_out"),
    *("caches.encode", "caches.gate", "caches_head", "caches_out"),
)
# Places of one member's layers in its flat weights; each (inputs + 1, units), the last row the bias.
_U_ENCODE = 0
_U_GATE = _U_ENCODE + (_USERS + 1) * LAYER
_U_HEAD = _U_GATE + (LAYER + 1) * 2 * USER_HIDDEN
_U_OUT = _U_HEAD + (LAYER + USER_HIDDEN + 1) * LAYER
_C_ENCODE = _U_OUT + (LAYER + 1) * USER_OUTPUTS
_C_GATE = _C_ENCODE + (INPUTS + USER_HIDDEN + 1) * LAYER
_C_HEAD = _C_GATE + (LAYER + 1) * 2 * HIDDEN
_C_OUT = _C_HEAD + (LAYER + HIDDEN + 1) * LAYER
WEIGHTS = _C_OUT + (LAYER + 1) * _SAID

# Scratch rows of a block: encoding and hidden state (or head) of one network, its gates, and the users' hidden state.
_E, _H = 0, LAYER
_G = LAYER + max(HIDDEN, USER_HIDDEN)
_P = _G + 2 * max(HIDDEN, USER_HIDDEN)
_S = _P + LAYER
SCRATCH = _S + USER_HIDDEN


def pack(tensors: Mapping[str, NDArray[np.float32]], rung: str) -> NDArray[np.float32]:
    """The weights of a checkpoint (``net.*``) for one rung, flat, member after member; outputs are their mean."""
    members = []
    for m in range(MEMBERS):
        parts = []
        for name in _LAYERS:
            weight, bias = tensors[f"net.{name}.weight"][m], tensors[f"net.{name}.bias"][m]
            if name == "caches_head":
                bias = bias + tensors["net.rung"][m, RUNGS.index(rung)]
            elif name == "users.encode":
                weight = np.pad(weight, ((0, _USERS - USERS), (0, 0)))
            elif name == "caches.encode":
                weight = np.insert(weight, [CACHES] * (INPUTS - CACHES), 0.0, axis=0)
            elif name == "caches_out":
                own = tensors["net.rung_out"][m, RUNGS.index(rung)]
                both = weight + own[:-1], bias + own[-1:]
                weight, bias = (np.pad(part, ((0, 0), (0, _SAID - CACHE_OUTPUTS))) for part in both)
            scale = MEMBERS if name.endswith("out") else 1
            parts += [weight.ravel() / scale, bias.ravel() / scale]
        members.append(np.concatenate(parts))
    flat = np.stack(members).astype(F)
    assert flat.shape == (MEMBERS, WEIGHTS)
    return flat.ravel()


@kernel
def _bias(w, at, units, y, row, n, m):
    y = y[row * m :]
    for j in range(units):
        for k in range(n):
            y[j * m + k] = w[at + j]


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
            b, c, d, e, v = x[4 * g], x[4 * g + 1], x[4 * g + 2], x[4 * g + 3], w[4 * g * units :]
            for j in range(many):
                y[j] = (((y[j] + v[j] * b) + v[units + j] * c) + v[2 * units + j] * d) + v[3 * units + j] * e
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
def _softsign(y, row, units, n, m):
    y = y[row * m :]
    for j in range(units):
        for k in range(n):
            y[j * m + k] = y[j * m + k] / (F(1.0) + abs(y[j * m + k]))


@kernel
def _recur(t, hidden, first, units, to, n, m):
    """h = (1 - z) h + z new, z and new in the gates' rows; softsign(h) into rows from ``to``."""
    gates, fresh, out = t[_G * m :], t[(_G + units) * m :], t[to * m :]
    hidden = hidden[first * m :]
    for j in range(units):
        for k in range(n):
            gate = gates[j * m + k]
            gate = F(0.5) + F(0.5) * (gate / (F(1.0) + abs(gate)))
            h = hidden[j * m + k]
            h = (F(1.0) - gate) * h + gate * fresh[j * m + k]
            hidden[j * m + k] = h
            out[j * m + k] = h / (F(1.0) + abs(h))


@kernel
def run_networks(weights, x, hidden, t, v, out, n, m):
    """One interval of ``n`` lanes of a block: moves ``hidden`` (STATE rows) on and fills ``out`` (OUTPUTS rows).

    weights: of ``pack``; x: inputs, INPUTS rows, those past CACHES 0; t and v: scratch, SCRATCH rows each.
    """
    for j in range(USER_OUTPUTS + _SAID):
        for k in range(n):
            out[j * m + k] = F(0.0)
    for k in range(n):
        out[(OUTPUTS - 2) * m + k], out[(OUTPUTS - 1) * m + k] = F(1e9), F(-1e9)
    for member in range(MEMBERS):
        w = weights[member * WEIGHTS : (member + 1) * WEIGHTS]
        _bias(w, _U_ENCODE + _USERS * LAYER, LAYER, t, _E, n, m)
        _add(w, _U_ENCODE, _USERS, LAYER, x, 0, t, _E, n, m)
        _softsign(t, _E, LAYER, n, m)
        _bias(w, _U_GATE + LAYER * 2 * USER_HIDDEN, 2 * USER_HIDDEN, v, _G, n, m)
        _add(w, _U_GATE, LAYER, 2 * USER_HIDDEN, t, _E, v, _G, n, m)
        _recur(v, hidden, member * USER_HIDDEN, USER_HIDDEN, _S, n, m)
        _bias(w, _U_HEAD + (LAYER + USER_HIDDEN) * LAYER, LAYER, v, _P, n, m)
        _add(w, _U_HEAD, LAYER, LAYER, t, _E, v, _P, n, m)
        for j in range(USER_HIDDEN):
            for k in range(n):
                t[(_S + j) * m + k] = v[(_S + j) * m + k]
        _add(w, _U_HEAD + LAYER * LAYER, USER_HIDDEN, LAYER, t, _S, v, _P, n, m)
        _softsign(v, _P, LAYER, n, m)
        _add(w, _U_OUT, LAYER, USER_OUTPUTS, v, _P, out, 0, n, m)
        for j in range(USER_OUTPUTS):
            for k in range(n):
                out[j * m + k] += w[_U_OUT + LAYER * USER_OUTPUTS + j]

        _bias(w, _C_ENCODE + (INPUTS + USER_HIDDEN) * LAYER, LAYER, v, _E, n, m)
        _add(w, _C_ENCODE, INPUTS, LAYER, x, 0, v, _E, n, m)
        _add(w, _C_ENCODE + INPUTS * LAYER, USER_HIDDEN, LAYER, t, _S, v, _E, n, m)
        _softsign(v, _E, LAYER, n, m)
        _bias(w, _C_GATE + LAYER * 2 * HIDDEN, 2 * HIDDEN, t, _G, n, m)
        _add(w, _C_GATE, LAYER, 2 * HIDDEN, v, _E, t, _G, n, m)
        _recur(t, hidden, MEMBERS * USER_HIDDEN + member * HIDDEN, HIDDEN, _H, n, m)
        _bias(w, _C_HEAD + (LAYER + HIDDEN) * LAYER, LAYER, t, _E, n, m)
        _add(w, _C_HEAD, LAYER, LAYER, v, _E, t, _E, n, m)
        for j in range(HIDDEN):
            for k in range(n):
                v[(_H + j) * m + k] = t[(_H + j) * m + k]
        _add(w, _C_HEAD + LAYER * LAYER, HIDDEN, LAYER, v, _H, t, _E, n, m)
        _softsign(t, _E, LAYER, n, m)
        alone = v[_G * m :]  # what this member alone says of the service time
        for k in range(n):
            alone[k] = w[_C_OUT + LAYER * _SAID + _SERVICE]
        for j in range(LAYER):
            for k in range(n):
                alone[k] += t[(_E + j) * m + k] * w[_C_OUT + j * _SAID + _SERVICE]
        low, high = out[(OUTPUTS - 2) * m :], out[(OUTPUTS - 1) * m :]
        for k in range(n):
            said = alone[k] * F(MEMBERS)
            low[k], high[k] = min(low[k], said), max(high[k], said)
        _add(w, _C_OUT, LAYER, _SAID, t, _E, out, USER_OUTPUTS, n, m)
        for j in range(_SAID):
            for k in range(n):
                out[(USER_OUTPUTS + j) * m + k] += w[_C_OUT + LAYER * _SAID + j]
