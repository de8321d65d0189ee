"""``helm-gym export``: a run, or an ONNX file from elsewhere, as a policy in one ONNX file."""

from __future__ import annotations

import pathlib
import re
from typing import Annotated, Any

import typer

from helm_gym import files
from helm_gym.cli.common import Json, check_writable, open_by_name, print_json, say
from helm_gym.errors import InvalidInputError

EXPORT = "helm_gym.policies.run_export:export"  # opened by name: helm_gym imports no agent
WRITE_CARD = "helm_gym.policies.run_export:write_card"


def export(
    run: Annotated[
        pathlib.Path,
        typer.Argument(
            metavar="RUN|FILE.onnx", help="A folder that `helm-gym train` or `tune` made, or an ONNX file of your own."
        ),
    ],
    out: Annotated[pathlib.Path, typer.Option(help="The ONNX file.")],
    task: Annotated[
        str | None, typer.Option(help="For a FILE: on which task's observations it is checked (mixed-v0).")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="For a FILE: which profile it is made for; the task's by default.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="For a FILE: what its metadata call it.")] = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Also write card.json and the weights beside it, as shipped policies have; for a FILE, put the new "
            "checksum on the card that is there.",
        ),
    ] = False,
    scores: Annotated[
        list[pathlib.Path] | None,
        typer.Option(help="For the card: what `helm-gym evaluate RUN --json` printed; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a policy as one ONNX file, checked: a run against the one that acts in Python, a file by all rules.

    An ONNX file of your own has inputs obs [lanes, D] and state [lanes, S] and outputs action [lanes, 1] and
    state_out [lanes, S], float32; docs/policies.md has examples and the rules.

    \b
    Examples:
      helm-gym export runs/ppo --out policy.onnx
      helm-gym export mine.onnx --out policy.onnx
      helm-gym evaluate policy.onnx --task burst-v0
      helm-gym export runs/ppo --out runs/card/policy.onnx --card --scores burst.json
    """
    if out.suffix != ".onnx":
        raise InvalidInputError(f"--out {out} must end in .onnx.")
    if scores and not card:
        raise InvalidInputError("--scores go on the card; add --card.")
    if not run.is_dir() and (run.suffix == ".onnx" or run.exists()):
        if scores:
            raise InvalidInputError("--scores are of a run; leave them out for a file.")
        return _export_file(run, out, task or "mixed-v0", profile, name or "", card, as_json)
    for option, given in (("--task", task), ("--profile", profile), ("--name", name)):
        if given is not None:
            raise InvalidInputError(f"{option} is for an ONNX file; a run knows its own.")
    judged = [_read(path) for path in scores or []]
    check_writable("--out", out)
    facts = open_by_name(EXPORT)(run, out)
    if card:
        open_by_name(WRITE_CARD)(run, out, judged, facts)
    if as_json:
        return print_json(facts | {"file": str(out)})
    say(f"{out}: the graph of {run} differs from it by at most {facts['largest_difference']:.1g}.")


def _export_file(
    file: pathlib.Path, out: pathlib.Path, task: str, profile: str | None, name: str, card: bool, as_json: bool
) -> None:
    from helm_gym import profile as profiles
    from helm_gym.observation import ObservationLayout
    from helm_gym.policies import onnx_export
    from helm_gym.policies.opening import refuse_file
    from helm_gym.tasks import find_task

    if file.suffix != ".onnx":
        refuse_file(file)
    layout = ObservationLayout(profiles.load(profile or find_task(task).profile))
    check_writable("--out", out)
    facts = onnx_export.export_file(file, out, layout, task, name)
    if card:
        onnx_export.update_card(out, facts["checksum"])
    if as_json:
        return print_json(facts | {"file": str(out)})
    say(f"{out}: {file} keeps every rule and is a policy for profile {layout.profile.name}.")


def _names_task(name: object) -> bool:
    """One of the user's own, of a file or a module, is in no list."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]{0,99}", name) is not None


def _read(path: pathlib.Path) -> Any:
    judged = files.read_json(path, "--scores", instead="give what `helm-gym evaluate --json` printed")
    rows = judged.get("policies") if isinstance(judged, dict) else None
    named = isinstance(rows, list) and all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows)
    if not named or not {"rung", "seeds", "machine", "date"} <= set(judged) or not _names_task(judged.get("task")):
        raise InvalidInputError(f"--scores {path} is no output of `helm-gym evaluate --json`; give one.")
    return judged
