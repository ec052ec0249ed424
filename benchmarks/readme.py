"""The README's figures, copied from the pages that benchmarks write: `python -m benchmarks.readme`.

`make bench` and `make bench-apps` do it when they have written theirs; a test fails where the README differs.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.figures import FIGURES
from benchmarks.report import markdown

ROOT = Path(__file__).resolve().parents[1]
README, EXPLANATION = "README.md", Path("docs/explanation")
BEGIN, END = "<!-- figures: written by python -m benchmarks.readme -->\n", "<!-- end of figures -->\n"
#: Benchmarks whose first row is shown, and whether with its comparison.
SHOWN = {"stampede": False, "coherence": False, "hits": True, "soak": True}
#: Of the product API, by who caches it: columns of its page, and the README's heads.
COLUMNS = {
    "requests/s": "requests/s",
    "p99 ms at the rate": "p99, ms",
    "queries at a sale's start": "queries at a sale's start",
    "last answer ms": "its last answer, ms",
    "old reads": "old reads",
}
OURS, UNCACHED = "cacheworkers", "no cache"


def cells_of(page: str) -> list[list[str]]:
    """Return the cells of all rows of a page's tables."""
    lines = (line for line in page.splitlines() if line.startswith("|") and not line.startswith("|---"))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def figure(page: str, name: str) -> tuple[str, ...]:
    """Return the README's row of a benchmark: its first on the page of figures.

    Raises:
        ValueError: there is none, or it could not be measured.
    """
    command = f"`python -m benchmarks.{FIGURES[name].command}`"
    for what, _, found, beside, met, by in (row for row in cells_of(page) if len(row) == 6):
        if by == command and met != "failed":
            return what[:1].upper() + what[1:], found, beside, command
    raise ValueError(f"figures.md has no row of {command}: run make bench")


def api(page: str) -> str:
    """Return the README's table of the product API.

    Raises:
        ValueError: this library could not be measured, or not without a cache.
    """
    heads, *rows = cells_of(page)
    found = {row[0]: [row[heads.index(column)] for column in COLUMNS] for row in rows}
    measured = {label: cells for label, cells in found.items() if not set(cells) & {"", "-"}}
    for label in (OURS, UNCACHED):
        if label not in measured:
            raise ValueError(f"apps.md has no row of {label}: run make bench-apps")
    rows_shown = [(label, *cells) for label, cells in measured.items()]
    return markdown(("A product API, by who caches it", *COLUMNS.values()), rows_shown)


def listed(figures: str, apps: str) -> str:
    """Return the README's list and table, from the two pages' text."""
    lines = []
    for name, is_compared in SHOWN.items():
        what, found, beside, command = figure(figures, name)
        lines.append(f"- {what}: **{found}**{f' ({beside})' if is_compared else ''}: {command}\n")
    more = "`make bench-apps` makes the table; [the rest of it](docs/explanation/apps.md).\n"
    return f"{''.join(lines)}\n{api(apps)}\n{more}"


def filled(readme: str, figures: str, apps: str) -> str:
    """Return the README with its figures written again.

    Raises:
        ValueError: it has no place for them.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks {BEGIN.strip()} or {END.strip()}")
    return before + begin + listed(figures, apps) + end + after


def current(root: Path = ROOT) -> str:
    """Return the README as it should be."""
    pages = ((root / EXPLANATION / name).read_text() for name in ("figures.md", "apps.md"))
    return filled((root / README).read_text(), *pages)


def write(root: Path = ROOT) -> None:
    """Write the README's figures again."""
    (root / README).write_text(current(root))


if __name__ == "__main__":
    write()
