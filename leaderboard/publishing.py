"""A board as a folder of files that needs no server; ``verifying`` checks one.

site/index.html, tasks/, entries/   the pages
site/log.jsonl                      every record; hidden episodes' scores only as hashes until the season closes
site/files/*.onnx                   the policies
site/episodes/*.json                logs of development episodes
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from helm_gym import files
from leaderboard.board import Board
from leaderboard.records import Record, canonical
from leaderboard.season import DEVELOPMENT
from leaderboard.store import Store
from leaderboard.submissions import METHOD

LOG = "log.jsonl"
_SECRET = ("scores", "references")  # whose hidden episodes stay in the store while the season is open


def is_hidden(record: Record, closed: set[int]) -> bool:
    """Whether a record tells hidden episodes of a season that is open."""
    return record.kind in _SECRET and record.body["split"] != DEVELOPMENT and record.body["season"] not in closed


def published_lines(store: Store) -> Iterator[str]:
    """The log as anyone may have it: what is hidden by its hash and signature alone, so that the chain still holds."""
    closed = {record.body["season"] for record in store.log() if record.kind == "season-closed"}
    for record in store.log():
        if is_hidden(record, closed):
            yield canonical({"seq": record.seq, "hash": record.digest, "signature": record.signature})
        else:
            yield record.line()


def publish(board: Board, folder: pathlib.Path) -> int:
    """Writes the whole board as a static site; returns how many files.

    Raises:
        InvalidInputError: the folder cannot be written.
    """
    from leaderboard.pages import Pages, read_style
    from leaderboard.standings import Standings

    standings = Standings(board)
    pages = Pages(board, standings, live=False)
    facts = board.facts()
    written = 0

    def write(name: str, content: str | bytes) -> None:
        nonlocal written
        files.write(folder / name, content)
        written += 1

    write("style.css", read_style())
    for name, text in (("index", pages.index()), ("submit", pages.submit()), ("rules", pages.rules())):
        write(f"{name}.html", text)
    former = [told["season"] for told in facts["seasons"][1:]]
    for season in former:
        write(f"seasons/{season}/index.html", pages.index(season))
    for number in (None, *former):
        folder_of = "" if number is None else f"seasons/{number}/"
        for task in board.facts(number)["tasks"]:
            write(f"{folder_of}tasks/{task}.html", pages.task(task, season=number))
            write(f"{folder_of}methods/{task}.html", pages.task(task, track=METHOD, season=number))
    for row in board.entries():
        write(f"entries/{row['id']}.html", pages.entry(row["id"]))
        for digest in row["files"]:
            write(f"files/{digest}.onnx", board.store.get(digest))
    for record in board.store.log():
        if record.kind in _SECRET and record.body["where"].get("log"):
            write(f"episodes/{record.body['where']['log']}.json", board.store.get(record.body["where"]["log"]))
    tables = {
        str(told["season"]): {task: standings.table(task, season=told["season"]) for task in told["tasks"]}
        for told in facts["seasons"]
    }
    write("board.json", canonical(facts | {"tables": tables}))
    write(LOG, "".join(f"{line}\n" for line in published_lines(board.store)))
    write(".nojekyll", "")  # for hosts that would leave files out
    return written
