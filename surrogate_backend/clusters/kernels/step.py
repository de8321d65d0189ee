"""One control interval of all clusters: the compiled step of their surrogate.

Nodes go through the fluid, the networks and the noise in blocks of ``LANES``, whatever lanes they belong to; in between
each lane's requests are routed and served (serve.py), and behind it each node reports (report.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from helm_gym.telemetry import AT
from helm_gym.workload.state import INDEX, PARAMETERS
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
    chill_lost,
    fill_place,
    node_inputs,
)
from surrogate_backend.clusters.kernels.report import RING, record, report
from surrogate_backend.clusters.kernels.serve import (
    DRAWS,
    NEXT_MS,
    NO_PREFERENCE,
    RATE,
    REST_MS,
    ROUTER,
    SERVICE,
    serve_lane,
)
from surrogate_backend.clusters.kernels.tally import COUNT, RANK, ROWS, SERVED, TOP, columns, tally
from surrogate_backend.kernels import fields, fluid, networks
from surrogate_backend.kernels.functions import LANES, F, aligned, growth, kernel
from surrogate_backend.kernels.requests import hashed, normal
from surrogate_backend.layout import CACHE_OUTPUTS, FOLLOWED, KNOTS, USER_OUTPUTS

M = LANES
WIDTHS = networks.widths(USERS, NODES, OUTPUTS, SIZES)
_P = len(PARAMETERS)
_HIDDEN = fluid.STATE
_FACTORS = _HIDDEN + WIDTHS.state
STATE = _FACTORS + fields.SLOW  # rows of a block
MAX_INTERVALS = 8  # of a window
_ROUTED = USER_OUTPUTS + CACHE_OUTPUTS
_PREFERENCE_LEAST = F(LEAST_COST_MS)
_DRAW_ATTRACTION = np.uint32(255)  # a hash of an interval that no noise uses
# Scratch rows of a block.
_W, _SPLITS = 0, _P
_MOVED = _SPLITS + fluid.SPLITS
_X = _MOVED + 1
_T = _X + WIDTHS.inputs
_V = _T + max(fluid.SCRATCH, WIDTHS.scratch)
_SCORE = _V + WIDTHS.scratch
_PLACE = _SCORE + 2
SCRATCH = _PLACE + fluid.PLACE
_RATE, _DELTA, _CANDIDATES = INDEX["arrival_rate_rps"], INDEX["delta_tokens"], INDEX["candidates"]


class Known(NamedTuple):
    """What does not change: of the profile, the cluster and the checkpoint.

    Attributes:
        scalars, powers, inside, rest: see fluid.Constants and inputs.rest.
        weights: networks.pack; fast, slow, persistence: noise.
        attraction: (2, 2), standard deviation and persistence of what draws requests to nodes, scored and hashed.
        figures: float32, row (ms), row (B), link latency (ms), page (B), page budget, SLO (ms), longest history,
            requests of an interval, layout.delay_ratio, layout.moved_page_ms.
        hurdle: see fields.predict.
        pages: (nodes,), of each node's pool.
    """

    scalars: NDArray[np.float32]
    powers: NDArray[np.float32]
    inside: NDArray[np.float32]
    rest: NDArray[np.float32]
    weights: NDArray[np.float32]
    fast: NDArray[np.float32]
    slow: NDArray[np.float32]
    persistence: NDArray[np.float32]
    attraction: NDArray[np.float32]
    hurdle: NDArray[np.float32]
    figures: NDArray[np.float32]
    pages: NDArray[np.int64]


class State(NamedTuple):
    """Everything that the future depends on: B blocks, U nodes of all lanes, L lanes, K intervals, R requests.

    Attributes:
        rows: (B, STATE * M) of the fluid, the networks and the noise.
        ring: (U, K, RING); free_ms: (U,), work left; drawn: (U,), lasting attraction; pages: (U,), EMB's.
        spans: (L,), length of the interval (ms); clock: (L, 3), intervals, requests routed, requests of the last.
        node_keys: (B, 2 * M); keys: (2, L).
        node_of, came_ms, sojourn_ms, service_ms: (L, R) of the last interval's requests; came_ms from its end.
        alive: (U,), in the last interval.
    """

    rows: NDArray[np.float32]
    ring: NDArray[np.float32]
    free_ms: NDArray[np.float32]
    drawn: NDArray[np.float32]
    pages: NDArray[np.int64]
    spans: NDArray[np.float32]
    clock: NDArray[np.int64]
    node_keys: NDArray[np.uint32]
    keys: NDArray[np.uint32]
    node_of: NDArray[np.int32]
    came_ms: NDArray[np.float32]
    sojourn_ms: NDArray[np.float32]
    service_ms: NDArray[np.float32]
    alive: NDArray[np.bool_]


class Room(NamedTuple):
    """Scratch of a step, for B blocks, N nodes a lane and R requests a lane."""

    block: NDArray[np.float32]  # (SCRATCH * M,)
    estimates: NDArray[np.float32]  # (ESTIMATES * M,)
    said: NDArray[np.float32]  # (B, outputs * M)
    fields: NDArray[np.float32]  # (B, FIELDS * M)
    level: NDArray[np.float32]  # (B * M,)
    attraction: NDArray[np.float32]  # (B * M,)
    knots: NDArray[np.float32]  # (N, KNOTS)
    router: NDArray[np.float32]  # (ROUTER,)
    compact: NDArray[np.float32]  # (2, N)
    cumulative: NDArray[np.float32]  # (N,)
    place_of: NDArray[np.int64]  # (2, N)
    draws: NDArray[np.float32]  # (DRAWS, columns)
    ordered: NDArray[np.float32]  # (ROWS, columns); in turn one block's clock
    total: NDArray[np.float32]  # (RING + TOP,)


def make_room(blocks: int, nodes: int, requests: int) -> Room:
    wide = columns(nodes, requests)

    def rows(*shape: int) -> NDArray[np.float32]:
        return aligned(np.zeros(shape, F))

    return Room(
        rows(SCRATCH * M), rows(fluid.ESTIMATES * M), rows(blocks, WIDTHS.outputs * M), rows(blocks, fields.FIELDS * M),
        rows(blocks * M), rows(blocks * M), rows(nodes, KNOTS), rows(ROUTER), rows(2, nodes), rows(nodes),
        np.zeros((2, nodes), np.int64), rows(DRAWS, wide), rows(ROWS, max(wide, M)),
        rows(RING + TOP),
    )  # fmt: skip


@kernel
def _move(known, state, values, targets, unit, lane, node, w, splits, moved, k, out):
    """Moves a node's split towards its target and fills column ``k`` of the block's inputs."""
    pages, budget = known.pages[node], np.int64(known.figures[4])
    change = min(max(targets[unit] - state.pages[unit], -budget), budget)
    now = state.pages[unit] + change
    state.pages[unit] = now
    for p in range(_P):
        w[p * M + k] = F(values[lane, p])
    splits[k], moved[k] = F(now) / F(pages), F(change) / F(budget)
    for j in range(1, fluid.SPLITS):
        splits[j * M + k] = F(FOLLOWED[j - 1])
    out[AT.alpha], out[AT.target_alpha] = splits[k], F(targets[unit]) / F(pages)
    out[AT.pending_pages], out[AT.moved_pages] = F(targets[unit] - now), F(change)
    out[AT.moved_bytes] = abs(F(change)) * known.figures[3]


@kernel
def predict_block(known, state, room, values, targets, alive, context, nodes, hashes, scale, block, n, out):
    """What the networks say of the nodes in a block, before their requests: fields, level and attraction."""
    base, s = block * M, state.rows[block]
    scratch, f, y, fields_ = room.block, room.estimates, room.said[block], room.fields[block]
    w, splits, moved = scratch[_W * M :], scratch[_SPLITS * M :], scratch[_MOVED * M :]
    x, t, v = scratch[_X * M :], scratch[_T * M :], scratch[_V * M :]
    for k in range(n):
        unit = base + k
        lane = unit // nodes
        _move(known, state, values, targets, unit, lane, unit - lane * nodes, w, splits, moved, k, out[unit])
        if not alive[unit]:
            for row in range(WIDTHS.state):
                s[(_HIDDEN + row) * M + k] = F(0.0)
    place = scratch[_PLACE * M :]
    fill_place(place, context, base, n, M)
    fluid.fluid_step(s, w, splits, place, known.scalars, known.powers, known.inside, t, f, n, M)
    chill_lost(s, alive, base, n, M)
    node_inputs(w, splits, moved, context, base, f, known.scalars, known.rest, x, n, M)
    networks.run_networks(known.weights, x, s[_HIDDEN * M :], t, v, y, WIDTHS, n, M)
    fields.predict(y, f, known.hurdle, fields_, n, M)
    keys, times = state.node_keys[block], room.ordered[0, :M].view(np.uint32)
    for k in range(n):
        times[k] = np.uint32(state.clock[(base + k) // nodes, 0])
    fields.draw_level(
        keys, times, known.fast, known.slow, known.persistence[0], s[_FACTORS * M :], known.figures[7],
        room.level[base:], fields_, n, M,
    )  # fmt: skip
    spread, lasting = known.attraction[hashes, 0] * scale, known.attraction[hashes, 1]
    fresh = np.sqrt(F(1.0) - lasting * lasting)
    for k in range(n):
        unit = base + k
        drawn = normal(hashed(keys[k], keys[M + k], np.uint32(times[k] * np.uint32(256) + _DRAW_ATTRACTION)))
        state.drawn[unit] = lasting * state.drawn[unit] + fresh * drawn
        log = np.log(F(1.0) + spread * spread)  # of the log-normal whose relative deviation is ``spread``
        own = y[(_ROUTED + ATTRACTION) * M + k] + np.sqrt(log) * state.drawn[unit]
        room.attraction[unit] = growth(own)
        if fields_[fields.EMB_EMPTY * M + k] == F(0.0):  # else it has room for the rows of pages that it gives up
            state.free_ms[unit] += max(-moved[k], F(0.0)) * known.figures[4] * known.figures[9]


@kernel
def _prefer(room, alive, base, nodes):
    """What a lane's nodes say together of its router's preference."""
    tied, following, rest, count = F(0.0), F(0.0), F(0.0), F(0.0)
    for n in range(nodes):
        unit = base + n
        if alive[unit]:
            y, k = room.said[unit // M], unit % M
            tied += y[(_ROUTED + TIED) * M + k]
            following += y[(_ROUTED + NEXT) * M + k]
            rest += y[(_ROUTED + REST) * M + k]
            count += F(1.0)
    room.router[NO_PREFERENCE] = F(1.0) / (F(1.0) + np.exp(-tied / count))
    room.router[NEXT_MS] = max(np.exp(following / count) - _PREFERENCE_LEAST, F(0.0))
    room.router[REST_MS] = max(np.exp(rest / count) - _PREFERENCE_LEAST, F(0.0))


@kernel
def _lost(state, alive, lane, nodes, requests):
    """Moves what a lost node had not answered of the last interval to the front, ``requests`` at most.

    Returns how many, and how many are given up: those beyond, and those that had come before the last interval, whose
    number is the work that was left over a mean service time.
    """
    base, again, given_up, lost, before_ms = lane * nodes, 0, 0, False, F(0.0)
    for n in range(nodes):
        if state.alive[base + n] and not alive[base + n]:
            lost, before_ms = True, before_ms + state.free_ms[base + n]
    if lost:
        served_ms, number = F(0.0), state.clock[lane, 2]
        for r in range(number):
            unit, time = base + state.node_of[lane, r], state.service_ms[lane, r]
            served_ms += time
            if state.alive[unit] and not alive[unit] and state.came_ms[lane, r] + state.sojourn_ms[lane, r] > F(0.0):
                before_ms -= min(time, state.came_ms[lane, r] + state.sojourn_ms[lane, r])
                if again < requests:
                    state.came_ms[lane, again] = state.came_ms[lane, r]
                    again += 1
                else:
                    given_up += 1
        given_up += int(max(before_ms, F(0.0)) / max(served_ms / F(max(number, 1)), F(1e-6)) + F(0.5))
    for n in range(nodes):
        if not alive[base + n]:
            state.free_ms[base + n] = F(0.0)
            state.ring[base + n] = F(0.0)
            state.drawn[base + n] = F(0.0)
    return again, given_up


@kernel
def serve(
    known, state, room, values, gaps_s, poisson, alive, routers, nodes, requests, lane, spills, rerouted, given_up,
):  # fmt: skip
    """Routes and serves the interval of one lane."""
    base, place = lane * nodes, state.clock[lane, 0] % state.ring.shape[1]
    again, given_up[lane] = _lost(state, alive, lane, nodes, requests)
    for n in range(nodes):
        unit = base + n
        f, k = room.fields[unit // M], unit % M
        for i in range(KNOTS):
            room.knots[n, i] = f[(fields.KNOT + i) * M + k] * room.level[unit]
    for k in range(room.router.shape[0]):
        room.router[k] = routers[lane, k]
    _prefer(room, alive, base, nodes)
    room.router[RATE] = F(values[lane, _RATE]) * F(nodes) * F(1e-3)
    low = hashed(state.keys[0, lane], state.keys[1, lane], np.uint32(state.clock[lane, 0]))
    end = base + nodes
    span, passed = serve_lane(
        low, state.keys[1, lane], room.router, gaps_s[lane], poisson, alive[base:end], room.level[base:end], room.knots,
        room.attraction[base:end], state.free_ms[base:end], state.clock[lane, 1],
        state.node_of[lane], state.came_ms[lane], state.service_ms[lane], state.sojourn_ms[lane],
        again, requests, room.place_of[0], room.compact, room.cumulative, room.draws,
    )  # fmt: skip
    state.spans[lane] = span
    state.clock[lane, 1] += again + requests
    state.clock[lane, 2] = again + requests
    tally(
        state.node_of[lane], state.service_ms[lane], state.sojourn_ms[lane], room.draws[SERVICE], again + requests,
        known.figures[5], state.ring[base:end, place], room.place_of[0], room.place_of[1], room.ordered,
    )  # fmt: skip
    spills[lane], rerouted[lane] = passed, again


@kernel
def report_block(known, state, room, values, alive, nodes, block, n, out):
    """Adds the noise of a block's nodes, given what their requests came to, and fills their telemetry."""
    base, f, s = block * M, room.fields[block], state.rows[block]
    score, mean = room.block[_SCORE * M :], room.block[(_SCORE + 1) * M :]
    times = room.ordered[0, :M].view(np.uint32)
    for k in range(n):
        unit, lane = base + k, (base + k) // nodes
        own = state.ring[unit, state.clock[lane, 0] % state.ring.shape[1]]
        count = own[COUNT]
        score[k], mean[k] = F(0.0), room.level[unit]
        if count > F(0.0):
            score[k] = (own[RANK] - F(0.5) * count) * np.sqrt(F(12.0) / count)
            mean[k] = own[SERVED] / count
        times[k] = np.uint32(state.clock[lane, 0])
    fields.add_noise(
        state.node_keys[block], times, known.fast, known.slow, s[_FACTORS * M :], score, mean, F(1.0),
        known.figures[6], f, n, M,
    )  # fmt: skip
    for k in range(n):
        unit, lane = base + k, (base + k) // nodes
        ring = state.ring[unit]
        place, filled = state.clock[lane, 0] % ring.shape[0], min(state.clock[lane, 0] + 1, ring.shape[0])
        delta, candidates = F(values[lane, _DELTA]), F(values[lane, _CANDIDATES])
        record(f, k, M, delta, candidates, known.figures, ring[place])
        report(
            f, k, M, ring, filled, ring[place], state.spans[lane], alive[unit], known.figures,
            room.total[:RING], room.total[RING:], out[unit],
        )  # fmt: skip


@kernel
def step(
    known, state, room, values, gaps_s, poisson, targets, alive, context, routers, nodes, requests, hashes, scale,
    out, spills, rerouted, given_up,
):  # fmt: skip
    """Serves one interval of all lanes.

    values: (lanes, parameters); gaps_s: (lanes, requests), unless ``poisson``; targets: (units,), EMB's pages; alive:
    (units,); context: (units, CONTEXT); routers: (lanes, ROUTER), rule, weight of waiting and bound; requests: of a
    lane; hashes: 1 under consistent hashing, else 0; scale: layout.size_scale. Fills out: (units, WIDTH),
    spills, rerouted, given_up: (lanes,).
    """
    units = out.shape[0]
    for block in range(state.rows.shape[0]):
        n = min(M, units - block * M)
        predict_block(known, state, room, values, targets, alive, context, nodes, hashes, scale, block, n, out)
    for lane in range(values.shape[0]):
        serve(
            known, state, room, values, gaps_s, poisson, alive, routers, nodes, requests, lane, spills, rerouted,
            given_up,
        )  # fmt: skip
    for block in range(state.rows.shape[0]):
        report_block(known, state, room, values, alive, nodes, block, min(M, units - block * M), out)
    for lane in range(values.shape[0]):
        state.clock[lane, 0] += 1
    for unit in range(units):
        state.alive[unit] = alive[unit]
