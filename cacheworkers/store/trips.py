"""Trips: what goes to each of several masters in one write; all are sent before any reply is waited for."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

from cacheworkers.store.wires import Sent, Wires


class Trip(NamedTuple):
    """Commands for one master."""

    wires: Wires
    commands: Sequence[tuple[Any, ...]]


class Trips:
    """A step: the replies of each trip, in the time of the longest; if one fails, that is raised."""

    __slots__ = ("_trips",)

    def __init__(self, *trips: Trip) -> None:
        self._trips = trips

    def __repr__(self) -> str:
        return "+".join(str(words[0]).lower() for trip in self._trips for words in trip.commands)

    def run(self) -> list[list[Any]]:
        """Go, blocking this thread.

        Raises:
            RedisError, OSError: a connection failed.
        """
        if len(self._trips) == 1:
            wires, commands = self._trips[0]
            return [wires.exchange(commands)]
        sent: collections.deque[Sent] = collections.deque()
        try:
            for trip in self._trips:
                sent.append(trip.wires.send(trip.commands))
            found = []
            while sent:
                found.append(sent.popleft().receive())
            return found
        finally:
            # Something failed: what others still have to say must not be taken for the answer to a later request.
            for each in sent:
                each.give_up()

    async def arun(self) -> list[list[Any]]:
        """Do the same on the running loop; a wire there reads and drops the replies that nobody waits for."""
        if len(self._trips) == 1:
            wires, commands = self._trips[0]
            return [await wires.aexchange(commands)]
        going = (wires.aexchange(commands) for wires, commands in self._trips)
        found = await asyncio.gather(*going, return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return found  # type: ignore[return-value]  # exceptions have been raised
