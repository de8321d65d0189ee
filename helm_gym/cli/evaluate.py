"""``helm-gym evaluate``: policies on a task, as a table, JSON and an HTML report."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from helm_gym.cli.common import Json, Progress, Quiet, check_writable, console, literal, parse_seeds, print_json
from helm_gym.errors import InvalidInputError

if TYPE_CHECKING:
    from helm_gym.evaluation.results import Evaluation

_WIDE, _NARROW = 180, 124  # columns that a table needs with intervals beside their values, and below them


def evaluate(
    policies: Annotated[
        list[str],
        typer.Argument(
            metavar="POLICY...", help="Names, such as static:0.5 or pid (`helm-gym agents`), run folders, .onnx files."
        ),
    ],
    task: Annotated[str, typer.Option(help="A task's name (`helm-gym tasks`).")],
    backend: Annotated[
        str,
        typer.Option(
            help="modelled; surrogate, its learned twin; real: HSTU runs and is timed; real-ray: on a Ray actor a node."
        ),
    ] = "modelled",
    profile: Annotated[str | None, typer.Option(help="A profile's name or YAML file; the task's by default.")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="How many (5), a range (0-9) or a list (3,5); the task's by default, or two of them on the real "
            "backend, where an episode takes minutes."
        ),
    ] = None,
    horizon: Annotated[int | None, typer.Option(min=1, help="Scored intervals of an episode.")] = None,
    trace: Annotated[pathlib.Path | None, typer.Option(help="Recorded arrivals, for trace-v0.")] = None,
    clairvoyant: Annotated[
        bool, typer.Option("--clairvoyant", help="Also run the limit, which looks ahead (slow).")
    ] = False,
    cluster: Annotated[
        str | None, typer.Option(help="Nodes (8) or a YAML file: then each POLICY is CONTROLLER+ROUTER.")
    ] = None,
    html: Annotated[pathlib.Path | None, typer.Option(help="Write a report with plots to this file.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Judge policies on a task: latency, SLO, distance from the optimum, gain captured.

    \b
    Examples:
      helm-gym evaluate static:0.5 pid miss-ratio-curve oracle --task burst-v0 --html report.html
      helm-gym evaluate runs/x policy.onnx --task burst-v0
      helm-gym evaluate pid --task steady-v0 --seeds 2 --json
      helm-gym evaluate pid --task trace-v0 --trace azure_llm_conv_2023.csv
      helm-gym evaluate pid --task burst-v0 --backend real --seeds 1 --horizon 80
      helm-gym evaluate static:0.6+kv-aware three-layer-ppo+joint --task burst-v0 --cluster 8
    """
    wanted = parse_seeds(seeds) if seeds is not None else None
    from helm_gym import profile as shipped
    from helm_gym.backend import BACKENDS
    from helm_gym.errors import UnknownNameError
    from helm_gym.observation import ObservationLayout
    from helm_gym.policy import open_policy
    from helm_gym.tasks import find_task
    from helm_gym.workload.traces import read_trace

    # All that a user can have mistyped is looked at before anything slow is imported or compiled.
    found = find_task(task)
    found = found if horizon is None else dataclasses.replace(found, horizon=horizon)
    opened = shipped.load(profile or found.profile)
    if backend not in BACKENDS:
        raise UnknownNameError("backend", backend, BACKENDS)
    if cluster is not None:
        given = {"--html": html, "--clairvoyant": clairvoyant}
        if any(given.values()):
            refused = next(option for option, value in given.items() if value)
            raise InvalidInputError(f"{refused} does not go with --cluster yet; leave one of them out.")
    layout = ObservationLayout(opened)
    controllers = [open_policy(name, layout) for name in policies if cluster is None]
    if (trace is None) == (found.regime == "trace"):
        raise InvalidInputError(
            f"Task '{task}' needs recorded arrivals; give a file with --trace PATH."
            if trace is None
            else f"Task '{task}' draws its own arrivals; leave --trace out, or take trace-v0."
        )
    if html is not None:
        check_writable("--html", html)
    recorded = None if trace is None else read_trace(trace)
    if cluster is not None:
        from helm_gym.cli.clusters import evaluate_cluster

        return evaluate_cluster(found, policies, cluster, backend, opened, wanted, recorded, as_json, quiet)

    from helm_gym.evaluation import metrics, protocol

    with Progress(quiet).stage(f"evaluate on {task}") as tick:
        evaluation = protocol.evaluate(
            found,
            controllers,
            backend=backend,
            profile=opened,
            seeds=wanted,
            trace=recorded,
            clairvoyant=clairvoyant,
            progress=tick,
        )
    figures = metrics.to_json(evaluation)
    if html is not None:
        from helm_gym.evaluation.report import Section, write_report

        write_report(html, [Section(evaluation, figures)])
        Progress(quiet).say(f"Report: {html}")
    if as_json:
        print_json(figures)
    else:
        show(evaluation, figures)


def show(evaluation: Evaluation, figures: dict[str, Any]) -> None:
    """Prints the table: best in bold, references and oracles dimmed, where and when in the caption."""
    from rich.markup import escape
    from rich.table import Table

    from helm_gym.evaluation.plots import is_oracle
    from helm_gym.evaluation.report import best_names, columns, label, table_rows

    out, best = console(), best_names(figures)
    count = len(evaluation.seeds)
    caption = f"{evaluation.rung} rung, {count} seed{'s' * (count > 1)}, {evaluation.machine}, {evaluation.date}"
    if out.width < _NARROW:
        caption += "; intervals: --json, or a wider window"
    table = Table(
        title=literal(f"{evaluation.task.name} on {evaluation.profile}"),
        title_justify="left",
        caption=literal(caption),
        caption_justify="left",
        box=None,
        header_style="dim",
    )
    table.add_column("policy", no_wrap=True)
    for column in columns(figures):
        table.add_column(column.heading, justify="right", no_wrap=True)
    for row, reference in table_rows(figures):
        name = str(row["name"])
        cells = [literal(label(name, figures))]
        for column in columns(figures):
            text = column.text(row.get(column.key))
            if out.width < _WIDE:
                text = text.partition(" ")[0] if out.width < _NARROW else text.replace(" ", "\n", 1)
            cells.append(f"[bold]{escape(text)}[/]" if name in best.get(column.key, ()) else escape(text))
        table.add_row(*cells, style="dim" if reference or is_oracle(name) else "")
    out.print(table)
