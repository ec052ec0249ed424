"""FanOut: commands for several masters, all sent before any reply is waited for."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from cacheworkers.store.connections.pool import PendingReply, Pool

#: What is left is never less than this share of the timeout, and up to it what has passed counts as nothing.
_MARGIN = 0.05


class RoutedRequests(NamedTuple):
    """Commands for one master."""

    pool: Pool
    commands: Sequence[tuple[Any, ...]]


class TimeLeft:
    """The time that several waits, one after the other, may take together."""

    __slots__ = ("_timeout", "_until")

    def __init__(self, seconds: float, timeout: float) -> None:
        """
        Args:
            timeout: of each wait alone, seconds.
        """
        self._until = time.monotonic() + seconds
        self._timeout = timeout

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._until

    @property
    def rest(self) -> float | None:
        """How long the next wait may take, seconds; None for the timeout, while hardly any time has passed.

        Never nothing: this thread may have been held up, and its reply may have arrived meanwhile.
        """
        rest, margin = self._until - time.monotonic(), _MARGIN * self._timeout
        return None if rest > self._timeout - margin else max(rest, margin)


class FanOut:
    """A step: the replies of each master, in the time of the slowest; if one fails, its error is raised."""

    __slots__ = ("_parts", "_timeout")

    def __init__(self, *parts: RoutedRequests, timeout: float | None = None) -> None:
        """
        Args:
            timeout: by when all masters must have begun to answer, seconds, if not the pools'.
        """
        self._parts = parts
        self._timeout = timeout

    def __repr__(self) -> str:
        return "+".join(str(words[0]).lower() for part in self._parts for words in part.commands)

    def run(self) -> list[list[Any]]:
        """Run, blocking this thread.

        Raises:
            RedisError, OSError: a connection failed.
        """
        if self._timeout is None and len(self._parts) == 1:
            pool, commands = self._parts[0]
            return [pool.exchange(commands)]
        longest = max((part.pool.timeout for part in self._parts), default=0.0)
        time_left = TimeLeft(longest if self._timeout is None else min(self._timeout, longest), longest)
        sent: collections.deque[PendingReply] = collections.deque()
        try:
            for part in self._parts:
                sent.append(part.pool.send(part.commands, time_left.rest))
            found = []
            while sent:
                found.append(sent.popleft().receive(time_left.rest))
            return found
        finally:
            # One failed: the replies of the others must not be taken for those of a later request.
            for each in sent:
                each.give_up()

    async def arun(self) -> list[list[Any]]:
        """Run on the running loop; its connections read and drop the replies that nobody waits for."""
        async with asyncio.timeout(self._timeout):
            if len(self._parts) == 1:
                pool, commands = self._parts[0]
                return [await pool.aexchange(commands)]
            exchanges = (pool.aexchange(commands) for pool, commands in self._parts)
            found = await asyncio.gather(*exchanges, return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return found  # type: ignore[return-value]  # exceptions have been raised
