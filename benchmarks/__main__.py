"""Measure every figure that the design asks for, and print one table: `make bench`, or `python -m benchmarks`.

Each benchmark runs in a process of its own, one after the other.  One that fails has a row that says so, and the others
go on.  The table is written as Markdown with its details, and as a picture; so are the files of `benchmarks.read_path`.
With `--only` or `--quick` nothing is written, unless `--write-to` says where.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.figures import FIGURES
from benchmarks.sheet import Detail, Found, Line, Scale, failed, lines_of, page, picture, table
from cacheworkers.testing.servers import end_with_parent

DOCS = Path("docs/explanation")
#: Seconds after which a benchmark is given up.
PATIENCE = 600.0
#: Characters of what a benchmark that failed has said, from its end.
SAID = 4000
#: Columns of a table that is not on a terminal.
WIDTH = 180


class Failure(NamedTuple):
    """Why a benchmark failed, and where."""

    error: str
    trace: str


def measure(name: str, scale: Scale, pipe: Connection, log: str) -> None:
    """Measure one benchmark, and send what was found or why not; what it says meanwhile goes to the log."""
    os.setsid()
    with contextlib.suppress(TypeError):
        end_with_parent()()  # type: ignore[misc]  # None where there is no such thing
    said = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    try:
        pipe.send(FIGURES[name].measure(scale))
    except Exception as error:
        pipe.send(Failure(f"{type(error).__name__}: {error}", traceback.format_exc()))


def alone(name: str, scale: Scale) -> Found | Failure:
    """Return what one benchmark finds in a process of its own; everything of it has ended then."""
    # A process each: applications read their servers' addresses when they are imported, and threads slow others.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        process = context.Process(target=measure, args=(name, scale, theirs, log.name))
        process.start()
        theirs.close()
        try:
            if not ours.poll(PATIENCE):
                return Failure(f"not done after {PATIENCE:g} seconds", "")
            found: Found | Failure = ours.recv()
            process.join(PATIENCE)
            return found
        except EOFError:
            process.join()
            said = Path(log.name).read_text(errors="replace")[-SAID:]
            return Failure(f"its process ended with exit code {process.exitcode}", said)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()


def run(names: list[str], scale: Scale, console: Console) -> tuple[list[Line], list[Detail], dict[str, str]]:
    """Measure, one after the other, and return the lines, the details and the files."""
    lines: list[Line] = []
    details: list[Detail] = []
    files: dict[str, str] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        for at, name in enumerate(names, 1):
            figure = FIGURES[name]
            told = f"{at} of {len(names)}: {name}"
            task = bar.add_task(f"{told} (python -m benchmarks.{figure.command})")
            began = time.monotonic()
            found = alone(name, scale)
            bar.remove_task(task)
            if isinstance(found, Failure):
                console.print(found.trace, markup=False, highlight=False)
                found = failed(name, found.error)
            console.print(f"{told}, {time.monotonic() - began:.0f} s", markup=False, highlight=False)
            lines += lines_of(figure, found, is_quick=scale.is_quick)
            details += found.details
            files |= found.files
    return lines, details, files


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
    parser.add_argument("--trace", type=Path, nargs="+", help="recorded ones, instead of what is in ../shared/data")
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
    signal.signal(signal.SIGTERM, _end)
    began = time.monotonic()
    lines, details, files = run(names, Scale(options.quick, options.trace), Console(stderr=True))
    console = Console()
    Console(width=console.width if console.is_terminal else WIDTH).print(table(lines))
    where = options.write_to or (None if options.only or options.quick else DOCS)
    if where is not None:
        on = f"On {os.cpu_count()} cores, Python {platform.python_version()}, in {time.monotonic() - began:.0f} s."
        write(where, files | {"figures.md": page(lines, details, on), "figures.svg": picture(lines)})
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
    sys.exit(main())
