"""``helm-gym demo``: the main job, small: calibrate, compare controllers, confirm on HSTU, report."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from helm_gym.cli.common import Progress, Quiet, check_writable, to_json

if TYPE_CHECKING:
    from helm_gym.evaluation.results import Evaluation

STATICS = ("static:0.2", "static:0.5", "static:0.8")
CONTROLLERS = ("threshold", "shadow-gradient", "miss-bytes", "pid", "miss-ratio-curve")
MODELLED_HORIZON, MODELLED_SEEDS = 240, (0, 1, 2, 3)
MEASURED_HORIZON, MEASURED_SEEDS, MEASURED_SETTLE = 100, (0,), 10


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
    with progress.stage("3/3 Confirming on real HSTU inference, measured rung") as tick:
        measured = protocol.evaluate(
            shorter,
            [open_policy(name, layout) for name in chosen],
            backend="real",
            profile=profile,
            seeds=MEASURED_SEEDS,
            references=False,
            progress=tick,
        )
    confirmed = metrics.to_json(measured)
    show(measured, confirmed)

    learned = lesson(modelled, figures, confirmed, best[0])
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
        "learned": learned,
    }
    (out / "results.json").write_text(to_json(results) + "\n", encoding="utf-8")
    typer.echo(f"\n{learned}\n\nReport: {out / 'report.html'}\nFigures: {out / 'results.json'}")


def ranked(figures: dict[str, Any], among: Sequence[str]) -> list[str]:
    """Names by mean latency, the best first."""
    mean = {row["name"]: row["mean_latency_ms"]["value"] for row in figures["policies"]}
    return sorted((name for name in among if name in mean), key=mean.__getitem__)


def lesson(evaluation: Evaluation, modelled: dict[str, Any], measured: dict[str, Any], best: str) -> str:
    """What was learned, from the numbers as they came out."""
    static = f"static:{evaluation.best_static:g}"
    rows = {row["name"]: row for row in [*modelled.get("references", ()), *modelled["policies"]]}
    real = {row["name"]: row["mean_latency_ms"]["value"] for row in measured["policies"]}
    gain = rows[best]["gain_captured"]["value"]
    text = f"On bursts {best} is the best controller"
    if gain is not None:
        text += f" and captures {gain:.0%} of what knowing the regime is worth in mean latency"
    text += f" (modelled rung, against the best single split, alpha {evaluation.best_static:g})"
    change = real[best] / real[static] - 1.0
    verdict = "confirms" if change < 0 and (gain or 0) > 0 else "does not confirm"
    return f"{text}; real HSTU inference {verdict} it: mean latency {change:+.0%} against that split (measured rung)."
