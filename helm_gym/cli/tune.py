"""``helm-gym tune``: a search for an agent's best settings, into a run folder."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Any

import typer

from helm_gym.cli.common import (
    Json,
    Progress,
    Quiet,
    check_writable,
    open_by_name,
    parse_overrides,
    print_json,
    print_table,
    say,
)

TUNE = "agents.tuning.result:tune"  # opened by name: helm_gym imports no agent
PLAN = "agents.tuning.search:Plan"
CANDIDATES = "agents.tuning.search:Candidates"


def tune(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Whose settings (`helm-gym agents`).")],
    out: Annotated[pathlib.Path, typer.Option(help="Folder of the best as a run, of tune.json and of the plots.")],
    task: Annotated[str, typer.Option(help="A task's name (`helm-gym tasks`).")] = "mixed-v0",
    trials: Annotated[int, typer.Option(min=1, help="The budget: how many are tried, pruned ones among them.")] = 100,
    storage: Annotated[
        str | None,
        typer.Option(help="A database's URL, or a .journal file; sqlite:///OUT/study.db by default."),
    ] = None,
    study: Annotated[str | None, typer.Option(help="The study's name in the storage; AGENT-TASK by default.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes of this machine.")] = 1,
    seeds_a_trial: Annotated[int, typer.Option(min=1, max=1000, help="Episodes of a trial, if not pruned.")] = 24,
    top: Annotated[int, typer.Option(min=1, max=100, help="How many of the best are tried on fresh seeds.")] = 3,
    fresh_seeds: Annotated[int, typer.Option(min=1, max=1000, help="How many fresh seeds.")] = 32,
    backend: Annotated[str, typer.Option(help="Of trials: modelled, or surrogate[:FOLDER], faster.")] = "modelled",
    judge: Annotated[str, typer.Option(help="Of fresh seeds: modelled or surrogate.")] = "modelled",
    fixed: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Holds a setting; may be repeated.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each training, of an agent that is trained.")] = None,
    horizon: Annotated[int | None, typer.Option(min=1, help="Scored intervals of an episode.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the draws, and of trainings.")] = 0,
    profile: Annotated[str | None, typer.Option(help="A profile's name or YAML file; the task's by default.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search an agent's settings: several seeds a trial, and the best tried again on fresh seeds.

    Killed at any moment, the same command goes on; the same command elsewhere, on the same storage, takes part.

    \b
    Examples:
      helm-gym tune pid --task mixed-v0 --trials 100 --out runs/pid
      helm-gym tune bayesian --out runs/bo --workers 4 --storage postgresql://host/helm
      helm-gym tune pid --out runs/pid --set kd=0 --backend surrogate --trials 400
      helm-gym evaluate runs/pid --task burst-v0
      optuna-dashboard sqlite:///runs/pid/study.db
    """
    from helm_gym import profile as profiles
    from helm_gym.ranges import check_name
    from helm_gym.tasks import find_task

    if study is not None:
        check_name("--study", study)
    where = find_task(task)
    opened = profiles.load(profile or where.profile)
    plan = open_by_name(PLAN)(
        agent=agent,
        task=where if horizon is None else dataclasses.replace(where, horizon=horizon),
        profile=opened,
        storage=storage or "",
        study=study or f"{agent}-{task}",
        out=out,
        backend=backend,
        judge=judge,
        trials=trials,
        seeds=seeds_a_trial,
        fresh=fresh_seeds,
        top=top,
        fixed=parse_overrides(fixed or []),
        steps=steps,
        seed=seed,
    )
    open_by_name(CANDIDATES)(plan)  # what a user can have mistyped
    check_writable("--out", out / "run.json")
    with Progress(quiet).stage(f"tune {agent}") as tick:
        figures = open_by_name(TUNE)(plan, workers, tick)
    if as_json:
        return print_json(figures | {"folder": str(out)})
    show(figures, out)


def show(figures: dict[str, Any], out: pathlib.Path) -> None:
    """Prints what was tried again, the best first, with what differs in their settings."""
    best, began = figures["best"], figures["began_with"]
    rows = []
    for entry in sorted([began, *figures["top"]], key=lambda entry: entry["fresh"]["value"]):
        settings = ", ".join(f"{name} {_number(value)}" for name, value in entry["settings"].items())
        name = "began with" if entry is began else f"trial {entry['trial']}"
        searched = "–" if entry["searched"] is None else f"{entry['searched']:.4f}"
        rows.append((name, searched, _figure(entry["fresh"]), _figure(entry["fresh_less_than_began_with"]), settings))
    counts = ", ".join(f"{count} {state}" for state, count in figures["trials"].items() if count)
    print_table(
        f"{figures['objective']}; {counts}",
        (
            "settings",
            f"searched ({figures['rung']['trials']})",
            f"fresh seeds ({figures['rung']['fresh']})",
            "less than began with",
            "values",
        ),
        rows,
    )
    named = "the settings that it began with" if best["trial"] is None else f"trial {best['trial']}"
    say(f"Run {out}: {named}; `helm-gym evaluate {out}` evaluates it.")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _figure(figure: dict[str, Any]) -> str:
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    return f"{value:.4f}" if low is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"
