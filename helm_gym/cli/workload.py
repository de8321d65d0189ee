"""``helm-gym workload``: interaction logs described, synthesised, and made regimes."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from helm_gym.cli.common import Json, check_writable, print_json, print_table, say

if TYPE_CHECKING:
    from helm_gym.workload.description import Description

Session = Annotated[
    float, typer.Option(metavar="SECONDS", help="A visit is over after so long without an interaction.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out rows that cannot be read; they are counted and listed.")
]

_SHOWN = 20  # bad rows in the text; JSON has all that are listed
_COLUMNS = (  # of the table: heading, field, how it is written
    ("from, h", "start_s", lambda value: f"{value / 3600:,.1f}"),
    ("requests", "requests", lambda value: f"{value:,}"),
    ("requests/s", "arrival_rate_rps", lambda value: f"{value:.4g}"),
    ("users", "users", lambda value: f"{value:,.0f}"),
    ("hot users", "hot_users", lambda value: f"{value:,.0f}"),
    ("hot share", "hot_share", lambda value: f"{value:.2f}"),
    ("turnover", "turnover", lambda value: f"{value:.2f}"),
    ("new share", "new_share", lambda value: f"{value:.2f}"),
    ("history", "mean_history", lambda value: f"{value:,.1f}"),
    ("history P90", "p90_history", lambda value: f"{value:,.0f}"),
    ("delta", "delta_tokens", lambda value: f"{value:,.1f}"),
    ("items", "items", lambda value: f"{value:,}"),
    ("item Zipf", "item_zipf", lambda value: f"{value:.2f}"),
    ("popular changed", "popular_changed", lambda value: f"{value:.2f}"),
)


def describe(
    log: Annotated[pathlib.Path, typer.Argument(metavar="LOG", help="A file in one of the formats of docs/logs.md.")],
    windows: Annotated[int, typer.Option(help="Parts of the same length into which the log's time is cut.")] = 12,
    session: Session = 1800.0,
    skip_bad: SkipBad = False,
    plot: Annotated[pathlib.Path | None, typer.Option(help="Draw it to this file (.png, .svg or .pdf).")] = None,
    as_json: Json = False,
) -> None:
    """Describe an interaction log: its parameters over time, and what it contains.

    \b
    Examples:
      helm-gym workload describe ml-100k.inter
      helm-gym workload describe UserBehavior.csv --skip-bad --windows 24 --plot log.png
      helm-gym workload describe Video_Games.jsonl.gz --json
    """
    from helm_gym.errors import InvalidInputError
    from helm_gym.workload.description import describe as described
    from helm_gym.workload.logs import read_log
    from helm_gym.workload.visits import visits_of

    if plot is not None:
        if plot.suffix not in (".png", ".svg", ".pdf"):
            raise InvalidInputError(f"--plot {plot} has no known ending; write .png, .svg or .pdf.")
        check_writable("--plot", plot)
    read = read_log(log, skip_bad)
    visits = visits_of(read, session)
    found = described(visits, windows)
    if plot is not None:
        _draw(found, read.name, plot)
    if as_json:
        return print_json(
            {
                "log": str(log),
                "format": read.format,
                "interactions": len(read.item),
                "users": read.users if read.user is not None else None,
                "items": read.items,
                "span_s": read.span_s,
                "session_s": session,
                "findings": dataclasses.asdict(read.findings),
                "windows": [dataclasses.asdict(window) for window in found.windows],
                "whole": dataclasses.asdict(found.whole),
            }
        )
    say(f"{log}: {read.summary}, {len(visits):,} requests.", *read.findings.told())
    say(*(f"  line {line}: {reason}" for line, reason in read.findings.bad_rows[:_SHOWN]))
    if read.findings.bad > _SHOWN:
        say(f"  and {read.findings.bad - _SHOWN:,} more; --json lists them.")
    rows = [_row(window) for window in found.windows]
    print_table("", [heading for heading, _, _ in _COLUMNS], [*rows, ["all", *_row(found.whole)[1:]]])


def _row(window: Any) -> list[str]:
    values = [(getattr(window, field), how) for _, field, how in _COLUMNS]
    return ["–" if math.isnan(value) else how(value) for value, how in values]


def _draw(found: Description, name: str, path: pathlib.Path) -> None:
    import numpy as np
    from matplotlib.figure import Figure

    panels = (
        ("arrival rate (requests/s)", ("arrival_rate_rps",)),
        ("share of requests", ("hot_share", "new_share")),
        ("users in a window", ("users", "hot_users")),
        ("interactions in a history", ("mean_history", "p90_history")),
        ("item Zipf exponent", ("item_zipf",)),
        ("changed since the last window", ("turnover", "popular_changed")),
    )
    hours = np.array([window.start_s + window.seconds / 2 for window in found.windows]) / 3600
    figure = Figure(figsize=(12, 6), layout="constrained")
    figure.suptitle(name)
    for axes, (title, fields) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        for field in fields:
            axes.plot(hours, [getattr(window, field) for window in found.windows], marker=".", label=field)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("hours since the first request")
        axes.legend(fontsize=8)
    figure.savefig(path)


def synthesize(
    out: Annotated[pathlib.Path, typer.Argument(metavar="OUT", help="The file to write; .gz packs it.")],
    how: Annotated[str, typer.Option("--format", help="A data set's format; --help lists them.")] = "csv",
    requests: Annotated[int, typer.Option(help="Visits of users.")] = 20_000,
    arrival_rate: Annotated[float, typer.Option(metavar="RPS", help="Visits a second.")] = 0.01,
    windows: Annotated[int, typer.Option(help="Parts of the time; hot users change between them.")] = 12,
    hot_share: Annotated[float, typer.Option(help="Share of visits by hot users.")] = 0.6,
    hot_users: Annotated[int, typer.Option(help="Hot users in a window.")] = 64,
    turnover: Annotated[float, typer.Option(help="Share of hot users replaced from window to window.")] = 0.25,
    new_share: Annotated[float, typer.Option(help="Share of the other visits that are a user's first.")] = 0.5,
    delta: Annotated[float, typer.Option(help="Mean interactions of a visit.")] = 4.0,
    items: Annotated[int, typer.Option(help="Items in the catalogue.")] = 5_000,
    item_zipf: Annotated[float, typer.Option(help="Exponent of the items' popularity.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Write an interaction log with known parameters, in the format of a published data set.

    Formats: amazon-csv, amazon-jsonl, taobao, kuairand, movielens-data, movielens-csv, recbole, open-bandit,
    yambda, csv.

    \b
    Examples:
      helm-gym workload synthesize log.csv --hot-share 0.8
      helm-gym workload synthesize reviews.jsonl.gz --format amazon-jsonl --requests 100000
      helm-gym workload describe log.csv --session 60
    """
    import numpy as np

    from helm_gym.errors import UnknownNameError
    from helm_gym.workload.synthesis import WRITERS, Synthesis, write_log
    from helm_gym.workload.synthesis import synthesize as drawn

    if how not in WRITERS:
        raise UnknownNameError("log format", how, WRITERS)
    known = Synthesis(
        requests=requests,
        arrival_rate_rps=arrival_rate,
        windows=windows,
        hot_share=hot_share,
        hot_users=hot_users,
        turnover=turnover,
        new_share=new_share,
        delta_tokens=delta,
        items=items,
        item_zipf=item_zipf,
    )
    check_writable("OUT", out)
    log = drawn(known, np.random.default_rng(seed))
    write_log(log, out, how)
    if as_json:
        figures = {"file": str(out), "format": WRITERS[how][0], "interactions": len(log.item), "seed": seed}
        return print_json(figures | dataclasses.asdict(known))
    say(
        f"{out}: {WRITERS[how][0]}, {len(log.item):,} interactions of {requests:,} visits. "
        f"Describe it with `helm-gym workload describe {out} --session 60`, for its hot users come back soon."
    )


def fit(
    log: Annotated[pathlib.Path, typer.Argument(metavar="LOG", help="A file in one of the formats of docs/logs.md.")],
    out: Annotated[pathlib.Path, typer.Argument(metavar="OUT.yaml", help="The regime's file.")],
    windows: Annotated[int, typer.Option(help="Parts of the same length into which the log's time is cut.")] = 24,
    session: Session = 1800.0,
    skip_bad: SkipBad = False,
    first: Annotated[float, typer.Option("--from", help="Leave out what is before this share of the time.")] = 0.0,
    last: Annotated[float, typer.Option("--until", help="Leave out what is behind this share of the time.")] = 1.0,
    window_intervals: Annotated[
        int, typer.Option(min=0, help="Control intervals of a window; 0: as many as its requests fill.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Make a regime of a log: train and evaluate on parameters that change as your own traffic's did.

    \b
    Examples:
      helm-gym workload fit ml-100k.inter first.yaml --until 0.75
      helm-gym workload fit ml-100k.inter last.yaml --from 0.75
      helm-gym train ppo --task fitted:first.yaml --out runs/mine
      helm-gym evaluate runs/mine pid --task fitted:last.yaml
    """
    from helm_gym.workload import fitted
    from helm_gym.workload.description import describe as described
    from helm_gym.workload.logs import read_log
    from helm_gym.workload.visits import visits_of

    check_writable("OUT.yaml", out)
    read = read_log(log, skip_bad)
    regime = fitted.fit(described(visits_of(read, session), windows), read.name, first, last, window_intervals)
    fitted.save(regime, out)
    findings = read.findings
    if as_json:
        return print_json({"file": str(out), "findings": dataclasses.asdict(findings)} | dataclasses.asdict(regime))
    say(f"{log}: {read.summary}.", *findings.told())
    say(f"{out}: {len(regime.windows)} windows of {regime.requests:,.0f} requests. Use it as --task fitted:{out}.")


COMMANDS = (describe, synthesize, fit)
