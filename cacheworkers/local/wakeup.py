"""Wakeup: one reader that waits for many calls, and is woken by a push of any of them."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
from typing import Any

from cacheworkers.local.flight import finish

_Awaited = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Wakeup:
    """Woken with a name; whoever waits learns which names it was woken with.

    May be woken by any thread, also within a locked section of another: there is no lock here that could be waited for.
    """

    __slots__ = ("_awaited", "_names", "_signal")

    def __init__(self) -> None:
        self._names: collections.deque[Any] = collections.deque()
        # A binary semaphore: free once it was woken.
        self._signal = threading.Lock()
        self._signal.acquire()
        self._awaited: _Awaited | None = None

    def wake(self, name: Any) -> None:
        """Wake who waits, now or next."""
        self._names.append(name)  # before the signal: who is woken finds it
        with contextlib.suppress(RuntimeError):  # woken already
            self._signal.release()
        awaited = self._awaited
        if awaited is not None:
            self._awaited = None  # one call into the loop, however often it is woken
            loop, future = awaited
            with contextlib.suppress(RuntimeError):  # that loop is closed, and its tasks with it
                loop.call_soon_threadsafe(finish, future)

    def woken_names(self) -> list[Any]:
        """Return each name it was woken with since the last time, once."""
        found: dict[Any, None] = {}
        while self._names:
            found[self._names.popleft()] = None
        return list(found)

    def wait(self, timeout: float) -> bool:
        """Sleep in this thread until it is woken, at most `timeout` seconds; True if it was."""
        return self._signal.acquire(timeout=max(0.0, min(timeout, threading.TIMEOUT_MAX)))

    async def await_(self, timeout: float) -> bool:
        """Sleep in this task until it is woken, at most `timeout` seconds; True if it was."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        # Registered first, and asked then: who wakes it in between finds the future, or has left the signal free.
        self._awaited = loop, future
        try:
            if not self._signal.acquire(blocking=False):
                timer = loop.call_later(max(0.0, timeout), finish, future)
                try:
                    await future
                finally:
                    timer.cancel()
                return self._signal.acquire(blocking=False)
            return True
        finally:
            self._awaited = None


class NamedWaker:
    """Stands for one of many that sleep: to wake it is to wake the reader with its name."""

    __slots__ = ("_name", "_wakeup")

    def __init__(self, wakeup: Wakeup, name: Any) -> None:
        self._wakeup = wakeup
        self._name = name

    def release(self) -> None:
        """Wake it."""
        self._wakeup.wake(self._name)
