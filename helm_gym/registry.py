"""What has a name: policies, routers, backends, tasks, regimes and data-set readers, this project's and others'.

    register("policy", "greedy", "mine:Greedy", "moves towards the side that misses more bytes")

An installed package adds names by entry points of the groups in ``GROUPS``:

    [project.entry-points."helm_gym.policies"]
    greedy = "mine:Greedy"

Wherever a name is taken, ``module:attribute`` is, too. docs/extending.md says what each kind must be.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from typing import Any

from helm_gym.errors import HelmError, InvalidInputError, UnknownNameError
from helm_gym.text import shown

GROUPS = {  # kind -> group of entry points
    "policy": "helm_gym.policies",
    "router": "helm_gym.routers",
    "backend": "helm_gym.backends",
    "task": "helm_gym.tasks",
    "regime": "helm_gym.regimes",
    "reader": "helm_gym.readers",
    "log-format": "helm_gym.log_formats",
}
IMPORTS = "HELM_GYM_IMPORT"  # modules, parted by commas, that are imported before names are looked up
# Whose import registers what they hold.
_HOLDERS = ("helm_gym.tasks", "helm_gym.workload", "agents", "baselines", "real_backend", "surrogate_backend")
_WHERE = re.compile(r"([A-Za-z_][\w.]*:[A-Za-z_]\w*)(?::(.+))?")

_registered: dict[str, list[Entry]] = {kind: [] for kind in GROUPS}


@dataclasses.dataclass(frozen=True)
class Entry:
    """Something that has a name.

    Attributes:
        kind: a key of ``GROUPS``.
        target: the thing itself, or ``module:attribute``, which is imported on first use.
        doc: one line for listings.
        argument: what must follow the name behind a colon, such as ``ALPHA``; in brackets what may; empty if nothing.
        agent: the name by which ``helm-gym train`` trains it; empty if it is not told beforehand.
        source: the installed package that names it; empty where ``register`` did.
        given: what followed the name, of an entry that ``find`` returned.
    """

    kind: str
    name: str
    target: Any
    doc: str = ""
    argument: str = ""
    agent: str = ""
    source: str = ""
    given: str = ""

    @property
    def form(self) -> str:
        """How it is written: ``static:ALPHA``, ``surrogate[:CHECKPOINT]``."""
        if self.argument.startswith("["):
            return f"{self.name}[:{self.argument[1:]}"
        return f"{self.name}:{self.argument}" if self.argument else self.name

    @property
    def module(self) -> str:
        """Where it is defined."""
        if isinstance(self.target, str):
            return self.target.partition(":")[0]
        return str(getattr(self.target, "__module__", None) or type(self.target).__module__)

    def load(self) -> Any:
        """The thing itself, importing its module only now.

        Raises:
            InvalidInputError: the module cannot be imported, or lacks it.
        """
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        what = f"{self.kind.capitalize()} {shown(self.name)}"
        found = _import(module, what)
        if not hasattr(found, attribute):
            raise InvalidInputError(f"{what} cannot be opened: module {module} has no {attribute}.")
        return getattr(found, attribute)


def register(kind: str, name: str, target: Any, doc: str = "", argument: str = "", agent: str = "") -> None:
    """Gives a thing a name, for this process; one that had the name before gives it up.

    Args: see ``Entry``.
    """
    others = [entry for entry in _registered[kind] if entry.name != name]
    _registered[kind] = [*others, Entry(kind, name, target, doc, argument, agent)]


def listed(kind: str) -> dict[str, Entry]:
    """All that have a name of this kind, by name, in the order of the alphabet.

    Raises:
        InvalidInputError: an installed package's name is taken already.
    """
    for module in (*_HOLDERS, *filter(None, os.environ.get(IMPORTS, "").split(","))):
        _import(module.strip(), f"Module {shown(module)}")
    found = {entry.name: entry for entry in _registered[kind]}
    for entry in _installed(kind):
        if entry.name in found:
            other = found[entry.name].source or found[entry.name].module
            raise InvalidInputError(
                f"Packages {entry.source} and {other} both name a {kind} '{entry.name}'; remove one."
            )
        found[entry.name] = entry
    return dict(sorted(found.items()))


def find(kind: str, name: str) -> Entry:
    """What has this name, or what ``module:attribute`` says, with the argument that follows behind a further colon.

    Raises:
        UnknownNameError: nothing has the name; the nearest one is given.
        InvalidInputError: an argument that is missing or superfluous; see ``listed``, too.
    """
    known = listed(kind)
    head, _, given = name.partition(":")
    if head in known:
        entry = known[head]
        needed, allowed = entry.argument and not entry.argument.startswith("["), bool(entry.argument)
        if (needed and not given) or (given and not allowed):
            form = f"'{entry.form}'" if allowed else f"'{head}', without an argument"
            raise InvalidInputError(f"{kind.capitalize()} {shown(name)} cannot be opened; write {form}.")
        return dataclasses.replace(entry, given=given)
    where = _WHERE.fullmatch(name)
    if where and _exists(head):
        return Entry(kind, where[1], where[1], given=where[2] or "")
    raise UnknownNameError(kind, name if where else head, known)


@functools.cache
def _installed(kind: str) -> tuple[Entry, ...]:
    points = importlib.metadata.entry_points(group=GROUPS[kind])
    return tuple(Entry(kind, point.name, point.value, source=point.dist.name if point.dist else "") for point in points)


def _exists(module: str) -> bool:
    try:
        return module in sys.modules or importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # no such package above it
        return False


def _import(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except HelmError:
        raise
    except Exception as error:  # of others' code: anything
        reason = f"{type(error).__name__}: {error}"
        raise InvalidInputError(f"{what} cannot be opened: importing {module} failed ({reason}).") from error
