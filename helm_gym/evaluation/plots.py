"""The report's figures, drawn with matplotlib and returned as inline SVG that asks for nothing from outside."""

from __future__ import annotations

import dataclasses
import html
import io
import itertools
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from helm_gym.evaluation.results import Episodes, Evaluation
from helm_gym.text import plain
from helm_gym.workload.state import WorkloadPath

# Okabe and Ito's palette, safe for colour-blind readers. A policy keeps its colour in every report.
_OWN = {
    "miss-ratio-curve": "#0072B2",
    "pid": "#D55E00",
    "shadow-gradient": "#009E73",
    "miss-bytes": "#CC79A7",
    "threshold": "#E69F00",
    "random": "#8C6D46",
    "oracle": "#1A1A1A",
    "clairvoyant": "#5B3E96",
}
_OTHERS = ("#56B4E9", "#7A3B69", "#6B8E23", "#B8860B", "#2F6F7E", "#A0522D")
STATIC, INK, FAINT = "#8A8F98", "#22262B", "#D9DCE1"
# Paul Tol's muted palette: kinds of segment are told apart from policies by hue and by being written out.
KINDS = {
    "calm": "#77808C",
    "steady": "#77808C",
    "wave": "#332288",
    "flood": "#2E9C8C",
    "viral": "#B5485D",
    "trend": "#8A8A2C",
    "trend, few return": "#8A8A2C",
    "trend, many return": "#4E4E10",
    "trace": "#117733",
}
RC: Any = {  # matplotlib types its keys one by one
    "svg.fonttype": "none",
    "svg.hashsalt": "helm-gym",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 10.5,
    "axes.edgecolor": "#9AA0A8",
    "axes.labelcolor": INK,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8EAEE",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": "#5A6068",
    "ytick.color": "#5A6068",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
}
_OF_NAMES = {**RC, "text.parse_math": False}  # a policy's name may have a $ in it
_ROLLING_REQUESTS = 200
WIDTH = 10.4


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure on a page: its title, its SVG, what it says to who cannot see it, and how to read it."""

    title: str
    svg: str
    alt: str
    how_to_read: str


def colour(name: str, among: Sequence[str] = ()) -> str:
    """A policy's colour: its own, grey for a static split, else one by its place among the other strangers."""
    if name.startswith("static"):
        return STATIC
    if name.split(":")[0] in _OWN:
        return _OWN[name.split(":")[0]]
    strangers = [n for n in among if not n.startswith("static") and n.split(":")[0] not in _OWN]
    return _OTHERS[(strangers.index(name) if name in strangers else 0) % len(_OTHERS)]


def is_static(name: str) -> bool:
    return name.startswith("static:")


def is_oracle(name: str) -> bool:
    return name.split(":")[0] in ("oracle", "oracle-late", "clairvoyant")


def settings(path: WorkloadPath) -> dict[str, NDArray[np.bool_]]:
    """Which intervals, (lanes, T), lie in each regime setting: kinds of segment, a trend split by its ends."""
    kind = np.array([[path.kind[lane][s] for s in row] for lane, row in enumerate(path.segment)])
    masks = {str(name): kind == name for name in dict.fromkeys(kind.ravel().tolist())}
    if "trend" in masks:
        trend, hot = masks.pop("trend"), path.parameter("hot_share")
        low, high = np.quantile(hot[trend], [0.3, 0.7])
        masks["trend, few return"] = trend & (hot <= low)
        masks["trend, many return"] = trend & (hot >= high)
    return masks


def svg(figure: Figure, alt: str, prefix: str) -> str:
    """The figure as an ``<svg>`` element for a page: labelled, ids made its own, nothing fixed in size."""
    with rc_context(RC), io.StringIO() as out, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # of the size of a name; browsers have them
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", text)  # an HTML parser knows them
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r"[ \t]*\n\s*", "\n", text)
    size = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg role="img" aria-label="{html.escape(alt, quote=True)}" {size[0] if size else ""}>'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)


def all_episodes(evaluation: Evaluation) -> dict[str, Episodes]:
    """Policies, then references that were not among them, by name."""
    return {e.policy: e for e in (*evaluation.references.values(), *evaluation.policies)}


def shown_in_detail(evaluation: Evaluation, most: int = 3) -> list[str]:
    """Whom a crowded plot shows: the best few that are neither static nor oracles, the best static, the oracle."""
    mean = {name: float(e.all_answers_ms().mean(dtype=np.float64)) for name, e in all_episodes(evaluation).items()}
    ranked = sorted(mean, key=mean.__getitem__)
    adaptive = [name for name in ranked if not is_static(name) and not is_oracle(name)][:most]
    static = [name for name in ranked if is_static(name)][:1]
    return [*adaptive, *static, *(["oracle"] if "oracle" in mean else [])]


def rolling_p99(sojourn_ms: NDArray[np.floating], requests: int = _ROLLING_REQUESTS) -> NDArray[np.float64]:
    """P99 over the last ``requests`` requests at each interval, (T,), of one lane's (T, requests an interval).

    NaN stands behind an interval's last answer; windows of few requests are of one interval at least.
    """
    width = max(1, min(len(sojourn_ms), requests // sojourn_ms.shape[1]))
    padded = np.concatenate([np.repeat(sojourn_ms[:1], width - 1, 0), sojourn_ms])
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0)
    return np.asarray(np.nanpercentile(windows.reshape(len(sojourn_ms), -1), 99, axis=1))


def log_ms(ax: Axes) -> None:
    """A logarithmic latency axis with plain numbers, more of them where it spans less than a decade."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0) if high > 8 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0))
    )
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _shade(ax: Axes, path: WorkloadPath, lane: int, label: bool) -> None:
    """Segments as tinted bands; where ``label`` is set, their kinds above them, if a word finds room."""
    segment = path.segment[lane]
    edges = [0, *(np.flatnonzero(np.diff(segment)) + 1).tolist(), len(segment)]
    for a, b in itertools.pairwise(edges):
        kind = path.kind[lane][segment[a]]
        ax.axvspan(a, b, color=KINDS.get(kind, "#777777"), alpha=0.04 if kind in ("calm", "steady") else 0.13, lw=0)
        if label and b - a > 0.012 * len(segment) * len(kind):
            ax.text(
                (a + b) / 2, 1.015, kind, transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=9,
                color=KINDS.get(kind, INK),
            )  # fmt: skip


def _line(name: str, among: Sequence[str]) -> dict[str, Any]:
    style: dict[str, Any] = {"color": colour(name, among), "label": plain(name), "zorder": 3}
    if is_static(name):
        return style | {"linestyle": (0, (5, 2)), "linewidth": 1.3, "zorder": 2}
    if is_oracle(name):
        return style | {"linestyle": (0, (2, 1.2)), "linewidth": 1.3}
    return style


def legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), handlelength=2.4)


def episode(evaluation: Evaluation, prefix: str, lane: int = 0) -> Picture:
    """One lane: alpha of a few policies, against alpha* where there is one, and below it their P99."""
    names, episodes, path = shown_in_detail(evaluation), all_episodes(evaluation), evaluation.path
    with rc_context(_OF_NAMES):
        figure = Figure((WIDTH, 6.4), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True)
        if evaluation.optimum is not None:
            star = evaluation.optimum.alpha_star[lane]
            top.plot(star, color=INK, alpha=0.28, linewidth=6, label="alpha* (modelled rung)")
        for name in names:
            top.plot(episodes[name].alpha[lane], **_line(name, names))
            bottom.plot(rolling_p99(episodes[name].sojourn_ms[lane]), **_line(name, names))
        bottom.axhline(evaluation.slo_ms, color="#B00020", linewidth=1, zorder=1)
        bottom.text(
            1.004, evaluation.slo_ms, "SLO", color="#B00020", va="center", transform=bottom.get_yaxis_transform()
        )
        _shade(top, path, lane, label=True)
        _shade(bottom, path, lane, label=False)
        top.set(ylim=(0, 1), ylabel="alpha (EMB's share)", xlim=(0, path.intervals))
        bottom.set(ylabel="P99 latency (ms)", xlabel="control interval")
        log_ms(bottom)
        legend(figure, top)
    seed = evaluation.seeds[lane]
    against, reading = "", "Coloured bands are kinds of workload; in a cluster alpha is the mean of the nodes alive. "
    if evaluation.optimum is not None:
        against = " against the offline optimum alpha*"
        reading = (
            "A good controller's line lies on the broad grey one (alpha*, where replay puts the optimum) soon after "
            "each coloured band begins. "
        )
    alt = (
        f"Two charts over {path.intervals} control intervals of seed {seed}: alpha of {', '.join(names)}{against}, and "
        "their P99 latency on a log scale with the SLO line."
    )
    return Picture(
        f"One episode, seed {seed}: the split and its latency over time",
        svg(figure, alt, prefix),
        alt,
        f"{reading}Every interval that a controller is late shows below as a peak of P99 (over the last "
        f"{_ROLLING_REQUESTS} requests), above the SLO line as broken promises.",
    )


def against_alpha(evaluation: Evaluation, prefix: str) -> Picture:
    """What a split costs: expected service by setting (always by replay), and the sojourn of static splits."""
    with rc_context(_OF_NAMES):
        figure = Figure((WIDTH, 4.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        stars = cost_by_setting(left, evaluation, normalise=False)
        left.set(xlabel="alpha (EMB's share)", ylabel="expected service (ms)", xlim=(0, 1))
        left.set_title("Service (modelled rung); dot = alpha*")
        _static_latency(right, evaluation)
    told = "; ".join(f"{name} {star:.2f}" for name, star in stars.items())
    alt = f"Left: expected service time against alpha by kind of segment; optimum at {told}. Right: latency of statics."
    return Picture(
        "What a split costs",
        svg(figure, alt, prefix),
        alt,
        "Left, each kind of segment asks for another split: the further apart the dots and the steeper the curves, the "
        "more an adaptive controller has to win. Right, what one split costs when it is held through the whole task, "
        "queueing included.",
    )


def cost_by_setting(ax: Axes, evaluation: Evaluation, normalise: bool) -> dict[str, float]:
    """Draws the replayed cost of each setting over alpha and returns where each has its optimum."""
    assert evaluation.optimum is not None
    grid, stars, ends = evaluation.optimum.grid, {}, []
    for name, mask in settings(evaluation.path).items():
        curve = evaluation.optimum.expected_ms[:, mask].mean(1)
        curve = curve / curve.min() if normalise else curve
        stars[name] = float(evaluation.optimum.alpha_star[mask].mean())
        tint = KINDS.get(name, "#777777")
        ax.plot(grid, curve, color=tint, label=name)
        ax.plot(stars[name], np.interp(stars[name], grid, curve), "o", color=tint, markersize=7, zorder=4)
        ends.append((float(curve[-1]), name, tint))
    _label_ends(ax, float(grid[-1]), ends)
    return stars


def _label_ends(ax: Axes, x: float, ends: Iterable[tuple[float, str, str]]) -> None:
    """Names curves at their right ends, moved apart where they would overlap."""
    low, high = ax.get_ylim()
    gap, last = 0.065 * (high - low), -np.inf
    for y, name, tint in sorted(ends):
        last = max(y, last + gap)
        ax.annotate(
            name.replace(", ", ",\n"), (x, last), xytext=(6, 0), textcoords="offset points", color=tint,
            va="center", fontsize=9.5, linespacing=0.95, annotation_clip=False,
        )  # fmt: skip


def _static_latency(ax: Axes, evaluation: Evaluation) -> None:
    episodes = all_episodes(evaluation)
    statics = sorted((float(n.partition(":")[2]), e) for n, e in episodes.items() if is_static(n))
    alphas = [alpha for alpha, _ in statics]
    for label, marker, measure in (
        ("P99", "s", lambda e: np.percentile(e.all_answers_ms(), 99)),
        ("mean", "o", lambda e: e.all_answers_ms().mean(dtype=np.float64)),
    ):
        style: dict[str, Any] = {"color": STATIC if label == "mean" else "#4A4F57", "label": f"{label}, static splits"}
        ax.plot(alphas, [measure(e) for _, e in statics], marker=marker, markersize=5, **style)
        if "oracle" in episodes:
            level = measure(episodes["oracle"])
            ax.axhline(level, color=_OWN["oracle"], linestyle=(0, (2, 1.2)), linewidth=1.2)
            ax.annotate(
                f"{label}, oracle", (0.01, level), xycoords=("axes fraction", "data"), xytext=(0, 4),
                textcoords="offset points", fontsize=9,
            )  # fmt: skip
    log_ms(ax)
    ax.set(xlabel="alpha held", ylabel="latency (ms)", xlim=(0, 1))
    ax.set_title(f"Latency of one split ({evaluation.rung} rung)")
    if statics:
        ax.legend(loc="best", fontsize=9)


def bars(figures: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], prefix: str) -> Picture:
    """Bars with intervals, one panel a figure: (label, [{name, value, low, high}, ...])."""
    names = [str(row["name"]) for row in figures[0][1]]
    with rc_context(_OF_NAMES):
        figure = Figure((WIDTH, 1.3 + 0.36 * len(names)), layout="constrained")
        axes = figure.subplots(1, len(figures), sharey=True, squeeze=False)[0]
        for ax, (label, rows) in zip(axes, figures, strict=True):
            _bar_panel(ax, label, rows, names)
        axes[0].set_yticks(range(len(names)), list(map(plain, names)))
        axes[0].invert_yaxis()
    alt = "Bars with intervals. " + " ".join(
        f"{label}: " + ", ".join(f"{r['name']} {r['value']:.3g}" for r in rows if np.isfinite(r["value"])) + "."
        for label, rows in figures
    )
    gain = (
        "Gain captured: 0 is the best single split in hindsight, 1 an oracle that is told the regime; beyond 1 lies "
        "what only foresight wins, below 0 it had been better to stand still. "
        if any(label.startswith("gain") for label, _ in figures)
        else ""
    )
    return Picture(
        "The policies compared",
        svg(figure, alt, prefix),
        alt,
        f"{gain}Whiskers: 95% bootstrap intervals over seeds, where there is more than one; two policies whose "
        "whiskers overlap may still differ, for all ran on the same workloads, but this picture does not show it.",
    )


def _bar_panel(ax: Axes, label: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    value = np.array([row["value"] for row in rows], float)
    low, high = (np.array([row[end] for row in rows], float) for end in ("low", "high"))
    known = np.flatnonzero(np.isfinite(value))
    tints = [colour(names[int(k)], names) for k in known]
    ax.barh(known, value[known], color=tints, height=0.66, alpha=0.85)
    spread = np.nan_to_num(np.abs(np.stack([value - low, high - value])))[:, known]
    reach = [*value[known], *(value[known] - spread[0]), *(value[known] + spread[1])]
    if label.startswith("gain"):
        left, right = max(-1.0, min([-0.1, *reach])), min(2.0, max([1.1, *reach]))
        for x in (0.0, 1.0):
            ax.axvline(x, color=INK, linewidth=0.9)
    else:
        left, right = 0.0, min(max(reach, default=1.0), 4.0 * float(np.median(value[known])))
    ax.set_xlim(1.06 * left, 1.06 * right)
    cut = (value[known] < left) | (value[known] > right)
    whole = ~cut & np.isfinite(low[known] + high[known])  # one seed has no interval
    ax.errorbar(
        value[known][whole], known[whole], xerr=spread[:, whole], fmt="none", ecolor=INK, elinewidth=1.1, capsize=3
    )
    for k in known[cut]:
        # One bar that is far off must not hide the others: it is cut, and its number stands in it.
        low_end = value[k] < left
        ax.annotate(
            f"{value[k]:.3g}", (left if low_end else right, k), ha="left" if low_end else "right", va="center",
            fontsize=9, color="white", weight="bold",
        )  # fmt: skip
    ax.grid(False, axis="y")
    ax.set_title(label)
    ax.tick_params(axis="y", length=0)
