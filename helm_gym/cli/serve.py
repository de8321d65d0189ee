"""``helm-gym serve``: a live HSTU service with a policy in control."""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
from typing import Annotated, Any, Literal

import typer

from helm_gym import files
from helm_gym.cli.common import Json, Profile, open_by_name, print_json, say
from helm_gym.cli.leaderboard import CLIENT, READ, best_of
from helm_gym.errors import HelmError, InvalidInputError

SERVE, SETTINGS = "real_backend.serving.serving:serve", "real_backend.serving.serving:Settings"
_MAX_BOARD_BYTES = 64 * 2**20


def serve(
    policy: Annotated[
        str | None, typer.Argument(help="A name (`helm-gym agents`) or an .onnx file; not with --from-board.")
    ] = None,
    engine: Annotated[Literal["local"], typer.Option(help="local: a process a node, on this machine.")] = "local",
    nodes: Annotated[int, typer.Option(min=1, max=64, help="Each with a pool and a model of its own.")] = 1,
    profile: Profile = "cpu-small",
    mode: Annotated[
        Literal["off", "shadow", "active"], typer.Option(help="shadow: decide and log, and change nothing.")
    ] = "shadow",
    alpha: Annotated[float | None, typer.Option(help="EMB's share to start from, and the safe one (0.5).")] = None,
    host: Annotated[str, typer.Option(help="Address of the data plane.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    control_host: Annotated[str, typer.Option(help="Of the control plane.")] = "127.0.0.1",
    control_port: Annotated[int, typer.Option(min=0, max=65535)] = 8081,
    state: Annotated[
        pathlib.Path | None, typer.Option(help="Folder where policies, modes and the control token's hash stay.")
    ] = None,
    users: Annotated[int | None, typer.Option(min=2, help="Remembered at a time (the profile's, a node).")] = None,
    queue: Annotated[int, typer.Option(min=1, max=100_000, help="Requests that wait at a node; more get 429.")] = 64,
    rate: Annotated[float, typer.Option(min=0, max=1e6, help="Requests a second of one client; 0: no bound.")] = 0.0,
    pre_stop_s: Annotated[float, typer.Option(min=0, max=3600, help="From SIGTERM until the port is closed.")] = 1.0,
    drain_s: Annotated[
        float, typer.Option(min=1, max=3600, help="In which what was accepted is then answered.")
    ] = 30.0,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="A line in the log for each request.")] = False,
    from_board: Annotated[
        str | None, typer.Option(help="Take a leaderboard's best policy: its URL, or a folder that it published.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="With --from-board: the task.")] = None,
    as_json: Json = False,
) -> None:
    """Serve HSTU inference over HTTP, with a policy in control of the nodes' memory, until SIGTERM or Ctrl-C.

    \b
    Examples:
      helm-gym serve pid
      helm-gym serve policy.onnx --nodes 2 --state state --mode active
      helm-gym serve --from-board http://127.0.0.1:8484 --task burst-v0 --state state
      curl localhost:8080/v1/rank -d '{"user": "ann", "events": [3, 1, 4], "candidates": [15, 92, 65]}'
    """
    from helm_gym import profile as profiles

    opened = profiles.load(profile)
    if not all(map(math.isfinite, (rate, pre_stop_s, drain_s))):
        raise InvalidInputError("--rate, --pre-stop-s and --drain-s are numbers; nan is none.")
    if (policy is None) == (from_board is None):
        raise InvalidInputError("Give a policy, or --from-board with --task.")
    if from_board is not None:
        if task is None:
            raise InvalidInputError("--from-board is of a task; give one with --task.")
        policy = best_from(from_board, task, pathlib.Path(f"best-{task}.onnx"))
    settings = open_by_name(SETTINGS)(
        nodes=nodes,
        mode=mode,
        alpha=alpha,
        host=host,
        port=port,
        control_host=control_host,
        control_port=control_port,
        state=state,
        places=users,
        queue=queue,
        rate=rate,
        pre_stop_s=pre_stop_s,
        drain_s=drain_s,
        log_requests=log_requests,
    )

    def started(address: str, control: str) -> None:
        if as_json:
            print_json({"address": address, "control": control, "policy": policy, "mode": mode, "nodes": nodes})
        else:
            say(f"HSTU '{opened.name}' at {address}, {policy} in {mode} mode (control at {control}); Ctrl-C ends it.")

    open_by_name(SERVE)(opened, policy, settings, started)


def best_from(source: str, task: str, out: pathlib.Path) -> str:
    """The best policy of a board's task: a name, or the path that its file was written to.

    Args:
        source: the board's address, or a folder that `helm-gym leaderboard publish` wrote.

    Raises:
        HelmError: no such board or task, or nothing is evaluated on it.
    """
    if source.startswith(("http://", "https://")):
        return best_of(open_by_name(CLIENT)(source), task, "policy", out)
    folder = pathlib.Path(source)
    board = files.read_bytes(folder / "board.json", "Board", _MAX_BOARD_BYTES, "give a folder that `publish` wrote")
    try:
        seasons: Any = json.loads(board)["tables"]
        tables = [seasons[number][task]["rows"] for number in sorted(seasons, key=int) if task in seasons[number]]
        rows = [rows[0] for rows in tables if rows]  # the first of each season that has one
        entry = str(rows[-1]["entry"]) if rows else ""
        if not tables:
            raise KeyError(task)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InvalidInputError(f"{folder / 'board.json'} has no table of task '{task}'.") from error
    if not entry:
        raise HelmError(f"No entry is evaluated on '{task}' yet.")
    found = open_by_name(READ)(folder).submission(entry)
    if found["reference"]:
        return str(found["reference"])
    digest = str(found["files"][0])
    content = files.read_bytes(folder / "files" / f"{digest}.onnx", "Policy", _MAX_BOARD_BYTES)
    if hashlib.sha256(content).hexdigest() != digest:
        raise InvalidInputError(f"{folder / 'files' / digest}.onnx is not the file that was submitted.")
    files.write(out, content)
    return str(out)
