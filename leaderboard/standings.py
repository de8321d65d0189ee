"""A board's tables: what pages, the API and `show` print, made from the scores and kept until those change.

Of hidden episodes only aggregates are shown, to four digits, while the season is open: what an entry can learn about
them per submission is bounded by that.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import sqlalchemy as sa

from helm_gym.evaluation.statistics import Figure, bootstrap, iqm, paired_difference
from leaderboard import ranking
from leaderboard.board import Board
from leaderboard.evaluating import (
    CONFIRMATION,
    DEVELOPMENT,
    HIDDEN,
    MEASURED,
    METRICS,
    PROVISIONAL,
    RANKED_BY,
    RANKING,
    Season,
    values_of,
    vectors,
    vectors_of,
)
from leaderboard.ranking import Ranked
from leaderboard.store import StoreError
from leaderboard.submissions import METHOD, POLICY
from leaderboard.tables import REFERENCES, SCORES, STATES, SUBMISSIONS

DIGITS = 4  # of a figure of hidden episodes
_OF_HIDDEN = ("mean_latency_ms", "p99_ms")  # an alpha, say, would tell much more of them
_FRESH_S, _PATIENCE_S = 0.2, 0.15
_SHOWN = ("entry", "name", "account", "track", "duplicate_of", "nearly")


def rounded(value: float) -> float | None:
    """To ``DIGITS`` significant digits; None where it is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def told(figure: Figure) -> dict[str, float | None]:
    return {"value": rounded(figure.value), "low": rounded(figure.low), "high": rounded(figure.high)}


class Standings:
    """Tables by track and task.

    Args:
        board: opened.
    """

    def __init__(self, board: Board):
        self.board = board
        self._kept: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {}
        self._overall: dict[str, tuple[Mapping[str, dict[str, Any]], dict[str, Any]]] = {}
        self._stamp: tuple[float, tuple[int, ...]] = -math.inf, ()
        self._locks: dict[tuple[str, str], threading.Lock] = {}

    def stamp(self) -> tuple[int, ...]:
        """Changes whenever a table may, a fifth of a second later at most."""
        looked, stamp = self._stamp
        if time.monotonic() - looked > _FRESH_S:
            stamp = self._look()
            self._stamp = time.monotonic(), stamp
        return stamp

    def _look(self) -> tuple[int, ...]:
        with self.board.store.reading() as connection:
            asked = (
                sa.select(sa.func.max(SCORES.c.seq)),
                sa.select(sa.func.count()).select_from(REFERENCES),
                sa.select(STATES.c.seq)  # by its key from the end, where max() would look at all of them
                .where(STATES.c.state.in_(("verified", "superseded", "cancelled", "failed")))
                .order_by(STATES.c.seq.desc())
                .limit(1),
            )
            return tuple(connection.execute(one).scalar() or 0 for one in asked)

    def table(self, task: str, track: str = POLICY) -> dict[str, Any]:
        """One task's table.

        It is made anew in the background where something changed; until then there is the one before.
        """
        place, stamp = (track, task), self.stamp()
        kept = self._kept.get(place)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        lock = self._locks.setdefault(place, threading.Lock())
        if kept is not None:
            if lock.acquire(blocking=False):
                renewing = threading.Thread(target=self._renew, args=(place, stamp, lock), daemon=True)
                renewing.start()
                renewing.join(_PATIENCE_S)  # which a small board's takes
            return self._kept[place][1]
        with lock:
            there = self._kept.get(place)
            if there is None:  # else made while this one waited
                there = self._kept[place] = stamp, self._make(task, track)
            return there[1]

    def _renew(self, place: tuple[str, str], stamp: tuple[int, ...], lock: threading.Lock) -> None:
        try:
            self._kept[place] = stamp, self._make(place[1], place[0])
        except StoreError:  # a database that is away: the table before it stays
            pass
        finally:
            lock.release()

    def overall(self, track: str = POLICY) -> dict[str, Any]:
        """The board over all tasks: by mean normalised score, the worst task beside it; kept until a table changes."""
        with self.board.store.reading() as connection:
            season = self.board.season(connection)
        tables = {task: self.table(task, track) for task in season.tasks}
        made_of, found = self._overall.get(track, ({}, {}))
        if made_of.keys() != tables.keys() or any(made_of[task] is not table for task, table in tables.items()):
            found = self._over_all(tables, track)
            self._overall[track] = tables, found
        return found

    def _over_all(self, tables: Mapping[str, dict[str, Any]], track: str) -> dict[str, Any]:
        scores = {
            task: {
                row["entry"]: math.nan if row["score"]["value"] is None else row["score"]["value"] for row in t["rows"]
            }
            for task, t in tables.items()
        }
        rows = {row["entry"]: row for table in tables.values() for row in table["rows"]}
        found = ranking.over_tasks(scores, [*tables])
        scored = [task for task in tables if any(math.isfinite(v) for v in scores[task].values())]
        return {
            "track": track,
            "tasks": scored,
            "rows": [
                {
                    "rank": number,
                    **{
                        key: rows[entry][key] for key in ("entry", "name", "account", "track", "duplicate_of", "nearly")
                    },
                    "mean": rounded(mean),
                    "worst": rounded(worst),
                    "scores": {task: rounded(scores[task][entry]) for task in scored},
                }
                for number, (entry, mean, worst) in enumerate(found, 1)
            ],
        }

    def compare(self, first: str, second: str) -> list[dict[str, Any]]:
        """Two entries, task by task: paired difference of latency with its interval, and the test's p."""
        found = []
        with self.board.store.reading() as connection:
            season = self.board.season(connection)
            for task in season.tasks:
                there = {
                    **vectors(connection, season.season, task, HIDDEN, RANKING, METHOD),
                    **vectors(connection, season.season, task, HIDDEN, RANKING, POLICY),
                }
                if first in there and second in there:
                    a, b = there[first], there[second]
                    p = float(ranking.paired_test((a - b)[None])[0])
                    found.append(
                        {
                            "task": task,
                            "first_ms": rounded(float(iqm(a))),
                            "second_ms": rounded(float(iqm(b))),
                            "difference": told(paired_difference(a, b, ranking.generator())),
                            "p": rounded(p),
                            "wins": int((a < b).sum()),
                            "episodes": len(a),
                        }
                    )
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
                    metric: told(bootstrap((values_of(body["episodes"], metric),), iqm, ranking.generator()))
                    if is_open or metric in _OF_HIDDEN
                    else told(Figure(math.nan))
                    for metric in METRICS
                }
                open_ones = {"episodes": body["episodes"]} if is_open else {}
                found.append(place | {"figures": figures, "where": body["where"]} | open_ones)
        return {"entry": entry, "scores": found}

    # How a table is made

    def _make(self, task: str, track: str) -> dict[str, Any]:
        with self.board.store.reading() as connection:
            season = self.board.season(connection)
            number = season.season
            entries, tails = vectors_of((RANKED_BY, "p99_ms"), connection, number, task, HIDDEN, RANKING, track)
            (first,) = vectors_of(
                (RANKED_BY,), connection, number, task, HIDDEN, PROVISIONAL, track, ("queued", "running")
            )
            fresh = vectors(connection, number, task, CONFIRMATION, RANKING, track)
            live = vectors(connection, number, task, HIDDEN, MEASURED, track)
            references = {rung: _references(connection, season, task, HIDDEN, rung) for rung in (RANKING, PROVISIONAL)}
            names = self._names(connection)
            variants = self.board.variants(connection)
        ranked = ranking.rank(entries, references[RANKING])
        lead = _lead(ranked, fresh)
        tail = dict(zip(tails, iqm(np.stack([*tails.values()])).tolist(), strict=True)) if tails else {}
        rows = [
            {
                "entry": row.entry,
                **names[row.entry],
                "variants": variants[names[row.entry]["account"]],
                "best": row.best,
                "worst": row.worst,
                "latency": told(row.latency),
                "p99": rounded(tail[row.entry]),
                "score": told(row.score),
                "confirmed": lead if place == 0 else None,
                "measured": rounded(float(iqm(live[row.entry]))) if row.entry in live else None,
            }
            for place, row in enumerate(ranked)
        ]
        soon = ranking.rank({k: v for k, v in first.items() if k not in entries}, references[PROVISIONAL])
        return {
            "task": task,
            "track": track,
            "season": number,
            "rung": RANKING,
            "episodes": season.hidden,
            "scale": _scale(references[RANKING]),
            "rows": rows,
            "provisional": [
                {
                    "entry": row.entry,
                    **names[row.entry],
                    "rung": PROVISIONAL,
                    "latency": told(row.latency),
                    "score": told(row.score),
                }
                for row in soon
            ],
        }

    def _names(self, connection: sa.Connection) -> dict[str, dict[str, Any]]:
        asked = sa.select(SUBMISSIONS.c.id, SUBMISSIONS.c.name, SUBMISSIONS.c.account, SUBMISSIONS.c.track)
        checked = sa.select(SUBMISSIONS.c.id, SUBMISSIONS.c.checked).where(
            SUBMISSIONS.c.checked.like('%"duplicate_of"%')
        )
        near = {
            row.id: json.loads(row.checked)["figures"].get("duplicate_of", "") for row in connection.execute(checked)
        }
        rows = connection.execute(asked).all()
        called = {row.id: row.name for row in rows}
        return {
            row.id: {
                "name": row.name,
                "account": row.account,
                "track": row.track,
                "duplicate_of": near.get(row.id, ""),
                "nearly": called.get(near.get(row.id, ""), ""),
            }
            for row in rows
        }


def _references(
    connection: sa.Connection, season: Season, task: str, split: str, rung: str
) -> Mapping[str, ranking.Values]:
    found = connection.execute(
        sa.select(REFERENCES.c.body).where(
            REFERENCES.c.season == season.season,
            REFERENCES.c.task == task,
            REFERENCES.c.split == split,
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
