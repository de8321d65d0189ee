"""The one border where arguments are checked: of one environment or many, a node or a cluster, of any library."""

from __future__ import annotations

import dataclasses
import enum
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, get_args

import numpy as np

from helm_gym import profile as profiles
from helm_gym import registry
from helm_gym.actions import Mode
from helm_gym.backend import open_backend
from helm_gym.cluster.topology import Cluster, find_cluster
from helm_gym.control_loop import ControlLoop
from helm_gym.envs.render import RENDER_MODES
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.machine_memory import require
from helm_gym.profile import Profile
from helm_gym.tasks import MAX_INTERVALS, Task, all_tasks, find_task
from helm_gym.text import shown
from helm_gym.workload.traces import Trace, read_trace
from helm_gym.yaml_form import from_fields

PathLike = str | os.PathLike[str]
Fields = Mapping[str, Any]  # of a dataclass, as an EnvSpec keeps it
TaskLike = str | Task | Fields
ProfileLike = PathLike | Profile | Fields
TraceLike = PathLike | Trace | Fields
ClusterLike = int | PathLike | Cluster | Fields

SEEDS = 2**63  # 0 to one below it: an int64
MAX_LANES = 2**31 - 1  # memory ends before
# Memory, about: of a lane's interval (workload, and again while the next episode's is drawn; what is drawn of it), of a
# recorded request, and of a node with its observation, telemetry and the surrogate's state. A backend counts its own.
_INTERVAL_BYTES, _REQUEST_BYTES, _NODE_BYTES = 192, 24, 8192


def open_loop(
    lanes: int,
    task: TaskLike | None,
    regime: str | None,
    profile: ProfileLike | None,
    backend: str,
    action_mode: Mode,
    trace: TraceLike | None,
    intervals: int | None,
    render_mode: str | None,
    cluster: Cluster | None = None,
) -> ControlLoop:
    """Opens the control loop that an environment's arguments ask for; see ``PartitionEnv`` for them.

    Raises:
        UnknownNameError: no such task, regime, profile, backend, action_mode or render_mode.
        InvalidInputError: an argument of another type or out of its range, arguments that do not go together, a file
            that cannot be used, or more memory than there is.
    """
    lanes = whole_number("num_envs", lanes, "lane", MAX_LANES)
    chosen = choose_task(task, regime)
    one_of("action_mode", action_mode, get_args(Mode))
    registered("backend", backend)
    if render_mode is not None:
        one_of("render_mode", render_mode, RENDER_MODES)
    if (chosen.regime == "trace") is not (trace is not None):
        given = "has no recording; give one with trace=PATH" if trace is None else "takes no trace; use 'trace-v0'"
        raise InvalidInputError(f"Task '{chosen.name}' {given}.")
    steps = chosen.horizon if intervals is None else whole_number("intervals", intervals, "interval", MAX_INTERVALS)
    machine = find_profile(chosen.profile if profile is None else profile)
    recording = None if trace is None else find_trace(trace)
    nodes = 1 if cluster is None else cluster.size
    an_interval = _INTERVAL_BYTES + nodes * (16 + (recording is not None) * _REQUEST_BYTES * machine.interval.requests)
    require(
        lanes * (steps * an_interval + nodes * _NODE_BYTES),
        f"An environment with num_envs={lanes:,} and intervals={steps:,}",
        "give fewer lanes or a shorter episode",
    )
    return ControlLoop(chosen, open_backend(backend, machine, lanes, cluster), action_mode, recording, steps)


def choose_task(task: TaskLike | None, regime: str | None) -> Task:
    """The task that an environment's arguments ask for."""
    if task is not None and regime is not None:
        raise InvalidInputError(f"task={shown(task)} and regime={shown(regime)} exclude each other; give one of them.")
    if regime is not None:
        name = registered("regime", regime)
        return next((known for known in all_tasks() if known.regime == name), None) or Task("own-v0", name, "")
    if task is None or isinstance(task, str):
        return find_task("mixed-v0" if task is None else task)
    if not isinstance(task, Task | Mapping):
        refuse("task", task, "a task's name (`helm-gym tasks` lists them) or a Task")
    checked: Task = from_fields(Task, plain_values(task), "task")
    registered("regime", checked.regime, "task.regime")
    return checked


def find_profile(profile: ProfileLike) -> Profile:
    """A profile by name, by the path of its YAML file, or as it is."""
    if isinstance(profile, Profile):
        return profile
    if isinstance(profile, Mapping):
        made: Profile = from_fields(Profile, plain_values(profile), "profile")
        return made
    return profiles.load(path("profile", profile, "a shipped profile's name, the path of a YAML file or a Profile"))


def choose_cluster(cluster: ClusterLike) -> Cluster:
    """A cluster by its number of nodes, by the path of its YAML file, or as it is."""
    if isinstance(cluster, Cluster | Mapping):
        made: Cluster = from_fields(Cluster, plain_values(cluster), "cluster")
        return made
    if isinstance(cluster, int | np.integer) and not isinstance(cluster, bool):
        return find_cluster(str(operator.index(cluster)))
    return find_cluster(path("cluster", cluster, "a number of nodes, the path of a YAML file or a Cluster"))


def find_trace(trace: TraceLike) -> Trace:
    """A recording by its path, or as it is.

    Raises:
        InvalidInputError: the file cannot be used, or arrays that are no recording.
    """
    if not isinstance(trace, Trace | Mapping):
        return read_trace(path("trace", trace, "the path of a recording or a Trace"))
    of = dict(trace) if isinstance(trace, Mapping) else vars(trace)
    try:
        arrays: dict[str, Any] = {name: np.asarray(value) if _is_array(value) else value for name, value in of.items()}
        made = Trace(**arrays)
        times, columns = np.asarray(made.arrival_s, np.float64), [v for v in vars(made).values() if _is_array(v)]
    except (TypeError, ValueError):
        refuse("trace", trace, "a recording's path or a Trace, whose arrays are of numbers")
    sound = (
        times.ndim == 1 and len(times) >= 2 and all(c.shape == times.shape and c.dtype.kind in "biuf" for c in columns)
    )
    if not sound or not np.isfinite(times).all() or (np.diff(times) < 0).any() or times[0] == times[-1]:
        raise InvalidInputError(
            f"Trace {shown(made.name)} is no recording; give two requests or more, each array with an entry for each, "
            "and arrivals that never go back and span some time."
        )
    return made


def one_of(argument: str, value: Any, known: Iterable[str]) -> str:
    """``value``, which must be one of the names ``known``."""
    if not isinstance(value, str) or value not in known:
        raise UnknownNameError(argument, value if isinstance(value, str) else shown(value), known)
    return value


def registered(kind: str, value: Any, argument: str = "") -> str:
    """``value``, which must be a name that ``helm_gym.registry`` finds."""
    if not isinstance(value, str):
        one_of(argument or kind, value, registry.listed(kind))
    try:
        registry.find(kind, value)
        return value
    except UnknownNameError as error:
        raise UnknownNameError(argument or kind, value, registry.listed(kind)) from error


def whole_number(argument: str, value: Any, of: str, most: int | None = None) -> int:
    """``value`` as a number of at least 1, and at most ``most``, of what it counts.

    Raises:
        InvalidInputError: it is none, or out of this range.
    """
    number = index(value)
    if number is None or number < 1 or (most is not None and number > most):
        end = "" if most is None else f" and at most {most:,}"
        raise InvalidInputError(
            f"{argument}={shown(value)} cannot be used; give a whole number, at least one {of}{end}."
        )
    return number


def path(argument: str, value: Any, expected: str) -> str:
    """``value`` as a text: a name, or where a file is."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        refuse(argument, value, expected)
    return text


def check_seed(seed: Any) -> int:
    """A seed as Python has it; one of numpy's integers, or an array that holds one alone, is a seed too.

    Raises:
        InvalidInputError: not a whole number, or not from 0 to 2^63 - 1.
    """
    number = index(seed)
    if number is None or not 0 <= number < SEEDS:
        raise InvalidInputError(f"seed={shown(seed)} cannot be used; a seed is a whole number from 0 to 2^63 - 1.")
    return number


def lane_seeds(seed: Any, lanes: int) -> list[int | None]:
    """Seeds of lanes as Gymnasium's vector environments have them: s stands for s, s + 1, ...; None for drawn ones.

    Raises:
        InvalidInputError: see ``check_seed``, or another number of seeds than lanes.
    """
    if seed is None:
        return [None] * lanes
    if not is_many(seed):
        first = check_seed(seed)
        if first > SEEDS - lanes:
            raise InvalidInputError(
                f"seed={first} cannot be used for {lanes} lanes; the last one's would be above 2^63 - 1."
            )
        return list(range(first, first + lanes))
    if len(seed) != lanes:
        raise InvalidInputError(f"{len(seed)} seeds were given for {lanes} lanes.")
    return [None if one is None else check_seed(one) for one in seed]


def is_many(seed: Any) -> bool:
    """Whether ``seed`` is one a lane."""
    if isinstance(seed, np.ndarray):
        return seed.ndim > 0
    return isinstance(seed, Sequence) and not isinstance(seed, str | bytes)


def check_options(options: Any, known: Iterable[str] = ()) -> dict[str, Any]:
    """The options of a reset.

    Raises:
        UnknownNameError: an option that there is not, where there are some.
        InvalidInputError: an option where there are none, or not a dict.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        refuse("options", options, "None or a dict")
    for key in options:
        if known and key not in known:
            raise UnknownNameError("option of reset", key if isinstance(key, str) else shown(key), known)
        if not known:
            raise InvalidInputError(
                f"reset has no option {shown(key)}, nor any other; a seed chooses the workload, and arguments all else."
            )
    return dict(options)


def refuse(argument: str, value: Any, expected: str) -> NoReturn:
    """Raises InvalidInputError: ``argument`` has to be ``expected``."""
    raise InvalidInputError(f"{argument}={shown(value)} cannot be used; give {expected}.")


def plain_values(value: Any) -> Any:
    """An argument as a JSON file can hold it: a dataclass as its fields, an array as a list, a path as a text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_values(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: plain_values(inner) for key, inner in value.items()}
    return [plain_values(inner) for inner in value] if isinstance(value, list | tuple) else value


def _is_array(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def index(value: Any) -> int | None:
    """A whole number, or None; True and False are none."""
    if isinstance(value, bool | np.bool_) or (isinstance(value, np.ndarray) and value.ndim):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
