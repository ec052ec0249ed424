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
import threading
from typing import Any

from cacheworkers.local.coalescing import Crowds
from cacheworkers.local.flight import Flight, Future, Loop, Sleeper, TaskSleepers, finish


class Waiter:
    """One reader's place in a flight; a context manager that leaves it.

    Attributes:
        flight: shared with the other waiters of the call.
        number: later waiters have larger ones.
        until: when a task's sleep is to end, by its loop's time.
    """

    __slots__ = ("_is_chosen", "_may_act", "_seen", "_waiters", "flight", "number", "until")

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
        self.until = loop.time() + max(0.0, timeout)
        sleepers = self._register_task(loop, future)
        if sleepers is not None:
            sleepers.end_by(self.until)
            try:
                await future
            finally:
                if self.flight.tasks.get(loop) is sleepers:  # else a wake has taken it away
                    self._unregister(loop, sleepers, future)
        return self.woken

    def register(self, sleeper: Sleeper) -> dict[Sleeper, Waiter] | None:
        """Register a sleep; None if it is woken already.

        Whoever stops sleeping takes the sleeper out of what this returns, if a wake has not done so.
        """
        with self._waiters._lock:
            threads = self.flight.threads
            threads[sleeper] = self
            if self.woken:
                threads.pop(sleeper, None)
                return None
            self._may_act = False
            return threads

    def _register_task(self, loop: Loop, future: Future) -> TaskSleepers | None:
        """Register this task's sleep; None if it is woken already."""
        with self._waiters._lock:
            sleepers = self.flight.tasks.get(loop)
            if sleepers is None:
                sleepers = self.flight.tasks[loop] = TaskSleepers(loop)
            sleepers[future] = self
            if not self.woken:
                self._may_act = False
                return sleepers
        self._unregister(loop, sleepers, future)
        return None

    def _unregister(self, loop: Loop, sleepers: TaskSleepers, future: Future) -> None:
        tasks = self.flight.tasks
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
        self._due: dict[Loop, list[TaskSleepers]] = {}

    def next_number(self) -> int:
        """Return a number larger than all before."""
        return next(self._numbers)

    def __len__(self) -> int:
        with self._lock:
            waiters = sum(len(flight.waiters) for flight in list(self.flights.values()))
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
            flight.waiters.discard(waiter)
            if not flight.waiters and self.flights.get(flight.call) is flight:
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
            threads, flight.threads = flight.threads, {}
            tasks, flight.tasks = flight.tasks, {}
        for loop, sleepers in tasks.items():
            self._wake_tasks(loop, sleepers)
        _release_all(threads)

    def wake_one(self, flight: Flight) -> None:
        """Wake one other waiter of a flight: it acts in place of one that was cancelled or timed out.

        A waiter that is woken so and leaves before it has slept again wakes the next.
        """
        with self._lock:
            for loop, sleepers in list(flight.tasks.items()):
                for future, waiter in list(itertools.islice(sleepers.items(), 1)):
                    sleepers.pop(future, None)
                    waiter._is_chosen = waiter._may_act = True
                    alone = TaskSleepers(loop)
                    alone[future] = waiter
                    self._wake_tasks(loop, alone)
                    return
            for sleeper, waiter in list(flight.threads.items()):
                if flight.threads.pop(sleeper, None) is not None:  # else it has got up by itself
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
                flight.waiters.add(waiter)
                if self.flights.get(call) is flight:  # not ended by a leave within this very thread
                    return flight

    def _wake_tasks(self, loop: Loop, sleepers: TaskSleepers) -> None:
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

    def _wake_due(self, loop: Loop) -> None:
        with self._lock:
            due = self._due.pop(loop, [])
        for sleepers in due:
            sleepers.taken()
            for future in list(sleepers):
                finish(future)


def _release_all(threads: dict[Sleeper, Waiter]) -> None:
    for sleeper in list(threads):
        if threads.pop(sleeper, None) is not None:  # else it has got up by itself
            sleeper.release()
