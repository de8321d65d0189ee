"""Pictures of an episode: the split over time, hit rates, and latency against the SLO; as text or as an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from helm_gym.control_loop import ControlLoop, Step

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

RENDER_MODES = ("ansi", "rgb_array")
SHOWN = ("alpha", "target_alpha", "emb_hit_rate", "kv_hit_rate", "sojourn_mean_ms", "sojourn_p99_ms", "slo_violations")
TEXT_INTERVALS = 60
SIZE_PX = (960, 720)
_BARS = "▁▂▃▄▅▆▇█"
# Okabe and Ito's colours, which stay apart for colour-blind eyes.
_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"


class Screen:
    """Remembers what an episode has shown since its reset, for every lane, and draws it."""

    def __init__(self, loop: ControlLoop):
        self.loop = loop
        self.history = np.empty((loop.intervals + 1, loop.shape[0], len(SHOWN)))
        self._figure: _Figure | None = None

    def record(self, outcome: Step) -> None:
        """Adds one interval; row 0 is the state at reset."""
        for k, name in enumerate(SHOWN):
            self.history[self.loop.t, :, k] = outcome.telemetry[name][:, 0]

    def render(self, mode: str | None, lane: int) -> Any:
        """``ansi``: str; ``rgb_array``: uint8 (height, width, 3)."""
        if mode == "ansi":
            return self._text(lane)
        if self._figure is None:
            self._figure = _Figure(self.loop)
        return self._figure.draw(self.title(lane), self.history[: self.loop.t + 1, lane], self.segments(lane))

    def title(self, lane: int) -> str:
        loop = self.loop
        where = f" · lane {lane}" if loop.shape[0] > 1 else ""
        return f"{loop.task.name} · {loop.backend.spec.rung}{where} · interval {loop.t} of {loop.intervals}"

    def segments(self, lane: int) -> list[tuple[int, str]]:
        """(first interval, kind) of the segments begun so far."""
        path = self.loop.path
        assert path is not None
        segment = path.segment[lane, : max(self.loop.t, 1)]
        starts = np.flatnonzero(np.diff(segment, prepend=-1))
        return [(int(start), path.kind[lane][segment[start]]) for start in starts]

    def _text(self, lane: int) -> str:
        rows = self.history[max(0, self.loop.t + 1 - TEXT_INTERVALS) : self.loop.t + 1, lane]
        pool, slo_ms = self.loop.profile.pool, self.loop.backend.slo_ms
        alpha, target, emb, kv, mean, p99 = rows.T[:6]
        # Latencies span decades: a bar is the logarithm, from a tenth of the SLO to ten times the SLO.
        lines = (
            ("alpha", f"{alpha[-1]:.2f} → {target[-1]:.2f}", sparkline(alpha, pool.min_alpha, pool.max_alpha)),
            ("EMB hit rate", f"{emb[-1]:.2f}", sparkline(emb, 0, 1)),
            ("KV hit rate", f"{kv[-1]:.2f}", sparkline(kv, 0, 1)),
            ("mean latency", f"{mean[-1]:.1f} ms", sparkline(np.log10(mean / slo_ms), -1, 1)),
            ("P99 latency", f"{p99[-1]:.1f} ms", sparkline(np.log10(p99 / slo_ms), -1, 1)),
        )
        head = f"{self.title(lane)} · {self.segments(lane)[-1][1]}"
        foot = f"SLO {slo_ms:.1f} ms, missed by {rows[-1, 6]:.0%} of answers"
        return "\n".join([head, *(f"{name:<13}{value:>12}  {bars}" for name, value, bars in lines), foot])


def sparkline(values: NDArray[np.float64], low: float, high: float) -> str:
    """One bar a value, from ``low`` to ``high``; what lies outside is drawn at the edge."""
    level = np.clip((values - low) / (high - low) * len(_BARS), 0, len(_BARS) - 1)
    return "".join(_BARS[int(k)] for k in level)


class _Figure:
    """A matplotlib figure that is built once; from frame to frame only what moved is drawn, over a kept background."""

    def __init__(self, loop: ControlLoop):
        # Here and not above: it takes half a second, and training draws nothing. Agg needs no display.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        self.loop = loop
        interval = loop.profile.interval
        self._figure = figure = Figure(figsize=(SIZE_PX[0] / 100, SIZE_PX[1] / 100), dpi=100)
        self._canvas = FigureCanvasAgg(figure)
        figure.subplots_adjust(left=0.085, right=0.98, top=0.89, bottom=0.075, hspace=0.36)
        alpha, hits, latency = self._axes = list(figure.subplots(3, 1, sharex=True))
        names = (
            ("alpha", "split of the pool: EMB's share"),
            ("hit rate", f"hit rates, last {interval.window} requests"),
            ("latency (ms)", f"arrival to answer, last {interval.window} requests"),
        )
        for axes, (label, title) in zip(self._axes, names, strict=True):
            axes.set_ylabel(label)
            axes.set_title(title, loc="left", fontsize=10)
            axes.grid(color="0.9", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
        # To the right room for the last marker, above for the names of segments.
        alpha.set(xlim=(0, 1.01 * loop.intervals), ylim=(0, 1.14), yticks=np.linspace(0, 1, 6))
        hits.set(ylim=(0, 1.03), yticks=np.linspace(0, 1, 6))
        latency.set(yscale="log", ylim=(1, 10))
        latency.set_xlabel(f"control interval ({interval.requests} requests each)")
        latency.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        latency.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
        latency.yaxis.set_minor_locator(NullLocator())
        self._lines = [
            _line(alpha, "target", _ORANGE, "--"),
            _line(alpha, "alpha", _BLUE, "-"),
            _line(hits, "EMB", _GREEN, "-"),
            _line(hits, "KV", _PURPLE, "-"),
            _line(latency, "mean", _SKY, "-"),
            _line(latency, "P99", _RED, "-"),
        ]
        self._slo = latency.axhline(1.0, color="0.2", linestyle=":", linewidth=1.4, label="SLO")
        for axes in self._axes:
            axes.legend(loc="lower right", bbox_to_anchor=(1.01, 0.96), ncol=3, frameon=False, fontsize=9)
        self._title = figure.text(0.012, 0.962, "", fontsize=12, weight="bold", animated=True)
        self._missed = figure.text(0.98, 0.962, "", fontsize=10, ha="right", animated=True)
        self._background: Any = None

    def draw(self, title: str, history: NDArray[np.float64], segments: list[tuple[int, str]]) -> NDArray[np.uint8]:
        """One frame of ``history`` (intervals, SHOWN)."""
        slo_ms = self.loop.backend.slo_ms  # a real backend's SLO changes with its resets
        if self._rescale(slo_ms, history[:, 4:6]) or self._background is None:
            self._canvas.draw()
            self._background = self._canvas.copy_from_bbox(self._figure.bbox)
        self._canvas.restore_region(self._background)
        self._title.set_text(title)
        self._missed.set_text(f"SLO {slo_ms:.1f} ms, missed by {history[-1, 6]:.0%} of answers")
        t = np.arange(len(history))
        for line, column in zip(self._lines, (1, 0, 2, 3, 4, 5), strict=True):
            line.set_data(t, history[:, column])
            line.set_markevery([len(t) - 1])
        for artist in (*self._marks(segments, int(t[-1])), *self._lines, self._title, self._missed):
            self._figure.draw_artist(artist)
        return np.asarray(self._canvas.buffer_rgba())[:, :, :3].copy()

    def _rescale(self, slo_ms: float, seen: NDArray[np.float64]) -> bool:
        """Fits the latency axis, by factors of two so that it seldom changes; True where it did."""
        low, high = slo_ms / 8, slo_ms * 4
        low /= 2 ** np.ceil(max(0.0, np.log2(low / max(float(seen.min()), 1e-6))))
        high *= 2 ** np.ceil(max(0.0, np.log2(float(seen.max()) / high)))
        if self._axes[2].get_ylim() == (low, high) and self._slo.get_ydata()[0] == slo_ms:
            return False
        self._axes[2].set_ylim(low, high)
        self._slo.set_ydata([slo_ms, slo_ms])
        return True

    def _marks(self, segments: list[tuple[int, str]], now: int) -> list[Artist]:
        """Shades every other segment of the hidden workload, and its kind's name where it fits."""
        from matplotlib.patches import Rectangle
        from matplotlib.text import Text

        marks: list[Artist] = []
        ends = [*(start for start, _ in segments[1:]), now]
        for k, ((start, kind), end) in enumerate(zip(segments, ends, strict=True)):
            for axes in self._axes if k % 2 else ():
                shade = Rectangle((start, 0), end - start, 1, color="0", alpha=0.06, linewidth=0)
                shade.set_transform(axes.get_xaxis_transform())
                marks.append(shade)
            px = (end - start) / self.loop.intervals * self._axes[0].bbox.width
            if end == now or px > 7 * len(kind):
                name = Text(start, 0.985, f" {kind}", fontsize=8, color="0.3", va="top", clip_on=True)
                name.set_transform(self._axes[0].get_xaxis_transform())
                name.set_clip_box(self._axes[0].bbox)
                marks.append(name)
        for mark in marks:
            mark.set_figure(self._figure)
        return marks


def _line(axes: Axes, label: str, color: str, style: str) -> Line2D:
    return axes.plot([], [], style, color=color, linewidth=1.6, marker="o", markersize=4, label=label, animated=True)[0]
