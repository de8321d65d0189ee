"""The paper's tables and figures (arXiv 2605.04450), made again: one module each, found in one registry."""

from __future__ import annotations

import dataclasses
import importlib
import io
import pathlib
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from helm_gym import files
from helm_gym.errors import UnknownNameError
from helm_gym.profile import Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = "parts"  # folder of what an unfinished reproduction has measured
Tick = Callable[[str, int, int], None]
Stage = Callable[[str], Any]  # a context manager that yields a Tick


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """A figure made again.

    Attributes:
        figures: the JSON object; names its rung, machine, versions and date.
        picture: drawn.
        markdown: what it shows and how it compares with the paper.
    """

    figures: dict[str, Any]
    picture: Figure
    markdown: str


# name -> (where, one line): called with (profile, seeds, stage, folder)
FIGURES = {
    "table3": ("helm_gym.paper.table3:reproduce", "control strategies: gap to alpha* and time of a decision"),
    "fig14": ("helm_gym.paper.fig14:reproduce", "the layers of the three-layer controller, left out one by one"),
    "fig15": ("helm_gym.paper.fig15:reproduce", "alpha over a four-hour window against the offline optimum"),
    "unseen": ("helm_gym.paper.unseen:reproduce", "bursts unlike those of training: gain, and cost over best static"),
    "fig4": ("helm_gym.paper.fig4:reproduce", "latency over alpha by regime: the optimum moves"),
    "fig6": ("helm_gym.paper.fig6:reproduce", "clusters: hit rates and P99 of the routers"),
    "fig10": ("helm_gym.paper.fig10:reproduce", "clusters: routing scores by component"),
    "fig11": ("helm_gym.paper.fig11:reproduce", "clusters: P99 and SLO of three systems over regimes"),
    "fig13": ("helm_gym.paper.fig13:reproduce", "clusters: allocation and routing, alone and together"),
    "fig16": ("helm_gym.paper.fig16:reproduce", "clusters: mean alpha over size and hot share"),
}


def reproduce(name: str, profile: Profile, seeds: int, stage: Stage, folder: pathlib.Path) -> Reproduction:
    """Makes one figure again; where that was interrupted, what had been measured is not measured again.

    Args:
        name: a key of ``FIGURES``.
        profile: machine and model to make it on.
        seeds: episodes a regime.
        stage: opens a stretch of progress.
        folder: where what is measured is kept until the figure is complete.

    Raises:
        UnknownNameError: no such figure; the nearest name is given.
    """
    if name not in FIGURES:
        raise UnknownNameError("figure", name, FIGURES)
    module, _, attribute = FIGURES[name][0].partition(":")
    made: Reproduction = getattr(importlib.import_module(module), attribute)(profile, seeds, stage, folder)
    return made


def save(made: Reproduction, name: str, folder: pathlib.Path, to_json: Callable[[Any], str]) -> list[pathlib.Path]:
    """Writes ``name``.svg, .png, .md and .json into ``folder`` and drops the parts; returns the paths.

    A kill leaves each file as it was or as it should be, and the parts as long as one is to be written.
    """
    contents: dict[str, str | bytes] = {}
    for ending in ("svg", "png"):
        image = io.BytesIO()
        made.picture.savefig(image, format=ending, dpi=160)
        contents[ending] = image.getvalue()
    contents |= {"md": made.markdown, "json": to_json(made.figures) + "\n"}
    paths = {ending: folder / f"{name}.{ending}" for ending in contents}
    for ending, content in contents.items():
        files.write(paths[ending], content)
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    return list(paths.values())
