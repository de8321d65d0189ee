"""Run folders: what a training leaves behind, and how it is opened as a policy again.

    run.json            what was trained, on what, how far it is (``Run``)
    policy.safetensors  tensors of the best policy so far; its metadata says how good it is
    profile.yaml        the profile that it was trained on
    checkpoints/        what resuming needs, newest two kept
    tensorboard/

Nothing is pickled: weights are safetensors and the rest is text, so a folder from a stranger can be opened.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.resources
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from helm_gym.errors import IncompatibleError, InvalidInputError
from helm_gym.observation import ObservationLayout
from helm_gym.policy import Policy
from helm_gym.profile import Profile

if TYPE_CHECKING:
    from helm_gym import training

Tensors = Mapping[str, NDArray[Any]]

FORMAT = 1
RUN, CARD, POLICY, PROFILE = "run.json", "card.json", "policy.safetensors", "profile.yaml"
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
SHIPPED = "shipped"  # folder of a package: <agent>/<profile>/ with card, tensors and policy.onnx


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a policy was made for; it fits nothing else.

    Attributes:
        layout_version: of the observation.
        requests, window: the clock, in requests.
        profile, profile_fingerprint: the machine and the model.
    """

    layout_version: int
    requests: int
    window: int
    profile: str
    profile_fingerprint: str

    @classmethod
    def of(cls, layout: ObservationLayout) -> Origin:
        profile = layout.profile
        clock = profile.interval
        return cls(layout.version, clock.requests, clock.window, profile.name, profile.fingerprint)

    @classmethod
    def read(cls, facts: Mapping[str, Any], what: str) -> Origin:
        """From JSON or an ONNX file's metadata, whose values are all texts.

        Raises:
            InvalidInputError: a key is missing or of another type.
        """
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            kind = str if field.name.startswith("profile") else int
            try:
                values[field.name] = kind(facts[field.name])
            except (KeyError, TypeError, ValueError) as error:
                raise InvalidInputError(f"{what} does not say its {field.name}; HELM-Gym did not make it.") from error
        return cls(**values)

    def check(self, layout: ObservationLayout, what: str) -> None:
        """Raises IncompatibleError, saying what differs, unless observations of ``layout`` are what it was made for."""
        here = Origin.of(layout)
        differs = [
            f"{name} {theirs} there and {ours} here"
            for name, theirs, ours in (
                ("observation layout", self.layout_version, here.layout_version),
                ("requests an interval", self.requests, here.requests),
                ("requests a window", self.window, here.window),
                ("profile", f"'{self.profile}'", f"'{here.profile}'"),
                ("profile's fingerprint", self.profile_fingerprint, here.profile_fingerprint),
            )
            if theirs != ours
        ]
        if self.profile_fingerprint == here.profile_fingerprint:  # a name alone decides nothing
            differs = [text for text in differs if not text.startswith("profile ")]
        if differs:
            raise IncompatibleError(f"{what} was made for something else: {', '.join(differs)}; train one for this.")


@dataclasses.dataclass
class Run:
    """What run.json holds.

    Attributes:
        agent: a name of ``training.TRAINABLE``.
        settings: hyper-parameters by name.
        steps: how many were asked for; a step is a decision of one lane.
        status: ``training`` or ``done``.
        facts: what the training says of itself: validation score, seconds, ``env_share``.
        scores: what it was judged to be afterwards.
    """

    agent: str
    task: str
    origin: Origin
    settings: dict[str, Any]
    seed: int
    steps: int
    status: str = "training"
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    machine: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    date: str = dataclasses.field(default_factory=lambda: datetime.date.today().isoformat())

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return {"format": FORMAT, "agent": self.agent, "task": self.task} | values.pop("origin") | values

    @classmethod
    def from_json(cls, values: Any, what: str) -> Run:
        """Raises InvalidInputError where ``values`` are no run of this format."""
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise InvalidInputError(f"{what} is no run of format {FORMAT}; train it again with this version.")
        origin = Origin.read(values, what)
        names = {field.name: field for field in dataclasses.fields(cls) if field.name != "origin"}
        kinds = {"seed": int, "steps": int, "settings": dict, "facts": dict, "scores": dict, "versions": dict}
        for name, field in names.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if name not in values and required:
                raise InvalidInputError(f"{what} lacks '{name}'; train it again.")
            if name in values and not isinstance(values[name], kinds.get(name, str)):
                raise InvalidInputError(f"{what}: '{name}' is {values[name]!r}; train it again.")
        return cls(origin=origin, **{name: values[name] for name in names if name in values})


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        InvalidInputError: the place cannot be written to.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        beside.replace(path)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror}; give another folder.") from error


def write_run(folder: pathlib.Path, run: Run, name: str = RUN) -> None:
    write(folder / name, json.dumps(run.to_json(), indent=2) + "\n")


def is_run(path: pathlib.Path) -> bool:
    """Whether ``path`` is a folder with run.json, or with the card of a shipped policy."""
    return (path / RUN).is_file() or (path / CARD).is_file()


def read_run(folder: pathlib.Path) -> Run:
    """Reads run.json, or card.json, which is the same for a shipped policy.

    Raises:
        InvalidInputError: neither is there, or it cannot be read as one.
    """
    path = folder / (RUN if (folder / RUN).is_file() else CARD)
    if not path.is_file():
        raise InvalidInputError(f"{folder} is no run folder: it holds no {RUN}; `helm-gym train` makes one.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read ({error}); train it again.") from error
    return Run.from_json(values, str(path))


def write_tensors(path: pathlib.Path, tensors: Tensors, facts: Mapping[str, Any] | None = None) -> None:
    """Writes tensors and, as JSON in the same file so that they are never apart, ``facts``."""
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    write(path, save(arrays, metadata={"facts": json.dumps(facts or {})}))


def read_tensors(path: pathlib.Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The tensors of a file, and its facts.

    Raises:
        InvalidInputError: missing, broken, or with a value that is not finite.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInputError(f"{path} cannot be read ({reason}); train it again.") from error
    bad = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if bad:
        raise InvalidInputError(f"{path}: tensor '{bad[0]}' is not finite; train it again.")
    return tensors, facts


def open_run(
    folder: pathlib.Path,
    layout: ObservationLayout,
    overrides: Mapping[str, Any] | None = None,
    routes: bool = False,
) -> Policy:
    """The policy of a run folder, or of a shipped one, acting in Python.

    Args:
        overrides: hyper-parameters that are to differ from the run's, such as which layers decide.
        routes: whether a router is wanted, and not a policy of nodes.

    Raises:
        InvalidInputError: no run folder, a broken one, one that holds no policy yet, or one of the other kind.
        IncompatibleError: made for another observation layout, clock or profile.
        UnknownNameError: of an agent or hyper-parameter that this version does not have.
    """
    from helm_gym import training  # it names folders in its turn

    run = read_run(folder)
    run.origin.check(layout, f"Run {folder}")
    agent = training.find_trainable(run.agent)
    if agent.routes != routes:
        raise InvalidInputError(
            f"Run {folder} is {'a' if agent.routes else 'no'} router; CONTROLLER+ROUTER takes each in its place."
        )
    settings = training.make_settings(agent, {**run.settings, **(overrides or {})}, f"Run {folder}")
    policy = training.build(agent, layout, settings, policy_tensors(folder, run), f"Run {folder}")
    policy.name = str(folder)
    return policy


def open_shipped(agent: training.Trainable, package: str, layout: ObservationLayout) -> Policy:
    """The policy that ``package`` ships for the layout's profile; without one, the defaults if they need no weights.

    Raises:
        InvalidInputError: nothing is shipped for the profile, and it must be trained first.
        IncompatibleError: the profile has the name of a shipped one and is another.
    """
    from helm_gym import training

    folder = shipped_folder(agent.name, package, layout)
    if is_run(folder):
        return open_run(folder, layout, routes=agent.routes)
    try:
        return training.build(agent, layout, agent.settings(), {}, "")
    except InvalidInputError as error:
        raise InvalidInputError(
            f"No {agent.name} is shipped for profile '{layout.profile.name}'; train one (`helm-gym train {agent.name}`)"
            " and give its folder."
        ) from error


def shipped_folder(name: str, package: str, layout: ObservationLayout) -> pathlib.Path:
    """Where ``package`` ships the agent's policy for the layout's profile, or would."""
    place = importlib.resources.files(package) / SHIPPED / name.replace("-", "_") / layout.profile.name
    return pathlib.Path(str(place))


def policy_tensors(folder: pathlib.Path, run: Run) -> dict[str, NDArray[Any]]:
    """The tensors of the best policy; none for an agent without weights, whose run is done.

    Raises:
        InvalidInputError: a training that has not come to a policy yet, or a broken file.
    """
    path = folder / POLICY
    if path.is_file():
        return read_tensors(path)[0]
    if run.status == "training":
        raise InvalidInputError(f"Run {folder} holds no policy yet; train it on with the command that began it.")
    return {}


def open_profile(folder: pathlib.Path, run: Run) -> Profile:
    """The profile that a run was trained on: its own copy, or the shipped one of that name."""
    from helm_gym import profile as profiles

    own = folder / PROFILE
    return profiles.load(own if own.is_file() else run.origin.profile)
