"""Pictures of an episode: the split over time, hit rates, and latency against the SLO; as text or as an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.control_loop import ControlLoop, Step
from helm_gym.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

RENDER_MODES = ("ansi", "rgb_array")
METADATA: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 10}
LATENCY = ("sojourn_mean_ms", "sojourn_p99_ms", "slo_violations")
SHOWN = ("alpha", "target_alpha", "emb_hit_rate", "kv_hit_rate", *LATENCY)
TEXT_INTERVALS = 60
SIZE_PX = (960, 720)
LOST = "·"  # in a text's bars
_BARS = "▁▂▃▄▅▆▇█"
# Okabe and Ito's colours, which stay apart for colour-blind eyes.
_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"


class Screen:
    """Remembers what an episode has shown since its reset, for every lane, and draws it.

    Attributes:
        history: (intervals + 1, lanes, columns); the last three columns are those of ``LATENCY``.
    """

    def __init__(self, loop: ControlLoop):
        self.loop = loop
        self.history = np.empty((loop.intervals + 1, loop.shape[0], len(SHOWN)))
        self._picture: Picture | None = None

    def record(self, outcome: Step) -> None:
        """Adds one interval; row 0 is the state at reset."""
        for k, name in enumerate(SHOWN):
            self.history[self.loop.t, :, k] = outcome.telemetry[name][:, 0]

    def render(self, mode: str | None, lane: int) -> Any:
        """``ansi``: str; ``rgb_array``: uint8 (height, width, 3).

        Raises:
            InvalidInputError: no episode was started.
        """
        if self.loop.path is None:
            raise InvalidInputError("The environment must be reset before it is rendered.")
        if mode == "ansi":
            return "\n".join(self.lines(lane))
        if self._picture is None:
            self._picture = self.picture()
        return self._picture.draw(lane)

    def picture(self) -> Picture:
        return _SplitPicture(self)

    def __getstate__(self) -> dict[str, Any]:
        """For copies: a picture is drawn anew, since matplotlib's canvas cannot be copied."""
        return vars(self) | {"_picture": None}

    def seen(self, lane: int) -> NDArray[np.float64]:
        """The episode's history so far, (intervals, columns)."""
        return self.history[: self.loop.t + 1, lane]

    def title(self, lane: int) -> str:
        loop = self.loop
        where = f" · lane {lane}" if loop.shape[0] > 1 else ""
        return f"{loop.task.name} · {loop.backend.spec.rung}{where} · interval {loop.t} of {loop.intervals}"

    def foot(self, lane: int) -> str:
        return f"SLO {self.loop.backend.slo_ms:.1f} ms, missed by {self.seen(lane)[-1, -1]:.0%} of answers"

    def segments(self, lane: int) -> list[tuple[int, str]]:
        """(first interval, kind) of the segments begun so far."""
        path = self.loop.path
        assert path is not None
        segment = path.segment[lane, : max(self.loop.t, 1)]
        starts = np.flatnonzero(np.diff(segment, prepend=-1))
        return [(int(start), path.kind[lane][segment[start]]) for start in starts]

    def lines(self, lane: int) -> list[str]:
        """The text's."""
        alpha, target, emb, kv = self.seen(lane)[-TEXT_INTERVALS:, :4].T
        pool = self.loop.profile.pool
        return [
            f"{self.title(lane)} · {self.segments(lane)[-1][1]}",
            _line("alpha", f"{alpha[-1]:.2f} → {target[-1]:.2f}", sparkline(alpha, pool.min_alpha, pool.max_alpha)),
            _line("EMB hit rate", f"{emb[-1]:.2f}", sparkline(emb, 0, 1)),
            _line("KV hit rate", f"{kv[-1]:.2f}", sparkline(kv, 0, 1)),
            *self.latency_lines(lane),
            self.foot(lane),
        ]

    def latency_lines(self, lane: int) -> list[str]:
        # Latencies span decades: a bar is the logarithm, from a tenth of the SLO to ten times the SLO.
        mean, p99, _ = self.seen(lane)[-TEXT_INTERVALS:, -len(LATENCY) :].T
        return [
            _line(name, f"{values[-1]:.1f} ms", sparkline(np.log10(values / self.loop.backend.slo_ms), -1, 1))
            for name, values in (("mean latency", mean), ("P99 latency", p99))
        ]


def _line(name: str, value: str, bars: str) -> str:
    return f"{name:<13}{value:>12}  {bars}"


def sparkline(values: NDArray[np.floating], low: float, high: float) -> str:
    """One bar a value, from ``low`` to ``high``; what lies outside is drawn at the edge, what is NaN as ``LOST``."""
    level = np.clip((values - low) / (high - low) * len(_BARS), 0, len(_BARS) - 1)
    return "".join(LOST if np.isnan(k) else _BARS[int(k)] for k in level)


class Picture:
    """A matplotlib figure that is built once; from frame to frame only what moved is drawn, over a kept background.

    It has latency below and what a subclass adds above: ``panels`` once, ``moved`` for each frame.
    """

    def __init__(self, screen: Screen):
        # Here and not above: it takes half a second, and training draws nothing. Agg needs no display.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        self.screen, self.loop = screen, screen.loop
        self.figure = figure = Figure(figsize=(SIZE_PX[0] / 100, SIZE_PX[1] / 100), dpi=100)
        self._canvas = FigureCanvasAgg(figure)
        self.timed = self.panels(figure)
        self.latency = latency = self.timed[-1]
        for axes in self.timed:
            axes.grid(color="0.9", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlim(0, 1.01 * self.loop.intervals)  # to the right room for the last marker
        latency.set(yscale="log", ylim=(1, 10))
        latency.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        latency.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
        latency.yaxis.set_minor_locator(NullLocator())
        self._lines = [plot(latency, "mean", _SKY, "-"), plot(latency, "P99", RED, "-")]
        self._slo = latency.axhline(1.0, color="0.2", linestyle=":", linewidth=1.4, label="SLO")
        for axes in self.timed:
            axes.legend(loc="lower right", bbox_to_anchor=(1.01, 0.96), ncol=3, frameon=False, fontsize=9)
        self._title = figure.text(0.012, 0.962, "", fontsize=12, weight="bold", animated=True)
        self._foot = figure.text(0.98, 0.962, "", fontsize=10, ha="right", animated=True)
        self._background: Any = None
        self._scale: tuple[float, ...] = ()

    def panels(self, figure: Figure) -> list[Axes]:
        """Lays the figure out; returns the axes over time, latency's last."""
        raise NotImplementedError  # of the abstract method

    def moved(self, lane: int) -> Sequence[Artist]:
        """What a subclass has to draw again, up to date."""
        raise NotImplementedError  # of the abstract method

    def draw(self, lane: int) -> NDArray[np.uint8]:
        """One frame."""
        latency = self.screen.seen(lane)[:, -len(LATENCY) : -1]
        if self._rescale(latency):
            self._canvas.draw()
            self._background = self._canvas.copy_from_bbox(self.figure.bbox)
        self._canvas.restore_region(self._background)
        self._title.set_text(self.screen.title(lane))
        self._foot.set_text(self.screen.foot(lane))
        follow(self._lines, latency)
        moved = (*self._marks(lane), *self.moved(lane), *self._lines, self._title, self._foot)
        for artist in moved:
            self.figure.draw_artist(artist)
        return np.asarray(self._canvas.buffer_rgba())[:, :, :3].copy()

    def _rescale(self, seen: NDArray[np.float64]) -> bool:
        """Fits the latency axis, by factors of two so that it seldom changes; True where it did."""
        slo_ms = self.loop.backend.slo_ms  # a real backend's SLO changes with its resets
        low, high = slo_ms / 8, slo_ms * 4
        low /= 2 ** np.ceil(max(0.0, np.log2(low / max(float(seen.min()), 1e-6))))
        high *= 2 ** np.ceil(max(0.0, np.log2(float(seen.max()) / high)))
        if self._scale == (low, high, slo_ms):
            return False
        self._scale = (low, high, slo_ms)
        self.latency.set_ylim(low, high)
        self._slo.set_ydata([slo_ms, slo_ms])
        return True

    def _marks(self, lane: int) -> list[Artist]:
        """Shades every other segment of the hidden workload, and its kind's name where it fits."""
        from matplotlib.patches import Rectangle
        from matplotlib.text import Text

        marks: list[Artist] = []
        segments, now, first = self.screen.segments(lane), self.loop.t, self.timed[0]
        ends = [*(start for start, _ in segments[1:]), now]
        for k, ((start, kind), end) in enumerate(zip(segments, ends, strict=True)):
            for axes in self.timed if k % 2 else ():
                shade = Rectangle((start, 0), end - start, 1, color="0", alpha=0.06, linewidth=0)
                shade.set_transform(axes.get_xaxis_transform())
                marks.append(shade)
            px = (end - start) / self.loop.intervals * first.bbox.width
            if end == now or px > 7 * len(kind):
                name = Text(start, 0.985, f" {kind}", fontsize=8, color="0.3", va="top", clip_on=True)
                name.set_transform(first.get_xaxis_transform())
                name.set_clip_box(first.bbox)
                marks.append(name)
        for mark in marks:
            mark.set_figure(self.figure)
        return marks


class _SplitPicture(Picture):
    """The pool's split, hit rates, latency: one below the other."""

    def panels(self, figure: Figure) -> list[Axes]:
        interval = self.loop.profile.interval
        figure.subplots_adjust(left=0.085, right=0.98, top=0.89, bottom=0.075, hspace=0.36)
        alpha, hits, latency = figure.subplots(3, 1, sharex=True)
        label(alpha, "alpha", "split of the pool: EMB's share")
        label(hits, "hit rate", f"hit rates, last {interval.window} requests")
        label(latency, "latency (ms)", f"arrival to answer, last {interval.window} requests")
        alpha.set(ylim=(0, 1.14), yticks=np.linspace(0, 1, 6))  # above room for the names of segments
        hits.set(ylim=(0, 1.03), yticks=np.linspace(0, 1, 6))
        latency.set_xlabel(f"control interval ({interval.requests} requests each)")
        self._of_pool = [
            plot(alpha, "alpha", _BLUE, "-"),
            plot(alpha, "target", _ORANGE, "--"),
            plot(hits, "EMB", _GREEN, "-"),
            plot(hits, "KV", _PURPLE, "-"),
        ]
        return [alpha, hits, latency]

    def moved(self, lane: int) -> Sequence[Artist]:
        follow(self._of_pool, self.screen.seen(lane)[:, : len(self._of_pool)])
        return self._of_pool


def label(axes: Axes, unit: str, title: str) -> None:
    axes.set_ylabel(unit)
    axes.set_title(title, loc="left", fontsize=10)


def plot(axes: Axes, name: str, color: str, style: str) -> Line2D:
    """An empty line that ``follow`` fills."""
    return axes.plot([], [], style, color=color, linewidth=1.6, marker="o", markersize=4, label=name, animated=True)[0]


def follow(lines: Sequence[Line2D], values: NDArray[np.float64]) -> None:
    """Draws each line through its column of ``values`` (intervals, lines), the last one marked."""
    for line, column in zip(lines, values.T, strict=True):
        line.set_data(np.arange(len(values)), column)
        line.set_markevery([len(values) - 1])
