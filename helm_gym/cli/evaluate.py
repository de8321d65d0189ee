"""``helm-gym evaluate``: policies on a task, as a table, JSON and an HTML report."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from helm_gym.cli.common import Json, Progress, Quiet, check_writable, console, parse_seeds, print_json


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
            help="modelled; surrogate[:FOLDER], learned; real: HSTU runs and is timed; real-ray: a Ray actor a node."
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
    trace: Annotated[
        pathlib.Path | None,
        typer.Option(help="Recorded arrivals, for trace-v0: CSV or JSON lines (docs/traces.md), gzip too."),
    ] = None,
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
    from helm_gym import evaluation

    if html is not None:
        check_writable("--html", html)
    where = task if cluster is None else f"{task}, {cluster} nodes"
    with Progress(quiet).stage(f"evaluate on {where}") as tick:
        scores = evaluation.evaluate(
            policies,
            task,
            backend=backend,
            profile=profile,
            seeds=wanted,
            horizon=horizon,
            trace=trace,
            cluster=cluster,
            clairvoyant=clairvoyant,
            progress=tick,
        )
    if html is not None:
        scores.write_report(html)
        Progress(quiet).say(f"Report: {html}")
    if as_json:
        print_json(scores.figures)
    else:
        out = console()
        out.print(scores.table(out.width))
