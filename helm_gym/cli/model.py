"""``helm-gym model``: a model of one's own, from its weights to a profile."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Literal

import typer

from helm_gym import profile as profiles
from helm_gym.cli.common import Json, Profile, check_writable, open_by_name, print_json, say
from helm_gym.errors import InvalidInputError

IMPORTING = "real_backend.hstu.importing"  # opened by name: helm_gym imports no backend


def model(
    action: Annotated[Literal["import", "show"], typer.Argument(help="import it, or only show what FILE is.")],
    file: Annotated[pathlib.Path, typer.Argument(metavar="FILE", help="Weights, safetensors.")],
    out: Annotated[pathlib.Path | None, typer.Option(help="The profile (.yaml); the weights go beside it.")] = None,
    table: Annotated[pathlib.Path | None, typer.Option(help="Item table, safetensors; mapped, not copied.")] = None,
    profile: Profile = "cpu-small",
    heads: Annotated[int | None, typer.Option(min=1, max=256, help="Where the file does not tell.")] = None,
    attention_n: Annotated[
        int | None, typer.Option(min=1, max=16_777_216, help="N, which attention is divided by (Meta: max_seq_len).")
    ] = None,
    max_history: Annotated[int | None, typer.Option(min=1, max=65_536, help="Tokens of the longest history.")] = None,
    max_candidates: Annotated[int | None, typer.Option(min=1, max=4096, help="Of a request.")] = None,
    dtype: Annotated[Literal["float32", "bfloat16"] | None, typer.Option(help="To serve it in.")] = None,
    as_json: Json = False,
) -> None:
    """Serve an HSTU of your own: make a profile of its weights.

    FILE holds a state dict under this project's names or Meta's (STUStack); nothing is unpickled. What cannot be served
    exactly with a cache is refused, with the reason. Machine, pool, link, workload and cost model are --profile's:
    calibrate the new profile before its modelled figures are used. Names and shapes: docs/models.md.

    \b
    Examples:
      helm-gym model show stack.safetensors --heads 4 --attention-n 4352
      helm-gym model import stack.safetensors --heads 4 --attention-n 4352 --table items.safetensors --out mine.yaml
      helm-gym calibrate --profile mine.yaml --out mine-here.yaml
    """
    base = profiles.load(profile)
    choices = open_by_name(f"{IMPORTING}:Choices")(heads, attention_n, max_history, max_candidates, dtype)
    if action == "show":
        described, weights = open_by_name(f"{IMPORTING}:describe")(file, base, choices)
        made, written = dataclasses.asdict(described), []
        names = "Meta's names" if weights.meta_names else "this project's names"
    else:
        if out is None or out.suffix not in (".yaml", ".yml"):
            raise InvalidInputError("helm-gym model import needs --out, a profile's file that ends in .yaml.")
        check_writable("--out", out)
        imported = open_by_name(f"{IMPORTING}:import_model")(file, out, base, choices, table)
        made, written, names = dataclasses.asdict(imported.model), [out, out.with_suffix(".safetensors")], ""
    if as_json:
        return print_json({"model": made, "out": [str(path) for path in written]})
    say(", ".join(f"{name} {value}" for name, value in made.items() if value != ""))
    if written:
        say(f"Written: {', '.join(map(str, written))}. Its costs are {base.name}'s until it is calibrated.")
    else:
        say(f"{file} has {names}, and can be served exactly with a cache.")
