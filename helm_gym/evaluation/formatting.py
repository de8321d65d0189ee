"""How figures are written in a reproduction's Markdown."""

from __future__ import annotations

import datetime
from collections.abc import Mapping


def interval(figure: Mapping[str, float | None], digits: int, scale: float = 1.0) -> str:
    """``value [low, high]``; the value alone where there is no interval, and a dash where there is no value."""
    value, low, high = (
        "–" if figure[end] is None else f"{scale * float(figure[end] or 0.0):.{digits}f}"
        for end in ("value", "low", "high")
    )
    return value if "–" in (low, high) else f"{value} [{low}, {high}]"


def today() -> str:
    """The date, ISO."""
    return datetime.date.today().isoformat()
