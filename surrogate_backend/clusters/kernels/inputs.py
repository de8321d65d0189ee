"""What the nodes' network reads beside a single node's inputs: the node's place in its cluster, and the routing."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.cluster.routing import RULES, WEIGHTS
from helm_gym.cluster.topology import Cluster
from helm_gym.profile import Profile
from helm_gym.workload.state import INDEX
from surrogate_backend.kernels import fluid, inputs
from surrogate_backend.kernels.fluid import ESTIMATES, MISSES, PER_SPLIT, SERVICE_MS, SPLIT_WIDTH, SPLITS, fluid_step
from surrogate_backend.kernels.functions import LANES, F, kernel, log_ratio
from surrogate_backend.layout import CACHE_OUTPUTS, FOLLOWED, Sizes

_FIXED = 4  # of a node, whatever happens: size of the cluster twice, memory, speed
_NOW = 5  # mean split, the node's less it, share of nodes alive, speed over the mean's, whether it is alive
_READ = _FIXED + _NOW + len(WEIGHTS) + len(RULES)  # what the network reads; one more is the load, from the fluid
CONTEXT = _READ + fluid.PLACE + 1  # what ``Context`` fills; behind what is read, the fluid's place and the speed
USERS = inputs.USERS + _READ + 1  # inputs of the users' network
NODES = USERS + inputs.CACHES - inputs.USERS  # and of the caches', without the users' hidden state
ATTRACTION, TIED, NEXT, REST = range(4)  # outputs of the router's preference, behind the caches' own
ROUTED = 4
LEAST_COST_MS = 0.02  # added to NEXT and REST before their logarithms are taken
OUTPUTS = CACHE_OUTPUTS + ROUTED
SIZES = Sizes(user_hidden=12, hidden=28, layer=32)
LARGEST = 64  # nodes; more look the same to the network, for by then every node has users of few interests
_RATE = INDEX["arrival_rate_rps"]
_HASHED, _AGAINST = RULES.index("consistent-hash"), 0.1


class Context:
    """The columns of ``CONTEXT``, (lanes, nodes, CONTEXT) float32, kept up from interval to interval."""

    def __init__(self, profile: Profile, cluster: Cluster, lanes: int):
        nodes, pages = cluster.size, cluster.pages(profile)
        self.columns = np.zeros((lanes, nodes, CONTEXT), F)
        self._speed, self._nodes, self._interests = cluster.speed, nodes, cluster.interests
        seen = min(nodes, LARGEST)
        self.columns[:, :, 0], self.columns[:, :, 1] = 1.0 / seen, np.log2(seen) / 3.0 - 1.0
        self.columns[:, :, 2] = 3.0 * _ratio(pages / profile.pool.pages)
        self.columns[:, :, 3] = 3.0 * _ratio(self._speed)
        self.columns[:, :, _READ + fluid.MEMORY] = pages / profile.pool.pages
        self.columns[:, :, _READ + fluid.PLACE] = self._speed

    def update(
        self, alpha: NDArray[np.floating], alive: NDArray[np.bool_], rule: int, weights: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Fills in an interval; alpha, alive: (lanes, nodes); rule: of all lanes; weights: (lanes, 3)."""
        x, at = self.columns, _FIXED
        count = alive.sum(axis=1, keepdims=True)
        mean = (alpha * alive).sum(axis=1, keepdims=True) / count
        x[:, :, at], x[:, :, at + 1] = 2.0 * mean - 1.0, 3.0 * (alpha - mean)
        x[:, :, at + 2] = 2.0 * count / alive.shape[1] - 1.0
        x[:, :, at + 3] = 3.0 * _ratio(self._speed / ((self._speed * alive).sum(axis=1, keepdims=True) / count))
        x[:, :, at + 4] = alive
        at += _NOW
        scored = rule == RULES.index("score")
        x[:, :, at : at + len(WEIGHTS)] = np.clip(np.sqrt(weights) - 1.0, -1.0, 1.5)[:, None] if scored else 0.0
        at += len(WEIGHTS)
        x[:, :, at:_READ] = 0.0
        x[:, :, at + rule] = 1.0
        # Users whom nothing leads back come to every node, and so do tastes that nothing keeps apart. In between the
        # powers are a guess; what is wrong with them is learned.
        kv, emb, load = weights.T if scored else np.zeros((3, len(weights)))
        by_kv = kv / np.maximum(kv + _AGAINST * (emb + load), 1e-6) if rule != _HASHED else np.ones(len(kv))
        by_emb = emb / np.maximum(emb + _AGAINST * (kv + load), 1e-6)
        spread = self._nodes ** (1.0 - by_kv)[:, None]
        tastes = self._interests / float(min(self._nodes, self._interests)) ** by_emb[:, None]
        x[:, :, _READ + fluid.SPREAD], x[:, :, _READ + fluid.PER_SPREAD] = spread, 1.0 / spread
        x[:, :, _READ + fluid.TASTES], x[:, :, _READ + fluid.PER_TASTES] = tastes, 1.0 / tastes
        return x


def _ratio(x: NDArray[np.floating]) -> NDArray[np.floating]:
    return (x - 1.0) / (x + 1.0)


def constants(profile: Profile, cluster: Cluster) -> fluid.Constants:
    """Of the fluid of one node: its own users, and the cluster's catalogue."""
    wide = cluster.widen(profile)
    own = profile.population
    population = dataclasses.replace(wide.population, users=own.users)
    return fluid.constants(dataclasses.replace(profile, population=population))


@kernel
def chill_lost(s, alive, first, n, m):
    """Empties the caches of those of ``n`` nodes of a block, from node ``first`` on, that are lost; s: the fluid."""
    for k in range(n):
        if not alive[first + k]:
            for cache in range(fluid.KV, fluid.LOOKUPS, 3):
                s[cache * m + k], s[(cache + 1) * m + k], s[(cache + 2) * m + k] = F(1.0), F(0.0), F(1.0)
            for row in range(fluid.LOOKUPS, fluid.MOST_HOT):
                s[row * m + k] = F(100.0)
            for row in range(fluid.CAME, fluid.STATE):
                s[row * m + k] = F(0.0)


@kernel
def fill_place(place, context, first, n, m):
    """The fluid's place of ``n`` nodes of a block from node ``first`` on; context: (nodes, CONTEXT)."""
    for row in range(fluid.PLACE):
        for k in range(n):
            place[row * m + k] = context[first + k, _READ + row]


@kernel
def node_inputs(w, splits, moved, context, first, f, scalars, rest, x, n, m):
    """Fills ``x`` (NODES rows) for ``n`` nodes of a block from node ``first`` on; context: (nodes, CONTEXT)."""
    for split in range(SPLITS):  # a node that computes faster, whose link is as it is
        of_split = f[(PER_SPLIT + split * SPLIT_WIDTH) * m :]
        for k in range(n):
            linked = scalars[11] + of_split[MISSES * m + k] * scalars[12]
            computed = of_split[SERVICE_MS * m + k] - linked
            of_split[SERVICE_MS * m + k] = linked + computed / context[first + k, _READ + fluid.PLACE]
    inputs.network_inputs(w, splits, moved, f, rest, x, USERS, n, m)
    for k in range(n):
        for j in range(_READ):
            x[(inputs.USERS + j) * m + k] = context[first + k, j]
        load = w[_RATE * m + k] * f[(PER_SPLIT + SERVICE_MS) * m + k] * F(1e-3)
        x[(inputs.USERS + _READ) * m + k] = F(3.0) * log_ratio(load, F(0.5))


@kernel
def _follow(
    state, values, splits, moved, context, alive, place, scalars, powers, inside, rest, scratch, estimates, x, n, m
):
    for t in range(values.shape[0]):
        fill_place(place, context[t], 0, n, m)
        fluid_step(state, values[t], splits[t], place, scalars, powers, inside, scratch, estimates[t], n, m)
        chill_lost(state, alive[t], 0, n, m)
        node_inputs(values[t], splits[t], moved[t], context[t], 0, estimates[t], scalars, rest, x[t], n, m)


class Followed(NamedTuple):
    """Of every node, time first: x (T, nodes, NODES) and the estimates (T, nodes, ESTIMATES)."""

    x: NDArray[np.float32]
    estimates: NDArray[np.float32]


def follow(
    profile: Profile,
    cluster: Cluster,
    values: NDArray[np.float64],
    alpha: NDArray[np.float64],
    moved: NDArray[np.float64],
    alive: NDArray[np.bool_],
    rule: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> Followed:
    """What the network reads along one episode that starts with cold caches.

    Args:
        values: (T, parameters); alpha, moved (pages over the budget), alive: (T, nodes); rule: (T,); weights: (T, 3).
    """
    intervals, nodes = alpha.shape
    known, relative = constants(profile, cluster), inputs.rest(profile)
    context, filled = np.empty((intervals, nodes, CONTEXT), F), Context(profile, cluster, 1)
    for t in range(intervals):
        context[t] = filled.update(alpha[t : t + 1], alive[t : t + 1], int(rule[t]), weights[t : t + 1])[0]
    splits = np.empty((nodes, intervals, fluid.SPLITS))
    splits[..., 0], splits[..., 1:] = alpha.T, FOLLOWED
    every = np.broadcast_to(values, (nodes, *values.shape))
    x, estimates = np.empty((intervals, nodes, NODES), F), np.empty((intervals, nodes, ESTIMATES), F)
    scratch, place = np.zeros(fluid.SCRATCH * LANES, F), np.ones(fluid.PLACE * LANES, F)
    for first in range(0, nodes, LANES):
        part = slice(first, min(nodes, first + LANES))
        count = part.stop - first
        state = fluid.initial_state(every[part, 0])[0]
        w, split, move = (inputs.by_time(a) for a in (every[part], splits[part], moved.T[part, :, None]))
        estimated, fed = (np.zeros((intervals, width * LANES), F) for width in (ESTIMATES, NODES))
        _follow(
            state, w, split, move, context[:, part], alive[:, part], place, *known, relative, scratch, estimated, fed,
            count, LANES,
        )  # fmt: skip
        for out, row in ((estimates, estimated), (x, fed)):
            out[:, part] = row.reshape(intervals, -1, LANES)[..., :count].transpose(0, 2, 1)
    return Followed(x, estimates)
