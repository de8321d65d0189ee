"""The report: one self-contained HTML page of an evaluation, its table and its plots.

The columns are those of the command line's table too (``metrics.METRICS``), so that a number has one name and one form
everywhere.
"""

from __future__ import annotations

import dataclasses
import html
import math
import pathlib
import string
from collections.abc import Mapping, Sequence

from helm_gym import files
from helm_gym.evaluation import plots
from helm_gym.evaluation.metrics import METRICS, NO_VALUE, Metric, Row
from helm_gym.evaluation.results import Evaluation
from helm_gym.evaluation.summary import columns
from helm_gym.text import plain

_PAGE = pathlib.Path(__file__).with_name("report.html")
_BARS = ("p99_ms", "kv_hit_rate", "gain_captured", "gain_captured_p99")  # columns that are drawn, too


@dataclasses.dataclass(frozen=True)
class Section:
    """One rung of the report.

    Attributes:
        evaluation: its episodes, for the plots.
        figures: the object that ``evaluate --json`` prints.
        heading: of the section; the rung is added.
        note: one or two sentences for who reads it first.
    """

    evaluation: Evaluation
    figures: Row
    heading: str = "Results"
    note: str = ""

    @property
    def columns(self) -> list[Metric]:
        """Of its table."""
        return columns(self.evaluation, [row for row, _ in table_rows(self.figures)])

    @property
    def notes(self) -> list[str]:
        """What is to be said of gains in its table that are no plain numbers; the JSON has them exactly."""
        gains = [column for column in self.columns if math.isfinite(column.exact)]
        texts = [column.text(row) for row, _ in table_rows(self.figures) for column in gains]
        found = []
        if any(sign in text for text in texts for sign in "<>"):
            found.append("<-10, >10: more than ten times what the regime oracle gains over the best static split")
        if NO_VALUE in texts:
            found.append(f"{NO_VALUE}: the regime oracle gains too little over the best static split for a share of it")
        return found


def table_rows(figures: Row) -> list[tuple[Row, bool]]:
    """Rows of the table, each with whether it only serves as a reference.

    Policies come first, then references that are not among them: the best statics and the oracles. The other static
    splits stand in the JSON and in the plot of latency over alpha.
    """
    asked = [(row, False) for row in figures["policies"]]
    names, best = {row["name"] for row, _ in asked}, set(_best_statics(figures))
    beside = (row for row in figures.get("references", ()) if row["name"] not in names)
    return asked + [(row, True) for row in beside if not plots.is_static(row["name"]) or row["name"] in best]


def label(name: str, figures: Row) -> str:
    """A policy's name, and what it is the best at where it is a static split that gains are counted from."""
    best = _best_statics(figures).get(name)
    return f"{name} ({best})" if best else name


def _best_statics(figures: Row) -> dict[str, str]:
    mean, tail = (figures.get(key) for key in ("best_static", "best_static_p99"))
    if mean is not None and mean == tail:
        return {f"static:{mean:g}": "best static"}
    found = {mean: "best static, mean", tail: "best static, P99"}
    return {f"static:{alpha:g}": text for alpha, text in found.items() if alpha is not None}


def best_names(section: Section) -> dict[str, set[str]]:
    """By column, who is best among the policies that are allowed to win: oracles are not."""
    result: dict[str, set[str]] = {}
    rivals = [row for row in section.figures["policies"] if not plots.is_oracle(str(row["name"]))]
    for column in section.columns:
        known = [(column.number(row), str(row["name"])) for row in rivals if math.isfinite(column.number(row))]
        if column.best is not None and len(known) > 1:
            top = column.best(value for value, _ in known)
            result[column.key] = {name for value, name in known if value == top}
    return result


def where_and_when(evaluation: Evaluation) -> dict[str, str]:
    """What every result carries: rung, profile, seeds, machine, versions and date."""
    seeds = evaluation.seeds
    run = len(seeds) > 2 and seeds == tuple(range(seeds[0], seeds[0] + len(seeds)))
    cluster = {} if evaluation.cluster is None else {"Nodes": str(evaluation.cluster.size)}
    return {
        "Task": f"{evaluation.task.name} – {evaluation.task.doc}",
        "Rung": evaluation.rung + (", served in turns" if evaluation.in_turns else ""),
        **cluster,
        **({"Trace": evaluation.trace} if evaluation.trace else {}),
        "Profile": evaluation.profile,
        **({"Host link": evaluation.link} if evaluation.link else {}),
        "Episodes": f"{evaluation.path.intervals} scored control intervals of each seed",
        "Seeds": f"{seeds[0]}–{seeds[-1]}" if run else ", ".join(map(str, seeds)),
        "SLO": f"{evaluation.slo_ms:.3g} ms",
        "Machine": evaluation.machine,
        "Versions": ", ".join(f"{name} {version}" for name, version in evaluation.versions.items()),
        "Date": evaluation.date,
    }


def write_report(path: pathlib.Path, sections: Sequence[Section], title: str = "", lead: str = "") -> None:
    """Writes the page.

    Raises:
        InvalidInputError: the path cannot be written.
    """
    save(path, render(sections, title, lead))


def save(path: pathlib.Path, text: str) -> None:
    """Writes a page's text, whole or not at all.

    Raises:
        InvalidInputError: the path cannot be written.
    """
    files.write(path, "\n".join(map(plain, text.split("\n"))))


def render(sections: Sequence[Section], title: str = "", lead: str = "") -> str:
    """The page as text.

    Args:
        sections: one a rung, the most telling first.
        title: of the page; the first section's task where not given.
        lead: the sentence below it.
    """
    title = title or f"HELM-Gym: {sections[0].evaluation.task.name}"
    return page(title, lead, "\n".join(_section(section, f"s{number}") for number, section in enumerate(sections)))


def page(title: str, lead: str, body: str) -> str:
    """A whole page in the project's look; ``body`` is HTML, the others are text."""
    template = string.Template(_PAGE.read_text(encoding="utf-8"))
    lead_html = f'<p class="lead">{html.escape(lead)}</p>' if lead else ""
    return template.substitute(title=html.escape(title), lead=lead_html, body=body)


def _section(section: Section, prefix: str) -> str:
    evaluation, rung = section.evaluation, section.evaluation.rung
    rows = sorted((row for row, _ in table_rows(section.figures)), key=METRICS["mean_latency_ms"].number)
    panels = [
        (column.heading, [{"name": row["name"], **_numbers(row, column)} for row in rows])
        for column in section.columns
        if column.key in _BARS
    ]
    pictures = [
        plots.bars(panels, f"{prefix}-bars"),
        plots.episode(evaluation, f"{prefix}-episode"),
    ]
    held = sum(map(plots.is_static, plots.all_episodes(evaluation)))
    if evaluation.optimum is not None and (prefix == "s0" or held > 2):
        pictures.append(plots.against_alpha(evaluation, f"{prefix}-alpha"))
    note = f"<p>{html.escape(section.note)}</p>" if section.note else ""
    return "\n".join(
        (
            f'<section aria-labelledby="{prefix}-heading">',
            f'<h2 id="{prefix}-heading">{html.escape(section.heading)} {badge(rung)}</h2>',
            note,
            facts(where_and_when(evaluation)),
            _table(section),
            *(figure(picture, rung) for picture in pictures),
            "</section>",
        )
    )


def _numbers(row: Row, column: Metric) -> dict[str, float]:
    return {end: column.number(row, end) for end in ("value", "low", "high")}


def badge(rung: str) -> str:
    """The mark of the rung that a heading's figures stand on."""
    return f'<span class="rung">{html.escape(rung)} rung</span>'


def facts(items: Mapping[str, str]) -> str:
    """A grid of names and texts."""
    cells = (
        f'<div class="{"wide" if len(v) > 34 else "short"}"><dt>{k}</dt><dd>{html.escape(v)}</dd></div>'
        for k, v in items.items()
    )
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _table(section: Section) -> str:
    best, names = best_names(section), [str(row["name"]) for row, _ in table_rows(section.figures)]
    head = "".join(f'<th scope="col" title="{html.escape(c.doc)}">{c.heading}</th>' for c in section.columns)
    lines = []
    for row, reference in table_rows(section.figures):
        name = str(row["name"])
        cells = "".join(_cell(column, row, name in best.get(column.key, ())) for column in section.columns)
        dot = f'<i style="background:{plots.colour(name, names)}"></i>'
        kind = ' class="reference"' if reference or plots.is_oracle(name) else ""
        lines.append(f'<tr{kind}><th scope="row">{dot}{html.escape(label(name, section.figures))}</th>{cells}</tr>')
    caption = (
        f"{html.escape(section.evaluation.task.name)}, {section.evaluation.rung} rung. Small figures: 95% intervals "
        "over seeds. Bold: the best that is no oracle. Grey rows only serve as references."
        + html.escape("".join(f" {note}." for note in section.notes))
    )
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr><th scope="col">policy</th>{head}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(column: Metric, row: Row, best: bool) -> str:
    value, _, interval = html.escape(column.text(row)).partition(" ")
    small = f"<small>{interval}</small>" if interval else ""
    return f"<td>{f'<b>{value}</b>' if best else value}{small}</td>"


def figure(picture: plots.Picture, rung: str) -> str:
    """A picture with its title, its rung and how to read it."""
    return (
        f"<figure><h3>{html.escape(picture.title)} {badge(rung)}</h3>{picture.svg}"
        f"<figcaption><b>How to read this.</b> {html.escape(picture.how_to_read)}</figcaption></figure>"
    )
