"""Runs benchmarks, each in a process of its own, one after the other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.figures import FIGURES
from benchmarks.sheet import Detail, Found, Line, Scale, failed, lines_of
from cacheworkers.testing.servers import end_with_parent

#: Seconds after which a benchmark is given up.
PATIENCE = 600.0
#: Characters of what a benchmark that failed has said, from its end.
SAID = 4000


class Failure(NamedTuple):
    """Why a benchmark failed, and where."""

    error: str
    trace: str


def measure(name: str, scale: Scale, pipe: Connection, log: str) -> None:
    """Measure one benchmark, and send what was found or why not; what it says meanwhile goes to the log."""
    os.setsid()
    end_if_parent_dies = end_with_parent()
    if end_if_parent_dies is not None:
        end_if_parent_dies()
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
            reported = f"{at} of {len(names)}: {name}"
            task = bar.add_task(f"{reported} (python -m benchmarks.{figure.command})")
            began = time.monotonic()
            found = alone(name, scale)
            bar.remove_task(task)
            if isinstance(found, Failure):
                console.print(found.trace, markup=False, highlight=False)
                found = failed(name, found.error)
            console.print(f"{reported}, {time.monotonic() - began:.0f} s", markup=False, highlight=False)
            lines += lines_of(figure, found, is_quick=scale.is_quick)
            details += found.details
            files |= found.files
    return lines, details, files
