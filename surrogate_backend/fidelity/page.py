"""The report's page: one self-contained HTML file with the figures, their marks, the pictures and the definitions."""

from __future__ import annotations

import html
import math
import pathlib
from collections.abc import Sequence

from helm_gym.evaluation import report
from surrogate_backend.fidelity import plots
from surrogate_backend.fidelity.cases import GROUPS
from surrogate_backend.fidelity.judgement import Judged, Judgement
from surrogate_backend.fidelity.measures import MEASURES, PATH_KEYS, Measure

_KINDS = {"excess": "≤ {} over floor", "most": "≤ {}", "least": "≥ {}"}


def write_page(judgement: Judgement, path: pathlib.Path) -> None:
    """Writes the page.

    Raises:
        InvalidInputError: the path cannot be written.
    """
    report.save(path, render(judgement))


def render(judgement: Judgement) -> str:
    """The page as text."""
    j, rung = judgement, judgement.rung
    body = (
        '<section aria-labelledby="figures">',
        f'<h2 id="figures">The figures {report.badge("surrogate")} against {report.badge(rung)}</h2>',
        report.facts(_origin(j)),
        _table(j),
        *(f"<p>{html.escape(text)}</p>" for text in (*_notes(j), *_missing(j))),
        "</section>",
        '<section aria-labelledby="settings"><h2 id="settings">By setting</h2>',
        _settings(j.settings),
        *(report.figure(picture, f"surrogate and {rung}") for picture in plots.pictures(j)),
        "</section>",
        '<section aria-labelledby="definitions"><h2 id="definitions">Definitions</h2>',
        *(_definition(measure) for measure in MEASURES),
        "</section>",
    )
    return report.page(f"HELM-Gym: how true is the surrogate of {j.profile}?", _lead(j), "\n".join(body))


def _lead(j: Judgement) -> str:
    verdicts = {m.heading: m.passed(j.floor[m.key], j.surrogate[m.key]) for m in MEASURES}
    judged = [name for name, verdict in verdicts.items() if verdict is not None]
    missed = [name for name in judged if not verdicts[name]]
    told = f"Against the {j.rung} rung, {len(judged) - len(missed)} of {len(judged)} figures meet their marks"
    told += f"; missed: {', '.join(missed)}." if missed else "."
    absent = len(MEASURES) - len(judged)
    return told + (f" {absent} more could not be judged by this log." if absent else "")


def _origin(j: Judgement) -> dict[str, str]:
    return {
        "Surrogate": f"{j.twin}, {j.lanes} lanes",
        "Checkpoint": j.checkpoint,
        "Log": f"{j.origin.folder}: {j.origin.episodes} episodes, {j.origin.intervals:,} intervals",
        "Rung of the log": j.rung,
        "Profile": j.profile,
        "Logged": f"{j.origin.dates}, {j.origin.machine}, helm-gym {j.origin.code_version}",
        "Judged": f"{j.date}, {j.machine}",
        "Versions": ", ".join(f"{name} {version}" for name, version in j.versions.items()),
    }


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _table(j: Judgement) -> str:
    head = "".join(
        f'<th scope="col">{h}</th>'
        for h in ("figure", "surrogate", "floor", "over floor", "mark", "", "settings", "real episodes")
    )
    caption = (
        "Floor: what the real backend differs from itself by. Marks are those that the project set before the "
        "surrogate was made. Definitions of every figure and floor stand below."
    )
    rows = "".join(_row(j, measure) for measure in MEASURES)
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(j: Judgement, m: Measure) -> str:
    floor, twin, stands = j.floor[m.key], j.surrogate[m.key], j.stands_on[m.key]
    over = twin - floor if m.kind == "excess" else math.nan
    verdict = {True: "met", False: "<b>missed</b>", None: "–"}[m.passed(floor, twin)]
    unit = f" ({m.unit})" if m.unit and m.unit != "alpha" else ""
    cells = (
        *(_number(value, m.digits) for value in (twin, floor, over)),
        html.escape(_KINDS[m.kind].format(f"{m.mark:g}")),
        verdict,
        str(stands["settings"]),
        str(stands["episodes"]),
    )
    return f'<tr><th scope="row">{html.escape(m.heading + unit)}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>'


def _notes(j: Judgement) -> list[str]:
    notes = [
        "All times, service and sojourn, are divided by the telemetry field speed before they are compared: the "
        "measured rung follows with it, by a probe, how fast its machine computes at the time, and scales link and "
        "arrivals by it. On the modelled rung and on the surrogate it is 1. Recorded arrivals, where the log has some, "
        "are given to the surrogate; else it draws its own, as it draws its own requests."
    ]
    if any(s.setting.disturbed for s in j.settings):
        shares = ", ".join(f"{s.setting.label} {s.setting.disturbed:.0%}" for s in j.settings)
        notes.append(
            "Splits and controllers are compared without the intervals in which a request took longer than any can "
            "compute, for the machine's host took the processor away, and those after it, ten in all; they are left "
            f"out of all that were served in turns with it. Of their intervals that is: {shares}. Expectations over "
            "seeds leave them out of that seed."
        )
    timing = [j.timing[key] for key in PATH_KEYS]
    if all(map(math.isfinite, timing)):
        told = ", ".join(
            f"{m.heading.removeprefix('path error, ')} {j.timing[m.key]:.2f}%" for m in MEASURES if m.key in PATH_KEYS
        )
        notes.append(
            f"The same requests served again by the real backend differ by: {told} (path error). That part of the "
            "floor is timing; the rest is which requests come."
        )
    said = [s.extrapolating for s in j.settings if s.extrapolating is not None]
    if said:
        notes.append(f"The surrogate says of {100 * sum(said) / len(said):.1f}% of the intervals that it extrapolates.")
    return notes


def _missing(j: Judgement) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for measure in MEASURES:
        if measure.key in j.missing:
            reasons.setdefault(j.missing[measure.key], []).append(measure.heading)
    return [f"{', '.join(headings)}: {reason}" for reason, headings in reasons.items()]


def _settings(settings: Sequence[Judged]) -> str:
    heads = (
        *("setting", "episodes", "bias of service (%)", "alpha* real / surrogate", "regret (%)", "tau (one lane)"),
        *("surrogate's first", "its real place", "cost of that choice (%)", "extrapolating (%)"),
    )
    caption = (
        f"Episodes: {', '.join(GROUPS)}. Bias: with its sign, above 0 where the surrogate is too slow. Cost: mean "
        "sojourn of the controller that the surrogate ranks first over the real best's, less one. Extrapolating: share "
        "of its intervals of which it says so."
    )
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    rows = "".join(_setting_row(judged) for judged in settings)
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _setting_row(s: Judged) -> str:
    choice, figures = s.choice, s.surrogate
    cells = [
        " + ".join(str(len(s.setting.group(group))) for group in GROUPS),
        f"{figures['stationary_bias']:+.2f}" if "stationary_bias" in figures else "–",
        "–" if s.stars is None else f"{s.stars[0]:.3f} / {s.stars[1]:.3f}",
        _number(figures.get("alpha_star_regret", math.nan), 3),
        "–" if choice is None else f"{figures['kendall_tau_mean']:.2f} ({choice.lane_tau:.2f})",
        "–" if choice is None else html.escape(choice.twin),
        "–" if choice is None else f"{choice.place} of {choice.policies}",
        "–" if choice is None else f"{choice.cost:.1f}",
        "–" if s.extrapolating is None else f"{100 * s.extrapolating:.1f}",
    ]
    return (
        f'<tr><th scope="row">{html.escape(s.setting.label)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
    )


def _definition(measure: Measure) -> str:
    return (
        f"<h3>{html.escape(measure.heading)} <code>{measure.key}</code></h3>"
        f"<p>{html.escape(measure.doc)} <b>Floor.</b> {html.escape(measure.floor)}</p>"
    )
