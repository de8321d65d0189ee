"""The ``helm-gym`` command: its subcommands, and how a user's mistake ends (one sentence, exit code 2)."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from helm_gym.cli.bench import bench
from helm_gym.cli.calibrate import calibrate
from helm_gym.cli.collect import collect
from helm_gym.cli.demo import demo
from helm_gym.cli.evaluate import evaluate
from helm_gym.cli.export import export
from helm_gym.cli.fidelity import fidelity
from helm_gym.cli.fit import fit
from helm_gym.cli.listing import agents, profiles, tasks
from helm_gym.cli.reproduce import reproduce
from helm_gym.cli.train import train
from helm_gym.cli.tune import tune
from helm_gym.cli.warm import warm
from helm_gym.errors import HelmError

# Command modules import what is heavy (numba, torch, matplotlib) inside their functions, so that --help is instant.
COMMANDS = (
    demo,
    train,
    tune,
    evaluate,
    export,
    calibrate,
    collect,
    fit,
    fidelity,
    reproduce,
    bench,
    tasks,
    profiles,
    agents,
    warm,
)


class Commands(TyperGroup):
    """Ends a mistake of the user's with one sentence on stderr. Ctrl-C is Typer's own: quiet, exit code 130."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [command.__name__ for command in COMMANDS]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HelmError as error:
            typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from error


def _version(asked: bool) -> None:
    if asked:
        from helm_gym import __version__

        typer.echo(f"helm-gym {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="helm-gym",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, compare and deploy controllers that split GPU memory between an embedding cache and a KV cache.

    Start with `helm-gym demo`. Each command's --help has an example.
    """


for _command in COMMANDS:
    # Given whole: Typer's own short help ends in the middle of a sentence.
    app.command(short_help=(_command.__doc__ or "").partition("\n")[0])(_command)


def run() -> None:
    """Entry point of the console script."""
    try:
        app()
    except KeyboardInterrupt:  # outside of a command: while Python still loads modules, say
        sys.exit(130)


if __name__ == "__main__":
    run()
