"""The dashboard and the docs name the metrics that there are."""

from __future__ import annotations

import json
import pathlib
import re

from real_backend.serving.metrics import Metrics
from tests.real_backend.serving.running import ROOT

FOLDER = pathlib.Path(ROOT) / "real_backend" / "serving"


def names() -> set[str]:
    """Of all metrics, as a query has them."""
    found = set()
    for family in Metrics(1, 1).registry.collect():
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found |= {family.name + end for end in ends}
    return found


def test_the_dashboard_draws_metrics_that_there_are() -> None:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    asked = {
        name for panel in panels for target in panel["targets"] for name in re.findall(r"helm_\w+", target["expr"])
    }
    assert asked and asked <= names()


def test_the_docs_list_every_metric() -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    listed = {name.removesuffix("_bucket") for name in names() if not name.endswith(("_sum", "_count"))}
    assert listed == set(re.findall(r"^\| `(helm_\w+)", text, re.MULTILINE))
