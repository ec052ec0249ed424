"""Coalescing: of the reads of one call in one event loop, or on threads, one leads and the others share its outcome.

The leader looks in the store, claims, waits and decodes.  A follower gets only what was looked up after it joined: the
leader says before each of its looks whom that look covers (`Crowd.cover`).  Followers that joined later, and all of
them where the leader was cancelled, stay together, and one of them leads: it is given the crowd instead of an outcome.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Hashable, Iterable
from typing import Any

import msgspec

from cacheworkers.core.read_result import Read

#: Where a task waits for the leader's outcome.  One a task: a cancelled task cancels what it awaits.
TaskPlace = asyncio.Future[Any]


def leave(place: TaskPlace) -> None:
    """Note that a task was cancelled at its place: if it was to lead, and could not, another does."""
    if place.done() and not place.cancelled() and type(crowd := place.result()) is Crowd:
        crowd.pass_on()


class Outcome:
    """What a leader's read came to.

    Attributes:
        payload: the value as JSON.
    """

    __slots__ = ("error", "payload", "read")

    def __init__(self, read: Read | None, payload: bytes | None = None, error: Exception | None = None) -> None:
        self.read = read
        self.payload = payload
        self.error = error


class ThreadPlace:
    """Where a thread waits for the leader's outcome."""

    __slots__ = ("_lock", "_signal", "found", "is_gone")

    def __init__(self) -> None:
        self.found: Outcome | Crowd | None = None
        self.is_gone = False
        self._lock = threading.RLock()
        self._signal = threading.Lock()
        self._signal.acquire()

    def settle(self, outcome: Outcome | Crowd) -> bool:
        """Wake the thread; False if it no longer waits."""
        with self._lock:
            if self.is_gone or self.found is not None:
                return False
            self.found = outcome
        self._signal.release()
        return True

    def outcome(self, timeout: float) -> Outcome | Crowd | None:
        """Wait in this thread, at most `timeout` seconds; None if nothing has come by then."""
        try:
            self._signal.acquire(timeout=max(0.0, min(timeout, threading.TIMEOUT_MAX)))
        except BaseException:
            found = self._leave()
            if type(found) is Crowd:
                found.pass_on()  # interrupted before it could lead
            raise
        return self._leave()

    def _leave(self) -> Outcome | Crowd | None:
        with self._lock:
            self.is_gone = True
            return self.found


class Crowd(msgspec.Struct, eq=False, gc=False):  # one a read of a task: no work for the garbage collector
    """A leader, and the followers that wait for its outcome in the order in which they joined.

    Attributes:
        group: the crowds of its loop, or of all threads; `key` is its place there.
        covered: how many of them joined before the look that the leader's outcome will come from.
        began_before: if not None, the outcome is for those that began before this monotonic instant only.
        payload: the leader's value as JSON; None if the value is for the leader alone.
        unsent: the number of the turn in which the leader's look waits to be sent, 0 for none; who joins before that
            is covered.
        guard, is_coherent: of memory, as they were before the leader's look.
        looked: what the leader has found that is not fresh.
        ahead: the claim that was sent for the leader.
        followers: where they wait; `began` has when the read of each began.  Not in pairs: the garbage collector walks
            over pairs.
        loop, index, arguments: once a task follows, the loop of all; where the same raw arguments lead to it.
    """

    group: dict[Hashable, Crowd]
    key: Hashable
    lock: Any
    covered: int = 0
    began_before: float | None = None
    payload: bytes | None = None
    unsent: int = 0
    guard: int = 0
    is_coherent: bool = False
    looked: Any = None
    ahead: Any = None
    followers: Any = ()
    began: Any = ()
    loop: Any = None
    index: dict[Any, Crowd] | None = None
    arguments: Any = None

    def join(self, place: Any, started: float) -> bool:
        """Have one more follow, who waits at a place; False if the crowd is over."""
        with self.lock:
            if self.group.get(self.key) is not self:
                return False
            if not self.followers:
                self.followers, self.began = [], []
            self.followers.append(place)
            self.began.append(started)
        return True

    def cover(self) -> int:
        """Say that the leader looks now; how many followers that covers."""
        self.covered, self.began_before, self.unsent = len(self.followers), None, 0
        return self.covered

    def cover_all(self) -> None:
        """Say that the leader's look has not been sent yet: it covers all that follow so far."""
        self.covered = len(self.followers)

    def disband(self) -> None:
        """End a crowd that nobody follows."""
        if self.followers:
            self.pass_on()
        else:
            self.leave_group()

    def leave_group(self) -> None:
        """Have nobody else follow."""
        if self.group.get(self.key) is self:
            del self.group[self.key]
        index = self.index
        if index is not None and index.get(self.arguments) is self:
            index.pop(self.arguments, None)  # another loop's crowd by now, perhaps: that is found by its key

    def succeed(self, read: Read) -> int:
        """End this leader's turn with a value; return how many it is shared with."""
        return self._end(Outcome(read, self.payload), with_covered=self.payload is not None)

    def fail(self, error: Exception) -> None:
        """End this leader's turn with an error."""
        self._end(Outcome(None, error=error), with_covered=True)

    def pass_on(self) -> None:
        """End this leader's turn without an outcome: another leads."""
        self._end(None, with_covered=False)

    def _end(self, outcome: Outcome | None, *, with_covered: bool) -> int:
        with self.lock:
            places, started = self.followers, self.began
            count = self.covered if with_covered else 0
            done, self.followers, self.began = places[:count], list(places[count:]), list(started[count:])
            if self.began_before is not None:
                early = [at <= self.began_before for at in started[:count]]
                late = [not is_early for is_early in early]
                self.followers[:0] = itertools.compress(done, late)
                self.began[:0] = itertools.compress(started, late)
                done = [*itertools.compress(done, early)]
            self.covered, self.began_before, self.payload, self.unsent, self.looked = 0, None, None, 0, None
            self.ahead = None
            self._promote()
        return _settle(done, outcome) if outcome is not None else 0

    def _promote(self) -> None:
        """Have the first that still waits lead; without any, the crowd is over."""
        for at, place in enumerate(self.followers):
            if _settle([place], self):
                del self.followers[: at + 1], self.began[: at + 1]
                return
        self.followers, self.began = (), ()
        self.disband()


def _settle(places: Iterable[Any], outcome: Outcome | Crowd) -> int:
    """Wake tasks of one loop, or threads; return how many of them still waited."""
    woken = 0
    for place in places:
        if type(place) is ThreadPlace:
            woken += place.settle(outcome)
        elif not place.done():
            try:
                place.set_result(outcome)
            except RuntimeError:  # that loop is closed, and its tasks with it
                break
            woken += 1
    return woken


class Crowds:
    """All crowds of this process.

    Attributes:
        of_threads: what they read -> crowd.
        of_loops: the same of the tasks of each event loop.
    """

    def __init__(self) -> None:
        self.of_loops: dict[asyncio.AbstractEventLoop, dict[Hashable, Crowd]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget everybody, as a child does after a fork: those tasks and threads are the parent's."""
        for group in self.of_loops.values():
            group.clear()  # nobody joins what a loader's index has of it
        # Re-entrant: a garbage collection inside it may close another read's coroutine, which passes its turn on.
        self.lock = threading.RLock()
        self.of_threads: dict[Hashable, Crowd] = {}
        self.of_loops = {}

    def enter(self, key: Hashable, started: float, loop: asyncio.AbstractEventLoop | None) -> tuple[Crowd, Any]:
        """Join the crowd of a call, and return the place to wait at; without a place, the caller leads.

        Args:
            key: of the call, and of what else outcomes depend on.
            started: monotonic instant at which the read began.
            loop: of a task; None for a thread.
        """
        group = self.of_threads if loop is None else self.of_loops.get(loop)
        if group is None:
            group = self._group_of(loop)
        while True:
            if key not in group:
                alone = Crowd(group, key, self.lock)
                if group.setdefault(key, alone) is alone:
                    return alone, None
            # Not under the lock: a garbage collection in there may end that crowd.
            place: Any = ThreadPlace() if loop is None else asyncio.Future(loop=loop)
            crowd = group.get(key)
            if crowd is not None and crowd.join(place, started):
                return crowd, place

    def __len__(self) -> int:
        """Return how many follow."""
        groups = (self.of_threads, *list(self.of_loops.values()))
        return sum(len(crowd.followers) for group in groups for crowd in list(group.values()))

    def _group_of(self, loop: Any) -> dict[Hashable, Crowd]:
        """Return the crowds of a loop that has had none, and forget loops that are closed."""
        for other in list(self.of_loops):
            if other.is_closed():
                for crowd in list(self.of_loops.pop(other, {}).values()):
                    crowd.leave_group()
        return self.of_loops.setdefault(loop, {})
