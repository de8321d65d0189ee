"""``helm-gym leaderboard``: a board to serve, submit to, show, publish and verify."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from helm_gym import files
from helm_gym.cli.common import Json, Progress, Quiet, check_writable, open_by_name, print_json, print_table, say
from helm_gym.cli.leaderboard_operator import Unconfined, export, measure, open_season, publish, serve, token
from helm_gym.errors import HelmError, InvalidInputError

CHECK, CLIENT = "leaderboard.checking:check", "leaderboard.client:Client"
READ, VERIFY = "leaderboard.verifying:read_published", "leaderboard.verifying:verify"
_LOOKS, _LOOK_EVERY_S = 20, 0.25
_MAX_WRITE_UP = 64 * 2**10

Url = Annotated[str, typer.Option(help="The server's address.")]
_URL = "http://127.0.0.1:8484"


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
        raise HelmError(f"Policy {policy}: {told['sentence']} (rule {told['rule']})")
    if as_json:
        return
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
    season: Annotated[int | None, typer.Option(min=1, help="A former season's boards; the newest's.")] = None,
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
    asked: dict[str, Any] = {"track": track} | ({"season": season} if season is not None else {})
    if best:
        if task is None:
            raise InvalidInputError("--best is of a task; give one with --task.")
        return say(best_of(client, task, track, out or pathlib.Path(f"best-{task}.onnx")))
    if entry is not None:
        found = client.get(f"entries/{entry}")
        if as_json:
            return print_json(found | client.get(f"entries/{entry}/scores"))
        rows = [[row["time"][:19], row["state"], row["reason"], row["detail"]] for row in found["timeline"]]
        print_table(f"{found['name']} ({found['account']})", ["time", "state", "reason", "detail"], rows)
        return _print_ranks(client, found)
    if task is not None:
        table = client.get(f"tasks/{task}", **asked)
        return print_json(table) if as_json else _print_table(table)
    overall = client.get("overall", **asked)
    if as_json:
        return print_json(overall)
    rows = [[str(r["rank"]), r["name"], r["account"], _text(r["mean"]), _text(r["worst"])] for r in overall["rows"]]
    print_table("all tasks (modelled rung)", ["rank", "name", "account", "mean", "worst"], rows)
    seasons = {told["season"]: told for told in client.get("board")["seasons"]}
    for name in seasons[season or max(seasons)]["tasks"]:
        _print_table(client.get(f"tasks/{name}", **asked))


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
        for _ in range(_LOOKS):  # the newest score takes a moment to be worked in
            own = client.get(f"tasks/{task}", track=track, entry=found["id"])["rows"]
            rows += [[task, *_row(row)] for row in own]
            if own or found["state"] != "verified":
                break
            time.sleep(_LOOK_EVERY_S)
    if rows:
        print_table("ranks (modelled rung)", ["task", *_HEADINGS], rows)


def best_of(client: Any, task: str, track: str, out: pathlib.Path) -> str:
    """The first policy of a task's board: the name of an agent of this repository, or its file, written to ``out``."""
    rows = client.get(f"tasks/{task}", track=track)["rows"]
    if not rows:
        raise HelmError(f"No entry is evaluated on '{task}' yet.")
    found = client.get(f"entries/{rows[0]['entry']}")
    if found["reference"]:  # which every command opens by name
        return str(found["reference"])
    check_writable("--out", out)
    files.write(out, client.file(found["files"][0]))
    return str(out)


def cancel(entry: Annotated[str, typer.Argument(help="An entry's id.")], url: Url = _URL) -> None:
    """Call a submission off; it counts for nothing.

    \b
    Example:
      helm-gym leaderboard cancel 0123456789abcdef
    """
    open_by_name(CLIENT)(url).cancel(entry)
    say(f"{entry} is cancelled.")


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
                str(r.season),
                r.task,
                r.split,
                r.rung,
                "the same" if r.same else f"differs by up to {r.largest:.3g} ms",
                r.where["machine"],
            ]
            for r in rows
        ]
        print_table(f"{entry}: {told}", ["season", "task", "episodes", "rung", "recomputed", "published from"], cells)
    if not all(row.same for row in rows):
        raise typer.Exit(2)


COMMANDS = (serve, check, submit, show, cancel, verify, export, publish, open_season, token, measure)
