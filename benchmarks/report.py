"""What every benchmark prints: percentiles, tables as Markdown and as a picture, progress on long work."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

#: Of a picture, characters.
WIDTH = 150


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of all lie; 0 of none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def counted(number: int | None, what: str) -> str:
    """Return a number with what it counts: `1 load`, `2 loads`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as Markdown, its numbers aligned right."""
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table for a terminal."""
    made = Table(title=title, title_justify="left")
    for at, head in enumerate(heads):
        made.add_column(head, justify="right" if at else "left", no_wrap=not at)
    for row in rows:
        made.add_row(*row)
    return made


def write_picture(path: Path, title: str, tables: Iterable[Table]) -> None:
    """Write tables as one SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for each in tables:
        console.print(each)
    path.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(path), title=title)


def progress() -> Progress:
    """Return a progress bar for long work; it goes away when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, transient=True, console=Console(stderr=True))
