"""``helm-gym demo``: the main job, small: calibrate, compare controllers, confirm on HSTU, report."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from helm_gym import files
from helm_gym.cli.common import Progress, Quiet, check_writable, say, to_json

if TYPE_CHECKING:
    from helm_gym.evaluation.results import Evaluation

STATICS = ("static:0.2", "static:0.5", "static:0.8")
CONTROLLERS = ("threshold", "shadow-gradient", "miss-bytes", "pid", "miss-ratio-curve")
MODELLED_HORIZON, MODELLED_SEEDS = 240, (0, 1, 2, 3)
MEASURED_HORIZON, MEASURED_SEEDS, MEASURED_SETTLE = 100, (0,), 10
STEADY_MACHINE = 0.08  # a choice: beyond it, queueing at load .7 can outweigh what a better split gains in service


def demo(
    out: Annotated[pathlib.Path, typer.Option(help="Folder for report.html and results.json.")] = pathlib.Path(
        "runs/demo"
    ),
    quiet: Quiet = False,
) -> None:
    """The main job in two to three minutes on two cores: calibrate, compare controllers, confirm on real inference.

    \b
    Example:
      helm-gym demo --out runs/demo
    """
    check_writable("--out", out / "report.html")
    from helm_gym import profile as profiles
    from helm_gym.cli.calibrate import fit, on_this_machine
    from helm_gym.cli.evaluate import show
    from helm_gym.evaluation import metrics, protocol
    from helm_gym.evaluation.report import Section, write_report
    from helm_gym.observation import ObservationLayout
    from helm_gym.policy import open_policy
    from helm_gym.tasks import find_task

    progress, task = Progress(quiet), find_task("burst-v0")
    shipped = profiles.load(task.profile)
    with progress.stage("1/3 Timing HSTU on this machine (the first run compiles kernels, half a minute)") as tick:
        calibration = fit(shipped, 1, tick)
    profile = on_this_machine(shipped, calibration.cost, f"{shipped.name} (this machine)")
    progress.say(
        f"Cost model fitted: mean service time within {abs(calibration.held_out_error):.1%} on held-out requests."
    )

    layout = ObservationLayout(profile)
    short = dataclasses.replace(task, horizon=MODELLED_HORIZON)
    with progress.stage("2/3 Comparing controllers, modelled rung") as tick:
        modelled = protocol.evaluate(
            short,
            [open_policy(name, layout) for name in (*STATICS, *CONTROLLERS, "oracle")],
            backend="modelled",
            profile=profile,
            seeds=MODELLED_SEEDS,
            progress=tick,
        )
    figures = metrics.to_json(modelled)
    show(modelled, figures)

    best = ranked(figures, CONTROLLERS)[:2]
    chosen = [*best, f"static:{modelled.best_static:g}"]
    shorter = dataclasses.replace(task, horizon=MEASURED_HORIZON, settle=MEASURED_SETTLE)
    runs = {}
    for backend, label in (
        ("real", "3/3 Confirming on real HSTU inference, measured rung"),
        ("modelled", "3/3 Its twin"),
    ):
        with progress.stage(label) as tick:
            runs[backend] = protocol.evaluate(
                shorter,
                [open_policy(name, layout) for name in chosen],
                backend=backend,
                profile=profile,
                seeds=MEASURED_SEEDS,
                references=False,
                progress=tick,
            )
    measured = runs["real"]
    confirmed = metrics.to_json(measured)
    show(measured, confirmed)

    change_of_speed = drift(measured, runs["modelled"])
    learned = lesson(modelled, figures, confirmed, best[0], change_of_speed)
    off = calibration.held_out_error
    held_out = (
        f"The cost model behind the modelled rung was fitted to this machine first; on held-out requests its mean "
        f"compute time is {abs(off):.1%} {'above' if off > 0 else 'below'} the measured one."
    )
    sections = [
        Section(modelled, figures, "Controllers on bursts", held_out),
        Section(measured, confirmed, "The best, on real inference", "HSTU runs and is timed; one short episode."),
    ]
    write_report(out / "report.html", sections, "HELM-Gym demo: who splits the memory best?", learned)
    results = {
        "calibration": {"held_out_error": calibration.held_out_error, "cost": dataclasses.asdict(calibration.cost)},
        "modelled": figures,
        "measured": confirmed,
        "change_of_speed": change_of_speed,
        "learned": learned,
    }
    files.write(out / "results.json", to_json(results) + "\n")
    say("", learned, "", f"Report: {out / 'report.html'}", f"Figures: {out / 'results.json'}")


def ranked(figures: dict[str, Any], among: Sequence[str]) -> list[str]:
    """Names by mean latency, the best first."""
    mean = {row["name"]: row["mean_latency_ms"]["value"] for row in figures["policies"]}
    return sorted((name for name in among if name in mean), key=mean.__getitem__)


def drift(measured: Evaluation, twin: Evaluation) -> float:
    """How much the machine's speed changed between episodes, as a share.

    The twin served the same requests in the same episodes by the cost model, so measured over modelled service time is
    one number for all policies on a machine that nobody else uses. Where it is not, queues differ for that alone.
    """
    pairs = zip(measured.policies, twin.policies, strict=True)
    speed = [float(real.service_ms.mean() / model.service_ms.mean()) for real, model in pairs]
    return max(speed) / min(speed) - 1.0


def lesson(
    evaluation: Evaluation, modelled: dict[str, Any], measured: dict[str, Any], best: str, change_of_speed: float
) -> str:
    """What was learned, from the numbers as they came out."""
    static = f"static:{evaluation.best_static:g}"
    rows = {row["name"]: row for row in [*modelled.get("references", ()), *modelled["policies"]]}
    real = {row["name"]: row["mean_latency_ms"]["value"] for row in measured["policies"]}
    gain = rows[best]["gain_captured"]["value"]
    split, change = f"the best single split, alpha {evaluation.best_static:g}", real[best] / real[static] - 1.0
    text = f"On bursts {best} is the best controller"
    if gain is not None and gain > 0:
        text += f" and captures {gain:.0%} of what knowing the regime gains in mean latency over {split}"
        verdict = "confirms it" if change < 0 else "does not confirm it"
    else:
        text += f", and yet no better than {split}"
        verdict = "differs" if change < 0 else "agrees"
    if change_of_speed > STEADY_MACHINE:
        return (
            f"{text} (modelled rung); real HSTU inference could not be compared: this machine's speed changed by "
            f"{change_of_speed:.0%} between the episodes, so run the demo again when it is less busy."
        )
    return (
        f"{text} (modelled rung); real HSTU inference {verdict}: mean latency {change:+.0%} against that split "
        "(measured rung, one short episode)."
    )
