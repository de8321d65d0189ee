"""Training by name: what can be trained, its hyper-parameters, and the run folder that a training fills.

An agent is a ``Trainable``. Its ``train`` gets a ``Training`` and may be killed at any moment: what it has saved with
``Training.save`` it finds again with ``Training.restore``, in another process.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from helm_gym import files, registry
from helm_gym import profile as profiles
from helm_gym.errors import HelmError, InvalidInputError, UnknownNameError
from helm_gym.locks import FOLDER_LOCK, alone
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Policy
from helm_gym.policy_origin import Origin
from helm_gym.profile import Profile
from helm_gym.ranges import Within, ranges_of
from helm_gym.tasks import Task
from helm_gym.text import shown
from helm_gym.training import run_folder
from helm_gym.training.run_folder import Run, Tensors

if TYPE_CHECKING:
    import onnx

MAX_STEPS = 10**12  # decisions of one lane; years of any machine
_ANY_NUMBER = Within(-1e9, 1e9)  # of a hyper-parameter that declares no range
Report = Callable[[int, int, str], None]  # steps done, of how many, what is known of them

TOTAL, EXTENDED = "total_steps", "extended_at"  # facts: steps in whole rounds; where it was given more of them


@dataclasses.dataclass(frozen=True)
class Trainable:
    """An agent that can be trained.

    Attributes:
        settings: a frozen dataclass of hyper-parameters, all with defaults of type int, float, str or bool. It raises
            InvalidInputError in ``__post_init__`` for values that do not fit each other.
        steps: length of a training where none is asked for, in decisions of one lane.
        train: trains or goes on training, and returns the tensors of the best policy.
        policy: layout, settings and tensors to what acts.
        graph: the same as an ONNX graph ``obs, state -> action, state_out``; None for what runs in Python only.
        routes: whether it is a router of a cluster (helm_gym.cluster.routing.Router) and no policy of nodes.
        round: decisions that a training takes at a time, of its settings and task: it takes whole rounds.
        continues: whether a training that is given more steps goes on from its last checkpoint; otherwise more steps
            are more examples, and it is fitted to them anew.
        schedule: what depends on the number of all steps, so that a training that is given more of them is not the
            same as one that had them from the beginning; empty if nothing does.
    """

    name: str
    settings: type
    steps: int
    train: Callable[[Training], Tensors]
    policy: Callable[[ObservationLayout, Any, Tensors], Policy]
    graph: Callable[[ObservationLayout, Any, Tensors], onnx.ModelProto] | None = None
    routes: bool = False
    round: Callable[[Any, Task], int] = lambda settings, task: 1
    continues: bool = False
    schedule: str = ""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where a training goes on: ``step``, the tensors and whatever JSON can hold."""

    step: int
    tensors: dict[str, NDArray[Any]]
    facts: dict[str, Any]


@dataclasses.dataclass
class Training:
    """What a training is given.

    Attributes:
        task: the task to train for; its public seeds are never trained on.
        settings: an instance of the trainable's ``settings``.
        steps: to train for, in decisions of one lane; whole rounds.
        progress: told how many steps are done, of how many, and a few words.
        facts: what the training has to say of itself; ends in run.json.
    """

    folder: pathlib.Path
    task: Task
    profile: Profile
    layout: ObservationLayout
    settings: Any
    seed: int
    steps: int
    progress: Report
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def generator(self, *purpose: int) -> np.random.Generator:
        """A generator for one purpose, the same in every process: of the run's seed and ``purpose``."""
        return np.random.default_rng([self.seed, *purpose])

    def save(self, step: int, tensors: Tensors, facts: Mapping[str, Any] | None = None) -> None:
        """Writes a checkpoint; the newest two are kept."""
        folder = self.folder / run_folder.CHECKPOINTS
        run_folder.write_tensors(folder / f"{step:012d}.safetensors", tensors, facts)
        for old in [*sorted(folder.glob("*.safetensors"))[:-2], *folder.glob(".*.tmp")]:  # and what kills have left
            old.unlink()

    def restore(self) -> Checkpoint | None:
        """The newest checkpoint that can be read; None where there is none."""
        numbered = (self.folder / run_folder.CHECKPOINTS).glob(f"{'[0-9]' * 12}.safetensors")
        for path in sorted(numbered, reverse=True):
            try:
                tensors, facts = run_folder.read_tensors(path)
            except InvalidInputError:  # a disk that was full, say; the one before it is whole
                continue
            return Checkpoint(int(path.stem), tensors, facts)
        return None

    def report_policy(self, step: int, cost: float, tensors: Tensors) -> bool:
        """Keeps a policy if none so far was cheaper; returns whether it was kept.

        A training that was killed reports again what it reported behind its last checkpoint: an equal is kept, too.
        """
        path = self.folder / run_folder.POLICY
        if path.is_file():
            before = run_folder.read_tensors(path)[1].get("cost")
            if not isinstance(before, int | float):
                raise InvalidInputError(f"{path} does not say its cost; remove {self.folder} and train again.")
            if cost > before:
                return False
        run_folder.write_tensors(path, tensors, {"step": step, "cost": cost})
        return True

    def best_policy(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The tensors that ``report_policy`` has kept, and their ``step`` and ``cost``."""
        return run_folder.read_tensors(self.folder / run_folder.POLICY)


def find_trainable(name: str) -> Trainable:
    """The agent of that name, or that ``module:attribute`` says, importing its module only now.

    Raises:
        UnknownNameError: none of that name can be trained; the nearest is given.
    """
    known = agents()
    entry = known.get(name)
    if entry is None and ":" in name:
        entry = registry.find("policy", name)
    found = None if entry is None else entry.load()
    if not isinstance(found, Trainable):
        raise UnknownNameError("agent to train", name, known)
    return found


def agents() -> dict[str, registry.Entry]:
    """What can be trained by name; of installed packages, what may turn out not to be."""
    entries = [*registry.listed("policy").values(), *registry.listed("router").values()]
    return {entry.agent or entry.name: entry for entry in entries if entry.agent or entry.source}


def make_settings(agent: Trainable, values: Mapping[str, Any], where: str) -> Any:
    """Hyper-parameters: the defaults, and ``values`` as JSON has them or as texts.

    Raises:
        UnknownNameError: no such hyper-parameter; the nearest is given.
        InvalidInputError: a value of another type or out of its range.
    """
    fields = ranges_of(agent.settings)
    for name in values:
        if name not in fields:
            raise UnknownNameError(f"hyper-parameter of {agent.name} in {where}", name, fields)
    parsed = {}
    for name, given in values.items():
        kind, declared = fields[name]
        parsed[name] = _parse(name, given, kind, where)
        allowed = declared or (_ANY_NUMBER if kind in (int, float) else None)
        if allowed is not None and parsed[name] not in allowed:
            raise InvalidInputError(f"{where}: {name} must be {allowed}, not {shown(parsed[name])}.")
    return agent.settings(**parsed)


def describe_settings(settings: type) -> dict[str, str]:
    """What each hyper-parameter is, from the ``Attributes`` of the docstrings of ``settings`` and its bases."""
    told: dict[str, str] = {}
    for base in reversed(settings.__mro__):
        _, _, listed = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \S)", "\n" + listed):
            names, colon, text = entry.strip().partition(":")
            if colon:
                told |= dict.fromkeys(names.split(", "), " ".join(text.replace("``", "").split()))
    return told


def _parse(name: str, value: Any, kind: type, where: str) -> Any:
    """``value``, of JSON or a text, as ``kind``."""
    try:
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is kind and not (isinstance(value, float) and not math.isfinite(value)):
            return value
        if not isinstance(value, str):
            raise ValueError
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        parsed = kind(float(value)) if kind is int and float(value).is_integer() else kind(value)
        if kind is float and not np.isfinite(parsed):
            raise ValueError
    except (ValueError, KeyError, OverflowError) as error:
        wanted = {int: "a whole number", float: "a finite number", bool: "true or false"}.get(kind, kind.__name__)
        raise InvalidInputError(f"{where}: {name} must be {wanted}, not {shown(value)}.") from error
    return parsed


def build(agent: Trainable, layout: ObservationLayout, settings: Any, tensors: Tensors, where: str) -> Policy:
    """The policy made of ``tensors``.

    Raises:
        InvalidInputError: a tensor is missing or of another shape than the settings say.
    """
    try:
        return agent.policy(layout, settings, tensors)
    # A file from outside: tensors of any shape and type, among them those that arithmetic or indexing fails on.
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        reason = f"tensor {error} is missing" if isinstance(error, KeyError) else str(error)
        raise InvalidInputError(f"{where} does not hold a policy of {agent.name}: {reason}; train it again.") from error


def train(
    name: str,
    task: Task,
    profile: Profile,
    out: pathlib.Path,
    seed: int = 0,
    steps: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Report | None = None,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Trains an agent into the folder ``out``, or goes on where the same training was interrupted.

    With more ``steps`` than it was given before, it goes on to these, finished or not.

    Args:
        steps: decisions of one lane, as many as make whole rounds; the agent's own where not given.
        overrides: hyper-parameters that differ from the defaults, as texts or as JSON has them.
        say: told before it begins how many steps it will take, and what else is to be known.

    Raises:
        UnknownNameError: an unknown agent or hyper-parameter.
        InvalidInputError: values that cannot be, or a folder that holds another training.
        HelmError: another process is training into the folder.
    """
    if task.regime == "trace":
        raise InvalidInputError(f"Task '{task.name}' plays one recording, which is for evaluation; train on another.")
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise InvalidInputError(f"A training takes 1 to {MAX_STEPS:,} steps, not {shown(steps)}.")
    if not 0 <= seed < 2**63:
        raise InvalidInputError(f"A training's seed must be 0 to 2**63 - 1, not {shown(seed)}.")
    agent = find_trainable(name)
    settings = make_settings(agent, overrides or {}, "the settings")
    layout = ObservationLayout(profile)
    wanted = Run(
        agent=name,
        task=task.name,
        origin=Origin.of(layout),
        settings=dataclasses.asdict(settings),
        seed=seed,
        steps=agent.steps if steps is None else steps,
    )
    size = agent.round(settings, task)
    total = -(-wanted.steps // size) * size
    if agent.steps:
        wanted.facts = {TOTAL: total}
    _check_folder(out)
    with alone(out, f"Another process is training into {out}; wait for it to end."):
        run = _begin(out, wanted, profile)
        if run.status == "done" and wanted.steps <= run.steps:
            return run
        notes = [f"{total} steps" + (f", {total // size} whole rounds of {size}" if size > 1 else "")]
        told = progress or (lambda done, total, words: None)
        training = Training(out, task, profile, layout, settings, seed, total, told)
        if wanted.steps > run.steps:
            notes += _extend(run, agent, training, wanted.steps)
        if say is not None and agent.steps:
            say(". ".join(notes) + ".")
        tensors = agent.train(training)
        build(agent, layout, settings, tensors, f"Run {out}")  # what cannot be opened again is no result
        path = out / run_folder.POLICY
        if tensors and not path.is_file():
            run_folder.write_tensors(path, tensors)
        kept = {name: run.facts[name] for name in (TOTAL, EXTENDED) if name in run.facts}
        run.facts, run.status = kept | training.facts, "done"
        run_folder.write_run(out, run)
    return run


def _begin(folder: pathlib.Path, wanted: Run, profile: Profile) -> Run:
    """The run in the folder if it is the wanted one; otherwise the wanted one, written there."""
    if not run_folder.is_run(folder):
        from helm_gym.provenance import describe_machine, versions

        wanted.machine, wanted.versions = describe_machine(), versions()
        _keep_profile(profile, folder / run_folder.PROFILE)
        run_folder.write_run(folder, wanted)  # last: before it, nothing has begun
        return wanted
    there = run_folder.read_run(folder)
    ours, theirs = (json.loads(json.dumps(run.to_json())) for run in (wanted, there))
    ours, theirs = ({**v.pop("settings"), **v} for v in (ours, theirs))
    left = {"status", "facts", "scores", "machine", "versions", "date"}
    if ours["steps"] > theirs["steps"]:  # ``train`` extends it
        left.add("steps")
    differs = [
        f"{key} {theirs.get(key)} there and {ours.get(key)} here"
        for key in dict.fromkeys([*theirs, *ours])
        if key not in left and theirs.get(key) != ours.get(key)
    ]
    if differs:
        raise InvalidInputError(f"Run {folder} is another training: {', '.join(differs)}; give another --out.")
    if there.status != "done":
        _keep_profile(profile, folder / run_folder.PROFILE, ours=True)
    return there


def _extend(run: Run, agent: Trainable, training: Training, steps: int) -> list[str]:
    """Makes of a run one of more steps; returns what is to be said of it. A kill in between leaves one or the other.

    Raises:
        InvalidInputError: it has ended, and what it would go on from has been removed.
    """
    folder, there, notes = training.folder, training.restore() if agent.continues else None, list[str]()
    if agent.continues and there is None and run.status == "done":
        raise InvalidInputError(
            f"Run {folder} holds no checkpoint to go on from; give another --out to train for {steps} steps."
        )
    run.status, run.scores = "training", {}
    if there is not None:
        notes = [f"It goes on from step {there.step}"]
        if agent.schedule:
            notes.append(
                f"{agent.schedule} follows the number of all steps, so that the result is not that of a training that "
                f"had {training.steps} from the beginning"
            )
            run.facts.setdefault(EXTENDED, []).append(there.step)
    elif not agent.continues:
        run_folder.write_run(folder, run)
        shutil.rmtree(folder / run_folder.CHECKPOINTS, ignore_errors=True)
        (folder / run_folder.POLICY).unlink(missing_ok=True)
    run.steps, run.facts[TOTAL] = steps, training.steps
    run_folder.write_run(folder, run)
    return notes


def _check_folder(folder: pathlib.Path) -> None:
    """Raises InvalidInputError unless the folder is new, a run's, or holds what a kill left of a run's beginning."""
    if run_folder.is_run(folder) or not os.path.isdir(folder):
        return
    left = {
        FOLDER_LOCK,
        run_folder.PROFILE,
        *(files.unfinished(folder / name).name for name in (run_folder.RUN, run_folder.PROFILE)),
    }
    others = sorted(path.name for path in folder.iterdir() if path.name not in left)
    if others:
        raise InvalidInputError(f"--out {folder} is a folder with other things in it ({others[0]}); give a new one.")


def _keep_profile(profile: Profile, path: pathlib.Path, ours: bool = False) -> None:
    """Writes the run's profile unless it is there; ``ours``: what is broken may be replaced, for we wrote it.

    Raises:
        InvalidInputError: another profile is there.
    """
    try:
        same = os.path.lexists(path) and profiles.load(path).fingerprint == profile.fingerprint
    except HelmError:
        same = False
    if same:
        return
    if os.path.lexists(path) and not ours:
        raise InvalidInputError(f"{path} is there and is not profile '{profile.name}'; give another --out.")
    profiles.save(profile, path)
