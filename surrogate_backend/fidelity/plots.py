"""The page's pictures: real and surrogate side by side, a panel a setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from helm_gym.evaluation.plots import INK, RC, WIDTH, Picture, colour, legend, log_ms, svg
from surrogate_backend.fidelity.cases import along, stack
from surrogate_backend.fidelity.judgement import Judged, Judgement
from surrogate_backend.fidelity.measures import HIT_FIELDS, MEASURES, Measure
from surrogate_backend.fidelity.trust import EDGES, Cell

REAL, TWIN, MARK = "#5F6670", "#0072B2", "#B00020"
_WORST_SHOWN = 5.0  # per cent; the map's darkest colour
_BAND = (10, 90)
_TIMES = (("service_mean_ms", "mean service (ms)"), ("sojourn_mean_ms", "mean sojourn (ms)"))
_HITS = (("emb_hit_rate", "EMB hit rate (%)"), ("kv_hit_rate", "KV hit rate (%)"))


def pictures(judgement: Judgement) -> Iterator[Picture]:
    """Those that the log has episodes for, in the page's order."""
    repeated = [s for s in judgement.settings if s.repeat is not None]
    if any(measure.key in s.surrogate for s in repeated for measure in MEASURES[:8]):
        yield errors(repeated)
    if repeated:
        yield paths(repeated)
        yield hit_rates(repeated)
    if swept := [s for s in judgement.settings if s.sweep]:
        yield sweeps(swept)
    if ranked := [s for s in judgement.settings if s.choice is not None]:
        yield ranks(ranked)
    if judgement.trust.parameters:
        yield trust(judgement)


def paths(settings: Sequence[Judged]) -> Picture:
    """Windowed service and sojourn of every setting over its episode."""
    return _over_time(
        settings,
        _TIMES,
        "paths",
        "The path of every setting: service and sojourn",
        "Grey is the real backend over its request seeds, blue the surrogate over its lanes, both under the same "
        f"workload and the same schedule of alpha: line = mean, band = {_BAND[0]}th to {_BAND[1]}th percentile. A true "
        "surrogate's line lies on the grey one and its band is as wide: then it errs where one seed of the real "
        "backend does.",
    )


def hit_rates(settings: Sequence[Judged]) -> Picture:
    """Windowed hit rates of every setting over its episode."""
    return _over_time(
        settings,
        _HITS,
        "hits",
        "Hit rates over the same episodes",
        "As above. Where a hit rate is off, service time follows: a surrogate that is wrong here and right above has "
        "the right figure for the wrong reason, and will not keep it at another split.",
    )


def _over_time(
    settings: Sequence[Judged], fields: Sequence[tuple[str, str]], prefix: str, title: str, how_to_read: str
) -> Picture:
    with rc_context(RC):
        figure = Figure((WIDTH, 0.9 + 1.75 * len(settings)), layout="constrained")
        axes = figure.subplots(len(settings), len(fields), squeeze=False)
        for row, judged in zip(axes, settings, strict=True):
            assert judged.repeat is not None
            for ax, (field, label) in zip(row, fields, strict=True):
                scale = 100.0 if field in HIT_FIELDS.values() else 1.0
                _band(ax, scale * stack(judged.setting.repeats, field), REAL, "real")
                _band(ax, scale * judged.repeat.series[field], TWIN, "surrogate")
                ax.set(xlim=(0, judged.setting.repeats[0].intervals))
                ax.set_title(f"{judged.setting.label}, {label}", fontsize=10.5)
                if field.startswith("sojourn"):
                    log_ms(ax)
        for ax in axes[-1]:
            ax.set_xlabel("control interval")
        legend(figure, axes[0, 0])
    alt = f"{len(settings)} rows of charts over control intervals, real against surrogate: " + ", ".join(
        label for _, label in fields
    )
    return Picture(title, svg(figure, alt, prefix), alt, how_to_read)


def _band(ax: Axes, values: NDArray[np.float64], tint: str, label: str) -> None:
    """Mean and band over the first axis."""
    t = np.arange(values.shape[1])
    low, high = np.percentile(values, _BAND, axis=0)
    ax.fill_between(t, low, high, color=tint, alpha=0.2, linewidth=0)
    ax.plot(t, values.mean(axis=0), color=tint, linewidth=1.2, label=label)


def errors(settings: Sequence[Judged]) -> Picture:
    """Path errors and expected errors by setting, beside floors and marks."""
    shown = MEASURES[:8]
    names = [s.setting.label for s in settings]
    with rc_context(RC):
        figure = Figure((WIDTH, 1.6 + 0.52 * len(names)), layout="constrained")
        axes = figure.subplots(2, 4, sharey=True)
        for ax, measure in zip(axes.ravel(), shown, strict=True):
            _bars(ax, measure, settings)
        for ax in axes[:, 0]:
            ax.set_yticks(range(len(names)), names)
        axes[0, 0].invert_yaxis()
        legend(figure, axes[0, 0])
    alt = "Bars of the surrogate's error by setting with the floor as a tick. " + " ".join(
        f"{m.heading}: "
        + ", ".join(f"{s.setting.label} {s.surrogate.get(m.key, math.nan):.3g}" for s in settings)
        + "."
        for m in shown
    )
    return Picture(
        "Errors by setting",
        svg(figure, alt, "errors"),
        alt,
        "Above, one lane against one real episode: the black tick is the floor, what two real episodes differ by, and "
        "the red line is the floor plus what the mark allows on top of it. Below, expectations over seeds: the tick is "
        "what the log's number of seeds leaves uncertain, and the red line is the mark. The marks hold for the mean "
        "over settings; a bar beyond the line says which setting uses them up.",
    )


def _bars(ax: Axes, measure: Measure, settings: Sequence[Judged]) -> None:
    y = np.arange(len(settings))
    mine, floor = (
        np.array([side.get(measure.key, np.nan) for side in sides])
        for sides in ([s.surrogate for s in settings], [s.floor for s in settings])
    )
    ax.barh(y, mine, color=TWIN, height=0.6, alpha=0.85, label="surrogate")
    ax.plot(floor, y, "|", color=INK, markersize=13, markeredgewidth=2, label="floor")
    line = floor + measure.mark if measure.kind == "excess" else np.full(len(y), measure.mark)
    ax.plot(line, y, "|", color=MARK, markersize=13, markeredgewidth=1.4, label="mark")
    ax.set_title(
        f"{measure.heading.removeprefix('expected ').removeprefix('path error, ')} ({measure.unit})", fontsize=10
    )
    ax.set_xlim(left=0)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)


def _panels(settings: Sequence[Judged], height: float, draw: Callable[[Axes, Judged], None]) -> Figure:
    """A panel a setting, three a row, with one legend."""
    columns = min(3, len(settings))
    rows = -(-len(settings) // columns)
    figure = Figure((WIDTH, 0.5 + height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, judged in zip(axes, settings, strict=False):
        draw(ax, judged)
    for ax in axes[len(settings) :]:
        ax.set_visible(False)
    return figure


def sweeps(settings: Sequence[Judged]) -> Picture:
    """Mean service over held splits, and where either curve has its least."""

    def draw(ax: Axes, judged: Judged) -> None:
        alphas, real = np.array([*judged.setting.splits]), judged.setting.curve
        mine = np.array([rollout.series["interval_service_ms"].mean() for rollout in judged.sweep])
        stars = judged.stars or (None, None)
        for curve, star, tint, label in ((real, stars[0], REAL, "real"), (mine, stars[1], TWIN, "surrogate")):
            ax.plot(alphas, curve, color=tint, marker="o", markersize=3.5, label=label)
            if star is not None:
                ax.axvline(star, color=tint, linewidth=1.2, linestyle=(0, (4, 2)))
        told = "" if judged.stars is None else f", alpha* {stars[0]:.2f} / {stars[1]:.2f}"
        ax.set_title(f"{judged.setting.label}{told}", fontsize=10.5)
        ax.set(xlim=(0, 1), xlabel="alpha held", ylabel="mean service (ms)")

    with rc_context(RC):
        figure = _panels(settings, 2.7, draw)
        legend(figure, figure.axes[0])
    alt = "Mean service time against alpha, real and surrogate. alpha* real and surrogate: " + ", ".join(
        f"{s.setting.label} {s.stars[0]:.3f} and {s.stars[1]:.3f}" for s in settings if s.stars
    )
    return Picture(
        "What a held split costs, real and surrogate",
        svg(figure, alt, "sweeps"),
        alt,
        "Dashed lines mark alpha*, the least of either curve (numbers: real / surrogate). The distance between the "
        "lines is what a controller that learned on the surrogate would be wrong by; how flat the grey curve is there "
        "says what that costs. A blue curve that is shifted up or down as a whole is a bias, and does not move the "
        "optimum.",
    )


def ranks(settings: Sequence[Judged]) -> Picture:
    """The order of the controllers by mean sojourn, real against surrogate."""
    names = list(dict.fromkeys(name for s in settings for name in s.setting.controllers))

    def draw(ax: Axes, judged: Judged) -> None:
        controllers = judged.setting.controllers
        real = np.array([along(cases, "interval_sojourn_ms").mean() for cases in controllers.values()])
        mine = np.array([rollout.series["interval_sojourn_ms"].mean() for rollout in judged.policy])
        places = np.argsort(np.argsort(real)), np.argsort(np.argsort(mine))
        for k, name in enumerate(controllers):
            tint, ends = colour(name, names), (int(places[0][k]), int(places[1][k]))
            ax.plot((0, 1), ends, color=tint, marker="o", markersize=4.5, linewidth=1.8)
            ax.text(-0.07, ends[0], f"{name}  {_ms(real[k])}", ha="right", va="center", fontsize=8.5, color=tint)
            ax.text(1.07, ends[1], _ms(mine[k]), ha="left", va="center", fontsize=8.5, color=tint)
        ax.set(xlim=(-1.65, 1.45), ylim=(len(real) - 0.4, -1.0), yticks=[], xticks=[])
        for x, text in ((0, "real"), (1, "surrogate")):
            ax.text(x, -0.75, text, ha="center", va="center", fontsize=9)
        ax.spines[:].set_visible(False)
        ax.set_title(f"{judged.setting.label}, tau {judged.surrogate['kendall_tau_mean']:.2f}", fontsize=10.5)

    with rc_context(RC):
        figure = _panels(settings, 2.9, draw)
    alt = "Controllers ordered by mean sojourn, real and surrogate. Kendall's tau: " + ", ".join(
        f"{s.setting.label} {s.surrogate['kendall_tau_mean']:.2f}" for s in settings
    )
    return Picture(
        "Controllers: does the surrogate rank them as the real backend does?",
        svg(figure, alt, "ranks"),
        alt,
        "Each line is a controller, run in closed loop on either side; the best stands on top, with its mean sojourn "
        "in ms beside it. Every crossing is a pair that the surrogate ranks the wrong way round: between controllers "
        "of nearly the same sojourn that costs nothing, and one episode of the real backend cannot tell them apart "
        "either. Crossings at the top decide which controller one would choose.",
    )


def _ms(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def trust(judgement: Judgement) -> Picture:
    """Where mean service is off: over alpha and hot_share, and over each parameter's range."""
    found = judgement.trust
    names = list(found.parameters)
    with rc_context(RC):
        figure = Figure((WIDTH, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
        _heat(left, found.error, [[f"{e:.1f}" if np.isfinite(e) else "" for e in row] for row in found.error])
        ends = [f"{edge:g}" for edge in EDGES.round(2)]
        left.set_xticks(np.arange(len(ends)), ends)
        left.set_yticks(np.arange(len(ends)), ends)
        left.set(xlabel="alpha", ylabel="hot_share")
        left.set_title("error of mean service (%)")
        width = max(len(cells) for cells in found.parameters.values())
        grid = np.full((len(names), width), np.nan)
        texts = [[""] * width for _ in names]
        for row, name in enumerate(names):
            for column, cell in enumerate(found.parameters[name]):
                grid[row, column], texts[row][column] = cell.error, _cell_text(cell)
        _heat(right, grid, texts, size=7.4)
        right.set_yticks(np.arange(len(names)) + 0.5, names)
        right.set_xticks([])
        right.set_title("by each parameter, lowest fifth to highest")
        right.invert_yaxis()
    alt = (
        "Heat maps of the surrogate's error of mean service over alpha and hot share, and by fifths of each parameter."
    )
    return Picture(
        "Where the surrogate may be trusted",
        svg(figure, alt, "trust"),
        alt,
        "Each cell: by how many per cent the surrogate's mean service is off where the log's repeats and sweeps have "
        "such intervals (mean error of each episode within the cell, its size, averaged over episodes). Right: the "
        "range of the parameter's values and below it the error. A blank cell is not in the log, and nothing is known "
        "about the surrogate there; a dark one is where a controller that learns on it should be checked on the real "
        f"backend. {_noise(judgement)}",
    )


def _noise(judgement: Judgement) -> str:
    noises = [s.floor.get("stationary_bias", math.nan) for s in judgement.settings]
    known = [noise for noise in noises if math.isfinite(noise)]
    return f" One request seed's own noise over a sweep is about {np.mean(known):.1f}%." if known else ""


def _cell_text(cell: Cell) -> str:
    span = f"{cell.low:.3g}" if cell.low == cell.high else f"{cell.low:.3g}–{cell.high:.3g}"
    return f"{span}\n{cell.error:.1f}" if math.isfinite(cell.error) else ""


def _heat(ax: Axes, values: NDArray[np.float64], texts: Sequence[Sequence[str]], size: float = 9.5) -> None:
    ax.pcolormesh(
        np.ma.masked_invalid(values), cmap="YlOrBr", vmin=0.0, vmax=_WORST_SHOWN, edgecolors="white", linewidth=1.0
    )
    ax.grid(False)
    ax.tick_params(length=0)
    for (row, column), value in np.ndenumerate(values):
        if texts[row][column]:
            tint = "white" if value > 0.62 * _WORST_SHOWN else INK
            ax.text(
                column + 0.5, row + 0.5, texts[row][column], ha="center", va="center", fontsize=size, color=tint
            )  # fmt: skip
