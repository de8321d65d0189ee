"""``helm-gym bench``: speed of the parts, beside peers."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Annotated

import typer

from helm_gym.cli.common import Json, Progress, Quiet, print_json, print_table, say

if TYPE_CHECKING:
    from helm_gym.benchmarks.figure import Figure


def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A figure, or surrogate, real, decision or readers for theirs; may be repeated."
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the figures and groups, and end.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the speed of the parts, side by side with peers; all of them take two minutes of an idle machine.

    \b
    Example:
      helm-gym bench --list
      helm-gym bench --only surrogate --json
      helm-gym bench --only decision
      helm-gym bench --only bookkeeping_share
    """
    from helm_gym.benchmarks import suite as benchmarks
    from helm_gym.provenance import describe_machine, versions

    names = benchmarks.names(only or [])
    if listed:
        groups = {name: ", ".join(sorted(g for g, of in benchmarks.GROUPS.items() if name in of)) for name in names}
        told = {name: (inspect.getdoc(benchmarks.FIGURES[name]) or "").splitlines()[0] for name in names}
        if as_json:
            return print_json({name: {"groups": groups[name], "doc": told[name]} for name in names})
        return print_table("", ("figure", "group", "what it is"), [(n, groups[n] or "–", told[n]) for n in names])
    found = {}
    with Progress(quiet).stage("bench") as tick:
        for done, name in enumerate(names):
            tick(name, done, len(names))
            found[name] = benchmarks.measure(name)
    ran_on = {"machine": describe_machine(), "versions": versions()}
    if as_json:
        return print_json({name: _record(figure) | ran_on for name, figure in found.items()})
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
    for name, figure in found.items():
        if figure.by_batch:
            sizes = list(next(iter(figure.by_batch.values())))
            values = [(kind, *(f"{of[size]:,.4g}" for size in sizes)) for kind, of in figure.by_batch.items()]
            print_table(name, ("requests in a micro-batch, at most", *map(str, sizes)), values)
    say(f"CPU time of one process, {ran_on['machine']}.")


def _record(figure: Figure) -> dict[str, object]:
    """A figure as JSON has it; what it says by size of the micro-batches stands beside its value."""
    record = dataclasses.asdict(figure) | {"ratio": figure.ratio}
    return record | record.pop("by_batch")
