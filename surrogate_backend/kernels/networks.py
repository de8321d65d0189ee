"""The ensemble, compiled, for a block of lanes: weights are scalars, lanes are vectors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from surrogate_backend.kernels.functions import LANES, F, kernel
from surrogate_backend.kernels.inputs import CACHES, USERS
from surrogate_backend.layout import CACHE_FIELDS, CACHE_OUTPUTS, RUNGS, USER_OUTPUTS, Sizes

_SIZES = Sizes()
MEMBERS, LAYER = _SIZES.members, _SIZES.layer
USER_HIDDEN, HIDDEN = _SIZES.user_hidden, _SIZES.hidden
_SERVICE = CACHE_FIELDS.index("service")
STATE = MEMBERS * (USER_HIDDEN + HIDDEN)  # rows: users' hidden states, then caches'
OUTPUTS = USER_OUTPUTS + CACHE_OUTPUTS + 2  # the last two: least and largest of what members say of the service time

_LAYERS = (
    *("users.encode", "users.gate", "users_head", "users_out"),
    *("caches.encode", "caches.gate", "caches_head", "caches_out"),
)
# Places of one member's layers in its flat weights; each (inputs + 1, units), the last row the bias.
_U_ENCODE = 0
_U_GATE = _U_ENCODE + (USERS + 1) * LAYER
_U_HEAD = _U_GATE + (LAYER + 1) * 2 * USER_HIDDEN
_U_OUT = _U_HEAD + (LAYER + USER_HIDDEN + 1) * LAYER
_C_ENCODE = _U_OUT + (LAYER + 1) * USER_OUTPUTS
_C_GATE = _C_ENCODE + (CACHES + USER_HIDDEN + 1) * LAYER
_C_HEAD = _C_GATE + (LAYER + 1) * 2 * HIDDEN
_C_OUT = _C_HEAD + (LAYER + HIDDEN + 1) * LAYER
WEIGHTS = _C_OUT + (LAYER + 1) * CACHE_OUTPUTS

# Scratch rows of a block: encoding and hidden state (or head) of one network, its gates, and the users' hidden state.
_E, _H = 0, LAYER
_G = LAYER + max(HIDDEN, USER_HIDDEN)
_P = _G + 2 * max(HIDDEN, USER_HIDDEN)
_S = _P + LAYER
SCRATCH = _S + USER_HIDDEN
WIDEST = max(2 * HIDDEN, LAYER, CACHE_OUTPUTS)


def pack(tensors: Mapping[str, NDArray[np.float32]], rung: str) -> NDArray[np.float32]:
    """The weights of a checkpoint (``net.*``) for one rung, flat, member after member; outputs are their mean."""
    members = []
    for m in range(MEMBERS):
        parts = []
        for name in _LAYERS:
            weight, bias = tensors[f"net.{name}.weight"][m], tensors[f"net.{name}.bias"][m]
            if name == "caches_head":
                bias = bias + tensors["net.rung"][m, RUNGS.index(rung)]
            scale = MEMBERS if name.endswith("out") else 1
            parts += [weight.ravel() / scale, bias.ravel() / scale]
        members.append(np.concatenate(parts))
    flat = np.stack(members).astype(F)
    assert flat.shape == (MEMBERS, WEIGHTS)
    return flat.ravel()


@kernel
def _bias(w, at, units, y, row, n):
    for j in range(units):
        for k in range(n):
            y[(row + j) * LANES + k] = w[at + j]


@kernel
def _add(w, at, inputs, units, x, first, y, row, z, n):
    """Adds ``inputs`` rows of ``x`` from ``first``, by the weights at ``at``, to ``units`` rows of ``y`` from ``row``.

    Every lane sums its inputs in their order. One lane alone has no others to fill a vector with, so there the units
    do, through ``z``, scratch of at least ``units``; what is multiplied and added is the same.
    """
    if n == 1:
        for j in range(units):
            z[j] = y[(row + j) * LANES]
        for i in range(inputs):
            a, p = x[(first + i) * LANES], at + i * units
            for j in range(units):
                z[j] = z[j] + w[p + j] * a
        for j in range(units):
            y[(row + j) * LANES] = z[j]
        return
    groups = inputs // 4
    for g in range(groups):
        i = 4 * g
        a, b, c, d = (first + i) * LANES, (first + i + 1) * LANES, (first + i + 2) * LANES, (first + i + 3) * LANES
        for j in range(units):
            p = at + i * units + j
            s, t, u, v = w[p], w[p + units], w[p + 2 * units], w[p + 3 * units]
            q = (row + j) * LANES
            for k in range(n):
                total = y[q + k] + s * x[a + k]
                total = total + t * x[b + k]
                total = total + u * x[c + k]
                y[q + k] = total + v * x[d + k]
    for i in range(4 * groups, inputs):
        for j in range(units):
            s, q = w[at + i * units + j], (row + j) * LANES
            for k in range(n):
                y[q + k] += s * x[(first + i) * LANES + k]


@kernel
def _softsign(y, row, units, n):
    for j in range(row, row + units):
        for k in range(n):
            y[j * LANES + k] = y[j * LANES + k] / (F(1.0) + abs(y[j * LANES + k]))


@kernel
def _recur(t, hidden, first, units, to, n):
    """h = (1 - z) h + z new, z and new in the gates' rows; softsign(h) into rows from ``to``."""
    for j in range(units):
        for k in range(n):
            gate = t[(_G + j) * LANES + k]
            gate = F(0.5) + F(0.5) * (gate / (F(1.0) + abs(gate)))
            h = hidden[(first + j) * LANES + k]
            h = (F(1.0) - gate) * h + gate * t[(_G + units + j) * LANES + k]
            hidden[(first + j) * LANES + k] = h
            t[(to + j) * LANES + k] = h / (F(1.0) + abs(h))


@kernel
def run_networks(weights, x, hidden, t, v, z, out, n):
    """One interval of ``n`` lanes of a block: moves ``hidden`` (STATE rows) on and fills ``out`` (OUTPUTS rows).

    weights: of ``pack``; x: inputs, rows; t and v: scratch (SCRATCH rows each); z: scratch (WIDEST,).
    """
    for j in range(USER_OUTPUTS + CACHE_OUTPUTS):
        for k in range(n):
            out[j * LANES + k] = F(0.0)
    for k in range(n):
        out[(OUTPUTS - 2) * LANES + k], out[(OUTPUTS - 1) * LANES + k] = F(1e9), F(-1e9)
    for m in range(MEMBERS):
        w = weights[m * WEIGHTS : (m + 1) * WEIGHTS]
        _bias(w, _U_ENCODE + USERS * LAYER, LAYER, t, _E, n)
        _add(w, _U_ENCODE, USERS, LAYER, x, 0, t, _E, z, n)
        _softsign(t, _E, LAYER, n)
        _bias(w, _U_GATE + LAYER * 2 * USER_HIDDEN, 2 * USER_HIDDEN, v, _G, n)
        _add(w, _U_GATE, LAYER, 2 * USER_HIDDEN, t, _E, v, _G, z, n)
        _recur(v, hidden, m * USER_HIDDEN, USER_HIDDEN, _S, n)
        _bias(w, _U_HEAD + (LAYER + USER_HIDDEN) * LAYER, LAYER, v, _P, n)
        _add(w, _U_HEAD, LAYER, LAYER, t, _E, v, _P, z, n)
        for j in range(USER_HIDDEN):
            for k in range(n):
                t[(_S + j) * LANES + k] = v[(_S + j) * LANES + k]
        _add(w, _U_HEAD + LAYER * LAYER, USER_HIDDEN, LAYER, t, _S, v, _P, z, n)
        _softsign(v, _P, LAYER, n)
        _add(w, _U_OUT, LAYER, USER_OUTPUTS, v, _P, out, 0, z, n)
        for j in range(USER_OUTPUTS):
            for k in range(n):
                out[j * LANES + k] += w[_U_OUT + LAYER * USER_OUTPUTS + j]

        _bias(w, _C_ENCODE + (CACHES + USER_HIDDEN) * LAYER, LAYER, v, _E, n)
        _add(w, _C_ENCODE, CACHES, LAYER, x, 0, v, _E, z, n)
        _add(w, _C_ENCODE + CACHES * LAYER, USER_HIDDEN, LAYER, t, _S, v, _E, z, n)
        _softsign(v, _E, LAYER, n)
        _bias(w, _C_GATE + LAYER * 2 * HIDDEN, 2 * HIDDEN, t, _G, n)
        _add(w, _C_GATE, LAYER, 2 * HIDDEN, v, _E, t, _G, z, n)
        _recur(t, hidden, MEMBERS * USER_HIDDEN + m * HIDDEN, HIDDEN, _H, n)
        _bias(w, _C_HEAD + (LAYER + HIDDEN) * LAYER, LAYER, t, _E, n)
        _add(w, _C_HEAD, LAYER, LAYER, v, _E, t, _E, z, n)
        for j in range(HIDDEN):
            for k in range(n):
                v[(_H + j) * LANES + k] = t[(_H + j) * LANES + k]
        _add(w, _C_HEAD + LAYER * LAYER, HIDDEN, LAYER, v, _H, t, _E, z, n)
        _softsign(t, _E, LAYER, n)
        for k in range(n):  # what this member alone says of the service time
            said = w[_C_OUT + LAYER * CACHE_OUTPUTS + _SERVICE]
            for j in range(LAYER):
                said += t[(_E + j) * LANES + k] * w[_C_OUT + j * CACHE_OUTPUTS + _SERVICE]
            said *= F(MEMBERS)
            out[(OUTPUTS - 2) * LANES + k] = min(out[(OUTPUTS - 2) * LANES + k], said)
            out[(OUTPUTS - 1) * LANES + k] = max(out[(OUTPUTS - 1) * LANES + k], said)
        _add(w, _C_OUT, LAYER, CACHE_OUTPUTS, t, _E, out, USER_OUTPUTS, z, n)
        for j in range(CACHE_OUTPUTS):
            for k in range(n):
                out[(USER_OUTPUTS + j) * LANES + k] += w[_C_OUT + LAYER * CACHE_OUTPUTS + j]
