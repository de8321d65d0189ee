"""``helm-gym leaderboard``, its operator's part: a board to serve, measure, back up and publish."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from helm_gym import files
from helm_gym.cli.common import Progress, Quiet, check_writable, open_by_name, say

SERVE, OPEN_BOARD = "leaderboard.serving:serve", "leaderboard.serving:open_board"
MEASURE = "leaderboard.measuring:measure"
PUBLISH = "leaderboard.publishing:publish"
CLOSE, OPEN_SEASON = "leaderboard.season_change:close_season", "leaderboard.season_change:open_season"

Board = Annotated[pathlib.Path, typer.Option("--board", help="The board's folder.")]
Database = Annotated[str | None, typer.Option(help="postgresql://USER@HOST/DATABASE in place of SQLite.")]
Unconfined = Annotated[
    bool, typer.Option("--unconfined", help="Run policies although this kernel cannot confine them (files you trust).")
]
_BOARD = pathlib.Path("leaderboard-board")


def serve(
    board: Board = _BOARD,
    database: Database = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8484,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Processes that evaluate.")] = 1,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Submitting requires a token (`leaderboard token`).")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name that it answers to beside 127.0.0.1; may be repeated.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of a new board.")] = "HELM-Gym",
    task: Annotated[list[str] | None, typer.Option(help="A new board's tasks; all by default.")] = None,
    hidden: Annotated[int, typer.Option(min=2, max=1000, help="A new board's hidden episodes a task.")] = 20,
    horizon: Annotated[int | None, typer.Option(min=1, help="A new board's scored intervals; the task's.")] = None,
    references: Annotated[
        bool, typer.Option(help="Seed a new board with this repository's agents and baselines, and scale its scores.")
    ] = True,
    unconfined: Unconfined = False,
) -> None:
    """Serve a board: pages, API and workers, on this machine, from an empty folder on.

    \b
    Examples:
      helm-gym leaderboard serve
      helm-gym leaderboard serve --board trial --task burst-v0 --hidden 8 --horizon 120
      helm-gym leaderboard serve --database postgresql://helm@db/board --tokens --host 0.0.0.0 --workers 4
    """
    say(f"Leaderboard at http://{host}:{port} (board {board}); Ctrl-C ends it.")
    open_by_name(SERVE)(
        board,
        url=database,
        host=host,
        port=port,
        workers=workers,
        tokens=tokens,
        unconfined=unconfined,
        references=references,
        hosts=allow_host or [],
        name=name,
        tasks=task or [],
        hidden=hidden,
        horizon=horizon,
    )


def token(
    account: Annotated[str, typer.Argument(help="Whose.")],
    revoke: Annotated[bool, typer.Option("--revoke", help="End all tokens of the account.")] = False,
    board: Board = _BOARD,
    database: Database = None,
) -> None:
    """Issue a token, on the board's own machine; only its hash is kept.

    \b
    Examples:
      helm-gym leaderboard token ada
      helm-gym leaderboard token ada --revoke
    """
    opened = open_by_name(OPEN_BOARD)(board, database)
    say(f"{opened.revoke_tokens(account)} tokens of {account} are revoked." if revoke else opened.issue_token(account))


def measure(
    task: Annotated[str, typer.Option(help="Whose first entries are measured.")],
    top: Annotated[int, typer.Option(min=1, max=50, help="How many entries.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, max=20, help="Hidden episodes of each; one takes a minute or more.")] = 2,
    board: Board = _BOARD,
    database: Database = None,
    unconfined: Unconfined = False,
    quiet: Quiet = False,
) -> None:
    """Fill a task's measured column: HSTU runs and is timed, an interval of each entry in turn.

    On the board's own machine, while it does nothing else.

    \b
    Example:
      helm-gym leaderboard measure --task burst-v0 --top 3
    """
    opened = open_by_name(OPEN_BOARD)(board, database)
    with Progress(quiet).stage(f"measure on {task}") as tick:
        done = open_by_name(MEASURE)(opened, task, top, seeds, unconfined, tick)
    say(f"{len(done)} entries are measured on {task}: {', '.join(done)}.")


def export(
    out: Annotated[pathlib.Path, typer.Argument(metavar="LOG.jsonl")],
    board: Board = _BOARD,
    database: Database = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make the tables anew from the log first.")] = False,
) -> None:
    """Check the log against the tables, and write it whole, hidden episodes' scores included: the operator's backup.

    \b
    Example:
      helm-gym leaderboard export backup/log.jsonl --board leaderboard-board
    """
    check_writable("LOG.jsonl", out)
    store = open_by_name(OPEN_BOARD)(board, database).store
    if rebuild:
        store.rebuild()
    count = store.check()
    files.write(out, "".join(f"{record.line()}\n" for record in store.log()))
    say(f"{out}: {count} records; the log is sound, and the tables are what it says.")


def open_season(
    task: Annotated[list[str] | None, typer.Option(help="A task of it; those of the former season by default.")] = None,
    hidden: Annotated[int | None, typer.Option(min=2, max=1000, help="Hidden episodes a task; as before.")] = None,
    horizon: Annotated[int | None, typer.Option(min=1, help="Scored intervals; as before.")] = None,
    board: Board = _BOARD,
    database: Database = None,
) -> None:
    """Open the next season with fresh hidden episodes; close the former one, and publish its key.

    The server and its workers follow at once; nothing needs to be started again. Verified entries stay on the former
    season's board and are evaluated in the new one, behind new submissions.

    \b
    Examples:
      helm-gym leaderboard open-season
      helm-gym leaderboard open-season --hidden 40 --board leaderboard-board
    """
    opened = open_by_name(OPEN_BOARD)(board, database)
    season = open_by_name(OPEN_SEASON)(opened, task or [], hidden, horizon)
    facts = opened.facts()
    say(f"Season {season.number} is open; its key has SHA-256 {facts['key_hash']}.")
    say(f"Season {season.number - 1} is closed; its key is {facts['seasons'][1]['key']}.")


def publish(
    folder: Annotated[pathlib.Path, typer.Argument(metavar="DIR")],
    board: Board = _BOARD,
    database: Database = None,
    close_season: Annotated[
        bool, typer.Option("--close-season", help="End the season: publish its key and all hidden episodes' scores.")
    ] = False,
) -> None:
    """Write the whole board as a static site with its signed log: a board in a git repository needs no server.

    \b
    Example:
      helm-gym leaderboard publish site --board leaderboard-board
    """
    opened = open_by_name(OPEN_BOARD)(board, database)
    if close_season:
        say(f"The season is closed; its key is {open_by_name(CLOSE)(opened)}.")
    say(f"{folder}: {open_by_name(PUBLISH)(opened, folder)} files.")
