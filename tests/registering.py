"""Names for the time of a test."""

from __future__ import annotations

from typing import Any

import pytest

from helm_gym import registry
from helm_gym.tasks import Task
from real_backend.modelled import ModelledBackend


def give_name(monkeypatch: pytest.MonkeyPatch, kind: str, named: str, target: Any, **more: str) -> None:
    """Gives a thing a name until the test ends."""
    others = [entry for entry in registry.listed(kind).values() if entry.name != named and not entry.source]
    monkeypatch.setitem(registry._registered, kind, [*others, registry.Entry(kind, named, target, **more)])


class Measured(ModelledBackend):
    """The modelled rung in the place of the measured one: served in turns, and its episodes can be compared."""

    rung = "measured"


# As burst-v0, for tests that serve it in real time.
BRIEF = Task("brief-v0", "burst", "a few intervals", warmup=2, settle=2, horizon=4)
