"""The report: one page that stands alone, says what it should and shows nothing that is not a number."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helm_gym import profile as profiles
from helm_gym.backend import Rung
from helm_gym.evaluation import plots, report
from helm_gym.evaluation.metrics import METRICS
from helm_gym.evaluation.results import ACCOUNT_FIELDS, NODE_FIELDS, TRAFFIC, Episodes, Evaluation, Optimum
from helm_gym.evaluation.scores import Scores
from helm_gym.tasks import find_task
from helm_gym.workload.regimes import make_path

LANES, T, REQUESTS = 2, 160, 50
OPTIMUM = {"calm": 0.62, "wave": 0.25, "flood": 0.85, "viral": 0.45, "steady": 0.6, "trend": 0.5}
HOSTILE = '<img src=x onerror="alert(1)">'


def episodes(name: str, alpha: NDArray[np.float64], star: NDArray[np.float64], seed: int) -> Episodes:
    """Latency that grows with the distance from the optimum."""
    rng = np.random.default_rng(seed)
    service = 1.2 + 4.0 * (alpha - star) ** 2
    sojourn = service[..., None] * (1 + rng.gamma(1.0, 1.2, (*star.shape, REQUESTS)))
    ones = np.ones((*star.shape, 1))
    nodes = dict.fromkeys((*NODE_FIELDS, *ACCOUNT_FIELDS), 0.1 * ones) | {
        "alpha": alpha[..., None],
        "interval_service_ms": service[..., None],
    }
    return Episodes(
        policy=name,
        sojourn_ms=sojourn.astype(np.float32),
        nodes=nodes,
        requests=REQUESTS * ones.astype(np.int64),
        alive=ones.astype(np.bool_),
        traffic={name: np.zeros(star.shape, np.int64) for name in TRAFFIC},
        cost=service / 10,
        decision_us=rng.gamma(4.0, 2.0, 500),
    )


def evaluation(regime: str = "burst", rung: Rung = "modelled", extra: str = "") -> Evaluation:
    profile = profiles.load("cpu-small")
    path = make_path(regime, profile, range(LANES), T)
    ideal = np.array([[OPTIMUM[path.kind[lane][s]] for s in row] for lane, row in enumerate(path.segment)])
    grid = np.linspace(0.05, 0.95, 19)
    cost = 1.2 + 4.0 * (grid[:, None, None] - ideal) ** 2

    def late(by: int) -> NDArray[np.float64]:
        return np.concatenate([np.repeat(ideal[:, :1], by, 1), ideal[:, : T - by]], 1)

    def held(alpha: float) -> Episodes:
        return episodes(f"static:{alpha:g}", np.full_like(ideal, alpha), ideal, 7)

    controllers = {"miss-ratio-curve": late(3), "pid": late(14), extra: late(25), "oracle": late(1)}
    policies = [held(0.5), *(episodes(n, a, ideal, 7) for n, a in controllers.items() if n)]
    return Evaluation(
        task=find_task(f"{regime}-v0"),
        rung=rung,
        profile="cpu-small",
        seeds=tuple(range(LANES)),
        slo_ms=10.0,
        path=path,
        optimum=Optimum(grid, cost, cost, ideal),
        policies=tuple(policies),
        references={f"static:{a:g}": held(a) for a in (0.2, 0.4, 0.6, 0.8)},
        best_static=0.6,
        machine="synthetic <machine>",
        versions={"python": "3.11"},
        date="2026-11-24",
    )


def figures(of: Evaluation) -> dict[str, Any]:
    """What ``evaluate --json`` prints, roughly; one policy lacks a figure, as a static task's gain may."""

    def row(e: Episodes) -> dict[str, Any]:
        mean, p99 = float(e.sojourn_ms.mean()), float(np.percentile(e.sojourn_ms, 99))
        values = {
            "mean_latency_ms": mean,
            "p99_ms": p99,
            "slo_satisfaction": float((e.sojourn_ms < of.slo_ms).mean()),
            "alpha_gap": float(np.abs(e.alpha - of.optimum.alpha_star).mean()),
            "gain_captured": None if e.policy == "static:0.5" else 3.4 - mean,
            "gain_captured_p99": (14 - p99) / 3,
            "decision_us_p50": float(np.median(e.decision_us)),
        }
        return {"name": e.policy} | {
            key: {"value": v, "low": None if v is None else 0.95 * v, "high": None if v is None else 1.05 * v}
            for key, v in values.items()
        }

    return {
        "task": of.task.name,
        "policies": [row(e) for e in of.policies],
        "references": [row(e) for e in of.references.values()],
    }


def section(**kwargs: Any) -> report.Section:
    made = evaluation(**kwargs)
    return report.Section(made, figures(made))


class Page(HTMLParser):
    """Tags as they nest, and the text outside of scripts and styles."""

    VOID = frozenset({"meta", "link", "br", "img", "path", "rect", "use", "line", "circle"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)


@pytest.fixture(scope="module")
def text() -> str:
    return report.render([section(extra=HOSTILE), section(rung="measured")], lead="What was learned & why.")


def test_page_stands_alone_and_is_well_formed(text: str) -> None:
    page = Page(text)
    assert "http" not in text, "nothing is loaded from anywhere, and no namespace pretends to be"
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("href", "xlink:href", "src"):
            assert value.startswith("#"), (tag, name, value)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "two sections' figures share no id"
    references = {v.removeprefix("#") for _, n, v in page.attributes if n in ("href", "xlink:href")}
    references |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert references <= set(ids)
    assert len(text.encode()) < 2_000_000


def test_page_escapes_what_a_user_named_and_shows_no_nan(text: str) -> None:
    assert HOSTILE not in text and "&lt;img src=x" in text
    shown = " ".join(Page(text).texts)
    assert not re.search(r"\b(nan|inf|None)\b", shown, re.IGNORECASE)
    assert "synthetic <machine>" in shown


def test_every_figure_names_its_rung_is_described_and_explained(text: str) -> None:
    page = Page(text)
    labels = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert len(labels) == page.tags.count("figure") == 6
    assert all(len(label) > 40 for label in labels)
    assert text.count("How to read this.") == 6
    headings = re.findall(r"<h3>(.*?)</h3>", text)
    assert sum("modelled rung" in h for h in headings) == sum("measured rung" in h for h in headings) == 3


def test_bold_marks_the_best_that_is_no_oracle(text: str) -> None:
    best = report.best_names(section())
    assert best["mean_latency_ms"] == {"miss-ratio-curve"} and best["alpha_gap"] == {"miss-ratio-curve"}


def test_a_gain_that_is_no_plain_number_has_a_note() -> None:
    """An oracle that gains next to nothing makes a share of it unbounded: such a number says no more than its sign."""
    of = evaluation()
    made = figures(of)
    plain = {**made, "policies": [row for row in made["policies"] if row["gain_captured"]["value"] is not None]}
    assert report.Section(of, plain).notes == []
    row = next(row for row in made["policies"] if row["name"] == "pid")
    row["gain_captured"] = {"value": -1911.85, "low": -2e4, "high": 0.5}
    row["gain_captured_p99"] = {"value": -9.0, "low": -12.0, "high": 12.5}
    section = report.Section(of, made)
    gains = {column.key: column.text(row) for column in section.columns if "gain" in column.key}
    assert gains == {"gain_captured": "<-10 [<-10, 0.50]", "gain_captured_p99": "-9.00 [<-10, >10]"}
    far = {"gain_captured": {"value": -1911.85, "low": -2e4, "high": -1e3}}
    assert METRICS["gain_captured"].text(far) == "<-10"
    beyond, none = section.notes
    assert beyond.startswith("<-10, >10: more than ten times") and none.startswith("–: the regime oracle gains")
    for shown in (" ".join(Page(report.render([section])).texts), " ".join(str(Scores(of, made)).split())):
        assert beyond in shown and none in shown and "-1911.85" not in shown


@pytest.mark.parametrize("regime", ["steady", "trend"])
def test_other_regimes_render(regime: str) -> None:
    page = Page(report.render([section(regime=regime)]))
    shown = " ".join(page.texts)
    assert "steady" in shown if regime == "steady" else "many return" in shown


def test_a_policy_keeps_its_colour_whoever_stands_beside_it() -> None:
    assert plots.colour("pid", ["pid"]) == plots.colour("pid", ["runs/x", "oracle", "pid"])
    strangers = ["runs/x", "runs/y", "policy.onnx"]
    assert len({plots.colour(name, strangers) for name in strangers}) == 3


def test_rolling_p99_is_over_the_last_requests() -> None:
    sojourn = np.ones((10, 50))
    sojourn[4] = 9.0
    assert plots.rolling_p99(sojourn, 100).tolist() == [1, 1, 1, 1, 9, 9, 1, 1, 1, 1]
