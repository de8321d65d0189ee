"""``helm-gym fidelity``: how true a surrogate is to the backend whose log it is held against."""

from __future__ import annotations

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

FIND = "surrogate_backend.checkpoint:find"  # opened by name: helm_gym imports no backend
JUDGE = "surrogate_backend.fidelity:judge"
WRITE_PAGE = "surrogate_backend.fidelity:write_page"


def fidelity(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A folder that `helm-gym fit` made, or a shipped one's name.")
    ],
    log: Annotated[
        pathlib.Path, typer.Argument(metavar="LOG", help="Folder of a log of the design test, not fitted to.")
    ],
    profile: Profile = "cpu-small",
    html: Annotated[pathlib.Path | None, typer.Option(help="Write a report with plots to this file.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say how true a surrogate is: its errors beside the floor, which is the backend against itself.

    \b
    Examples:
      helm-gym fidelity runs/surrogate logs/test --html fidelity.html
      helm-gym fidelity cpu-small-v2 logs/test --json
    """
    from helm_gym import profile as profiles

    opened = profiles.load(profile)
    if html is not None:
        check_writable("--html", html)
    found = open_by_name(FIND)(checkpoint, opened)
    with Progress(quiet).stage(f"fidelity of {checkpoint}") as tick:
        judgement = open_by_name(JUDGE)(found, log, opened, tick)
    if html is not None:
        open_by_name(WRITE_PAGE)(judgement, html)
        Progress(quiet).say(f"Report: {html}")
    figures = judgement.to_json()
    if as_json:
        return print_json(figures)
    rows = [
        (name, _figure(figures["floor"].get(name)), _figure(value), figures["units"].get(name, ""))
        for name, value in figures["surrogate"].items()
    ]
    print_table("", ("metric", "floor", "surrogate", "unit"), rows)
    say(f"{checkpoint} against {log}, {figures['rung']} rung; floor: the backend against itself.")
    for name, why in figures["missing"].items():
        say(f"{name}: {why}")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
