"""Pictures of a cluster's episode: a strip of colour a node for its split, hit rates and load; the team's latency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from helm_gym.control_loop import ControlLoop, Step
from helm_gym.envs.render import LATENCY, LOST, RED, Picture, Screen, label, sparkline

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OF_NODE = {  # telemetry's column -> its name in a text, and in an image; all are shown from 0 to 1
    "alpha": ("alpha", "alpha: EMB's share of the pool"),
    "utilisation": ("load", "load: busy share of time"),
    "emb_hit_rate": ("EMB", "EMB hit rate"),
    "kv_hit_rate": ("KV", "KV hit rate"),
}
TEXT_NODES, TEXT_BARS = 32, 20  # the most nodes that a text lists, and intervals of each


class ClusterScreen(Screen):
    """Remembers every node of every lane, and the team's latency: its nodes', weighed by the requests they were given.

    Attributes:
        history: (intervals + 1, lanes, LATENCY).
        of_nodes: float32 (intervals + 1, lanes, nodes, OF_NODE); NaN where a node was lost.
    """

    def __init__(self, loop: ControlLoop):
        super().__init__(loop)
        lanes, nodes = loop.shape
        self.history = np.empty((loop.intervals + 1, lanes, len(LATENCY)))
        self.of_nodes = np.empty((loop.intervals + 1, lanes, nodes, len(OF_NODE)), np.float32)

    def record(self, outcome: Step) -> None:
        traffic, telemetry = outcome.telemetry.traffic, outcome.telemetry
        assert traffic is not None
        for k, name in enumerate(OF_NODE):
            self.of_nodes[self.loop.t, :, :, k] = np.where(traffic.alive, telemetry[name], np.nan)
        given = traffic.requests > 0
        weight = traffic.requests / traffic.requests.sum(axis=1, keepdims=True)
        for k, name in enumerate(LATENCY):
            self.history[self.loop.t, :, k] = (weight * np.where(given, telemetry[name], 0.0)).sum(axis=1)

    def picture(self) -> Picture:
        return _NodesPicture(self, self.of_nodes)

    def title(self, lane: int) -> str:
        alive = int(np.isfinite(self.of_nodes[self.loop.t, lane, :, 0]).sum())
        return f"{super().title(lane)} · {alive} of {self.loop.shape[1]} nodes"

    def lines(self, lane: int) -> list[str]:
        t, nodes = self.loop.t, self.loop.shape[1]
        shown = self.of_nodes[max(0, t + 1 - TEXT_BARS) : t + 1, lane, :TEXT_NODES]
        names = "".join(f"  {name:<{5 + len(shown)}}" for name, _ in OF_NODE.values())
        rows = [_row(f"node {node}", shown[:, node]) for node in range(shown.shape[1])]
        more = [f"and {nodes - TEXT_NODES} more"] if nodes > TEXT_NODES else []
        head = f"{self.title(lane)} · {self.segments(lane)[-1][1]}"
        table = [f"{'':<8}{names}".rstrip(), *rows, *more]
        return [head, *table, *self.latency_lines(lane), self.foot(lane)]


def _row(name: str, values: NDArray[np.float32]) -> str:
    """One node's line of its values (intervals, OF_NODE)."""
    cells = (f"  {LOST if np.isnan(v[-1]) else format(v[-1], '.2f'):>4} {sparkline(v, 0, 1)}" for v in values.T)
    return f"{name:<8}{''.join(cells)}"


class _NodesPicture(Picture):
    """Four maps of nodes by intervals above the latency.

    Args:
        of_nodes: the screen's.
    """

    def __init__(self, screen: Screen, of_nodes: NDArray[np.float32]):
        self._of_nodes = of_nodes
        super().__init__(screen)

    def panels(self, figure: Figure) -> list[Axes]:
        from matplotlib import colormaps
        from matplotlib.patches import Patch
        from matplotlib.ticker import MaxNLocator

        loop = self.loop
        nodes, requests = loop.shape[1], loop.shape[1] * loop.profile.interval.requests
        grid = figure.add_gridspec(
            3, 3, width_ratios=(1, 1, 0.03), left=0.085, right=0.945, top=0.89, bottom=0.075, hspace=0.36, wspace=0.12
        )
        colours = colormaps["viridis"].with_extremes(bad=RED)
        self._maps = []
        for k, (_, title) in enumerate(OF_NODE.values()):
            axes = figure.add_subplot(grid[divmod(k, 2)])
            label(axes, "" if k % 2 else "node", title)
            axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.tick_params(labelleft=not k % 2)
            image = axes.imshow(
                np.zeros((nodes, 1)), colours, aspect="auto", interpolation="nearest", vmin=0, vmax=1, animated=True
            )
            axes.set(xlim=(0, loop.intervals + 1), ylim=(nodes - 0.5, -0.5))
            self._maps.append(image)
        bar = figure.colorbar(self._maps[0], cax=figure.add_subplot(grid[:2, 2]))
        bar.ax.tick_params(labelsize=9)
        figure.legend(
            handles=[Patch(color=RED, label="lost")], loc="upper right", bbox_to_anchor=(0.95, 0.945), frameon=False
        )
        latency = figure.add_subplot(grid[2, :2])
        label(latency, "latency (ms)", "arrival to answer, nodes weighed by the requests that they were given")
        latency.set_xlabel(f"control interval ({requests} requests each)")
        return [latency]

    def moved(self, lane: int) -> Sequence[Artist]:
        t, nodes = self.loop.t, self.loop.shape[1]
        seen = np.ma.masked_invalid(self._of_nodes[: t + 1, lane])
        for k, image in enumerate(self._maps):
            image.set_data(seen[:, :, k].T)
            image.set_extent((0, t + 1, nodes - 0.5, -0.5))
        return self._maps
