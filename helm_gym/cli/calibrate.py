"""``helm-gym calibrate``: fits a profile's cost model to this machine."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pathlib
from typing import Annotated, Any

import typer

from helm_gym import profile as profiles
from helm_gym.cli.common import Json, Profile, Progress, Quiet, Tick, check_writable, print_json, print_table, say
from helm_gym.errors import InvalidInputError
from helm_gym.profile import CostModel
from helm_gym.ranges import check_name

CALIBRATION = "real_backend.calibration:calibrate"  # opened by name: helm_gym imports no backend


def calibrate(
    profile: Profile = "cpu-small",
    out: Annotated[pathlib.Path | None, typer.Option(help="Write the profile with the fit to this YAML file.")] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Mixed paths to serve; a quarter of each is held out.")
    ] = 4,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time HSTU on this machine and fit the cost model that the modelled rung uses.

    \b
    Example:
      helm-gym calibrate --profile cpu-small --out mine.yaml
      helm-gym evaluate pid --task burst-v0 --profile mine.yaml
    """
    opened = profiles.load(profile)
    if out is not None and out.suffix not in (".yaml", ".yml"):
        raise InvalidInputError(f"--out {out} must end in .yaml, as profiles do.")
    if out is not None:
        check_name("--out without its ending, the profile's name,", out.stem)
        check_writable("--out", out)
    with Progress(quiet).stage(f"calibrate {opened.name}") as tick:
        result = fit(opened, seeds, tick)
    if out is not None:
        profiles.save(on_this_machine(opened, result.cost, out.stem), out)
    cost = dataclasses.asdict(result.cost)
    if as_json:
        return print_json(
            {
                "profile": opened.name,
                "rung": "measured",
                "cost": cost,
                "held_out_error": result.held_out_error,
                "samples": result.samples,
                "machine": result.cost.machine,
                "date": result.cost.date,
                "out": None if out is None else str(out),
            }
        )
    shipped = dataclasses.asdict(opened.cost)
    rows = [(key, f"{cost[key]:.4g}", f"{shipped[key]:.4g}") for key in cost if key.endswith("_ms")]
    print_table(f"Cost model of {opened.name}", ("coefficient", "this machine", "the profile's"), rows)
    say(
        f"Held-out error of the mean: {result.held_out_error:+.1%}, {result.samples} micro-batches fitted on "
        f"{result.cost.machine}, {result.cost.date}, measured rung."
    )
    if out is not None:
        say(f"Profile written to {out}.")


def fit(profile: profiles.Profile, seeds: int, tick: Tick | None = None) -> Any:
    """The calibration of ``real_backend``, found by name."""
    module, _, attribute = CALIBRATION.partition(":")
    progress = None if tick is None else functools.partial(tick, "")
    return getattr(importlib.import_module(module), attribute)(profile, seeds=seeds, progress=progress)


def on_this_machine(profile: profiles.Profile, cost: CostModel, name: str) -> profiles.Profile:
    """The profile with another cost model, and with its modelled link and its SLO scaled to match.

    A link that stays as it is beside a processor twice as slow would be another problem, with another alpha*.
    """
    from helm_gym.workload.demand import service_ms
    from helm_gym.workload.state import at_rest

    def compute_ms(of: CostModel) -> float:
        free = dataclasses.replace(
            profile.link, bandwidth_gb_per_s=1e6, latency_ms=0.0, gather_gb_per_s=0.0
        )  # next to nothing
        return float(service_ms(dataclasses.replace(profile, cost=of, link=free), at_rest(profile)[None]).mean())

    slower = compute_ms(cost) / compute_ms(profile.cost)
    link = profile.link
    if link.modelled:
        rates = {name: getattr(link, name) / slower for name in ("bandwidth_gb_per_s", "gather_gb_per_s")}
        link = dataclasses.replace(link, **rates, latency_ms=link.latency_ms * slower)
    return dataclasses.replace(profile, name=name, cost=cost, link=link, slo_ms=profile.slo_ms * slower)
