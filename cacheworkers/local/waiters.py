"""Waiters: who in this process waits for which call, as threads and as tasks side by side.

A reader enters before it looks, and is woken by the listener's push.  All waiters of one call share a flight: what
is known of the lease they wait for, so that one of them asks and not all.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any


class Flight:
    """What this process knows of one call that is being waited for.

    Attributes:
        held_until: monotonic instant until which a lease is known to be held; 0 none.
        token: that lease's token.
        is_begun, is_taken_over: that lease's state when it was last seen.
        is_claiming: one reader of this process is claiming right now.
        is_loading: one reader of this process is loading without the store.
        shared: what such a load came to.
    """

    __slots__ = (
        "_sleepers",
        "_waiters",
        "call",
        "held_until",
        "is_begun",
        "is_claiming",
        "is_loading",
        "is_taken_over",
        "shared",
        "token",
    )

    def __init__(self, call: str) -> None:
        self.call = call
        self._waiters: dict[Waiter, None] = {}
        self._sleepers: dict[Waiter, None] = {}
        self.is_claiming = False
        self.is_loading = False
        self.shared: Any = None
        self.forget_lease()

    def forget_lease(self) -> None:
        """The lease has ended, or another has begun."""
        self.held_until = 0.0
        self.token = ""
        self.is_begun = False
        self.is_taken_over = False


class Waiter:
    """One reader's place in a flight; a context manager that leaves it.

    Attributes:
        flight: shared with the other waiters of the call.
        woken: a push came since `rearm`.
    """

    __slots__ = ("_future", "_lock", "_loop", "_waiters", "flight", "woken")

    def __init__(self, waiters: Waiters, flight: Flight) -> None:
        self._waiters = waiters
        self.flight = flight
        self.woken = False
        self._lock: threading.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[None] | None = None

    def __enter__(self) -> Waiter:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiters.leave(self)

    def rearm(self) -> None:
        """Forget earlier wake-ups; called before looking, so that a push from then on is not lost."""
        self.woken = False

    def wait(self, timeout: float) -> bool:
        """Sleep in this thread until woken, at most `timeout` seconds; True if woken."""
        with self._waiters.lock:
            if self.woken:
                return True
            self._lock = threading.Lock()
            self._lock.acquire()
            self.flight._sleepers[self] = None
        try:
            self._lock.acquire(timeout=max(0.0, min(timeout, threading.TIMEOUT_MAX)))
        finally:
            with self._waiters.lock:
                self.flight._sleepers.pop(self, None)
                self._lock = None
        return self.woken

    async def await_(self, timeout: float) -> bool:
        """Sleep in this task until woken, at most `timeout` seconds; True if woken."""
        loop = asyncio.get_running_loop()
        with self._waiters.lock:
            if self.woken:
                return True
            future = self._future = loop.create_future()
            self._loop = loop
            self.flight._sleepers[self] = None
        timer = loop.call_later(max(0.0, timeout), _finish, future)
        try:
            await future
        finally:
            timer.cancel()
            with self._waiters.lock:
                self.flight._sleepers.pop(self, None)
                self._future = self._loop = None
        return self.woken


class Waiters:
    """All waiters of this process, by call."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everybody, as a child does after a fork."""
        self.lock = threading.Lock()
        self._flights: dict[str, Flight] = {}

    def __len__(self) -> int:
        with self.lock:
            return sum(len(flight._waiters) for flight in self._flights.values())

    def enter(self, call: str) -> Waiter:
        """Register for a call's pushes; from now on none is missed."""
        with self.lock:
            flight = self._flights.get(call)
            if flight is None:
                flight = self._flights[call] = Flight(call)
            waiter = Waiter(self, flight)
            flight._waiters[waiter] = None
            return waiter

    def leave(self, waiter: Waiter) -> None:
        """End a registration; the flight ends with its last waiter."""
        flight = waiter.flight
        with self.lock:
            flight._waiters.pop(waiter, None)
            if not flight._waiters and self._flights.get(flight.call) is flight:
                del self._flights[flight.call]

    def wake(self, call: str) -> None:
        """Wake all who wait for a call: its entry or its failure has changed, and with it its lease."""
        flight = self._flights.get(call)
        if flight is not None:
            flight.forget_lease()
            self.nudge_all(flight)

    def wake_all(self) -> None:
        """Wake everybody: pushes may have been missed."""
        with self.lock:
            calls = list(self._flights)
        for call in calls:
            self.wake(call)

    def nudge(self, flight: Flight) -> None:
        """Wake one waiter that sleeps: it takes the baton of one that has failed."""
        with self.lock:
            sleeper = next(iter(flight._sleepers), None)
        if sleeper is not None:
            self._wake([sleeper])

    def nudge_all(self, flight: Flight) -> None:
        """Wake all waiters of a flight; what it knows of the lease stays."""
        with self.lock:
            waiters = list(flight._waiters)
        self._wake(waiters)

    def _wake(self, waiters: list[Waiter]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        with self.lock:
            for waiter in waiters:
                waiter.woken = True
                if waiter._lock is not None:
                    if waiter._lock.locked():
                        waiter._lock.release()
                elif waiter._future is not None and waiter._loop is not None:
                    by_loop.setdefault(waiter._loop, []).append(waiter._future)
        for loop, futures in by_loop.items():
            # One call a loop, not one a task: each writes to the loop's self-pipe.
            try:
                loop.call_soon_threadsafe(_finish_all, futures)
            except RuntimeError:
                continue  # that loop is closed, and its tasks with it


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _finish_all(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
