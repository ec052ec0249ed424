"""Barrier: the step of an invalidation that waits until this process has processed all earlier messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future


class Barrier:
    """A step: wait until every message sent before it has been processed; False when the listener is not up."""

    __slots__ = ("_ping", "_timeout")

    def __init__(self, ping: Callable[[], list[Future[bool]] | None], timeout: float) -> None:
        """
        Args:
            ping: sends a ping to every master; None when not all are listened to.
        """
        self._ping = ping
        self._timeout = timeout

    def __repr__(self) -> str:
        return "barrier"

    def run(self) -> bool:
        """Wait, blocking this thread."""
        pings = self._ping()
        end = time.monotonic() + self._timeout
        try:
            return pings is not None and all([ping.result(max(0.0, end - time.monotonic())) for ping in pings])
        except TimeoutError:
            return False

    async def arun(self) -> bool:
        """Wait on the running loop."""
        pings = self._ping()
        if pings is None:
            return False
        waiting = asyncio.gather(*map(asyncio.wrap_future, pings))
        try:
            return all(await asyncio.wait_for(waiting, self._timeout))
        except TimeoutError:
            return False
