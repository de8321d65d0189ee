"""The board's pages, the same for the server and for a published folder: templates, filled in and escaped.

They need no JavaScript. Whatever a user has written is escaped by Jinja2.
"""

from __future__ import annotations

import functools
import importlib.resources
import io
import json
import math
import threading
from collections.abc import Mapping
from typing import Any

import jinja2
import numpy as np
import sqlalchemy as sa
from markupsafe import Markup

from helm_gym.errors import HelmError
from helm_gym.policies.onnx_check import RULES
from helm_gym.tasks import find_task
from leaderboard.board import Board
from leaderboard.season import DEVELOPMENT, RANKING
from leaderboard.standings import Standings
from leaderboard.submissions import METHOD, POLICY, STATES, TRACKS, WRITE_UP
from leaderboard.tables import REFERENCES

SHOWN = 100  # rows of a page
_RECENT = 15
_PLOTTING = threading.Lock()  # matplotlib's figures share state


def _number(value: float | None, digits: int = 3) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}" if abs(value) < 100 else f"{value:,.1f}"


@functools.cache
def read_style() -> str:
    """The style sheet of all pages."""
    return (importlib.resources.files("leaderboard") / "templates/style.css").read_text(encoding="utf-8")


class Pages:
    """All pages of a board.

    Args:
        live: for a server, which can compare any two entries; a published folder cannot.
        tokens: whether a token is required to submit.
    """

    def __init__(self, board: Board, standings: Standings, live: bool = True, tokens: bool = False):
        self.board, self.standings, self.live, self.tokens = board, standings, live, tokens
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("leaderboard"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            auto_reload=False,
        )
        self._templates.filters["number"] = _number
        self._kept: dict[tuple[int, str, int, str], tuple[Any, str]] = {}

    def index(self, season: int | None = None) -> str:
        """The first page, or that of a season, which has its tables alone."""
        facts = self.board.facts(season)
        if season is not None:
            return self._render(
                "season.html",
                "../../",
                f"season {season}",
                season=season,
                overall=self.standings.overall(season=season),
                tables=[self.standings.table(task, season=season) for task in facts["tasks"]],
                shown=SHOWN,
            )
        waiting = self.board.entries(count=_RECENT, final=False, oldest_first=True)
        active = [self.board.entry(row["id"]) for row in waiting]
        return self._render(
            "index.html",
            "",
            facts["name"],
            overall=self.standings.overall(),
            tables=[self.standings.table(task) for task in facts["tasks"]],
            active=active,
            running_references=self.board.running_references() if self.live else [],
            recent=self.board.entries(count=_RECENT, final=True),
            shown=SHOWN,
        )

    def task(self, task: str, first: int = 0, track: str = POLICY, season: int | None = None) -> str:
        """A task's table; kept until it changes.

        Raises:
            NotFoundError: there is no such season, or it has no such task.
        """
        self.board.facts(season, task)
        table = self.standings.table(task, track, season)
        place = season or 0, task, first, track
        kept = self._kept.get(place)
        if kept is not None and kept[0] is table:
            return kept[1]
        text = self._render(
            "task.html",
            "../" if season is None else "../../../",
            task,
            season=season,
            table=table,
            doc=find_task(task).doc,
            first=first,
            shown=SHOWN if self.live else len(table["rows"]) + 1,
            measured=any(row["measured"] is not None for row in table["rows"]),
        )
        if len(self._kept) > 200:
            self._kept.clear()
        self._kept[place] = table, text
        return text

    def entry(self, entry: str) -> str:
        found = self.board.entry(entry)
        scores = self.standings.scores(entry)["scores"]
        return self._render("entry.html", "../", found["name"], entry=found, scores=scores, plots=self._plots(scores))

    def compare(self, first: str, second: str, season: int | None = None) -> str:
        one, other = self.board.entry(first), self.board.entry(second)
        rows = self.standings.compare(first, second, season)
        return self._render("compare.html", "", "compare", first=one, second=other, rows=rows)

    def submit(self) -> str:
        tracks = {name: TRACKS[name] for name in (POLICY, METHOD)}
        return self._render(
            "submit.html",
            "",
            "submit",
            write_up=WRITE_UP,
            tracks=tracks,
            states=STATES,
            rules=RULES,
            tokens=self.tokens,
        )

    def rules(self) -> str:
        return self._render("rules.html", "", "how it is evaluated")

    def _render(self, name: str, root: str, title: str, season: int | None = None, **given: Any) -> str:
        """A page; ``root`` leads to the board's folder, and ``home`` from there to the season's."""
        home = "" if season is None else f"seasons/{season}/"
        told = {"root": root, "home": home, "board": self.board.facts(season), "live": self.live}
        return self._templates.get_template(name).render(title=title, **told, **given)

    def _plots(self, scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = []
        newest = max((row["season"] for row in scores), default=0)
        for row in (row for row in scores if row["season"] == newest):
            log = row["where"].get("log")
            if row["split"] != DEVELOPMENT or row["member"] != 0 or log is None:
                continue
            try:
                svg = _plot(self.board.store.get(log), self._star(row["season"], row["task"]))
            except HelmError:  # its log is gone; the page is there all the same
                continue
            caption = (
                f"{row['task']}, first development episode (seed {find_task(row['task']).seeds[0]}), {row['rung']}."
            )
            found.append({"svg": Markup(svg), "caption": caption})
        return found

    def _star(self, season: int, task: str) -> bytes:
        where = (
            REFERENCES.c.season == season,
            REFERENCES.c.task == task,
            REFERENCES.c.split == DEVELOPMENT,
            REFERENCES.c.rung == RANKING,
        )
        with self.board.store.reading() as connection:
            body = connection.execute(sa.select(REFERENCES.c.body).where(*where)).scalar()
        log = None if body is None else json.loads(body)["where"].get("log")
        return b"" if log is None else self.board.store.get(log)


@functools.lru_cache(maxsize=64)
def _plot(log: bytes, star: bytes) -> str:
    """Alpha against alpha*, and latency, of the first development episode, as SVG."""
    from matplotlib.figure import Figure

    told: Mapping[str, Any] = json.loads(log)
    alpha, latency = np.array(told["alpha"][0]), np.array(told["latency_ms"][0])
    with _PLOTTING:
        figure = Figure(figsize=(9, 4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        if star:
            above.step(range(len(alpha)), json.loads(star)["alpha_star"][0], where="mid", color="#888", label="alpha*")
        above.plot(alpha, color="#0b5c8f", label="alpha")
        above.set_ylabel("EMB's share")
        above.set_ylim(0, 1)
        above.legend(loc="upper right", frameon=False, ncols=2)
        below.plot(latency, color="#0b5c8f")
        below.set_ylabel("mean latency, ms")
        below.set_yscale("log")
        for axis in (below.yaxis.set_major_formatter, below.yaxis.set_minor_formatter):
            axis(lambda value, _: f"{value:g}")
        below.set_xlabel("interval")
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
