"""``helm-gym decide``: a guarded controller over lines of JSON, for engines in any language."""

from __future__ import annotations

import pathlib
import sys
import time
from typing import Annotated, Literal

import typer

from helm_gym.cli.common import Profile, say


def decide(
    policy: Annotated[str, typer.Argument(help="A name (`helm-gym agents`) or an .onnx file.")],
    profile: Profile = "cpu-small",
    nodes: Annotated[int, typer.Option(min=1, max=1024, help="Of the engine.")] = 1,
    mode: Annotated[
        Literal["off", "shadow", "active"], typer.Option(help="shadow: say what would be done, and hold the split.")
    ] = "active",
    state: Annotated[pathlib.Path | None, typer.Option(help="Folder of what survives a restart.")] = None,
) -> None:
    """Read a node's telemetry from stdin, a line of JSON an interval, and answer each with the target split.

    docs/deploy.md has the columns, and what stands where one is not known.

    \b
    Examples:
      helm-gym decide pid < telemetry.jsonl
      engine-counters | helm-gym decide policy.onnx --nodes 2 --state state
      echo '{"telemetry": {"alpha": 0.5, "service_mean_ms": 2, "interval_service_ms": 2}}' | helm-gym decide pid
    """
    from helm_gym.deploy import Controller
    from helm_gym.deploy.lines import MAX_LINE, answer, written

    with Controller(profile, policy, nodes, mode, state_folder=state) as controller:
        while line := sys.stdin.readline(MAX_LINE + 2):
            if line.strip():
                say(written(answer(controller, line, time.monotonic())))
