"""``helm-gym train``: an agent, into a run folder."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import typer

from helm_gym.cli.common import Json, Progress, Quiet, check_writable, parse_overrides, print_json, print_table, say
from helm_gym.errors import InvalidInputError


def train(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="What to train (`helm-gym agents`).")],
    task: Annotated[str, typer.Option(help="A task's name (`helm-gym tasks`).")] = "mixed-v0",
    out: Annotated[pathlib.Path | None, typer.Option(help="The run's folder; not needed for --settings.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Decisions of one lane to learn from; the agent's own by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of everything that is random.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A hyper-parameter; may be repeated.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="A profile's name or YAML file; the task's by default.")] = None,
    settings: Annotated[bool, typer.Option("--settings", help="List the agent's hyper-parameters and end.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an agent into a run folder: checkpoints, TensorBoard, and the policy that validated best.

    Killed at any moment, the same command goes on from the last checkpoint; with more --steps, so does a finished one.

    \b
    Examples:
      helm-gym train ppo --task mixed-v0 --out runs/ppo
      helm-gym train ppo --out runs/wide --set hidden=128 --set gamma=0.95 --seed 1
      helm-gym train ppo --out runs/ppo --steps 4000000  # goes on to these, though it had ended
      helm-gym train ppo --settings
      tensorboard --logdir runs/ppo/tensorboard
      helm-gym evaluate runs/ppo --task burst-v0
    """
    from helm_gym import profile as profiles
    from helm_gym.tasks import find_task
    from helm_gym.training import trainable

    chosen = parse_overrides(overrides or [])
    found = trainable.find_trainable(agent)
    values = trainable.make_settings(found, chosen, "--set")
    if settings:
        listed = dataclasses.asdict(values)
        if as_json:
            return print_json({"agent": agent, "steps": found.steps, "settings": listed})
        told = trainable.describe_settings(found.settings)
        rows = [(name, str(value), told.get(name, "")) for name, value in listed.items()]
        return print_table("", ("hyper-parameter", "value", "what it is"), rows)
    if out is None:
        raise InvalidInputError("--out is missing; give the run a folder, such as --out runs/x.")
    where = find_task(task)
    opened = profiles.load(profile or where.profile)
    check_writable("--out", out / "run.json")

    progress = Progress(quiet)
    with progress.stage(f"train {agent}", "steps") as tick:
        run = trainable.train(
            agent,
            where,
            opened,
            out,
            seed,
            steps,
            chosen,
            lambda done, total, words: tick(words, done, total),
            lambda text: progress.say(f"train {agent}: {text}"),
        )
    if as_json:
        return print_json(run.to_json() | {"folder": str(out)})
    facts = {name: value for name, value in run.facts.items() if isinstance(value, int | float)}
    facts |= run.facts.get("validation", {})
    said = ", ".join(f"{name} {value:.7g}" for name, value in facts.items())
    say(f"Run {out}{said and f': {said}'}.")
