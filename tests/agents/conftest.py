"""What the tests of searches share."""

from __future__ import annotations

import pytest

from agents.tuning import result, search
from tests.agents.tunings import Bowl


@pytest.fixture
def bowl(monkeypatch: pytest.MonkeyPatch) -> type[Bowl]:
    """Searches that take no time: their objective is a bowl, and nothing is drawn."""
    monkeypatch.setattr(result, "_plots", dict)
    monkeypatch.setattr(search, "Objective", Bowl)
    monkeypatch.setattr(result, "Objective", Bowl)
    return Bowl
