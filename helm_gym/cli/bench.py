"""``helm-gym bench``: speed of the parts, beside peers."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from helm_gym.cli.common import Json, Progress, Quiet, print_json, print_table


def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A figure, or surrogate, real or decision for theirs; may be repeated."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the speed of the parts on one core, side by side with peers.

    \b
    Example:
      helm-gym bench --only surrogate --json
      helm-gym bench --only decision
      helm-gym bench --only bookkeeping_share
    """
    from helm_gym import bench as benchmarks
    from helm_gym.evaluation.machine import describe_machine, versions

    names = benchmarks.names(only or [])
    found = {}
    with Progress(quiet).stage("bench") as tick:
        for done, name in enumerate(names):
            tick(name, done, len(names))
            found[name] = benchmarks.measure(name)
    ran_on = {"machine": describe_machine(), "versions": versions()}
    if as_json:
        return print_json({n: dataclasses.asdict(f) | {"ratio": f.ratio} | ran_on for n, f in found.items()})
    rows = [
        (
            name,
            f"{figure.value:,.3g} [{figure.low:,.3g}, {figure.high:,.3g}]"
            if figure.value < 1000
            else f"{figure.value:,.0f} [{figure.low:,.0f}, {figure.high:,.0f}]",
            figure.unit,
            figure.rung or "–",
            ", ".join(f"{ratio:.3g} x {peer}" for peer, ratio in figure.ratio.items()) or "–",
            figure.doc,
        )
        for name, figure in found.items()
    ]
    print_table("", ("figure", "value", "unit", "rung", "against", "what it is"), rows)
    typer.echo(f"CPU time of one process, {ran_on['machine']}.")
