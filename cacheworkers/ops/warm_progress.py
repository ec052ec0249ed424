"""How far a warm job is: a bar on a terminal, a line every few seconds elsewhere; and what holds it back."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import click

from cacheworkers.config import Queues
from cacheworkers.flows.warm_up import WarmUp
from cacheworkers.ops.explanation_text import duration_text
from cacheworkers.ops.output import counted, note
from cacheworkers.runtime.warm_job import WarmJob

#: Between two moves of the bar, and between two lines, seconds.
MOVE_EVERY, SAY_EVERY = 0.2, 5.0
#: Seconds without progress after which a line says that no worker takes anything.
STUCK_AFTER = 5.0


@contextlib.contextmanager
def progress_of(job: WarmJob, loader: str, queues: Queues) -> Iterator[tuple[float, Callable[[], None]]]:
    """Show on the error output how far a job is; gives how often, in seconds, and what to call so often."""
    if not sys.stderr.isatty():
        yield SAY_EVERY, lambda: note(line(loader, job.progress, job.rate, queues))
        return

    with click.progressbar(
        length=job.progress.calls,
        label=loader,
        file=sys.stderr,
        show_pos=True,
        item_show_func=lambda state: state and beside_the_bar(state, job.rate, queues),
    ) as bar:

        def move() -> None:
            state = job.progress
            bar.update(state.done + state.failed - bar.pos, state)

        yield MOVE_EVERY, move
        move()


def beside_the_bar(state: WarmUp, a_second: float, queues: Queues) -> str:
    """Return what the bar does not show: the rate, failures, and what holds it back."""
    failed = f"{state.failed:,} failed" if state.failed else ""
    return ", ".join(filter(None, (f"{a_second:,.1f}/s", failed, waits_for(state, queues))))


def line(loader: str, state: WarmUp, a_second: float, queues: Queues) -> str:
    """Return how far it is; `a_second` is how many calls have been loaded a second."""
    tried = state.done + state.failed
    says = (
        f"{loader}: {tried:,} of {counted(state.calls, 'call', 'calls')} ({state.share:.0%} fresh), {a_second:,.1f}/s"
    )
    if a_second > 0:
        says += f", {duration_text((state.calls - tried) / a_second)} left"
    if state.failed:
        says += f", {state.failed:,} failed"
    why = waits_for(state, queues)
    return f"{says}; {why}" if why else says


def waits_for(state: WarmUp, queues: Queues) -> str:
    """Return what a job waits for, or goes on in spite of; empty for nothing."""
    if state.is_waiting:
        return f"waiting for readers' misses, which go first, in {queues.miss}"
    if state.stuck_for >= STUCK_AFTER:
        return f"no worker has taken anything from {queues.warm} for {state.stuck_for:.0f} s"
    if state.unserved_misses:
        return f"no worker takes the {state.unserved_misses:,} messages in {queues.miss}: they are not waited for"
    return ""
