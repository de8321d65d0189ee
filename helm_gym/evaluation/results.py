"""What an evaluation holds: episodes by policy, the workload they shared, and where it ran."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.backend import Rung
from helm_gym.cluster.topology import Cluster
from helm_gym.tasks import Task
from helm_gym.workload.state import WorkloadPath

Values = NDArray[np.float64]

NODE_FIELDS = (  # of telemetry, kept of each node and scored interval
    "alpha",
    "emb_hit_rate",
    "kv_hit_rate",
    "utilisation",
    "moved_bytes",
    "h2d_critical_bytes",
    "interval_service_ms",
    "interval_violations",
    "interval_arrival_s",
)
ACCOUNT_FIELDS = ("offloads_ms", "delay_ms", "moves_ms", "background_ms")  # of Accounts, likewise
TRAFFIC = ("spills", "rerouted", "given_up")  # of RoutedTraffic, kept of each scored interval; 0 on a single node


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The offline optimum by replay on the modelled rung.

    Attributes:
        grid: (A,) alphas that were replayed.
        cost_ms: (A, lanes, T), mean service time of each interval at each alpha, as replayed.
        expected_ms: (A, lanes, T), the same averaged over intervals of the same workload.
        alpha_star: (lanes, T), argmin over the grid, refined by a parabola through its neighbours.
    """

    grid: Values
    cost_ms: Values
    expected_ms: Values
    alpha_star: Values


@dataclasses.dataclass(frozen=True)
class Episodes:
    """One policy's episodes, or those of a controller and a router; only scored intervals, settling is left out.

    Attributes:
        policy: its name; of a cluster ``CONTROLLER+ROUTER``.
        sojourn_ms: float32 (lanes, T, answers), all nodes'; NaN behind an interval's last, where they differ in number.
        nodes: ``NODE_FIELDS`` and ``ACCOUNT_FIELDS`` by name, each (lanes, T, nodes); NaN where none are kept.
        requests: (lanes, T, nodes), how many each node answered.
        alive: bool (lanes, T, nodes).
        traffic: ``TRAFFIC`` by name, each (lanes, T).
        cost: (lanes, T), the task's; a cluster's is the team's.
        decision_us: (decisions,), time of ``policy.act`` a node, telemetry to action.
    """

    policy: str
    sojourn_ms: NDArray[np.float32]
    nodes: Mapping[str, Values]
    requests: NDArray[np.int64]
    alive: NDArray[np.bool_]
    traffic: Mapping[str, NDArray[np.int64]]
    cost: Values
    decision_us: Values

    def over_nodes(self, name: str) -> Values:
        """The mean of a field over the nodes alive, (lanes, T)."""
        values = np.where(self.alive, self.nodes[name], 0.0)
        return np.asarray(values.sum(axis=2) / self.alive.sum(axis=2))

    def over_requests(self, name: str) -> Values:
        """The mean of a field of the last interval over its requests, (lanes, T)."""
        total = np.maximum(1, self.requests.sum(axis=2))
        return np.asarray((self.nodes[name] * self.requests).sum(axis=2) / total)

    @property
    def alpha(self) -> Values:
        """The split in force, (lanes, T); in a cluster the mean over the nodes alive."""
        return self.over_nodes("alpha")

    def answers_ms(self, lane: int) -> NDArray[np.float32]:
        """Every answer's sojourn of one lane's episode, (answers,)."""
        sojourn = self.sojourn_ms[lane].reshape(-1)
        return sojourn[np.isfinite(sojourn)]

    def mean_latency_ms(self) -> Values:
        """Mean sojourn, arrival to answer, of each episode, (lanes,)."""
        lanes = range(len(self.sojourn_ms))
        return np.array([self.answers_ms(lane).mean(dtype=np.float64) for lane in lanes])

    def p99_ms(self) -> Values:
        """P99 of sojourn over all answers of each episode, (lanes,)."""
        lanes = range(len(self.sojourn_ms))
        return np.array([np.percentile(self.answers_ms(lane), 99) for lane in lanes], np.float64)

    def all_answers_ms(self) -> NDArray[np.float32]:
        """Every answer's sojourn of all lanes, (answers,)."""
        sojourn = self.sojourn_ms.reshape(-1)
        return sojourn[np.isfinite(sojourn)]


def bytes_kept(requests: int, nodes: int) -> int:
    """Memory of an interval of ``Episodes`` in which each of ``nodes`` answers so many requests."""
    return nodes * (4 * requests + 8 * (len(NODE_FIELDS) + len(ACCOUNT_FIELDS) + 2)) + 8 * len(TRAFFIC)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Policies on one task, one rung, the same seeds: on a node each, or in a cluster behind a router.

    Attributes:
        policies: in the order they were asked for.
        references: those that only serve to scale gains (static grid or best static, oracle, clairvoyant).
        best_static: the single alpha that is best in hindsight over all lanes, by mean sojourn.
        path: of the scored intervals.
        optimum: of the scored intervals; None where it was not looked for, as in a cluster, which has none.
        slo_ms: that violations were counted against on this rung; the mean over episodes where it varies.
        in_turns: whether all policies were served an interval of each in turn, as they are where time is measured: what
            the machine does meanwhile, it does to all of them.
        cluster: whose nodes served; None where a node served alone.
        modelled: the same policies and seeds on the modelled rung, where this is another and references were run; what
            the gain loses from there to here is reported.
        link: how the host link was timed (``Profile.link``).
        trace: of recorded arrivals, what was read: file, format, requests and their rate.
        machine: what it ran on; versions: of Python and the libraries; date: ISO, day.
    """

    task: Task
    rung: Rung
    profile: str
    seeds: tuple[int, ...]
    slo_ms: float
    path: WorkloadPath
    optimum: Optimum | None
    policies: tuple[Episodes, ...]
    references: dict[str, Episodes]
    best_static: float
    machine: str
    versions: dict[str, str]
    date: str
    in_turns: bool = False
    cluster: Cluster | None = None
    modelled: Evaluation | None = None
    trace: str = ""
    link: str = ""

    def provenance(self) -> dict[str, Any]:
        """What every figure made of these episodes names, as JSON has it."""
        return {
            "rung": self.rung,
            "profile": self.profile,
            "link": self.link,
            "seeds": list(self.seeds),
            **({"trace": self.trace} if self.trace else {}),
            "machine": self.machine,
            "versions": self.versions,
            "date": self.date,
        }
