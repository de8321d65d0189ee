"""A board's tables: what pages, the API and `show` print, made from the scores and kept until those change.

Of hidden episodes only aggregates are shown, to four digits, while the season is open: what an entry can learn about
them per submission is bounded by that.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import sqlalchemy as sa

from helm_gym.errors import InvalidInputError
from helm_gym.evaluation.statistics import Figure, bootstrap, iqm, paired_difference
from leaderboard import ranking
from leaderboard.board import Board
from leaderboard.episode_figures import TAIL, EpisodeFigures, Place, entries_of
from leaderboard.evaluating import METRICS, values_of
from leaderboard.intervals import Intervals, difference_of_methods, generator
from leaderboard.ranking import Ranked
from leaderboard.season import CONFIRMATION, DEVELOPMENT, HIDDEN, MEASURED, PROVISIONAL, RANKING, Season
from leaderboard.submissions import METHOD, POLICY, UNCHECKED
from leaderboard.tables import REFERENCES, SCORES, SUBMISSIONS

DIGITS = 4  # of a figure of hidden episodes
_OF_HIDDEN = ("mean_latency_ms", "p99_ms")  # an alpha, say, would tell much more of them
_FRESH_S = 0.2
_TOLD = ("entry", "name", "account", "track", "duplicate_of", "nearly")


def rounded(value: float) -> float | None:
    """To ``DIGITS`` significant digits; None where it is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def rounded_figure(figure: Figure) -> dict[str, float | None]:
    return {"value": rounded(figure.value), "low": rounded(figure.low), "high": rounded(figure.high)}


class Standings:
    """Tables by season, track and task; for one thread.

    Args:
        board: opened.
    """

    def __init__(self, board: Board):
        self.board = board
        self._figures, self._intervals = EpisodeFigures(), Intervals()
        self._looked, self._seasons = -math.inf, dict[int, tuple[Season, bool]]()
        self._kept: dict[tuple[int, str, str], tuple[Any, dict[str, Any]]] = {}
        self._overall: dict[tuple[int, str], tuple[Mapping[str, dict[str, Any]], dict[str, Any]]] = {}
        self._names: dict[str, dict[str, Any]] = {}

    def _season(self, number: int | None) -> tuple[Season, bool]:
        """The season of that number, or the newest, and whether it is closed; a fifth of a second late at most.

        Raises:
            InvalidInputError: there is none of that number.
        """
        if time.monotonic() - self._looked > _FRESH_S:
            with self.board.store.reading() as connection:
                self._figures.update(connection)
                for row in self.board.store.seasons(connection):
                    season = self.board.season(connection, row["season"])
                    self._seasons[season.number] = season, row["closed"] is not None
            self._looked = time.monotonic()
        chosen = max(self._seasons) if number is None else number
        if chosen not in self._seasons:
            raise InvalidInputError(f"This board has no season {number}.")
        return self._seasons[chosen]

    def table(self, task: str, track: str = POLICY, season: int | None = None) -> dict[str, Any]:
        """One task's table, of the newest season where none is given; kept until a score of it or its entries change.

        Raises:
            InvalidInputError: there is no season of that number.
        """
        chosen, closed = self._season(season)
        number = chosen.number
        with self.board.store.reading() as connection:
            references = {rung: _references(connection, number, task, rung) for rung in (RANKING, PROVISIONAL)}
            changed = 0 if closed else self._figures.changed(number, task)
            stamp, place = (changed, closed, *map(bool, references.values())), (number, track, task)
            if place not in self._kept or self._kept[place][0] != stamp:
                made = self._make(connection, chosen, closed, task, track, references)
                self._kept[place] = stamp, made
        return self._kept[place][1]

    def overall(self, track: str = POLICY, season: int | None = None) -> dict[str, Any]:
        """The board over all tasks: by mean normalised score, the worst task beside it; kept until a table changes."""
        chosen, _ = self._season(season)
        tables = {task: self.table(task, track, chosen.number) for task in chosen.tasks}
        place = chosen.number, track
        made_of, found = self._overall.get(place, ({}, {}))
        if made_of.keys() != tables.keys() or any(made_of[task] is not table for task, table in tables.items()):
            found = _over_all(tables, track)
            self._overall[place] = tables, found
        return found

    def compare(self, first: str, second: str, season: int | None = None) -> list[dict[str, Any]]:
        """Two entries, task by task: paired difference of latency with its interval, and the test's p."""
        chosen, closed = self._season(season)
        number, found = chosen.number, []
        with self.board.store.reading() as connection:
            asked = [entries_of(connection, number, closed, track) for track in (POLICY, METHOD)]
        both = [(name, members) for some in asked for name, members in some if name in (first, second)]
        for task in chosen.tasks:
            there = self._figures.of(Place(number, task, HIDDEN, RANKING), both)
            if first in there and second in there:
                found.append({"task": task} | _compared(there[first], there[second]))
        return found

    def scores(self, entry: str) -> dict[str, Any]:
        """An entry's own figures: of development episodes each one, of hidden ones aggregates."""
        with self.board.store.reading() as connection:
            rows = connection.execute(
                # Of confirmation only whether a lead holds is told: the less is known of them, the fresher they stay.
                sa.select(SCORES)
                .where(SCORES.c.submission == entry, SCORES.c.split != CONFIRMATION)
                .order_by(SCORES.c.seq)
            ).mappings()
            found = []
            for row in rows:
                body = json.loads(row["body"])
                place = {key: row[key] for key in ("season", "task", "split", "rung", "member")}
                is_open = row["split"] == DEVELOPMENT
                figures = {
                    metric: rounded_figure(bootstrap((values_of(body["episodes"], metric),), iqm, generator()))
                    if is_open or metric in _OF_HIDDEN
                    else rounded_figure(Figure(math.nan))
                    for metric in METRICS
                }
                open_ones = {"episodes": body["episodes"]} if is_open else {}
                found.append(place | {"figures": figures, "where": body["where"]} | open_ones)
        return {"entry": entry, "scores": found}

    # How a table is made

    def _make(
        self,
        connection: sa.Connection,
        season: Season,
        closed: bool,
        task: str,
        track: str,
        references: Mapping[str, Mapping[str, ranking.Values]],
    ) -> dict[str, Any]:
        here = Place(season.number, task, HIDDEN, RANKING)
        asked = entries_of(connection, season.number, closed, track)
        entries, tails = self._figures.of(here, asked), ranking.iqms(self._figures.of(here, asked, TAIL))
        first = self._figures.of(dataclasses.replace(here, rung=PROVISIONAL), asked)
        fresh = self._figures.of(dataclasses.replace(here, split=CONFIRMATION), asked)
        live = ranking.iqms(self._figures.of(dataclasses.replace(here, rung=MEASURED), asked))
        names = self._names_of(connection, [name for name, _ in asked])
        variants = self.board.variants(connection)
        ranked = ranking.rank(entries, references[RANKING], self._intervals)
        lead = _lead(ranked, fresh)
        rows = [
            {
                "entry": row.entry,
                **names[row.entry],
                "members": len(entries[row.entry]),
                "variants": variants[names[row.entry]["account"]],
                "best": row.best,
                "worst": row.worst,
                "latency": rounded_figure(row.latency),
                "p99": rounded(tails[row.entry]),
                "score": rounded_figure(row.score),
                "confirmed": lead if place == 0 else None,
                "measured": rounded(live[row.entry]) if row.entry in live else None,
            }
            for place, row in enumerate(ranked)
        ]
        early = {name: values for name, values in first.items() if name not in entries}
        soon = ranking.rank(early, references[PROVISIONAL], self._intervals)
        return {
            "task": task,
            "track": track,
            "season": season.number,
            "closed": closed,
            "rung": RANKING,
            "episodes": season.hidden,
            "scale": _scale(references[RANKING]),
            "rows": rows,
            "provisional": [
                {"entry": row.entry, **names[row.entry], "rung": PROVISIONAL}
                | {"latency": rounded_figure(row.latency), "score": rounded_figure(row.score)}
                for row in soon
            ],
        }

    def _names_of(self, connection: sa.Connection, entries: list[str]) -> dict[str, dict[str, Any]]:
        """What rows say of entries that have scores: they were checked, so that none of it changes any more."""
        if any(name not in self._names for name in entries):
            asked = sa.select(SUBMISSIONS.c.id, SUBMISSIONS.c.name, SUBMISSIONS.c.account, SUBMISSIONS.c.track)
            rows = connection.execute(asked.where(SUBMISSIONS.c.state.not_in(UNCHECKED))).all()
            near = dict(self._duplicates(connection))
            called = {row.id: row.name for row in rows}
            self._names |= {
                row.id: {
                    "name": row.name,
                    "account": row.account,
                    "track": row.track,
                    "duplicate_of": near.get(row.id, ""),
                    "nearly": called.get(near.get(row.id, ""), ""),
                }
                for row in rows
            }
        return self._names

    def _duplicates(self, connection: sa.Connection) -> list[tuple[str, str]]:
        asked = sa.select(SUBMISSIONS.c.id, SUBMISSIONS.c.checked)
        rows = connection.execute(asked.where(SUBMISSIONS.c.checked.like('%"duplicate_of"%')))
        return [(row.id, json.loads(row.checked)["figures"].get("duplicate_of", "")) for row in rows]


def _over_all(tables: Mapping[str, dict[str, Any]], track: str) -> dict[str, Any]:
    scores = {
        task: {row["entry"]: row["score"]["value"] for row in table["rows"] if row["score"]["value"] is not None}
        for task, table in tables.items()
    }
    rows = {row["entry"]: row for table in tables.values() for row in table["rows"]}
    scored = [task for task in tables if scores[task]]
    return {
        "track": track,
        "tasks": scored,
        "rows": [
            {
                "rank": number,
                **{key: rows[entry][key] for key in _TOLD},
                "mean": rounded(mean),
                "worst": rounded(worst),
                "scores": {task: rounded(scores[task][entry]) for task in scored},
            }
            for number, (entry, mean, worst) in enumerate(ranking.over_tasks(scores, [*tables]), 1)
        ],
    }


def _compared(first: ranking.Values, second: ranking.Values) -> dict[str, Any]:
    """Two entries on one task, (members, episodes) each; methods by their training seeds, others by the episodes."""
    a, b = first.mean(axis=0), second.mean(axis=0)
    methods = min(len(first), len(second)) > 1
    if methods:
        difference = difference_of_methods(first, second)
        _, p = ranking.seeds_test([iqm(first), iqm(second)], np.array([0]), np.array([1]))
    else:
        difference, p = paired_difference(a, b, generator()), ranking.paired_test((a - b)[None])
    means = ranking.iqms({"first": first, "second": second})
    return {
        "first_ms": rounded(means["first"]),
        "second_ms": rounded(means["second"]),
        "difference": rounded_figure(difference),
        "test": "training seeds" if methods else "episodes",
        "p": rounded(float(p[0])),
        "wins": int((a < b).sum()),
        "episodes": len(a),
    }


def _references(connection: sa.Connection, season: int, task: str, rung: str) -> Mapping[str, ranking.Values]:
    found = connection.execute(
        sa.select(REFERENCES.c.body).where(
            REFERENCES.c.season == season,
            REFERENCES.c.task == task,
            REFERENCES.c.split == HIDDEN,
            REFERENCES.c.rung == rung,
        )
    ).scalar()
    episodes = {} if found is None else json.loads(found)["episodes"]
    return {name: values_of(each) for name, each in episodes.items()}


def _scale(references: Mapping[str, ranking.Values]) -> dict[str, Any] | None:
    """What 0 and 1 are, in ms."""
    statics = {name: values for name, values in references.items() if name.startswith("static:")}
    if not statics:
        return None
    best = ranking.best_static(statics)
    return {
        "told_apart": ranking.scale_of(references) is not None,
        "best_static": best,
        "best_static_ms": rounded(float(iqm(statics[best]))),
        "oracle_ms": rounded(float(iqm(references["oracle"]))),
    }


def _lead(ranked: list[Ranked], fresh: Mapping[str, ranking.Values]) -> bool | None:
    """Whether the first entry is first of its group on fresh episodes, too; None where those were not played yet."""
    if not ranked or ranked[0].entry not in fresh:
        return None
    group = [row.entry for row in ranked[1:] if row.best == 1]
    if any(entry not in fresh for entry in group):
        return None
    return ranking.confirmed(fresh[ranked[0].entry], [fresh[entry] for entry in group])
