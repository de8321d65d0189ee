"""``helm-gym demo``: the main job, small: calibrate, compare controllers, confirm on HSTU, report."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from helm_gym import files
from helm_gym.cli.common import Progress, Quiet, check_writable, console, say, to_json

if TYPE_CHECKING:
    from helm_gym.evaluation.results import Evaluation
    from helm_gym.evaluation.statistics import Figure

STATICS = ("static:0.2", "static:0.5", "static:0.8")
CONTROLLERS = ("threshold", "shadow-gradient", "miss-bytes", "pid", "miss-ratio-curve")
MODELLED_HORIZON, MODELLED_SEEDS = 240, (0, 1, 2, 3)
MEASURED_HORIZON, MEASURED_SETTLE = 120, 10
CANDIDATES, CHOSEN = tuple(range(100, 124)), 3  # seeds, and how many of their episodes real inference serves
BLOCK = 10  # intervals: queues tie those next to one another together


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
    from helm_gym import evaluation
    from helm_gym import profile as profiles
    from helm_gym.cli.calibrate import fit, on_this_machine
    from helm_gym.evaluation.report import Section, write_report
    from helm_gym.tasks import find_task

    progress, task, screen = Progress(quiet), find_task("burst-v0"), console()
    shipped = profiles.load(task.profile)
    with progress.stage("1/3 Timing HSTU on this machine (the first run compiles kernels, half a minute)") as tick:
        calibration = fit(shipped, 1, tick)
    profile = on_this_machine(shipped, calibration.cost, f"{shipped.name} (this machine)")
    off = calibration.held_out_error
    progress.say(f"Cost model fitted: mean service time within {abs(off):.1%} on held-out requests.")

    with progress.stage("2/3 Comparing controllers, modelled rung") as tick:
        modelled = evaluation.evaluate(
            [*STATICS, *CONTROLLERS, "oracle"],
            task,
            profile=profile,
            seeds=MODELLED_SEEDS,
            horizon=MODELLED_HORIZON,
            progress=tick,
        )
    screen.print(modelled.table(screen.width))

    best = ranked(modelled.figures, CONTROLLERS)[0]
    static = f"static:{modelled.evaluation.best_static:g}"
    short = dataclasses.replace(task, horizon=MEASURED_HORIZON, settle=MEASURED_SETTLE)
    shared: dict[str, Any] = {"profile": profile, "references": False}
    with progress.stage("3/3 Looking for the episodes that tell most, modelled rung") as tick:
        candidates = evaluation.evaluate([best, static], short, seeds=CANDIDATES, progress=tick, **shared)
    seeds, predicted = telling(candidates.evaluation)
    with progress.stage("3/3 Confirming on real HSTU inference, served in turns, measured rung") as tick:
        measured = evaluation.evaluate([best, static], short, backend="real", seeds=seeds, progress=tick, **shared)
    screen.print(measured.table(screen.width))

    change = changed(measured.evaluation)
    learned = lesson(modelled.figures, best, static, change, predicted)
    held_out = (
        f"The cost model behind the modelled rung was fitted to this machine first; on held-out requests its mean "
        f"compute time is {abs(off):.1%} {'above' if off > 0 else 'below'} the measured one."
    )
    chosen = (
        f"HSTU runs and is timed, an interval of each policy in turn. Of {len(CANDIDATES)} short episodes those "
        f"{CHOSEN} in which the modelled rung puts {best} and {static} furthest apart."
    )
    sections = [
        Section(modelled.evaluation, modelled.figures, "Controllers on bursts", held_out),
        Section(measured.evaluation, measured.figures, "The best, on real inference", chosen),
    ]
    write_report(out / "report.html", sections, "HELM-Gym demo: who splits the memory best?", learned)
    results = {
        "calibration": {"held_out_error": off, "cost": dataclasses.asdict(calibration.cost)},
        "modelled": modelled.figures,
        "measured": measured.figures,
        "change": {"policy": best, "static": static, "measured": change.to_json(), "modelled": predicted},
        "learned": learned,
    }
    files.write(out / "results.json", to_json(results) + "\n")
    say("", learned, "", f"Report: {out / 'report.html'}", f"Figures: {out / 'results.json'}")


def ranked(figures: dict[str, Any], among: Sequence[str]) -> list[str]:
    """Names by mean latency, the best first."""
    mean = {row["name"]: row["mean_latency_ms"]["value"] for row in figures["policies"]}
    return sorted((name for name in among if name in mean), key=mean.__getitem__)


def telling(candidates: Evaluation) -> tuple[list[int], float]:
    """Seeds of the episodes in which two policies' mean latency differs most, and the first's over the second's."""
    import numpy as np

    policy, static = (episodes.mean_latency_ms() for episodes in candidates.policies)
    most = np.argsort(-np.abs(policy / static - 1.0))[:CHOSEN]
    return [candidates.seeds[k] for k in most], float(policy[most].mean() / static[most].mean() - 1.0)


def changed(measured: Evaluation) -> Figure:
    """The first policy's mean latency over the second's, less 1; both served the same requests, in turns."""
    import numpy as np

    from helm_gym.evaluation.statistics import paired_change

    policy, static = (episodes.sojourn_ms.mean(axis=2, dtype=np.float64) for episodes in measured.policies)
    return paired_change(policy, static, BLOCK, np.random.default_rng(0))


def lesson(modelled: dict[str, Any], best: str, static: str, change: Figure, predicted: float) -> str:
    """What was learned, from the numbers as they came out."""
    rows = {row["name"]: row for row in [*modelled["references"], *modelled["policies"]]}
    gain, split = rows[best]["gain_captured"]["value"], f"the best single split, alpha {static.partition(':')[2]}"
    text = f"On bursts {best} is the best controller"
    if gain is not None and gain > 0:
        text += f" and captures {gain:.0%} of what knowing the regime gains in mean latency over {split}"
    else:
        text += f", and yet no better than {split}"
    verdict = "leaves it open"
    if change.high < 0 or change.low > 0:
        verdict = "confirms it" if (change.value < 0) == (predicted < 0) else "contradicts it"
    return (
        f"{text} (modelled rung, {len(modelled['seeds'])} seeds). Real HSTU inference {verdict}: mean latency is "
        f"{change.value:+.0%} [{change.low:+.0%}, {change.high:+.0%}] against that split on {CHOSEN} short episodes "
        f"for which the model says {predicted:+.0%} (measured rung, served in turns; 95% interval)."
    )
