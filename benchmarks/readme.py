"""The README's figures, copied from the pages that benchmarks write: `python -m benchmarks.readme`.

`make bench` and `make bench-apps` do it when they have written theirs; a test fails where the README differs.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.figures import FIGURES

ROOT = Path(__file__).resolve().parents[1]
README, EXPLANATION = "README.md", Path("docs/explanation")
BEGIN, END = "<!-- figures: written by python -m benchmarks.readme -->\n", "<!-- end of figures -->\n"
#: Benchmarks whose first row is shown, and whether with its comparison; None is the product API, by who caches it.
SHOWN = {"stampede": False, None: True, "coherence": False, "hits": True, "soak": True}
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


def api(page: str) -> tuple[str, ...]:
    """Return the README's row of the product API.

    Raises:
        ValueError: this library could not be measured, or not without a cache.
    """
    heads, *rows = cells_of(page)
    speed, queries = heads.index("requests/s"), heads.index("queries at a sale's start")
    found = {row[0]: f"{row[speed]} and {row[queries]}" for row in rows if row[queries] not in ("", "-")}
    for label in (OURS, UNCACHED):
        if label not in found:
            raise ValueError(f"apps.md has no row of {label}: run make bench-apps")
    ours = found.pop(OURS)
    fastest = max(
        (label for label in found if label != UNCACHED), key=lambda label: _requests(found[label]), default=""
    )
    shown = [(f"the fastest other, {fastest.partition(' (')[0]},", fastest)] if fastest else []
    beside = "; ".join(f"{words} {found[label]}" for words, label in [*shown, (UNCACHED, UNCACHED)])
    return "Product API, requests a second and queries when a sale starts", ours, beside, "`make bench-apps`"


def _requests(cell: str) -> int:
    return int(cell.partition(" ")[0].replace(",", ""))


def listed(figures: str, apps: str) -> str:
    """Return the README's list, from the two pages' text."""
    lines = []
    for name, is_compared in SHOWN.items():
        what, found, beside, command = api(apps) if name is None else figure(figures, name)
        lines.append(f"- {what}: **{found}**{f' ({beside})' if is_compared else ''}: {command}\n")
    return "".join(lines)


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
