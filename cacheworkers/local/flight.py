"""Flight: what this process knows of one call that is waited for, and who sleeps until its load ends."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from cacheworkers.local.waiters import Waiter

Loop = asyncio.AbstractEventLoop
Future = asyncio.Future[None]
#: How much longer than asked a task may sleep, seconds: those who are due together share a timer.
SLACK = 0.005


class Sleeper(Protocol):
    """What wakes one that sleeps; a thread's is a lock that it waits for."""

    def release(self) -> None:
        """Wake it, from any thread."""
        ...


class TaskSleepers(dict[Future, "Waiter"]):
    """The tasks of one loop that sleep in one flight.

    Taken away whole by a wake: it then costs the same for 1 and 10,000.  They share one timer, since a timer each
    would cost more than all the rest of a sleep.
    """

    __slots__ = ("_loop", "_timer", "_timer_at")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def end_by(self, until: float) -> None:
        """See to it that whoever sleeps until then is woken soon after; `until` is the loop's time."""
        if until + SLACK < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = until + SLACK
            self._timer = self._loop.call_at(self._timer_at, self._wake_due)

    def _wake_due(self) -> None:
        """Wake who has slept long enough, and see to the next; runs on the loop."""
        now, self._timer, self._timer_at = self._loop.time(), None, math.inf
        next_at = math.inf
        for future, waiter in list(self.items()):
            if waiter.until <= now:
                finish(future)
            else:
                next_at = min(next_at, waiter.until)
        if next_at < math.inf:
            self.end_by(next_at)

    def taken(self) -> None:
        """Stop the timer; on the loop."""
        if self._timer is not None:
            self._timer.cancel()


class Flight:
    """What this process knows of one call that is being waited for.

    Attributes:
        call: its text.
        held_until: monotonic instant until which a lease is known to be held; 0 none.
        is_missing: whoever found out about that lease had found no entry at all.
        token: that lease's token.
        is_begun, is_taken_over: that lease's state when it was last seen.
        is_claiming: one reader of this process is claiming right now.
        is_loading: one reader of this process is loading without the store.
        shared: what such a load came to.
        offered: when a load of this process began, monotonic, its entry that was not stored, and whether it was
            overtaken by an invalidation.
        claimed_at, claim_number: when the last claim was sent, monotonic and in the order of waiters.
        failure, failing_until: the backoff that this claim was answered with, if any, and until when it runs.
        wakes: changes with every wake.  A reply that was asked for before a wake may be overtaken by it.
        watched: `(wakes, token)` for which the listener was last asked to report the end of the load.
        must_poll: it cannot report it now, because another master has the key.
        waiters: who waits for it; of these, `threads` and `tasks`, by loop, sleep.
    """

    __slots__ = (
        "call",
        "claim_number",
        "claimed_at",
        "failing_until",
        "failure",
        "held_until",
        "is_begun",
        "is_claiming",
        "is_loading",
        "is_missing",
        "is_taken_over",
        "must_poll",
        "offered",
        "shared",
        "tasks",
        "threads",
        "token",
        "waiters",
        "wakes",
        "watched",
    )

    def __init__(self, call: str) -> None:
        self.call = call
        self.wakes = 0
        self.waiters: set[Waiter] = set()
        self.threads: dict[Sleeper, Waiter] = {}
        self.tasks: dict[Loop, TaskSleepers] = {}
        self.is_claiming = False
        self.is_loading = False
        self.shared: Any = None
        self.watched: tuple[int, str] | None = None
        self.must_poll = False
        self.offered: Any = None
        self.claimed_at = 0.0
        self.claim_number = 0
        self.failure: Any = None
        self.failing_until = 0.0
        self.forget_lease()

    def forget_lease(self) -> None:
        """The lease has ended, or another has begun."""
        self.held_until = 0.0
        self.is_missing = False
        self.token = ""
        self.is_begun = False
        self.is_taken_over = False


def finish(future: Future) -> None:
    """Wake a task, once."""
    if not future.done():
        future.set_result(None)
