"""The ``helm-gym`` command: its subcommands, and how a user's mistake ends (one sentence, exit code 2)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from helm_gym import files
from helm_gym.cli import control, leaderboard, workload
from helm_gym.cli.bench import bench
from helm_gym.cli.calibrate import calibrate
from helm_gym.cli.collect import collect
from helm_gym.cli.compare import compare
from helm_gym.cli.control import status, swap
from helm_gym.cli.decide import decide
from helm_gym.cli.demo import demo
from helm_gym.cli.evaluate import evaluate
from helm_gym.cli.export import export
from helm_gym.cli.fidelity import fidelity
from helm_gym.cli.fit import fit
from helm_gym.cli.listing import agents, profiles, tasks
from helm_gym.cli.load import load
from helm_gym.cli.model import model
from helm_gym.cli.reproduce import reproduce
from helm_gym.cli.serve import serve
from helm_gym.cli.train import train
from helm_gym.cli.tune import tune
from helm_gym.cli.warm import warm
from helm_gym.errors import HelmError
from helm_gym.text import sentence

# Command modules import what is heavy (numba, torch, matplotlib) inside their functions, so that --help is instant.
COMMANDS = (
    demo,
    train,
    tune,
    evaluate,
    export,
    calibrate,
    model,
    collect,
    fit,
    fidelity,
    reproduce,
    bench,
    serve,
    load,
    compare,
    decide,
    status,
    swap,
    tasks,
    profiles,
    agents,
    warm,
)

GROUPS = {
    "leaderboard": ("A board of policies: serve, check, submit, show, publish, verify.", leaderboard.COMMANDS),
    "control": ("A service that runs: mode, kill, revive, rollback, promote, token.", control.COMMANDS),
    "workload": ("Interaction logs: describe, synthesize, fit.", workload.COMMANDS),
}

# Typer brings Click along under a name of its own; this is its class of all mistakes in a command line.
_UsageError: Any = typer.BadParameter.__base__


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Ends what a user did wrong, or this machine cannot do, with one sentence on stderr and exit code 2."""
    try:
        yield
    except _UsageError as error:
        raise _UsageError(sentence(error.format_message()), ctx=error.ctx) from error
    except (HelmError, MemoryError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of a pipe has seen enough; Typer ends quietly
            raise
        typer.echo(f"Error: {sentence(_told(error))}", err=True)
        raise typer.Exit(2) from error


def _told(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"This machine has too little memory ({files.reason(error) or 'out of memory'}); ask for less at a time."
    if isinstance(error, OSError):
        where = f"{error.filename} cannot be used" if error.filename is not None else "This machine fails"
        return f"{where}: {files.reason(error)}; mend that, and run the command again."
    return str(error)


class Command(TyperCommand):
    """Refuses empty values, of all options and arguments: `--out ""` is a variable of a script that is not set."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for param in cast(list[Any], self.get_params(ctx)):  # of a class that Typer keeps to itself
            values = given.get(param.name)
            for value in values if isinstance(values, list | tuple) else (values,):
                if isinstance(value, str) and not value.strip():
                    raise typer.BadParameter("it is empty; give a value, or leave it out.", ctx=ctx, param=param)
        return super().parse_args(ctx, args)


class Commands(TyperGroup):
    """All commands. Ctrl-C is Typer's own: quiet, exit code 130."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in (*(command.__name__ for command in COMMANDS), *GROUPS) if name in self.commands]

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        # Without arguments the help is printed, by way of an error.
        with one_sentence() if args else contextlib.nullcontext():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        with one_sentence():
            return super().invoke(ctx)


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
    app.command(cls=Command, short_help=(_command.__doc__ or "").partition("\n")[0])(_command)
for _name, (_help, _commands) in GROUPS.items():
    _group = typer.Typer(help=_help, no_args_is_help=True, rich_markup_mode=None)
    for _one in _commands:
        _group.command(cls=Command, short_help=(_one.__doc__ or "").partition("\n")[0])(_one)
    app.add_typer(_group, name=_name)


def run() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no letter for a dash gets its number
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # they are text files here
    sys.path.append(os.getcwd())  # last: a file here named as a library's module stands in nobody's way
    try:
        app()
    except KeyboardInterrupt:  # outside of a command: while Python still loads modules, say
        sys.exit(130)


if __name__ == "__main__":
    run()
