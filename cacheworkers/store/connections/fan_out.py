"""FanOut: what goes to each of several masters in one write; all are sent before any reply is waited for."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from cacheworkers.store.connections.pool import PendingReply, Pool


class RoutedRequests(NamedTuple):
    """Commands for one master."""

    wires: Pool
    commands: Sequence[tuple[Any, ...]]


#: What is left is never less than this share of the timeout, and what has passed is nothing up to it.
_MARGIN = 0.05


class TimeLeft:
    """The time that several waits, one after the other, may take together."""

    __slots__ = ("_timeout", "_until")

    def __init__(self, seconds: float, timeout: float) -> None:
        """
        Args:
            timeout: what each of them may take anyhow, seconds.
        """
        self._until = time.monotonic() + seconds
        self._timeout = timeout

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._until

    @property
    def rest(self) -> float | None:
        """How long the next may take, seconds; None for the timeout, as long as hardly any time has passed.

        Never nothing: it may be this thread that was held up, and what it waits for may have come meanwhile.
        """
        rest, margin = self._until - time.monotonic(), _MARGIN * self._timeout
        return None if rest > self._timeout - margin else max(rest, margin)


class FanOut:
    """A step: the replies of each trip, in the time of the longest; if one fails, that is raised."""

    __slots__ = ("_trips", "_within")

    def __init__(self, *trips: RoutedRequests, within: float | None = None) -> None:
        """
        Args:
            within: by when all must have begun to answer, seconds, if not by the timeout of one.
        """
        self._trips = trips
        self._within = within

    def __repr__(self) -> str:
        return "+".join(str(words[0]).lower() for trip in self._trips for words in trip.commands)

    def run(self) -> list[list[Any]]:
        """Go, blocking this thread.

        Raises:
            RedisError, OSError: a connection failed.
        """
        if self._within is None and len(self._trips) == 1:
            wires, commands = self._trips[0]
            return [wires.exchange(commands)]
        timeout = max((trip.wires.timeout for trip in self._trips), default=0.0)
        time_left = TimeLeft(timeout if self._within is None else min(self._within, timeout), timeout)
        sent: collections.deque[PendingReply] = collections.deque()
        try:
            for trip in self._trips:
                sent.append(trip.wires.send(trip.commands, time_left.rest))
            found = []
            while sent:
                found.append(sent.popleft().receive(time_left.rest))
            return found
        finally:
            # Something failed: what others still have to say must not be taken for the answer to a later request.
            for each in sent:
                each.give_up()

    async def arun(self) -> list[list[Any]]:
        """Do the same on the running loop; a wire there reads and drops the replies that nobody waits for."""
        async with asyncio.timeout(self._within):
            if len(self._trips) == 1:
                wires, commands = self._trips[0]
                return [await wires.aexchange(commands)]
            going = (wires.aexchange(commands) for wires, commands in self._trips)
            found = await asyncio.gather(*going, return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return found  # type: ignore[return-value]  # exceptions have been raised
