"""The request router in real time: real_backend/router.py, one request at a time, by the clock on the wall.

Of KV and rows it believes what nodes last published and what it has sent them since. Of load it knows more than on the
rungs: what it has sent and has not been answered.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from helm_gym.cluster.routing import RULES, Routing, check_routing
from helm_gym.errors import InvalidInputError
from helm_gym.profile import Profile
from helm_gym.workload.sampling import make_requests
from real_backend.memory.layout import DIRECT_ITEMS, is_hashed, make_rules
from real_backend.router import route
from real_backend.router_beliefs import make_view, note_kv, note_published
from real_backend.serving.wire import SharedMemory

_NOBODY = np.zeros((0, 3), np.int32)


class LiveRouter:
    """Chooses a node for each request.

    Args:
        profile: with the service's users.
        histories: int32 (users, max_history).

    Attributes:
        resident: which rows each node holds, (items, nodes); nodes write their own column.
        spilled: requests that went elsewhere because their node had too much to do.
    """

    def __init__(self, profile: Profile, nodes: int, histories: NDArray[np.int32]):
        if nodes > 1 and is_hashed(profile.population.items):
            raise InvalidInputError(
                f"The router lists each item: at most {DIRECT_ITEMS:,}, and profile '{profile.name}' has "
                f"{profile.population.items:,}; take one node."
            )
        self.nodes, self._histories = nodes, histories
        items = profile.population.items if nodes > 1 else 1
        self.resident = SharedMemory(items * nodes)
        view = make_view(profile, np.zeros(1, np.int64), np.ones(nodes))
        self._view = view._replace(resident=self.resident.array((1, items, nodes), np.uint8))
        self._view.alive[:] = False
        self._rules, self._requests = make_rules(profile), make_requests(profile, 1)
        self._routing = Routing("score", np.ones((1, 3)))
        self._out = np.zeros(1, np.int32)
        self._last_s = 0.0
        self.spilled = 0
        if nodes > 1:
            self._warm_up()

    def _warm_up(self) -> None:
        """Has the kernels compiled, or read from the disk, before the first request."""
        self.up(0)
        self.choose(0, 0, 1, 1, np.zeros(1, np.int32), 0.0, np.zeros(self.nodes))
        self.note(0, 0, 0, 1)
        self.down(0)
        self.spilled = 0

    def set_routing(self, routing: Routing) -> None:
        """How requests are routed from now on; raises as ``check_routing`` does."""
        check_routing(routing, 1)
        self._routing = routing

    def up(self, node: int) -> None:
        self._view.alive[0, node] = True

    def down(self, node: int) -> None:
        """A node is gone, and its caches with it."""
        self._view.alive[0, node] = False
        note_published(self._view, 0, node, _NOBODY)
        self._view.resident[0, :, node] = 0

    def learn(self, node: int, cached: NDArray[np.int32], speed: float) -> None:
        """What a node published: its users' KV, (users, 3), and how fast it computes over the cost model."""
        note_published(self._view, 0, node, cached)
        self._view.speed[0, node] = 1.0 / max(speed, 1e-3)

    def choose(
        self,
        place: int,
        version: int,
        length: int,
        delta: int,
        candidates: NDArray[np.int32],
        now_s: float,
        ahead_ms: NDArray[np.float64],
    ) -> tuple[int, float]:
        """A node that is alive, and the time (ms) that the request is expected to take there, once it begins.

        Args:
            ahead_ms: (nodes,), what each has been sent and has not answered.
        """
        view, requests = self._view, self._requests
        view.free_at_s[0] = now_s + 1e-3 * ahead_ms
        requests.user[0, 0], requests.version[0, 0] = place, version
        requests.length[0, 0], requests.delta[0, 0] = length, delta
        count = requests.candidate_count[0, 0] = len(candidates)
        requests.candidates[0, 0, :count] = candidates
        requests.gap_s[0, 0] = now_s - self._last_s
        routing, rule = self._routing, RULES.index(self._routing.rule)
        spilled = int(view.spilled[0, 0])
        route(
            view, 0, requests, self._histories, self._last_s, self._rules, rule, routing.weights[0], routing.bound,
            self._out,
        )  # fmt: skip
        self._last_s = now_s
        node = int(self._out[0])
        self.spilled += int(view.spilled[0, 0]) - spilled
        return node, float(1e3 * (view.free_at_s[0, node] - now_s)) - float(ahead_ms[node])

    def note(self, node: int, place: int, version: int, length: int) -> None:
        """A node has been sent a request that it had not been sent when it published."""
        note_kv(self._view, 0, node, place, version, length)
