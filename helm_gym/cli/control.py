"""``helm-gym status``, ``swap`` and ``control``: what is said to a service that runs."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any, Literal

import typer

from helm_gym.cli.common import Json, open_by_name, print_json, print_table, say

CLIENT = "real_backend.serving.control_client:ControlClient"
ISSUE = "real_backend.serving.control_plane:issue_token"

Url = Annotated[str, typer.Option(help="The control plane's address; its token is in HELM_GYM_CONTROL_TOKEN.")]
_URL = "http://127.0.0.1:8081"


def status(url: Url = _URL, as_json: Json = False) -> None:
    """Show a service: nodes, splits, latency, the policy, and what the guard has done.

    \b
    Examples:
      helm-gym status
      helm-gym status --url http://10.0.0.5:8081 --json
    """
    found = open_by_name(CLIENT)(url).status()
    if as_json:
        return print_json(found)
    service, controller = found["service"], found["controller"]
    rows = [_row(node, of) for node, of in zip(service["nodes"], controller["nodes"], strict=True)]
    headings = ("node", "state", "mode", "alpha", "target", "KV hits", "EMB hits", "req/s", "mean ms", "P99 ms")
    print_table(f"{service['profile']}, {service['users']} users, {service['items']} items", headings, rows)
    _say_policy(controller)


def _row(node: dict[str, Any], of: dict[str, Any]) -> list[str]:
    def figure(name: str, digits: int) -> str:
        return f"{node[name]:.{digits}f}" if node.get(name) is not None else "–"

    state = "ready" if node["ready"] else "away"
    return [
        f"{node['node']}",
        state if not node["restarts"] else f"{state}, {node['restarts']} restarts",
        of["mode"] if of["level"] == "policy" else f"{of['mode']} ({of['level']})",
        figure("alpha", 3),
        figure("target_alpha", 3),
        figure("kv_hit_rate", 3),
        figure("emb_hit_rate", 3),
        figure("arrival_rate_rps", 1),
        figure("sojourn_mean_ms", 2),
        figure("sojourn_p99_ms", 2),
    ]


def _say_policy(controller: dict[str, Any]) -> None:
    def told(policy: dict[str, Any] | None) -> str:
        if policy is None:
            return "none"
        return f"{policy['name']} ({policy['sha256'][:12]})" if policy.get("sha256") else str(policy["name"])

    say(f"Policy {told(controller['policy'])}; former {told(controller['former'])}.")
    if controller["killed"]:
        say("The kill switch is on: no policy decides.")
    counts = controller["interventions"]
    if counts:
        say("The guard's: " + ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items())) + ".")


def swap(
    policy: Annotated[pathlib.Path, typer.Argument(metavar="FILE.onnx")], url: Url = _URL, as_json: Json = False
) -> None:
    """Put another policy in place while the service runs; the former one is kept for `control rollback`.

    It is checked, warmed up and tried on the nodes' recorded observations before it decides.

    \b
    Examples:
      helm-gym swap policy.onnx
      helm-gym swap policy.onnx --json
    """
    _tell(open_by_name(CLIENT)(url).swap(policy), as_json)


def _tell(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        _say_policy(found)


def mode(
    mode: Annotated[Literal["off", "shadow", "canary", "active"], typer.Argument()],
    node: Annotated[int | None, typer.Option(min=0, help="All where not given.")] = None,
    url: Url = _URL,
    as_json: Json = False,
) -> None:
    """Set the mode of a node, or of all.

    \b
    Examples:
      helm-gym control mode active
      helm-gym control mode canary --node 1
    """
    _tell(open_by_name(CLIENT)(url).do("mode", mode=mode, **({} if node is None else {"node": node})), as_json)


def kill(url: Url = _URL, as_json: Json = False) -> None:
    """The kill switch: no policy decides from now on, and the safe split is held.

    \b
    Example:
      helm-gym control kill
    """
    _tell(open_by_name(CLIENT)(url).do("kill"), as_json)


def revive(url: Url = _URL, as_json: Json = False) -> None:
    """End what the kill switch began.

    \b
    Example:
      helm-gym control revive
    """
    _tell(open_by_name(CLIENT)(url).do("revive"), as_json)


def rollback(url: Url = _URL, as_json: Json = False) -> None:
    """Put the former policy back, or end a trial.

    \b
    Example:
      helm-gym control rollback
    """
    _tell(open_by_name(CLIENT)(url).do("rollback"), as_json)


def promote(url: Url = _URL, as_json: Json = False) -> None:
    """End a trial well: its policy becomes that of all nodes.

    \b
    Example:
      helm-gym control promote
    """
    _tell(open_by_name(CLIENT)(url).do("promote"), as_json)


def token(
    state: Annotated[pathlib.Path, typer.Option(help="The service's state folder.")],
) -> None:
    """Issue the control plane's token, on the service's own machine, before it starts; only its hash is kept.

    \b
    Example:
      helm-gym control token --state state
    """
    say(open_by_name(ISSUE)(state))


COMMANDS = (mode, kill, revive, rollback, promote, token)
