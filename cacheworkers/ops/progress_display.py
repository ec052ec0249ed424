"""Displays the progress of a warm job: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cacheworkers.config import Queues
from cacheworkers.flows.warm_up import WarmUp
from cacheworkers.ops.output import note

#: Between two lines where there is no terminal, seconds.
SAY_EVERY = 5.0
#: The rate is averaged over this many seconds.
RATE_OF = 10.0
#: Seconds without progress after which a line says that no worker takes anything.
STUCK_AFTER = 5.0
Show = Callable[[WarmUp], None]


class Rate:
    """Calls loaded a second, lately."""

    def __init__(self, now: float) -> None:
        self._seen = deque([(now, 0)])

    def note(self, loaded: int, now: float) -> float:
        """Note how many are loaded now, and return how many were loaded per second recently; 0 at first."""
        if now - self._seen[-1][0] >= RATE_OF / 20:
            self._seen.append((now, loaded))
        while len(self._seen) > 2 and self._seen[1][0] <= now - RATE_OF:
            self._seen.popleft()
        since, before = self._seen[0]
        return (loaded - before) / (now - since) if now > since else 0.0


@contextlib.contextmanager
def progress_display(
    loader: str,
    calls: int,
    queues: Queues,
    console: Console,
    *,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = note,
) -> Iterator[Show]:
    """Display the progress of a warm job; gives the function to call with its state.

    Args:
        clock: seconds.
        say: prints a line, where there is no terminal.
    """
    rate = Rate(clock())
    if not console.is_terminal:
        said_at = clock()

        def report(state: WarmUp) -> None:
            nonlocal said_at
            now = clock()
            a_second = rate.note(state.loaded, now)
            if now - said_at >= SAY_EVERY:
                said_at = now
                say(line(loader, state, a_second, queues))

        yield report
        return
    with _bar(console) as progress:
        task = progress.add_task(loader, total=calls, says="")

        def move(state: WarmUp) -> None:
            says = f"{rate.note(state.loaded, clock()):,.0f}/s, {state.fresh:,} fresh, {state.window:,} concurrent"
            if state.failed:
                says += f", [red]{state.failed:,} failed[/]"
            if why := waits_for(state, queues):
                says += f", [yellow]{why}[/]"
            progress.update(task, completed=state.done + state.failed, says=says)

        yield move


def line(loader: str, state: WarmUp, a_second: float, queues: Queues) -> str:
    """Return how far it is, as a line of text: count, share, rate, time left, and what holds it back."""
    tried = state.done + state.failed
    says = f"{loader}: {tried:,} of {state.calls:,} calls ({state.share:.0%} fresh), {a_second:,.1f}/s"
    if a_second > 0:
        says += f", {_duration((state.calls - tried) / a_second)} left"
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


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[says]}"),
        TimeRemainingColumn(),
        console=console,
    )
