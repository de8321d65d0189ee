"""Policies evaluated: the protocol, its metrics, and the one function that does it all."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helm_gym.cluster.topology import Cluster
    from helm_gym.evaluation.scores import Scores
    from helm_gym.play import Entrant
    from helm_gym.profile import Profile
    from helm_gym.tasks import Task
    from helm_gym.workload.traces import Trace


def evaluate(
    policies: Any,
    task: str | Task = "burst-v0",
    *,
    backend: str = "modelled",
    profile: str | Profile | None = None,
    seeds: int | Sequence[int] | None = None,
    horizon: int | None = None,
    trace: str | os.PathLike[str] | Trace | None = None,
    cluster: int | str | Cluster | None = None,
    references: bool = True,
    clairvoyant: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scores:
    """Evaluates policies on a task; what comes back prints as a table.

        print(helm_gym.evaluate(["static:0.5", "pid", my_function], task="burst-v0", seeds=4))

    Args:
        policies: one or several of: a name, run folder or ``.onnx`` file; a ``Policy``; a model of Stable-Baselines3; a
            function of one observation (D,) that returns the action, a number in [-1, 1]. Or a mapping from the names
            to report them by to these. In a cluster each is ``CONTROLLER+ROUTER``, or a pair of the two.
        task: its name, or a task.
        backend: ``modelled``; ``real`` or ``real-ray``, which run and time HSTU.
        profile: a name, a YAML file's path, or a profile; the task's where not given.
        seeds: how many (0, 1, ...), or which; the task's where not given, on the real backend the first two of them.
        horizon: scored intervals of an episode; the task's where not given.
        trace: recorded arrivals or their file, for the task ``trace-v0``.
        cluster: how many nodes, a YAML file's path, or a cluster; None: each node serves alone.
        references: False leaves out the static splits and oracles that gains are counted from.
        clairvoyant: also runs the limit, which looks ahead; slow.
        progress: told what is under way, and how many intervals are done, of how many.

    Raises:
        HelmError: something asked for does not exist or does not fit; see the names of its subclasses.
    """
    import dataclasses

    from helm_gym import profile as profiles
    from helm_gym import registry
    from helm_gym.cluster.topology import Cluster, Node, find_cluster
    from helm_gym.errors import InvalidInputError
    from helm_gym.observation import ObservationLayout
    from helm_gym.profile import Profile
    from helm_gym.tasks import Task, find_task
    from helm_gym.workload.traces import Trace, read_trace

    # All that a user can have mistyped is looked at before anything slow is imported or compiled.
    found = task if isinstance(task, Task) else find_task(task)
    found = found if horizon is None else dataclasses.replace(found, horizon=horizon)
    opened = profile if isinstance(profile, Profile) else profiles.load(profile or found.profile)
    registry.find("backend", backend)
    if isinstance(cluster, int):
        cluster = Cluster((Node(cluster),))
    nodes = find_cluster(cluster) if isinstance(cluster, str) else cluster
    if nodes is not None and clairvoyant:
        raise InvalidInputError("There is no clairvoyant for a cluster; leave it out.")
    entrants = open_all(policies, ObservationLayout(opened), nodes is not None)
    if not entrants:
        raise InvalidInputError("An evaluation needs at least one policy.")
    if (trace is None) == (found.regime == "trace"):
        raise InvalidInputError(
            f"Task '{found.name}' needs recorded arrivals; give a file with --trace PATH."
            if trace is None
            else f"Task '{found.name}' draws its own arrivals; leave --trace out, or take trace-v0."
        )
    recorded = trace if trace is None or isinstance(trace, Trace) else read_trace(pathlib.Path(trace))

    from helm_gym.evaluation import protocol
    from helm_gym.evaluation.scores import Scores

    return Scores.of(
        protocol.evaluate(
            found,
            entrants,
            backend=backend,
            profile=opened,
            seeds=tuple(range(seeds)) if isinstance(seeds, int) else seeds,
            trace=recorded,
            references=references,
            clairvoyant=clairvoyant,
            progress=progress,
            cluster=nodes,
        )
    )


def open_all(policies: Any, layout: Any, in_cluster: bool) -> list[Entrant]:
    """What ``evaluate`` is given, opened."""
    from helm_gym.errors import InvalidInputError
    from helm_gym.play import Entrant, open_entrant
    from helm_gym.policies.adapting import as_policy
    from helm_gym.policies.router_opening import open_router

    def open_one(name: str, given: Any) -> Entrant:
        if isinstance(given, Entrant):
            return given
        if isinstance(given, str) and not name:
            return open_entrant(given, layout, in_cluster)
        if not in_cluster:
            return Entrant(as_policy(given, layout, name))
        if not isinstance(given, tuple) or len(given) != 2:
            raise InvalidInputError("In a cluster each policy needs a router; give CONTROLLER+ROUTER, or a pair.")
        controller, router = given
        router = open_router(router, layout) if isinstance(router, str) else router
        return Entrant(as_policy(controller, layout, name), router)

    if isinstance(policies, Mapping):
        return [open_one(str(name), given) for name, given in policies.items()]
    several = isinstance(policies, list) or (isinstance(policies, tuple) and not in_cluster)
    return [open_one("", given) for given in (policies if several else [policies])]
