"""``helm-gym compare``: policies on live services, in turns under the same load, and their rank beside evaluation's."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import typer

from helm_gym.cli.common import Json, Profile, Progress, Quiet, print_json, print_table, say


def compare(
    policies: Annotated[
        list[str],
        typer.Argument(metavar="POLICY...", help="Names, .onnx files, or NAME=URL of services that run already."),
    ],
    task: Annotated[str, typer.Option(help="Whose requests are sent (`helm-gym tasks`).")] = "burst-v0",
    profile: Profile = "cpu-small",
    seconds: Annotated[float, typer.Option(min=1, max=86_400, help="Of load, for each policy in each turn.")] = 60.0,
    warm_s: Annotated[float, typer.Option(min=0, help="Seconds at its start that do not count.")] = 10.0,
    rate: Annotated[
        float | None, typer.Option(min=0.001, max=1e6, help="Requests/s on average; the task's own by default.")
    ] = None,
    turns: Annotated[int, typer.Option(min=1, max=100, help="Seeds; in each every policy serves once.")] = 3,
    nodes: Annotated[int, typer.Option(min=1, max=64, help="Of each service.")] = 1,
    together: Annotated[
        bool, typer.Option("--together", help="All services at once, each request to each: for busy machines.")
    ] = False,
    loadgen_s: Annotated[
        float, typer.Option(min=0, max=86_400, help="Seconds of LoadGen's Server scenario behind each load; 0: none.")
    ] = 0.0,
    p99_ms: Annotated[float, typer.Option(min=0.001, max=1e6, help="LoadGen's limit of P99.")] = 80.0,
    evaluated: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Also rank the policies by evaluation, and compare.")
    ] = True,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve each policy in turn under the same requests, and put latency live beside latency as evaluated.

    \b
    Examples:
      helm-gym compare static:0.6 pid three-layer-ppo --task burst-v0 --turns 3
      helm-gym compare static:0.5 policy.onnx --rate 100 --loadgen-s 15 --p99-ms 80
      helm-gym compare static:0.1 static:0.5 static:0.9 pid --together --rate 15 --seconds 120
      helm-gym compare old=http://10.0.0.1:8080 new=http://10.0.0.2:8080 --json
    """
    from helm_gym import profile as profiles
    from helm_gym.load import comparison
    from helm_gym.tasks import find_task

    plan = comparison.Plan(
        tuple(policies),
        find_task(task),
        profiles.load(profile),
        seconds=seconds,
        warm_s=warm_s,
        rate=rate,
        turns=turns,
        nodes=nodes,
        loadgen_s=loadgen_s,
        p99_ms=p99_ms,
        offline=evaluated,
        together=together,
    )
    start = functools.partial(comparison.serving, profile=profile, nodes=nodes)
    with Progress(quiet).stage("compare") as advance:
        told = comparison.compare(plan, start, advance)
    if as_json:
        return print_json(told)
    say(f"{plan.task.name} on live services of '{plan.profile.name}', {turns} turns of {seconds:g} s (95% intervals)")
    headings = ["policy", "mean ms", "P99 ms", "over first", "P99 over first", "SLO", "KV hits", "shed", "errors"]
    headings += ["LoadGen"] * bool(loadgen_s) + ["evaluated: mean, P99 over first"] * ("rank" in told)
    print_table("", headings, [_row(row) for row in told["policies"]])
    if "rank" in told:
        rank = told["rank"]
        taus = ", ".join(
            f"{name} {_figure(rank[key])}" for name, key in (("mean", "tau_mean_ms"), ("P99", "tau_p99_ms"))
        )
        say(f"Rank live against rank evaluated ({rank['rung']}, {rank['horizon']} intervals), Kendall's tau: {taus}")


def _row(row: dict[str, Any]) -> list[str]:
    hits = "–" if row["kv_hit_rate"] is None else f"{row['kv_hit_rate']:.2f}"
    cells = [row["name"], _figure(row["mean_ms"]), _figure(row["p99_ms"])]
    cells += [_figure(row["mean_ms_over_first"]), _figure(row["p99_ms_over_first"])]
    cells += [f"{row['slo_satisfaction']['value']:.3f}", hits, f"{row['shed']:,}", f"{row['errors']:,}"]
    if "loadgen" in row:
        of = row["loadgen"]
        cells.append(f"{of['valid']} of {of['of']} valid, P99 {of['p99_ms']:.1f} ms")
    if "mean_ms_evaluated" in row:
        cells.append(f"{row['mean_ms_evaluated_over_first']:.3f}, {row['p99_ms_evaluated_over_first']:.3f}")
    return cells


def _figure(of: dict[str, float | None]) -> str:
    if of["value"] is None:
        return "–"
    between = "" if of["low"] is None or of["high"] is None else f" ({of['low']:.3g} to {of['high']:.3g})"
    return f"{of['value']:.3g}{between}"
