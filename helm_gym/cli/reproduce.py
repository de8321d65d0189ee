"""``helm-gym reproduce``: the paper's tables and figures, made again."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from helm_gym import profile as profiles
from helm_gym.cli.common import Json, Profile, Progress, Quiet, check_writable, print_json, say, to_json
from helm_gym.errors import UnknownNameError
from helm_gym.locks import alone


def reproduce(
    figure: Annotated[str, typer.Argument(metavar="FIGURE", help="One of those above.")],
    out: Annotated[pathlib.Path | None, typer.Option(help="Folder for plot, Markdown and JSON; runs/FIGURE.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Episodes of each regime.")] = 12,
    profile: Profile = "cpu-small",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a table or figure of the paper again: a plot, Markdown and JSON.

    Interrupted, the same command goes on with what it had not measured yet. With twelve seeds each takes between
    some minutes and an hour of a core.

    \b
    table3  control strategies: gap to alpha* and time of a decision
    fig4    latency over alpha by regime: the optimum moves
    fig14   the layers of the three-layer controller, left out one by one
    fig15   alpha over a four-hour window against the offline optimum
    unseen  bursts unlike those of training: gain, and cost over best static
    fig6    clusters: hit rates and P99 of the routers
    fig10   clusters: routing scores by component
    fig11   clusters: P99 and SLO of three systems over regimes
    fig13   clusters: allocation and routing, alone and together
    fig16   clusters: mean alpha over size and hot share

    \b
    Examples:
      helm-gym reproduce table3 --out runs/table3
      helm-gym reproduce fig4 --seeds 6 --out runs/fig4
    """
    from helm_gym import paper

    if figure not in paper.FIGURES:
        raise UnknownNameError("figure", figure, paper.FIGURES)
    folder = out or pathlib.Path("runs") / figure
    check_writable("--out", folder / f"{figure}.json")
    opened = profiles.load(profile)
    with alone(folder, f"Another process reproduces into {folder}; wait for it to end, or give another --out."):
        made = paper.reproduce(figure, opened, seeds, Progress(quiet).stage, folder)
        paths = paper.save(made, figure, folder, to_json)
    if as_json:
        return print_json(made.figures)
    say(*made.markdown.split("\n"))
    say(f"Written: {', '.join(map(str, paths))}")
