"""What comes out of a search: the best few on fresh seeds, the best as a run folder, figures and plots."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import math
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from agents.tuning import storage
from agents.tuning.objective import Objective, blocks, reference_name
from agents.tuning.search import Candidates, Plan, Progress, search
from helm_gym import files
from helm_gym import profile as profiles
from helm_gym.errors import InvalidInputError
from helm_gym.evaluation.statistics import bootstrap
from helm_gym.locks import alone
from helm_gym.policy_origin import Origin
from helm_gym.provenance import describe_machine, versions
from helm_gym.training import run_folder
from helm_gym.training.run_folder import Run

TUNE = "tune.json"
_FRESH_SEED = 1  # of trainings anew, beyond the plan's own
_BOOTSTRAP_SEED = 0


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Settings that are tried again.

    Attributes:
        trial: its number; None for the settings that the search began with.
        searched: relative cost on the trials' seeds.
        costs: the same on each fresh seed, (seeds,).
        folder: of its training, of an agent that is trained.
    """

    trial: int | None
    settings: Any
    searched: float
    costs: NDArray[np.float64]
    folder: pathlib.Path | None

    @property
    def cost(self) -> float:
        return float(self.costs.mean())


def tune(plan: Plan, workers: int = 1, progress: Progress | None = None) -> dict[str, Any]:
    """Searches, tries the best again on fresh seeds, and leaves the best as a run in ``plan.out``.

    The best of many trials owes part of its place to the seeds that they were compared on. So the ``top`` of them, and
    the settings that the search began with, are served on seeds that none has seen, and the best there is the best.
    An agent that is trained is trained anew for it, with another seed.

    Returns:
        What tune.json holds.

    Raises:
        HelmError: as ``search``.
    """
    tick = progress or (lambda what, done, total: None)
    _check_out(plan.out)
    with storage.naming(plan.place):
        found = search(plan, workers, tick)
        # Of several commands that take part, one at a time leaves what came out.
        with alone(plan.out, "", lambda: tick(f"waiting for another process at {plan.out}", 1, 1)):
            return _finish(plan, found, tick)


def _check_out(folder: pathlib.Path) -> None:
    """Raises InvalidInputError where the folder holds a training, whose run would be lost."""
    if run_folder.is_run(folder) and "tuning" not in run_folder.read_run(folder).facts:
        raise InvalidInputError(f"--out {folder} holds a training; give another folder.")


def _finish(plan: Plan, found: optuna.Study, tick: Progress) -> dict[str, Any]:
    tried = _try_again(plan, found, tick)
    best = min(tried, key=lambda candidate: candidate.cost)
    trials = found.get_trials(deepcopy=False)
    counts = {s.name.lower(): sum(t.state is s for t in trials) for s in TrialState if s is not TrialState.WAITING}
    figures = {
        "agent": plan.agent,
        "task": plan.task.name,
        "profile": plan.profile.name,
        "rung": {"trials": plan.backend, "fresh": plan.judge},
        "objective": f"mean over seeds of the episode's cost over that of {reference_name(plan.task)}",
        "storage": storage.hide_password(plan.place),
        "study": plan.study,
        "budget": {"trials": plan.trials, "seeds_a_trial": plan.seeds, "steps": plan.steps},
        "trials": counts,
        "seeds": [plan.trial_seeds[0], plan.trial_seeds[-1]],
        "fresh_seeds": [plan.fresh_seeds[0], plan.fresh_seeds[-1]],
        "best": _describe(best, tried[0]),
        "began_with": _describe(tried[0], tried[0]),
        "top": [_describe(candidate, tried[0]) for candidate in tried[1:]],
        "importances": _importances(found),
        "machine": describe_machine(),
        "versions": versions() | {"optuna": optuna.__version__},
        "date": datetime.date.today().isoformat(),
    }
    _write(plan, best, figures, found)
    return figures


def _try_again(plan: Plan, found: optuna.Study, progress: Progress) -> list[Candidate]:
    """The settings that the search began with, and the best trials, best first, each on the fresh seeds."""
    complete = found.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranked = sorted(complete, key=lambda trial: (trial.value, trial.number))
    candidates = Candidates(plan)
    began = candidates.default
    chosen: list[tuple[int | None, Any, float]] = [(None, began, _value_of(began, candidates, complete))]
    for trial in ranked:
        settings = candidates.propose(optuna.trial.FixedTrial(trial.params))
        if settings not in [other for _, other, _ in chosen] and len(chosen) <= plan.top:
            chosen.append((trial.number, settings, float(trial.value or math.nan)))
    objective, tried = Objective(plan.task, plan.profile, plan.judge), []
    parts = list(blocks(plan.fresh_seeds))
    for rank, (number, settings, value) in enumerate(chosen):
        name = f"fresh-{'default' if number is None else number}"
        policy, folder = candidates.make(settings, name, plan.seed + _FRESH_SEED, lambda: None)
        costs = []
        for count, seeds in enumerate(parts):
            progress("the best on fresh seeds", rank * len(parts) + count, len(chosen) * len(parts))
            costs.append(objective.relative_costs(policy, seeds))
        tried.append(Candidate(number, settings, value, np.concatenate(costs), folder))
    objective.close()
    return tried


def _value_of(settings: Any, candidates: Candidates, trials: list[FrozenTrial]) -> float:
    """What a trial of these settings came to; NaN where none was complete."""
    same = (t for t in trials if candidates.propose(optuna.trial.FixedTrial(t.params)) == settings)
    return float(next((t.value for t in same if t.value is not None), math.nan))


def _describe(candidate: Candidate, began: Candidate) -> dict[str, Any]:
    def mean(costs: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(costs.mean(axis=axis))

    def figure(costs: NDArray[np.float64]) -> dict[str, float | None]:
        return bootstrap((costs,), mean, np.random.default_rng(_BOOTSTRAP_SEED)).to_json()

    return {
        "trial": candidate.trial,
        "settings": dataclasses.asdict(candidate.settings),
        "searched": candidate.searched if math.isfinite(candidate.searched) else None,
        "fresh": figure(candidate.costs),
        "fresh_less_than_began_with": figure(began.costs - candidate.costs),
    }


def _write(plan: Plan, best: Candidate, figures: dict[str, Any], found: optuna.Study) -> None:
    """The run folder of the best, tune.json and the plots."""
    (plan.out / run_folder.RUN).unlink(missing_ok=True)  # a kill leaves no run rather than one with another's weights
    facts = {key: figures[key] for key in ("objective", "rung", "budget", "trials", "seeds", "fresh_seeds")}
    facts |= {key: figures["best"][key] for key in ("fresh", "fresh_less_than_began_with")}
    steps = 0
    if best.folder is not None:
        tensors = run_folder.policy_tensors(best.folder, trained := run_folder.read_run(best.folder))
        run_folder.write_tensors(plan.out / run_folder.POLICY, tensors)
        steps, facts = trained.steps, trained.facts | facts
    run = Run(
        agent=plan.agent,
        task=plan.task.name,
        origin=Origin.of(Candidates(plan).layout),
        settings=dataclasses.asdict(best.settings),
        seed=plan.seed,
        steps=steps,
        status="done",
        facts={"tuning": facts},
        machine=figures["machine"],
        versions=figures["versions"],
    )
    profiles.save(plan.profile, plan.out / run_folder.PROFILE)
    run_folder.write_run(plan.out, run)
    files.write(plan.out / TUNE, json.dumps(figures, indent=2, allow_nan=False) + "\n")
    for name, draw in _plots().items():
        _plot(plan.out / f"{name}.png", draw, found)


def _importances(found: optuna.Study) -> dict[str, float]:
    """Share of each setting in what the trials' cost varies by; none where too few trials say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few trials, which tune.json counts
        try:
            return {name: float(share) for name, share in optuna.importance.get_param_importances(found).items()}
        except (ValueError, RuntimeError):
            return {}


def _plots() -> dict[str, Callable[[optuna.Study], Any]]:
    from optuna.visualization import matplotlib as draw

    return {
        "history": draw.plot_optimization_history,
        "importances": draw.plot_param_importances,
        "slice": draw.plot_slice,
        "parallel": draw.plot_parallel_coordinate,
    }


def _plot(path: pathlib.Path, draw: Callable[[optuna.Study], Any], found: optuna.Study) -> None:
    """One of Optuna's plots as a file; none where the study has too few complete trials for it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    image = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental, and that axes of one point are widened
        try:
            axes = draw(found)
        except (ValueError, RuntimeError):
            return
    figure = np.ravel(axes)[0].figure
    figure.savefig(image, format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    files.write(path, image.getvalue())
