"""The sheet of all figures: its rows, and how they are shown on a terminal, as Markdown and as a picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.report import markdown

HEADS = ("what", "aim", "measured", "ratio, or beside whom", "met?", "measured alone by")
TITLE = "The figures of cacheworkers"
#: Of the picture, characters.
WIDTH = 190
Size = TypeVar("Size")


class Row(NamedTuple):
    """One figure.

    Attributes:
        is_met: whether the aim is; None where there is none.
        has_failed: it could not be measured.
    """

    what: str
    aim: str
    measured: str
    beside: str = ""
    is_met: bool | None = None
    has_failed: bool = False

    @property
    def met(self) -> str:
        """Whether the aim is met, in a word."""
        if self.has_failed:
            return "failed"
        return {True: "yes", False: "no", None: ""}[self.is_met]


class Detail(NamedTuple):
    """A table that is shown in full below the sheet."""

    title: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, ...]]


@dataclass
class Found:
    """What one benchmark has found; `files` are written beside the sheet: name -> text."""

    rows: list[Row]
    details: list[Detail] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


class Scale(NamedTuple):
    """How much to measure, and which recorded traces: None for those that `TRACES` names."""

    is_quick: bool = False
    traces: list[Path] | None = None

    def of(self, full: Size, quick: Size) -> Size:
        """Return the size that is asked for."""
        return quick if self.is_quick else full


class Figure(NamedTuple):
    """A benchmark: its section of the sheet, the module and options that measure it alone, and what measures it."""

    section: str
    command: str
    measure: Callable[[Scale], Found]


class Line(NamedTuple):
    """A row of the sheet with its section and its command."""

    section: str
    row: Row
    command: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row's cells."""
        row = self.row
        return (row.what, row.aim, row.measured, row.beside, row.met, self.command)


def lines_of(figure: Figure, found: Found, *, is_quick: bool) -> list[Line]:
    """Return the lines of a benchmark; those of small sizes say so."""
    command = f"python -m benchmarks.{figure.command}"
    mark = " (quick)" if is_quick else ""
    return [Line(figure.section, row._replace(what=row.what + mark), command) for row in found.rows]


def failed(name: str, error: str) -> Found:
    """Return what is shown of a benchmark that failed."""
    return Found([Row(name, "", f"failed: {error}", has_failed=True)])


def table(lines: Iterable[Line]) -> Table:
    """Return the sheet for a terminal."""
    made = Table(title=TITLE, title_justify="left")
    for head in HEADS:
        made.add_column(head, overflow="fold")
    section = ""
    for line in lines:
        if line.section != section:
            made.add_section()
            made.add_row(f"[bold]{escape(line.section)}[/]")
            section = line.section
        made.add_row(*map(escape, line.cells))
    return made


def page(lines: Iterable[Line], details: Iterable[Detail], measured_on: str) -> str:
    """Return the sheet as a page of the documentation, its details below."""
    parts = [f"# {TITLE}\n", f"`make bench` measures them all and writes this page.  {measured_on}\n"]
    parts += [f"![{TITLE}](figures.svg)\n", _sheet(lines)]
    parts += [f"## {detail.title}\n\n{markdown(detail.heads, map(_safe, detail.rows))}" for detail in details]
    return "\n".join(parts)


def picture(lines: Iterable[Line]) -> str:
    """Return the sheet as an SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(table(lines))
    return console.export_svg(title="make bench")


def _sheet(lines: Iterable[Line]) -> str:
    rows, section = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"], ""
    for line in lines:
        if line.section != section:
            rows.append(f"| **{line.section}** |{' |' * (len(HEADS) - 1)}")
            section = line.section
        *reported, command = _safe(line.cells)
        rows.append(f"| {' | '.join(reported)} | `{command}` |")
    return "\n".join(rows) + "\n"


def _safe(cells: Iterable[str]) -> list[str]:
    """Return cells that stay cells, whatever an error's text has in it."""
    return [" ".join(cell.replace("|", "\\|").split()) for cell in cells]
