"""What predictors learn from: episodes of every regime, and the offline optimum of each of their intervals.

A predictor sees the workload's columns of the observation alone (``features.py``), and those do not depend on who
controls: a seed fixes the requests. So one pass under a split that is held records all that any controller would see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from helm_gym.backend import open_backend
from helm_gym.control_loop import ControlLoop
from helm_gym.errors import InvalidInputError
from helm_gym.evaluation.optimum import GRID, MAX_LANES, argmin, offline_optimum
from helm_gym.training import run_folder
from helm_gym.training.trainable import Training
from helm_gym.workload.regimes import make_path

FOLDER = "examples"
INTERVALS = 480  # of an episode
BLOCK = MAX_LANES * INTERVALS  # decisions that are recorded, and kept, at a time
HELD_OUT = 3  # of a block's lanes; a predictor is not fitted to them
# Replays cost the time. Between splits .1 apart a cubic spline finds alpha* within .015 of what the full grid says, of
# which .009 lie in how an argmin is read off a grid (bursts, 16 episodes, 2026-11-25); and twice the episodes fit in.
_REPLAYED = GRID[::2]
_ORDER = ("mixed", "burst", "trend", "steady")
_EPISODES = 0  # a purpose of the training's generator
_LEAST_SEED = 2**32  # tasks publish small ones


@dataclasses.dataclass(frozen=True)
class Examples:
    """Episodes to learn from.

    Attributes:
        observation: float32 (episodes, INTERVALS, D), seen before each interval.
        alpha_star: float32 (episodes, INTERVALS), the offline optimum of that interval.
        held_out: (episodes,), whether an episode is for validation.
        regime: (episodes,), its name.
    """

    observation: NDArray[np.float32]
    alpha_star: NDArray[np.float32]
    held_out: NDArray[np.bool_]
    regime: NDArray[np.str_]

    def part(self, held_out: bool) -> Examples:
        """The episodes to fit to, or those to validate on."""
        chosen = self.held_out == held_out
        return Examples(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


def gather(training: Training, borrowed: str = "") -> Examples:
    """The examples of a training: as many blocks as make ``training.steps`` decisions.

    Blocks are written into the run's folder one by one, and those that are there already are read.

    Args:
        borrowed: another run's folder, whose examples are taken in place of new ones.

    Raises:
        InvalidInputError: a folder to borrow from that holds no examples, or too few.
    """
    blocks = -(-training.steps // BLOCK)
    if borrowed:
        return _borrow(training, pathlib.Path(borrowed), blocks)
    folder = training.folder / FOLDER
    found = []
    for number in range(blocks):
        with contextlib.suppress(InvalidInputError):  # missing, or a disk that was full
            found.append(_read(folder, number))
            continue
        _record(training, number, blocks)
        found.append(_read(folder, number))
    return _join(found)


def errors(predicted: NDArray[np.floating], examples: Examples) -> dict[str, float]:
    """The mean absolute error of predictions (episodes, INTERVALS), over all and by regime, for a training's facts."""
    apart = np.abs(predicted - examples.alpha_star).mean(axis=1)
    by_regime = {f"error_{name}": float(apart[examples.regime == name].mean()) for name in np.unique(examples.regime)}
    return {"error": float(apart.mean())} | by_regime


def regime_of(number: int) -> str:
    """The regime of a block's episodes; in turn, so that few blocks hold every one."""
    return _ORDER[number % len(_ORDER)]


def _borrow(training: Training, source: pathlib.Path, blocks: int) -> Examples:
    run_folder.read_run(source).origin.check(training.layout, f"Run {source}")
    try:
        return _join([_read(source / FOLDER, number) for number in range(blocks)])
    except InvalidInputError as error:
        raise InvalidInputError(
            f"Run {source} has fewer examples than {training.steps} decisions; train it with as many steps."
        ) from error


def _read(folder: pathlib.Path, number: int) -> dict[str, NDArray[np.float32]]:
    return run_folder.read_tensors(_path(folder, number))[0]


def _path(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"{number:04d}.safetensors"


def _join(found: Sequence[dict[str, NDArray[np.float32]]]) -> Examples:
    held_out = np.arange(MAX_LANES) >= MAX_LANES - HELD_OUT
    return Examples(
        observation=np.concatenate([block["observation"] for block in found]),
        alpha_star=np.concatenate([block["alpha_star"] for block in found]),
        held_out=np.tile(held_out, len(found)),
        regime=np.repeat([regime_of(number) for number in range(len(found))], MAX_LANES),
    )


def _record(training: Training, number: int, blocks: int) -> None:
    """Records one block of episodes and labels it, which takes half a minute on one core."""
    regime = regime_of(number)
    task = dataclasses.replace(training.task, regime=regime)
    drawn = training.generator(_EPISODES, number).integers(_LEAST_SEED, 2**63, size=MAX_LANES)
    seeds = tuple(drawn.tolist())
    path = make_path(regime, training.profile, seeds, INTERVALS)
    advance = _meter(training, number, blocks)
    optimum = offline_optimum(task, training.profile, path, seeds, grid=_REPLAYED, advance=advance)
    finer = np.linspace(optimum.grid[0], optimum.grid[-1], 2 * len(optimum.grid) - 1)
    star = argmin(finer, CubicSpline(optimum.grid, optimum.expected_ms)(finer))
    backend = open_backend("modelled", training.profile, lanes=MAX_LANES)
    with contextlib.closing(backend):
        loop = ControlLoop(task, backend, intervals=INTERVALS)
        step, seen = loop.reset(seeds), []
        while not step.done:
            seen.append(step.observation[:, 0])
            step = loop.step(np.zeros((MAX_LANES, 1, 1)))
    block = {"observation": np.stack(seen, axis=1), "alpha_star": star.astype(np.float32)}
    run_folder.write_tensors(_path(training.folder / FOLDER, number), block)


def _meter(training: Training, number: int, blocks: int) -> Callable[[int], None]:
    """Tells the training how far the examples are: the replays of a block's episodes at every split."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        share = (number + done / (len(_REPLAYED) * BLOCK)) / blocks
        training.progress(int(share * training.steps), training.steps, f"examples of '{regime_of(number)}'")

    return advance
