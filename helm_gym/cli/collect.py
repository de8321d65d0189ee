"""``helm-gym collect``: logs of the real backend that a surrogate is learned from, and evaluated on."""

from __future__ import annotations

import pathlib
import time
from typing import Annotated

import typer

from helm_gym.cli.common import Json, Profile, Progress, Quiet, open_by_name, print_json, say
from helm_gym.errors import InvalidInputError

COLLECT = "surrogate_backend.data.collect:collect"  # opened by name: helm_gym imports no backend
PLAN = "surrogate_backend.data.collect:Plan"
EPISODES_FOR = "surrogate_backend.data.excitation:episodes_for"
CLUSTER_PLAN = "surrogate_backend.data.cluster_collect:ClusterPlan"
CLUSTER_EPISODES_FOR = "surrogate_backend.data.cluster_excitation:episodes_for"
RUNGS = {"modelled": "modelled", "real": "measured"}
TRAIN_EPISODES, TEST_SETTINGS = 80, 5  # every regime under every driver of alpha; a setting of every regime
CLUSTER_SETTINGS = 6  # of every size that is tested, under every regime


def collect(
    out: Annotated[pathlib.Path, typer.Option(help="Folder of the log; what it holds of it is kept.")],
    backend: Annotated[str, typer.Option(help="modelled, or real: HSTU runs and is timed.")] = "modelled",
    design: Annotated[str, typer.Option(help="train: to learn from; test: to judge by.")] = "train",
    episodes: Annotated[
        int | None,
        typer.Option(min=1, max=999_999, help=f"How many the folder shall hold; {TRAIN_EPISODES} of the design train."),
    ] = None,
    settings: Annotated[
        int | None,
        typer.Option(min=1, max=9_999, help=f"How many settings to judge by, for the design test; {TEST_SETTINGS}."),
    ] = None,
    intervals: Annotated[int, typer.Option(min=1, max=100_000, help="Intervals of an episode.")] = 480,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the design.")] = 0,
    profile: Profile = "cpu-small",
    clusters: Annotated[
        bool, typer.Option("--clusters", help="Of clusters of many sizes, not of single nodes.")
    ] = False,
    trace: Annotated[pathlib.Path | None, typer.Option(help="Recorded arrivals, as one more regime of train.")] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Processes. Those that time HSTU side by side slow each other.")
    ] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="On a Ray cluster (extra `ray`) in place of processes.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Log designed episodes of a backend as Parquet, to fit a surrogate to or to judge one by.

    Killed at any moment, the same command goes on where it stopped. Several may fill one folder together.

    \b
    Examples:
      helm-gym collect --out logs/train --backend real --episodes 80
      helm-gym collect --out logs/more --episodes 600 --seed 1 --workers 2
      helm-gym collect --out logs/test --backend real --design test --settings 5 --seed 2
      helm-gym collect --out logs/clusters --clusters --episodes 240 --intervals 160
      helm-gym collect --out logs/azure --trace azure_llm_conv_2023.csv
    """
    from helm_gym import profile as profiles
    from helm_gym.workload.traces import read_trace

    if episodes is not None and settings is not None:
        raise InvalidInputError("--episodes and --settings both say how much; give one of them.")
    if settings is not None and design == "train":
        raise InvalidInputError("--settings is for --design test; say --episodes.")
    opened = profiles.load(profile)
    recorded = None if trace is None else read_trace(trace)
    if trace is not None and recorded is not None:
        Progress(quiet).say(f"Trace {trace.name}: {recorded.summary}.")
    if clusters and trace is not None:
        raise InvalidInputError("--clusters takes no recorded arrivals; leave --trace out.")
    plan = open_by_name(CLUSTER_PLAN if clusters else PLAN)(opened, backend, design, intervals, seed, recorded)
    if episodes is None:
        count = settings or (CLUSTER_SETTINGS if clusters else TEST_SETTINGS)
        tested = open_by_name(CLUSTER_EPISODES_FOR if clusters else EPISODES_FOR)(count, opened)
        episodes = TRAIN_EPISODES if design == "train" else tested
    reports: list[tuple[int, int]] = []  # episodes there are, intervals logged
    with Progress(quiet).stage(f"collect {backend} {design}", "intervals") as tick:

        def progress(done: int, wanted: int, added: int) -> None:
            reports.append((done, added + (reports[-1][1] if reports else 0)))
            tick("", done, wanted, reports[-1][1])

        started = time.perf_counter()
        added = open_by_name(COLLECT)(plan, out, episodes, workers=workers, ray=ray, progress=progress)
    seconds = time.perf_counter() - started
    (there, _), (_, logged), rung = reports[0], reports[-1], RUNGS[backend]
    if as_json:
        return print_json(
            {
                "folder": str(out),
                "profile": opened.name,
                "rung": rung,
                "design": design,
                "seed": seed,
                "there": there,
                "added": added,
                "intervals": logged,
                "seconds": seconds,
            }
        )
    say(
        f"Log {out}: {there} episode{'s' * (there != 1)} there before, {added} added: {logged:,} intervals in "
        f"{seconds:,.0f} s, {rung} rung."
    )
