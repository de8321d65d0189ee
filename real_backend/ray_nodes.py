"""The measured rung with a machine, or a GPU, a node: each is a Ray actor, and all serve at the same time.

Front door, router and report stay where the control loop is and read the nodes' tables; a node's tables, inbox and
ledger travel to its actor and back in each interval, while its pool and its model stay there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from helm_gym.cluster.topology import Cluster
from helm_gym.errors import HelmError
from helm_gym.profile import Profile
from helm_gym.ray_connection import check_gpus, connected
from real_backend.measured import MeasuredBackend
from real_backend.memory.layout import Memory, Rules
from real_backend.memory.ledger import Ledger
from real_backend.node import Node, Spent

OPENING_S = 300.0  # for a place in Ray's cluster and for imports; those of torch take a minute on a busy machine
_INSTEAD = "take backend 'real', whose nodes take turns on one device"


class _RemoteNode:
    """A node in a process of its own."""

    def open(self, profile: Profile, device: str | None) -> None:
        """Not in the constructor, whose errors Ray reports as an actor's death."""
        self._node = Node(profile, device)

    def serve(
        self, parts: Sequence[Any], items: NDArray[np.int32], target: np.int64, rules: Rules
    ) -> tuple[Memory, Ledger, Spent]:
        # Copies, since Ray's arrays are read-only, for which other kernels would be compiled.
        memory, requests, ledger = (type(part)._make(array.copy() for array in part) for part in parts)
        spent = self._node.serve(memory, items.copy(), requests, ledger, target, rules)
        return memory, ledger, spent

    def probe(self) -> float:
        return self._node.probe()


class RayBackend(MeasuredBackend):
    """``MeasuredBackend`` whose nodes are Ray actors, each with a GPU where the profile asks for one.

    One ``speed`` stands for all machines, the mean of their probes: arrivals, link and SLO are of the cluster.

    Raises:
        IncompatibleError: Ray is not installed, or its cluster has fewer GPUs than nodes.
        HelmError: no cluster answers, or it has no place for a node; in a step, a node's actor has died.
    """

    name: ClassVar[str] = "real-ray"

    def __init__(self, profile: Profile, lanes: int = 1, cluster: Cluster | None = None, device: str | None = None):
        self._stack = contextlib.ExitStack()
        self._actors: list[Any] = []
        try:
            super().__init__(profile, lanes, cluster, device)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the actors, and Ray if it was started here."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        self._stack.close()

    def _open_nodes(self, device: str | None) -> None:
        self._ray = self._stack.enter_context(connected(_INSTEAD))
        gpus, nodes = float((device or self.profile.device) == "cuda"), self.spec.nodes
        check_gpus(self._ray, gpus * nodes, self.profile.name)
        # Where there are fewer processors than nodes they share them: what is timed is a thread's own time.
        cpus = float(not gpus and self._ray.cluster_resources().get("CPU", 0.0) >= nodes)
        remote = self._ray.remote(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")(_RemoteNode)
        self._actors = [remote.remote() for _ in range(nodes)]
        opened = [actor.open.remote(self.profile, device) for actor in self._actors]
        _, late = self._ray.wait(opened, num_returns=nodes, timeout=OPENING_S)
        if late:
            raise HelmError(
                f"Ray opened {nodes - len(late)} of {nodes} nodes in {OPENING_S:.0f} s; see what else holds its "
                f"{'GPUs' if gpus else 'processors'} (`ray status`), or {_INSTEAD}."
            )
        self._wait(opened)

    def _serve_nodes(self, targets: NDArray[np.int64]) -> list[Spent]:
        items, served = self._ray.put(self._traffic.items[0]), []
        pending = [
            actor.serve.remote(self._unit(node), items, targets[node], self.rules)
            for node, actor in enumerate(self._actors)
        ]
        for node, (memory, ledger, spent) in enumerate(self._wait(pending)):
            for mine, theirs in zip(self._unit(node)[::2], (memory, ledger), strict=True):
                for array, value in zip(mine, theirs, strict=True):
                    np.copyto(array, value)
            served.append(spent)
        return served

    def _probe(self) -> float:
        return float(np.mean(self._wait([actor.probe.remote() for actor in self._actors])))

    def _wait(self, pending: Sequence[Any]) -> list[Any]:
        found = []
        for node, one in enumerate(pending):
            try:
                found.append(self._ray.get(one))
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, HelmError):
                    raise HelmError(str(error.cause)) from error
                raise
            except self._ray.exceptions.RayError as error:
                reason = str(error).partition("\n")[0]
                raise HelmError(f"Node {node} of backend '{self.name}' is gone ({reason}); open it again.") from error
        return found
