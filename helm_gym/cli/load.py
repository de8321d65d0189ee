"""``helm-gym load``: a task's traffic on a live service, open loop, or by MLCommons LoadGen."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from helm_gym.cli.common import Json, Profile, Progress, Quiet, print_json, print_table, say


def load(
    url: Annotated[str, typer.Argument(metavar="URL", help="The service's address: http://HOST:PORT.")],
    task: Annotated[str, typer.Option(help="Whose requests are sent (`helm-gym tasks`).")] = "burst-v0",
    profile: Profile = "cpu-small",
    seconds: Annotated[float, typer.Option(min=0.1, max=86_400, help="How long requests are sent.")] = 60.0,
    rate: Annotated[
        float | None, typer.Option(min=0.001, max=1e6, help="Requests/s on average; the task's own by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of users, items and arrivals.")] = 0,
    nodes: Annotated[int, typer.Option(min=1, max=64, help="Of the service: so many times the users.")] = 1,
    warm_s: Annotated[float, typer.Option(min=0, help="Seconds at the start that do not count.")] = 0.0,
    trace: Annotated[
        pathlib.Path | None, typer.Option(help="Recorded arrivals, for trace-v0: see docs/traces.md.")
    ] = None,
    loadgen: Annotated[
        bool, typer.Option("--loadgen", help="MLCommons LoadGen's Server scenario, with its verdict.")
    ] = False,
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="With --loadgen: compare all scores with offline ones.")
    ] = False,
    p99_ms: Annotated[float, typer.Option(min=0.001, max=1e6, help="With --loadgen: the limit of P99.")] = 80.0,
    samples: Annotated[int, typer.Option(min=1, max=100_000, help="With --loadgen: different requests.")] = 2000,
    logs: Annotated[pathlib.Path | None, typer.Option(help="With --loadgen: a folder for LoadGen's own logs.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Send a task's requests to a service, each at its own time, and tell latency, hits, errors and what was shed.

    The loop is open: latency counts from a request's due time, whatever became of those before it.

    \b
    Examples:
      helm-gym load http://127.0.0.1:8080 --task burst-v0 --seconds 60
      helm-gym load http://127.0.0.1:8080 --rate 200 --seed 3 --json
      helm-gym load http://127.0.0.1:8080 --loadgen --rate 150 --p99-ms 80
      helm-gym load http://127.0.0.1:8080 --loadgen --accuracy --samples 200
    """
    from helm_gym import profile as profiles
    from helm_gym.errors import InvalidInputError
    from helm_gym.load import open_loop
    from helm_gym.load.client import Client
    from helm_gym.load.stream import Stream
    from helm_gym.tasks import find_task
    from helm_gym.workload.traces import read_trace

    found, opened = find_task(task), profiles.load(profile)
    if (trace is None) == (found.regime == "trace"):
        raise InvalidInputError(f"--trace goes with trace-v0, and trace-v0 with --trace; the task is {found.name}.")
    if warm_s >= seconds:
        raise InvalidInputError(f"--warm-s {warm_s:g} leaves nothing of {seconds:g} seconds; lower it.")
    if (accuracy or logs is not None) and not loadgen:
        raise InvalidInputError("--accuracy and --logs are LoadGen's; add --loadgen.")
    open_loop.check_service(url)
    recorded = None if trace is None else read_trace(trace)
    progress = Progress(quiet)
    if loadgen:
        from helm_gym.load import loadgen as generator

        drawn = Stream(found, opened, seed, seconds, rate, recorded, nodes)
        scenario = generator.Scenario(drawn.rate, p99_ms, seconds, seed, accuracy)
        stream = Stream(found, opened, seed, 2.0 * samples / drawn.rate, drawn.rate, recorded, nodes)
        with progress.stage("LoadGen") as advance:
            told = generator.run(url, generator.library(stream, samples), scenario, opened, logs, advance)
        return _tell(told, as_json, f"LoadGen, Server scenario, {scenario.rate:.1f} requests/s, P99 <= {p99_ms:g} ms")

    stream = Stream(found, opened, seed, seconds, rate, recorded, nodes)

    async def send(advance: Any) -> open_loop.Outcome:
        client = Client(url)
        total = round(seconds * 10)
        return await open_loop.run(client, stream, warm_s, lambda now: advance("", min(round(now * 10), total), total))

    with progress.stage(f"load {url}") as advance:
        outcome = asyncio.run(send(advance))
    told = {"task": found.name, "seed": seed, "rate_rps": stream.rate} | outcome.figures(opened.slo_ms)
    _tell(told, as_json, f"{found.name}, seed {seed}, {stream.rate:.1f} requests/s on average, open loop")


def _tell(told: Mapping[str, Any], as_json: bool, title: str) -> None:
    if as_json:
        return print_json(told)
    rows = [(name.replace("_", " "), _shown(value)) for name, value in told.items() if value not in (None, {}, "")]
    say(title)
    print_table("", ("figure", "value"), rows)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_shown(of)}" for key, of in value.items())
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
