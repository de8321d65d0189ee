"""An evaluation with its figures, as a table, a page or a JSON object."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from helm_gym.errors import UnknownNameError
from helm_gym.evaluation.metrics import Row
from helm_gym.evaluation.report import Section, best_names, label, table_rows, write_report
from helm_gym.evaluation.results import Evaluation
from helm_gym.evaluation.summary import to_json
from helm_gym.text import literal

if TYPE_CHECKING:
    from rich.table import Table

_PRINTED_WIDTH = 124
_FORMS: tuple[Callable[[str], str], ...] = (  # of "value [low, high]", the widest first
    lambda text: text,
    lambda text: text.replace(" ", "\n", 1),
    lambda text: text.partition(" ")[0],
)


@dataclasses.dataclass(frozen=True, repr=False)
class Scores:
    """What ``helm_gym.evaluate`` returns: ``print(scores)`` is a table, ``scores["pid"]`` one policy's figures.

    Attributes:
        evaluation: the episodes.
        figures: the object that ``helm-gym evaluate --json`` prints.
    """

    evaluation: Evaluation
    figures: dict[str, Any]

    @classmethod
    def of(cls, evaluation: Evaluation) -> Scores:
        return cls(evaluation, to_json(evaluation))

    def __getitem__(self, name: str) -> Row:
        """A policy's or reference's figures by metric, each with ``value``, ``low`` and ``high``.

        Raises:
            UnknownNameError: no such policy was evaluated.
        """
        rows: dict[str, Row] = {row["name"]: row for row in (*self.figures["references"], *self.figures["policies"])}
        if name not in rows:
            raise UnknownNameError("policy", name, rows)
        return rows[name]

    def write_report(self, path: pathlib.Path | str) -> None:
        """Writes the HTML page with its plots.

        Raises:
            InvalidInputError: the path cannot be written.
        """
        write_report(pathlib.Path(path), [Section(self.evaluation, self.figures)])

    def table(self, width: int) -> Table:
        """The table for so many columns of a terminal: best in bold, references and oracles dimmed.

        Intervals stand beside their values where there is room, below them where there is less, and else not at all.
        """
        from rich.console import Console

        measuring = Console(width=10_000)
        tables = (self._table(form) for form in _FORMS)
        fitting = (table for table in tables if measuring.measure(table).maximum <= width)
        return next(fitting, self._table(_FORMS[-1]))

    def _table(self, form: Callable[[str], str]) -> Table:
        from rich.markup import escape
        from rich.table import Table

        from helm_gym.evaluation.plots import is_oracle

        evaluation, section = self.evaluation, Section(self.evaluation, self.figures)
        best, count, cluster = best_names(section), len(evaluation.seeds), evaluation.cluster
        rung = f"{evaluation.rung} rung" + ", served in turns" * evaluation.in_turns
        caption = f"{rung}, {count} seed{'s' * (count > 1)}, {evaluation.machine}, {evaluation.date}"
        if evaluation.trace:
            caption = f"Trace {evaluation.trace}; {caption}"
        if form is _FORMS[-1]:
            caption += "; intervals: --json, or a wider window"
        caption = "\n".join(map(literal, (caption, *section.notes)))
        where = evaluation.profile if cluster is None else f"{cluster.size} nodes of {evaluation.profile}"
        table = Table(
            title=literal(f"{evaluation.task.name} on {where}"),
            title_justify="left",
            caption=caption,
            caption_justify="left",
            box=None,
            header_style="dim",
        )
        table.add_column("policy" if cluster is None else "controller+router", no_wrap=True)
        for column in section.columns:
            heading = column.heading if form is _FORMS[0] else column.heading.replace(" ", "\n")
            table.add_column(heading, justify="right", no_wrap=True)
        for row, reference in table_rows(self.figures):
            name = str(row["name"])
            cells = [literal(label(name, self.figures))]
            for column in section.columns:
                text = escape(form(column.text(row)))
                cells.append(f"[bold]{text}[/]" if name in best.get(column.key, ()) else text)
            table.add_row(*cells, style="dim" if reference or is_oracle(name) else "")
        return table

    def __str__(self) -> str:
        from rich.console import Console

        out = Console(file=io.StringIO(), width=_PRINTED_WIDTH, no_color=True)
        out.print(self.table(_PRINTED_WIDTH))
        return out.file.getvalue().rstrip()  # type: ignore[attr-defined]  # the StringIO above

    __repr__ = __str__
