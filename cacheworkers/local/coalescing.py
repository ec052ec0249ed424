"""Coalescing: of the reads of one call in one event loop, or on threads, one leads and the others share its outcome.

The leader looks in the store, claims, waits and decodes.  A follower gets only what was looked up after it joined: the
leader says before each of its looks whom that look covers (`Crowd.cover`).  Followers that joined later, and all of
them where the leader was cancelled, stay together, and one of them leads.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Hashable
from typing import Any

import msgspec

from cacheworkers.core.read_result import Read

_Future = asyncio.Future[Any]


class Outcome(msgspec.Struct, frozen=True):
    """What a leader's read came to.

    Attributes:
        payload: the value as JSON.
    """

    read: Read | None
    payload: bytes | None = None
    error: Exception | None = None


class _Lead:
    """Given to a follower that is to lead from here on."""


LEAD = _Lead()


class TaskPlace:
    """Where a task waits for the leader's outcome."""

    __slots__ = ("future", "started")

    def __init__(self, started: float) -> None:
        self.started = started
        self.future: _Future = asyncio.get_running_loop().create_future()

    def settle(self, outcome: Outcome | _Lead) -> bool:
        """Wake the task; False if it has been cancelled."""
        if self.future.done():
            return False
        with contextlib.suppress(RuntimeError):  # that loop is closed, and its tasks with it
            self.future.set_result(outcome)
            return True
        return False

    async def outcome(self, crowd: Crowd) -> Outcome | _Lead:
        """Wait in this task."""
        try:
            found: Outcome | _Lead = await self.future
        except BaseException:
            if self.future.done() and not self.future.cancelled() and self.future.result() is LEAD:
                crowd.pass_on()  # cancelled before it could lead
            raise
        return found


class ThreadPlace:
    """Where a thread waits for the leader's outcome."""

    __slots__ = ("_lock", "_signal", "found", "is_gone", "started")

    def __init__(self, started: float) -> None:
        self.started = started
        self.found: Outcome | _Lead | None = None
        self.is_gone = False
        self._lock = threading.RLock()
        self._signal = threading.Lock()
        self._signal.acquire()

    def settle(self, outcome: Outcome | _Lead) -> bool:
        """Wake the thread; False if it waits no more."""
        with self._lock:
            if self.is_gone or self.found is not None:
                return False
            self.found = outcome
        self._signal.release()
        return True

    def outcome(self, crowd: Crowd, timeout: float) -> Outcome | _Lead | None:
        """Wait in this thread, at most `timeout` seconds; None if nothing has come by then."""
        try:
            self._signal.acquire(timeout=max(0.0, min(timeout, threading.TIMEOUT_MAX)))
        except BaseException:
            if self._leave() is LEAD:
                crowd.pass_on()  # interrupted before it could lead
            raise
        return self._leave()

    def _leave(self) -> Outcome | _Lead | None:
        with self._lock:
            self.is_gone = True
            return self.found


Place = TaskPlace | ThreadPlace


class Crowd:
    """A leader, and the followers that wait for its outcome in the order in which they joined.

    Attributes:
        covered: how many of them joined before the look that the leader's outcome will come from.
        began_before: if not None, the outcome is for those that began before this monotonic instant only.
        payload: the leader's value as JSON; None if the value is for the leader alone.
    """

    __slots__ = ("_crowds", "_key", "_places", "began_before", "covered", "payload")

    def __init__(self, crowds: Crowds, key: Hashable) -> None:
        self._crowds = crowds
        self._key = key
        self._places: list[Place] = []
        self.covered = 0
        self.began_before: float | None = None
        self.payload: bytes | None = None

    def cover(self) -> int:
        """Say that the leader looks now; how many followers that covers."""
        self.covered, self.began_before = len(self._places), None
        return self.covered

    def succeed(self, read: Read) -> None:
        """End this leader's turn with a value."""
        self._end(Outcome(read, self.payload), with_covered=self.payload is not None)

    def fail(self, error: Exception) -> None:
        """End this leader's turn with an error."""
        self._end(Outcome(None, error=error), with_covered=True)

    def pass_on(self) -> None:
        """End this leader's turn without an outcome: another leads."""
        self._end(None, with_covered=False)

    def _end(self, outcome: Outcome | None, *, with_covered: bool) -> None:
        with self._crowds.lock:
            places, began_before = self._places, self.began_before
            done = places[: self.covered] if with_covered else []
            rest = places[len(done) :]
            if began_before is not None:
                rest = [each for each in done if each.started > began_before] + rest
                done = [each for each in done if each.started <= began_before]
            self._places, self.covered, self.began_before, self.payload = rest, 0, None, None
            self._promote()
        if outcome is not None:
            for each in done:
                each.settle(outcome)

    def _promote(self) -> None:
        """Have the first that still waits lead; without any, the crowd is over."""
        places = self._places
        for at, place in enumerate(places):
            if place.settle(LEAD):
                self._places = places[at + 1 :]
                return
        self._places = []
        self._crowds.forget(self._key, self)


class Crowds:
    """All crowds of this process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everybody, as a child does after a fork: those tasks and threads are the parent's."""
        # Re-entrant: a garbage collection inside it may close another read's coroutine, which passes its turn on.
        self.lock = threading.RLock()
        self._crowds: dict[Hashable, Crowd] = {}

    def enter(self, key: Hashable, kind: type[Place], started: float) -> tuple[Crowd, Place | None]:
        """Join the crowd of a call, and return the place to wait at; without a place, the caller leads.

        Args:
            key: of the call, of the event loop or of all threads, and of what else outcomes depend on.
            started: monotonic instant at which the read began.
        """
        place: Place | None = None
        while True:
            with self.lock:
                crowd = self._crowds.get(key)
                if crowd is None:
                    crowd = self._crowds[key] = Crowd(self, key)
                    return crowd, None
                if place is not None:
                    crowd._places.append(place)
                    return crowd, place
            # Not under the lock: a garbage collection in there may end that crowd.
            place = kind(started)

    def forget(self, key: Hashable, crowd: Crowd) -> None:
        """Forget a crowd that is over."""
        if self._crowds.get(key) is crowd:
            del self._crowds[key]

    def __len__(self) -> int:
        """Return how many follow."""
        return sum(len(crowd._places) for crowd in list(self._crowds.values()))
