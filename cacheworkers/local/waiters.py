"""Waiters: which threads and tasks of this process wait for the load of which call.

A reader registers before it looks, and is woken by the listener's push.  All waiters of one call share a flight: what
is known of the lease they wait for, so that one of them asks and not all.

How no wake-up is lost.  Every wake gives its flight a new number; a waiter is woken when that is not the number it saw
at `rearm`.  A sleeper registers first and compares then, both under the lock, so a wake comes before the comparison or
finds the sleeper.  The lock is re-entrant, and each section is right even when a garbage collection inside it closes
another read's generator, which leaves its flight from there.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from typing import Any, Protocol

from cacheworkers.local.coalescing import Crowds

_Loop = asyncio.AbstractEventLoop
_Future = asyncio.Future[None]
#: How much longer than asked a task may sleep, seconds: those who are due together share a timer.
SLACK = 0.005


class Sleeper(Protocol):
    """What wakes one that sleeps; a thread's is a lock that it waits for."""

    def release(self) -> None:
        """Wake it, from any thread."""
        ...


class _Sleepers(dict[_Future, "Waiter"]):
    """The tasks of one loop that sleep in one flight.

    Taken away whole by a wake: it then costs the same for 1 and 10,000.  They share one timer, since a timer each
    would cost more than all the rest of a sleep.
    """

    __slots__ = ("_loop", "_timer", "_timer_at")

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def end_by(self, until: float) -> None:
        """See to it that whoever sleeps until then is woken soon after; `until` is the loop's time."""
        if until + SLACK < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = until + SLACK
            self._timer = self._loop.call_at(self._timer_at, self._ring)

    def _ring(self) -> None:
        """Wake who has slept long enough, and see to the next; runs on the loop."""
        now, self._timer, self._timer_at = self._loop.time(), None, math.inf
        next_at = math.inf
        for future, waiter in list(self.items()):
            if waiter._until <= now:
                _finish(future)
            else:
                next_at = min(next_at, waiter._until)
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
    """

    __slots__ = (
        "_tasks",
        "_threads",
        "_waiters",
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
        "token",
        "wakes",
        "watched",
    )

    def __init__(self, call: str) -> None:
        self.call = call
        self.wakes = 0
        self._waiters: set[Waiter] = set()
        self._threads: dict[Sleeper, Waiter] = {}
        self._tasks: dict[_Loop, _Sleepers] = {}
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


class Waiter:
    """One reader's place in a flight; a context manager that leaves it.

    Attributes:
        flight: shared with the other waiters of the call.
        number: later waiters have larger ones.
    """

    __slots__ = ("_is_chosen", "_may_act", "_seen", "_until", "_waiters", "flight", "number")

    def __init__(self, waiters: Waiters, call: str) -> None:
        self._waiters = waiters
        self._is_chosen = False
        self._may_act = False
        self.number = waiters.next_number()
        self.flight = waiters._join(call, self)
        self._seen = self.flight.wakes

    def __enter__(self) -> Waiter:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiters.leave(self)

    @property
    def woken(self) -> bool:
        """Whether a wake has come since `rearm`."""
        return self._is_chosen or self._seen != self.flight.wakes

    def rearm(self) -> None:
        """Forget earlier wake-ups; called before looking, so that a push from then on is not lost."""
        self._is_chosen = False
        self._seen = self.flight.wakes

    def wait(self, timeout: float) -> bool:
        """Sleep in this thread until woken, at most `timeout` seconds; True if woken."""
        sleeper = threading.Lock()
        sleeper.acquire()
        threads = self.register(sleeper)
        if threads is not None:
            try:
                sleeper.acquire(timeout=max(0.0, min(timeout, threading.TIMEOUT_MAX)))
            finally:
                threads.pop(sleeper, None)
        return self.woken

    async def await_(self, timeout: float) -> bool:
        """Sleep in this task until woken, at most `timeout` seconds and a little; True if woken."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._until = loop.time() + max(0.0, timeout)
        sleepers = self._register_task(loop, future)
        if sleepers is not None:
            sleepers.end_by(self._until)
            try:
                await future
            finally:
                if self.flight._tasks.get(loop) is sleepers:  # else a wake has taken it away
                    self._unregister(loop, sleepers, future)
        return self.woken

    def register(self, sleeper: Sleeper) -> dict[Sleeper, Waiter] | None:
        """Register a sleep; None if it is woken already.

        Whoever stops sleeping takes the sleeper out of what this returns, if a wake has not done so.
        """
        with self._waiters._lock:
            threads = self.flight._threads
            threads[sleeper] = self
            if self.woken:
                threads.pop(sleeper, None)
                return None
            self._may_act = False
            return threads

    def _register_task(self, loop: _Loop, future: _Future) -> _Sleepers | None:
        """Register this task's sleep; None if it is woken already."""
        with self._waiters._lock:
            sleepers = self.flight._tasks.get(loop)
            if sleepers is None:
                sleepers = self.flight._tasks[loop] = _Sleepers(loop)
            sleepers[future] = self
            if not self.woken:
                self._may_act = False
                return sleepers
        self._unregister(loop, sleepers, future)
        return None

    def _unregister(self, loop: _Loop, sleepers: _Sleepers, future: _Future) -> None:
        tasks = self.flight._tasks
        with self._waiters._lock:
            sleepers.pop(future, None)
            if not sleepers and tasks.get(loop) is sleepers:
                tasks.pop(loop, None)  # a flight may outlive the loop
                sleepers.taken()


class Waiters:
    """All waiters of this process, by call.

    Attributes:
        crowds: those who wait for the outcome of another reader.
        flights: call -> what is known of it while somebody waits; read without the lock.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.crowds = Crowds()
        self.reset()

    def reset(self) -> None:
        """Forget everybody, as a child does after a fork: those threads and loops are the parent's."""
        self._lock = threading.RLock()
        self.crowds.reset()
        self.flights: dict[str, Flight] = {}
        self._due: dict[_Loop, list[_Sleepers]] = {}

    def next_number(self) -> int:
        """Return a number larger than all before."""
        return next(self._numbers)

    def __len__(self) -> int:
        with self._lock:
            waiters = sum(len(flight._waiters) for flight in list(self.flights.values()))
        return waiters + len(self.crowds)

    @property
    def calls(self) -> int:
        """How many calls are waited for, roughly: not locked."""
        return len(self.flights)

    def waiting(self) -> list[Flight]:
        """Return the flights that wait for the end of a load."""
        return [flight for flight in list(self.flights.values()) if flight.token]

    def watched(self, call: str, *, is_held: bool, is_error: bool) -> None:
        """Note what the store says of the lease that a flight has waited for; if it has ended, wake all who wait.

        Also if another is known meanwhile: some may sleep since the one that has ended, and be content with its entry.
        """
        flight = self.flights.get(call)
        if flight is not None:
            flight.must_poll = is_error
            if not is_held:
                self.wake(call)

    def enter(self, call: str) -> Waiter:
        """Register for a call's pushes; from now on none is missed."""
        return Waiter(self, call)

    def leave(self, waiter: Waiter) -> None:
        """End a registration; the flight ends with its last waiter."""
        flight = waiter.flight
        with self._lock:
            flight._waiters.discard(waiter)
            if not flight._waiters and self.flights.get(flight.call) is flight:
                self.flights.pop(flight.call, None)
        if waiter._may_act:
            # Chosen, and gone before it slept again: cancelled, perhaps, before it could act.
            waiter._may_act = False
            self.wake_one(flight)

    def wake(self, call: str) -> None:
        """Wake all who wait for a call: its entry or its failure has changed, and with it its lease."""
        # No lock for the many pushes that nobody waits for.  Whoever enters from here on looks after the change.
        flight = self.flights.get(call)
        if flight is not None:
            flight.forget_lease()
            self.wake_flight(flight)

    def offer(self, call: str, began_at: float, entry: Any, *, is_overtaken: bool = True) -> None:
        """Leave a value that is not stored to those who had begun before its load, and wake them.

        Args:
            is_overtaken: by an invalidation; or the store has taken no writes.
        """
        flight = self.flights.get(call)
        if flight is not None:
            flight.offered = (began_at, entry, is_overtaken)
            self.wake_flight(flight)

    def wake_all(self) -> None:
        """Wake everybody: pushes may have been missed."""
        with self._lock:
            flights = list(self.flights.values())
        for flight in flights:
            flight.forget_lease()
            self.wake_flight(flight)

    def wake_flight(self, flight: Flight) -> None:
        """Wake all waiters of a flight; what it knows of the lease stays."""
        with self._lock:
            flight.wakes = next(self._numbers)
            threads, flight._threads = flight._threads, {}
            tasks, flight._tasks = flight._tasks, {}
        for loop, sleepers in tasks.items():
            self._ring(loop, sleepers)
        _wake_one(threads)

    def wake_one(self, flight: Flight) -> None:
        """Wake one other waiter of a flight: it acts in place of one that was cancelled or timed out.

        A waiter that is woken so and leaves before it has slept again wakes the next.
        """
        with self._lock:
            for loop, sleepers in list(flight._tasks.items()):
                for future, waiter in list(itertools.islice(sleepers.items(), 1)):
                    sleepers.pop(future, None)
                    waiter._is_chosen = waiter._may_act = True
                    alone = _Sleepers(loop)
                    alone[future] = waiter
                    self._ring(loop, alone)
                    return
            for sleeper, waiter in list(flight._threads.items()):
                if flight._threads.pop(sleeper, None) is not None:  # else it has got up by itself
                    waiter._is_chosen = waiter._may_act = True
                    sleeper.release()
                    return
            # Nobody sleeps, but somebody may be about to: it has seen a lease or a claim that has ended.
            flight.wakes = next(self._numbers)

    def _join(self, call: str, waiter: Waiter) -> Flight:
        """Return the call's flight with the waiter in it."""
        with self._lock:
            while True:
                flight = self.flights.get(call)
                if flight is None:
                    flight = self.flights[call] = Flight(call)
                flight._waiters.add(waiter)
                if self.flights.get(call) is flight:  # not ended by a leave within this very thread
                    return flight

    def _ring(self, loop: _Loop, sleepers: _Sleepers) -> None:
        """Wake tasks of one loop: one call into it until it has run, not one a task, since each is a system call."""
        with self._lock:
            due = self._due.get(loop)
            if due is not None and not loop.is_closed():
                due.append(sleepers)
                return
            for other in [other for other in list(self._due) if other.is_closed()]:
                self._due.pop(other, None)
            self._due[loop] = [sleepers]
        try:
            loop.call_soon_threadsafe(self._wake_due, loop)
        except RuntimeError:
            self._due.pop(loop, None)  # that loop is closed, and its tasks with it

    def _wake_due(self, loop: _Loop) -> None:
        with self._lock:
            due = self._due.pop(loop, [])
        for sleepers in due:
            sleepers.taken()
            for future in list(sleepers):
                _finish(future)


def _finish(future: _Future) -> None:
    if not future.done():
        future.set_result(None)


def _wake_one(threads: dict[Sleeper, Waiter]) -> None:
    for sleeper in list(threads):
        if threads.pop(sleeper, None) is not None:  # else it has got up by itself
            sleeper.release()
