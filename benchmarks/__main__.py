"""Measure every figure that the design asks for, and print one table: `make bench`, or `python -m benchmarks`.

Each benchmark runs in a process of its own, one after the other.  One that fails has a row that says so, and the others
go on.  The table is written as Markdown with its details, and as a picture; so are the files of `benchmarks.read_path`,
and the README's figures follow.  With `--only` or `--quick` nothing is written, unless `--write-to` says where.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from benchmarks import readme
from benchmarks.figures import FIGURES
from benchmarks.runs import run
from benchmarks.sheet import Scale, page, picture, table

DOCS = Path("docs/explanation")
#: Columns of a table that is not on a terminal.
WIDTH = 180


def names_of(asked: list[str] | None) -> list[str]:
    """Return the benchmarks that are asked for, in their order in the table.

    Raises:
        ValueError: one is not known.
    """
    unknown = sorted(set(asked or ()) - set(FIGURES))
    if unknown:
        raise ValueError(f"--only must be of {', '.join(FIGURES)}; got {', '.join(unknown)}")
    return [name for name in FIGURES if asked is None or name in asked]


def main(words: list[str] | None = None) -> int:
    """Measure, print one table, and write it; 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these alone; --list names them")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument(
        "--trace", type=Path, nargs="+", help="recorded traces; or the variable TRACES names their directory"
    )
    parser.add_argument("--write-to", type=Path, help=f"directory of the table's files; {DOCS} for the whole")
    parser.add_argument("--list", action="store_true", help="name the benchmarks")
    options = parser.parse_args(words)
    if options.list:
        for name, figure in FIGURES.items():
            print(f"{name:16}{figure.section:10}python -m benchmarks.{figure.command}")
        return 0
    try:
        names = names_of(options.only)
    except ValueError as error:
        parser.error(str(error))
    began = time.monotonic()
    lines, details, files = run(names, Scale(options.quick, options.trace), Console(stderr=True))
    console = Console()
    Console(width=console.width if console.is_terminal else WIDTH).print(table(lines))
    where = options.write_to or (None if options.only or options.quick else DOCS)
    if where is not None:
        on = f"On {os.cpu_count()} cores, Python {platform.python_version()}, in {time.monotonic() - began:.0f} s."
        write(where, files | {"figures.md": page(lines, details, on), "figures.svg": picture(lines)})
    if where == DOCS:
        try:
            readme.write(Path())
        except ValueError as error:
            console.print(f"README.md keeps its figures: {error}", markup=False)
    return int(any(line.row.has_failed for line in lines))


def write(where: Path, files: dict[str, str]) -> None:
    """Write files into a directory."""
    where.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (where / name).write_text(text)


def _end(*_: Any) -> NoReturn:
    """End as an exception does, so that what was started ends too."""
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
