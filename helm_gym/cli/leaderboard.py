"""``helm-gym leaderboard``: a board to serve, submit to, show, publish and verify."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from helm_gym import files
from helm_gym.cli.common import Json, Progress, Quiet, check_writable, open_by_name, print_json, print_table, say
from helm_gym.errors import HelmError, InvalidInputError

CHECK, CLIENT = "leaderboard.checking:check", "leaderboard.client:Client"
SERVE, OPEN_BOARD = "leaderboard.serving:serve", "leaderboard.serving:open_board"
MEASURE = "leaderboard.measuring:measure"
PUBLISH, CLOSE = "leaderboard.publishing:publish", "leaderboard.publishing:close_season"
READ, VERIFY = "leaderboard.publishing:read_published", "leaderboard.publishing:verify"
_MAX_WRITE_UP = 64 * 2**10

Board = Annotated[pathlib.Path, typer.Option("--board", help="The board's folder.")]
Database = Annotated[str | None, typer.Option(help="postgresql://USER@HOST/DATABASE in place of SQLite.")]
Url = Annotated[str, typer.Option(help="The server's address.")]
Unconfined = Annotated[
    bool, typer.Option("--unconfined", help="Run policies although this kernel cannot confine them (files you trust).")
]
_BOARD, _URL = pathlib.Path("leaderboard-board"), "http://127.0.0.1:8484"


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


def check(
    policy: Annotated[pathlib.Path, typer.Argument(metavar="FILE.onnx")],
    profile: Annotated[str, typer.Option(help="The board's profile.")] = "cpu-small",
    unconfined: Unconfined = False,
    as_json: Json = False,
) -> None:
    """Check a policy as the server will: in the sandbox, by the same rules. Exit code 0 if it passes, 2 if not.

    \b
    Examples:
      helm-gym leaderboard check policy.onnx
      helm-gym leaderboard check policy.onnx --json
    """
    from helm_gym import profile as profiles
    from helm_gym.errors import RefusedError
    from helm_gym.observation import ObservationLayout
    from helm_gym.policies.onnx_check import read_file

    layout = ObservationLayout(profiles.load(profile))
    told: dict[str, Any]
    try:
        content = read_file(policy)
    except RefusedError as error:
        told = {"passed": False, "rule": error.rule, "sentence": str(error), "figures": {}}
    else:
        told = open_by_name(CHECK)(content, layout, unconfined=unconfined).to_json()
    if as_json:
        print_json(told | {"file": str(policy)})
        if not told["passed"]:
            raise typer.Exit(2)
        return
    if not told["passed"]:
        raise HelmError(f"Policy {policy}: {told['sentence']} (rule {told['rule']})")
    figures = told["figures"]
    say(f"{policy} passes: {figures['nodes']} nodes, {figures['row_ms']} ms a decision, {figures['bytes']:,} bytes.")


def submit(
    policies: Annotated[list[pathlib.Path], typer.Argument(metavar="FILE.onnx...")],
    name: Annotated[str, typer.Option(help="Under which it is shown.")],
    track: Annotated[str, typer.Option(help="policy: one file; method: five or more, one a training seed.")] = "policy",
    task: Annotated[list[str] | None, typer.Option(help="A task; all of the board by default.")] = None,
    write_up: Annotated[pathlib.Path | None, typer.Option(help="YAML: authors, method, training_data, ...")] = None,
    url: Url = _URL,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is finished.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Submit a policy. The token, where the board requires one, is in HELM_GYM_TOKEN.

    \b
    Examples:
      helm-gym leaderboard submit policy.onnx --name "my policy" --wait
      helm-gym leaderboard submit seeds/*.onnx --name "my method" --track method --write-up write-up.yaml
    """
    client = open_by_name(CLIENT)(url)
    entry = client.submit(policies, name, track, task or [], _write_up(write_up))
    found = _wait(client, entry, quiet) if wait else client.get(f"entries/{entry}")
    if as_json:
        print_json(found)
    else:
        reason = f": {found['reason']}, {found['detail']}" if found["reason"] else ""
        say(f"{entry} is {found['state']}{reason}", f"{url}/entries/{entry}.html")
        if found["state"] == "verified":
            _print_ranks(client, found)
    if found["state"] == "failed":
        raise typer.Exit(2)


def _wait(client: Any, entry: str, quiet: bool) -> dict[str, Any]:
    progress = Progress(quiet)
    with progress.stage(f"submission {entry}") as tick:
        last = ""

        def tell(found: dict[str, Any]) -> None:
            nonlocal last
            work = found["work"]
            if "place" in work:
                soon = f", about {work['expected_s']} s" if work["expected_s"] is not None else ""
                text = f"{found['state']}, place {work['place']} in the queue{soon}"
            elif work:
                text = f"{work['stage']}, heartbeat {work['heartbeat_age_s']} s ago"
            else:
                text = found["state"]
            if found["state"] != last:
                progress.say(f"{entry}: {text}")
            last = found["state"]
            tick(text, work.get("done", 0), max(1, work.get("total", 1)))

        finished: dict[str, Any] = client.wait(entry, tell)
        return finished


def _write_up(path: pathlib.Path | None) -> Any:
    if path is None:
        return {}
    import yaml

    content = files.read_bytes(path, "--write-up", _MAX_WRITE_UP)
    try:
        return yaml.safe_load(content) or {}
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidInputError(f"--write-up {path} is no YAML: {files.reason(error)}.") from error


def show(
    entry: Annotated[str | None, typer.Argument(help="An entry's id; the boards without.")] = None,
    task: Annotated[str | None, typer.Option(help="A task's board.")] = None,
    track: Annotated[str, typer.Option(help="policy or method.")] = "policy",
    best: Annotated[
        bool, typer.Option("--best", help="Write the task's first policy to --out, and print its path.")
    ] = False,
    out: Annotated[pathlib.Path | None, typer.Option(help="With --best: the file (best-TASK.onnx).")] = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Show a board, an entry, or the best policy of a task.

    \b
    Examples:
      helm-gym leaderboard show
      helm-gym leaderboard show --task burst-v0
      helm-gym leaderboard show 0123456789abcdef
      helm-gym evaluate $(helm-gym leaderboard show --best --task burst-v0) --task burst-v0
    """
    client = open_by_name(CLIENT)(url)
    if best:
        if task is None:
            raise InvalidInputError("--best is of a task; give one with --task.")
        return _show_best(client, task, track, out or pathlib.Path(f"best-{task}.onnx"))
    if entry is not None:
        found = client.get(f"entries/{entry}")
        if as_json:
            return print_json(found | client.get(f"entries/{entry}/scores"))
        rows = [[row["time"][:19], row["state"], row["reason"], row["detail"]] for row in found["timeline"]]
        print_table(f"{found['name']} ({found['account']})", ["time", "state", "reason", "detail"], rows)
        return _print_ranks(client, found)
    if task is not None:
        table = client.get(f"tasks/{task}", track=track)
        return print_json(table) if as_json else _print_table(table)
    overall = client.get("overall", track=track)
    if as_json:
        return print_json(overall)
    rows = [[str(r["rank"]), r["name"], r["account"], _text(r["mean"]), _text(r["worst"])] for r in overall["rows"]]
    print_table("all tasks (modelled rung)", ["rank", "name", "account", "mean", "worst"], rows)
    for name in client.get("board")["tasks"]:
        _print_table(client.get(f"tasks/{name}", track=track))


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _figure(given: dict[str, float | None]) -> str:
    known = given["low"] is not None and given["high"] is not None
    return (
        f"{_text(given['value'])} [{_text(given['low'])}, {_text(given['high'])}]" if known else _text(given["value"])
    )


def _row(row: dict[str, Any]) -> list[str]:
    place = f"{row['best']}-{row['worst']}" if row["best"] else "–"
    return [place, row["name"], row["account"], row["entry"], _figure(row["score"]), _figure(row["latency"])]


_HEADINGS = ("rank", "name", "account", "entry", "score", "latency ms")


def _print_table(table: dict[str, Any]) -> None:
    title = f"{table['task']} ({table['rung']} rung, {table['episodes']} hidden episodes)"
    print_table(title, _HEADINGS, [_row(row) for row in table["rows"]])


def _print_ranks(client: Any, found: dict[str, Any]) -> None:
    """Where an entry stands on each of its tasks."""
    rows: list[Sequence[str]] = []
    for task in found["tasks"]:
        track = "method" if found["track"] == "method" else "policy"
        table = client.get(f"tasks/{task}", track=track)
        rows += [[task, *_row(row)] for row in table["rows"] if row["entry"] == found["id"]]
    if rows:
        print_table("ranks (modelled rung)", ["task", *_HEADINGS], rows)


def _show_best(client: Any, task: str, track: str, out: pathlib.Path) -> None:
    rows = client.get(f"tasks/{task}", track=track)["rows"]
    if not rows:
        raise HelmError(f"No entry is evaluated on '{task}' yet.")
    found = client.get(f"entries/{rows[0]['entry']}")
    if found["reference"]:  # an agent of this repository, which every command opens by name
        return say(found["reference"])
    check_writable("--out", out)
    files.write(out, client.file(found["files"][0]))
    say(out)


def cancel(entry: Annotated[str, typer.Argument(help="An entry's id.")], url: Url = _URL) -> None:
    """Call a submission off; it counts for nothing.

    \b
    Example:
      helm-gym leaderboard cancel 0123456789abcdef
    """
    open_by_name(CLIENT)(url).cancel(entry)
    say(f"{entry} is cancelled.")


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


def verify(
    folder: Annotated[pathlib.Path, typer.Argument(metavar="DIR", help="A folder that `publish` wrote.")],
    entry: Annotated[str | None, typer.Argument(help="An entry's id; the log alone without.")] = None,
    public_key: Annotated[str | None, typer.Option(help="Whose the board must be; that in the log.")] = None,
    unconfined: Unconfined = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a published board's log, and recompute an entry's scores from its files, without a server.

    On the same kind of machine they are the same to the last bit. Hidden episodes can be recomputed once the season is
    closed. Exit code 2 where a score differs.

    \b
    Examples:
      helm-gym leaderboard verify site
      helm-gym leaderboard verify site 0123456789abcdef
    """
    published = open_by_name(READ)(folder, public_key)
    told = f"{len(published.records)} records are sound, {published.hidden} more are given by their hashes."
    if entry is None:
        if as_json:
            return print_json({"records": len(published.records), "hidden": published.hidden})
        return say(f"{folder}: {told}")
    with Progress(quiet).stage(f"verify {entry}") as tick:
        rows = list(open_by_name(VERIFY)(published, entry, unconfined, tick))
    if as_json:
        print_json({"entry": entry, "rows": [vars(row) for row in rows]})
    else:
        cells = [
            [
                r.task,
                r.split,
                r.rung,
                "the same" if r.same else f"differs by up to {r.largest:.3g} ms",
                r.where["machine"],
            ]
            for r in rows
        ]
        print_table(f"{entry}: {told}", ["task", "episodes", "rung", "recomputed", "published from"], cells)
    if not all(row.same for row in rows):
        raise typer.Exit(2)


COMMANDS = (serve, check, submit, show, cancel, verify, export, publish, token, measure)
