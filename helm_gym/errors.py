"""The project's exceptions: one sentence each that says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from helm_gym.text import shorten

_NAME = 100  # characters of a name that is shown


class HelmError(Exception):
    """A mistake of the user's or a limit of this machine; the command line prints it and exits with 2."""


class UnknownNameError(HelmError):
    """A task, profile, policy, backend or key that does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}."
        super().__init__(f"Unknown {kind} '{shorten(name, _NAME)}'; {hint}")


class InvalidInputError(HelmError):
    """A value, file or line from outside that cannot be used."""


class IncompatibleError(HelmError):
    """Libraries, profiles or layouts that do not go together."""


class RefusedError(InvalidInputError):
    """A policy's file that breaks a rule.

    Attributes:
        rule: the rule's id, a key of ``helm_gym.policies.onnx_check.RULES``.
    """

    def __init__(self, rule: str, sentence: str):
        super().__init__(sentence)
        self.rule = rule


class UnfitPolicyError(RefusedError, IncompatibleError):
    """A policy's file that was made for another layout, clock or profile."""
