"""What a submission is, and what is looked at before it is let in."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.text import shown
from leaderboard.records import canonical

POLICY, METHOD, REFERENCE = "policy", "method", "reference"
TRACKS = {
    POLICY: "one file; its interval is over workloads",
    METHOD: "five or more training seeds, one file each",
    REFERENCE: "agents and baselines of this repository, by name",
}
MIN_MEMBERS, MAX_MEMBERS = 5, 20
WRITE_UP = ("authors", "method", "training_data", "compute", "tuning", "links")
MAX_NAME, MAX_TEXT = 60, 2_000

# What every board starts with: this repository's agents and baselines but those that are told the truth. Named one by
# one, since elsewhere a name may also be ``module:attribute``, which a stranger's log must not have imported.
REFERENCES = (
    *("static:0.5", "random", "threshold", "shadow-gradient", "miss-bytes", "miss-ratio-curve", "pid", "bayesian"),
    *("lstm", "gbdt", "ppo", "recurrent-ppo", "maskable-ppo", "three-layer-ppo"),
)
_STATIC = re.compile(r"static:0\.[0-9]{1,3}")

# state -> what it means; docs/leaderboard.md has the same table
STATES = {
    "received": "kept; to be checked next",
    "checking": "its file is checked in the sandbox",
    "queued": "it passed the check and waits for a worker",
    "running": "its episodes are played",
    "verified": "all its scores are there",
    "failed": "it was refused or it failed; the reason says why, and whose fault it was",
    "cancelled": "its author called it off",
    "superseded": "its author's next version under the same name is verified",
}
FINAL = ("verified", "failed", "cancelled", "superseded")
UNCHECKED = ("received", "checking")
UNFINISHED = tuple(state for state in STATES if state not in FINAL)
BY_POLICY, BY_PLATFORM, BY_USER = "policy", "platform", "user"
PLAYED = "play-"  # before the reason of a failure in an episode; a refusal by the check has its rule's id alone
_NAME = re.compile(r"[^\W_][\w .:+\-()]*", re.UNICODE)


@dataclasses.dataclass(frozen=True)
class Submission:
    """What somebody hands in.

    Attributes:
        account: whose it is.
        name: under which it is shown; a later one of the same name takes its place.
        track: a key of ``TRACKS``.
        files: SHA-256 of each policy's file: one, or one a training seed.
        reference: of the track ``reference``, the agent's or baseline's name.
        tasks: that it is to be evaluated on.
        write_up: texts by ``WRITE_UP``.
    """

    account: str
    name: str
    track: str
    files: tuple[str, ...]
    reference: str
    tasks: tuple[str, ...]
    write_up: Mapping[str, str]

    @property
    def id(self) -> str:
        """From what it is: the same thing handed in twice is one submission."""
        parts = [self.account, self.name, self.track, sorted(self.files), self.reference, sorted(self.tasks)]
        return hashlib.sha256(canonical(parts).encode()).hexdigest()[:16]

    def body(self) -> dict[str, Any]:
        """As its record has it."""
        fields = dataclasses.asdict(self) | {"files": list(self.files), "tasks": list(self.tasks)}
        return fields | {"submission": self.id, "write_up": dict(self.write_up)}


def check_name(name: object) -> str:
    """Raises InvalidInputError unless it is a short name of letters, digits, spaces and ``._:+-()``."""
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or not _NAME.fullmatch(name) or name != name.strip():
        raise InvalidInputError(
            f"Name {shown(name)} cannot be used; write at most {MAX_NAME} letters, digits, spaces and . _ : + - ( )."
        )
    return name


def check_reference(name: object) -> str:
    """Raises UnknownNameError unless it is one of ``REFERENCES``, or another static split."""
    if name not in REFERENCES and not _STATIC.fullmatch(str(name)):
        raise UnknownNameError("reference entry", str(name), REFERENCES)
    return str(name)


def check_write_up(given: object) -> dict[str, str]:
    """The write-up's texts by key, each on one line.

    Raises:
        InvalidInputError: no mapping of known keys to texts, or one that is too long or not printable.
    """
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"A write-up is a mapping of {', '.join(WRITE_UP)} to texts.")
    found = {}
    for key, value in given.items():
        if key not in WRITE_UP:
            raise UnknownNameError("key of a write-up", str(key), WRITE_UP)
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str | int | float) for text in texts):
            raise InvalidInputError(f"A write-up's '{key}' is a text, or a list of texts.")
        text = " ".join(", ".join(map(str, texts)).split())
        if len(text) > MAX_TEXT or not text.isprintable():
            raise InvalidInputError(f"A write-up's '{key}' has at most {MAX_TEXT} printable characters.")
        found[key] = text
    return found


def check_tasks(given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The tasks, in the board's order; all where none is named."""
    for task in given:
        if task not in known:
            raise UnknownNameError("task of this board", str(task), known)
    return tuple(task for task in known if task in given or not given)


def check_track(track: str, count: int) -> str:
    """Raises InvalidInputError where so many files are not what the track takes."""
    if track not in (POLICY, METHOD):
        raise UnknownNameError("track", track, (POLICY, METHOD))
    least, most = (1, 1) if track == POLICY else (MIN_MEMBERS, MAX_MEMBERS)
    if not least <= count <= most:
        wanted = "one file" if track == POLICY else f"{least} to {most} files, one of each training seed"
        raise InvalidInputError(f"Track '{track}' takes {wanted}, not {count}.")
    return track


def state_record(
    submission: str, state: str, reason: str = "", fault: str = "", detail: str = ""
) -> tuple[str, dict[str, str]]:
    """The record of a change of state: kind and body."""
    assert state in STATES, state
    return "state", {"submission": submission, "state": state, "reason": reason, "fault": fault, "detail": detail}
