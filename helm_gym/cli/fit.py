"""``helm-gym fit``: a surrogate, learned from logs."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Annotated

import typer

from helm_gym.cli.common import (
    Json,
    Profile,
    Progress,
    Quiet,
    check_writable,
    open_by_name,
    print_json,
    print_table,
    say,
)
from helm_gym.locks import alone

FIT = "surrogate_backend.fit:fit"  # opened by name: helm_gym imports no backend
SETTINGS = "surrogate_backend.fit:Settings"
FIT_CLUSTERS = "surrogate_backend.clusters.fit:fit_clusters"
OF_CLUSTERS = "surrogate_backend.clusters.fit:SETTINGS"
IS_OF_CLUSTERS = "surrogate_backend.data.log:is_of_clusters"


def fit(
    logs: Annotated[list[pathlib.Path], typer.Argument(metavar="LOG...", help="Folders that `helm-gym collect` made.")],
    out: Annotated[pathlib.Path, typer.Option(help="Folder of the checkpoint, and of tensorboard/ beside it.")],
    profile: Profile = "cpu-small",
    steps: Annotated[int | None, typer.Option(min=1, help="Of the optimiser, at most.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="Of weights and batches.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="Of torch.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a surrogate to logs of one profile, of either rung or both; or that of clusters, to logs of clusters.

    Killed, the same command begins again, and ends with the same checkpoint.

    \b
    Examples:
      helm-gym fit logs/train logs/more --out runs/surrogate
      helm-gym fit logs/clusters --out runs/clusters
      tensorboard --logdir runs/surrogate/tensorboard
    """
    from helm_gym import profile as profiles

    opened = profiles.load(profile)
    check_writable("--out", out / "card.json")
    given = {"steps": steps, "seed": seed, "threads": threads}
    chosen = {name: value for name, value in given.items() if value is not None}
    of_clusters = open_by_name(IS_OF_CLUSTERS)(logs[0])
    settings = (
        dataclasses.replace(open_by_name(OF_CLUSTERS), **chosen) if of_clusters else open_by_name(SETTINGS)(**chosen)
    )
    busy = f"Another process fits into {out}; wait for it to end, or give another --out."
    with alone(out, busy), Progress(quiet).stage(f"fit {opened.name}", "steps") as tick:

        def progress(done: int, total: int, losses: dict[str, float]) -> None:
            finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
            tick(", ".join(f"{name} {loss:.4g}" for name, loss in finite.items()), done, total)

        card = open_by_name(FIT_CLUSTERS if of_clusters else FIT)(opened, logs, out, settings, progress)
    if as_json:
        return print_json(card | {"checkpoint": str(out)})
    rows = [(name, f"{value:.4g}") for name, value in card["held_out"].items()]
    print_table("", ("held out", "value"), rows)
    say(f"Checkpoint: {out}")
