"""``helm-gym export``: a run as one ONNX file."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import typer

from helm_gym import files
from helm_gym.cli.common import Json, check_writable, open_by_name, print_json, say
from helm_gym.errors import InvalidInputError
from helm_gym.tasks import TASKS

EXPORT = "agents.export:export"  # opened by name: helm_gym imports no agent
WRITE_CARD = "agents.export:write_card"


def export(
    run: Annotated[pathlib.Path, typer.Argument(metavar="RUN", help="A folder that `helm-gym train` or `tune` made.")],
    out: Annotated[pathlib.Path, typer.Option(help="The ONNX file.")],
    card: Annotated[
        bool, typer.Option("--card", help="Also write card.json and the weights beside it, as shipped policies have.")
    ] = False,
    scores: Annotated[
        list[pathlib.Path] | None,
        typer.Option(help="For the card: what `helm-gym evaluate RUN --json` printed; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's policy as one ONNX file, checked against the one that acts in Python.

    \b
    Examples:
      helm-gym export runs/ppo --out policy.onnx
      helm-gym evaluate policy.onnx --task burst-v0
      helm-gym export runs/ppo --out runs/card/policy.onnx --card --scores burst.json
    """
    if out.suffix != ".onnx":
        raise InvalidInputError(f"--out {out} must end in .onnx.")
    if scores and not card:
        raise InvalidInputError("--scores go on the card; add --card.")
    judged = [_read(path) for path in scores or []]
    check_writable("--out", out)
    facts = open_by_name(EXPORT)(run, out)
    if card:
        open_by_name(WRITE_CARD)(run, out, judged, facts)
    if as_json:
        return print_json(facts | {"file": str(out)})
    say(f"{out}: the graph of {run} differs from it by at most {facts['largest_difference']:.1g}.")


def _read(path: pathlib.Path) -> Any:
    judged = files.read_json(path, "--scores", instead="give what `helm-gym evaluate --json` printed")
    rows = judged.get("policies") if isinstance(judged, dict) else None
    named = isinstance(rows, list) and all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows)
    if not named or not {"rung", "seeds", "machine", "date"} <= set(judged) or judged.get("task") not in [*TASKS]:
        raise InvalidInputError(f"--scores {path} is no output of `helm-gym evaluate --json`; give one.")
    return judged
